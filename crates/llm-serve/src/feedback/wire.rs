//! The JSON of requests and answers. Answers have keys in it in place of their ids, which may name a model.

use std::collections::BTreeMap;

use llm_feedback::store::Grades;
use serde::Deserialize;
use serde_json::Value;

/// The name of who asks, where no token is needed.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) annotator: Option<String>,
}

/// A request about an item.
#[derive(Debug, Deserialize)]
pub(super) struct OfItem {
    pub(super) item: String,
}

/// A draft of a judgement, which only the page reads.
#[derive(Debug, Deserialize)]
pub(super) struct Draft {
    pub(super) item: String,
    pub(super) draft: Value,
    /// What happened since the last draft: changes of the order, and of what is visible.
    #[serde(default)]
    pub(super) events: Vec<String>,
}

/// A judgement.
#[derive(Debug, Deserialize)]
pub(super) struct Judged {
    /// Chosen by the page, and the same when the judgement is sent again.
    pub(super) id: String,
    pub(super) item: String,
    pub(super) kind: JudgedKind,
    /// The rank of each answer, 1 is the best; equal ranks are ties.
    #[serde(default)]
    pub(super) ranks: BTreeMap<String, u32>,
    /// The keys in the order in which the answers were shown.
    pub(super) shown: Vec<String>,
    #[serde(default)]
    pub(super) grades: Grades,
    #[serde(default)]
    pub(super) reason: String,
    /// When the item was shown, in milliseconds since 1970 by the clock of the page.
    pub(super) started: i64,
    /// For how long the page was visible.
    pub(super) ms_visible: i64,
    pub(super) guideline_version: Option<String>,
}

/// Kinds of judgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JudgedKind {
    Rank,
    AllBad,
    Skip,
    Flag,
}

/// Takes the last judgement back.
#[derive(Debug, Deserialize)]
pub(super) struct Undo {
    /// Chosen by the page, and the same when the request is sent again.
    pub(super) id: String,
}
