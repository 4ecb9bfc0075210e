//! Items, answers, judgements and tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use llm_tokenizer::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The rank of each ranked answer by its id: 1 for the best, equal ranks for ties. An answer without an entry is not ranked.
pub type Ranks = BTreeMap<String, u32>;

/// Grades by answer id and aspect, such as `accuracy`, `helpfulness` and `safety`.
pub type Grades = BTreeMap<String, BTreeMap<String, Grade>>;

/// The most answers of an item.
pub const MAX_ANSWERS: usize = 9;

/// The number of an annotator in one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AnnotatorId(pub i64);

/// Who judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotatorInfo {
    /// The number.
    pub id: AnnotatorId,
    /// The name, unique in the database.
    pub name: String,
    /// The kind of annotator.
    pub role: Role,
    /// Whether the annotator has a token.
    pub has_token: bool,
}

/// The kind of an annotator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A person.
    Person,
    /// A program ([`crate::Annotator`]).
    Simulated,
}

/// A prompt with its answers, to be stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewItem {
    /// The name of the item, unique in the database.
    pub id: String,
    /// The messages before the answers, at least one.
    pub prompt: Vec<ChatMessage>,
    /// Where it comes from, such as a file name or `arena`.
    pub source: String,
    /// The known ranks of the answers, if this is a gold item: it tests the annotators.
    pub gold_order: Option<Ranks>,
    /// The answers, 1 to [`MAX_ANSWERS`]; an item with one answer is not given to annotators.
    pub answers: Vec<NewAnswer>,
}

/// An answer of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewAnswer {
    /// The name of the answer, unique in its item. Annotators may see it: it must not reveal the model.
    pub id: String,
    /// The text.
    pub text: String,
    /// The sampled token ids, with the end token.
    pub token_ids: Option<Vec<u32>>,
    /// The model that gave the answer.
    pub checkpoint: Option<String>,
    /// The settings of sampling as JSON.
    pub sampling: Option<Value>,
    /// The seed of sampling.
    pub seed: Option<u64>,
    /// Why the answer ended: `stop` or `length`.
    pub finish: Option<String>,
}

impl NewAnswer {
    /// An answer of which only the text is known.
    pub fn text(id: impl Into<String>, text: impl Into<String>) -> Self {
        let (id, text) = (id.into(), text.into());
        Self { id, text, token_ids: None, checkpoint: None, sampling: None, seed: None, finish: None }
    }
}

/// What [`super::Store::add_items`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// New items.
    pub added: usize,
    /// Items that were there already, with the same content.
    pub present: usize,
}

/// What [`super::Store::import`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// The items.
    pub items: Added,
    /// New judgements.
    pub judgements: usize,
    /// Judgements that were there already.
    pub present: usize,
}

/// An item of the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The item as it was added. The answers are in the order in which they were added.
    pub item: NewItem,
    /// When it was added, in milliseconds since 1970.
    pub created: i64,
}

/// A grade of one aspect of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Not to be given to a user.
    Bad,
    /// Usable.
    Acceptable,
    /// Good.
    Good,
}

/// What an annotator said of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A ranking.
    Rank {
        /// The ranks, of at least two answers (one, if the item has one answer).
        ranks: Ranks,
    },
    /// All answers are bad. This is not a tie: it says that none is better and that none is good.
    AllBad,
    /// The annotator cannot judge it. Others may.
    Skip,
    /// The item is broken, unsafe or names a model; `reason` of the judgement says which. It is given to nobody else.
    Flag,
}

/// A judgement of one annotator on one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// A name that the client makes, such as a UUID: 1 to 64 letters, digits, `-` and `_`. The same judgement may be sent again.
    pub id: String,
    /// The item.
    pub item: String,
    /// The annotator.
    pub annotator: AnnotatorId,
    /// The judgement.
    #[serde(flatten)]
    pub kind: Kind,
    /// The ids of the answers in the order in which they were shown.
    pub shown: Vec<String>,
    /// Grades of the answers; may be empty.
    #[serde(default)]
    pub grades: Grades,
    /// A reason in words. A flag must have one.
    #[serde(default)]
    pub reason: Option<String>,
    /// When the item was shown, in milliseconds since 1970.
    pub started: i64,
    /// How long it was visible, in milliseconds.
    pub ms_visible: i64,
    /// The id of the earlier judgement of the same annotator, if the item was shown again to measure self-agreement. None: as the
    /// task that was given out says.
    #[serde(default)]
    pub repeat_of: Option<String>,
    /// The version of the guideline that the annotator saw ([`Policy::guideline_version`]).
    #[serde(default)]
    pub guideline_version: Option<String>,
}

/// What [`super::Store::judge`] did. Both mean that the judgement is in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It is stored.
    Accepted,
    /// It was stored before.
    Repeated,
}

/// A row of the table of judgements.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredJudgement {
    /// The judgement. None: the row undoes another one.
    pub judgement: Option<Judgement>,
    /// The id of the row.
    pub id: String,
    /// The item.
    pub item: String,
    /// The annotator.
    pub annotator: AnnotatorId,
    /// The name of the annotator.
    pub annotator_name: String,
    /// When it arrived, in milliseconds since 1970.
    pub submitted: i64,
    /// The row that this one replaces or undoes.
    pub supersedes: Option<String>,
}

/// How items are given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How many annotators judge each item, at least 1. Default 1.
    pub overlap: u32,
    /// One of this many items is a gold item, if there are any; 0: none. Default 20.
    pub gold_every: u32,
    /// After this many items one of the annotator's own items is shown again; 0: never. Default 30.
    pub repeat_every: u32,
    /// How long an item is reserved for the annotator who sees it. Default 10 minutes.
    pub lease: Duration,
    /// The seed of the order of answers, and of the places of gold items and repeats. Default 42.
    pub seed: u64,
    /// The guideline that annotators see. Default empty.
    pub guideline: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            overlap: 1,
            gold_every: 20,
            repeat_every: 30,
            lease: Duration::from_mins(10),
            seed: 42,
            guideline: String::new(),
        }
    }
}

impl Policy {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<()> {
        if self.overlap == 0 {
            return Err(Error::Policy("overlap is 0; it must be at least 1".to_owned()));
        }
        if !(1..=86_400_000).contains(&self.lease.as_millis()) {
            return Err(Error::Policy(format!("lease is {:?}; it must be from 1 ms to 1 day", self.lease)));
        }
        Ok(())
    }

    /// The first 8 digits of the SHA-256 of the guideline; none, if there is no guideline.
    pub fn guideline_version(&self) -> Option<String> {
        (!self.guideline.is_empty()).then(|| hex(&Sha256::digest(&self.guideline))[..8].to_owned())
    }

    pub(super) fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX)
    }
}

/// An item that is reserved for an annotator.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The id of the item.
    pub item: String,
    /// The messages before the answers.
    pub prompt: Vec<ChatMessage>,
    /// The answers in the order in which they must be shown. The annotator must not see `checkpoint`, `sampling` and the others.
    pub answers: Vec<NewAnswer>,
    /// Until when it is reserved, in milliseconds since 1970.
    pub lease_until: i64,
    /// What [`super::Store::save_draft`] stored last.
    pub draft: Option<Value>,
    /// The earlier judgement, if the annotator has judged this item before. The annotator must not see it.
    pub repeat_of: Option<String>,
    /// How far the annotator is.
    pub progress: Progress,
}

/// How far an annotator is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Judgements of this annotator that are not undone.
    pub done: usize,
    /// Items that this annotator can still get, with the present one.
    pub left: usize,
    /// Judgements per hour of visible time, over the last 50; none without judgements.
    pub per_hour: Option<f64>,
    /// The median visible time in seconds, over the last 50 judgements.
    pub median_seconds: Option<f64>,
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of parts, with their lengths, so that different parts have different hashes.
pub(super) fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The first 16 hexadecimal digits of a SHA-256 of parts: a name that depends on the parts only.
pub fn digest(parts: &[&str]) -> String {
    hex(&hash(parts)[..8])
}

/// A number from 0 to `below - 1` that depends on the parts only; 0, if `below` is 0.
pub(super) fn pick(parts: &[&str], below: u64) -> u64 {
    let hash = hash(parts);
    let number = hash[..8].iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    number.checked_rem(below).unwrap_or(0)
}
