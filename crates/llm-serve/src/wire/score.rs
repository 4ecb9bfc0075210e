//! `/v1/score` and `/v1/rerank`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::json::Texts;
use super::usage::Usage;

/// A request for scores by a reward model.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ScoreRequest {
    pub(crate) model: Option<String>,
    /// The texts to score.
    pub(crate) input: Option<Texts>,
    /// Conversations to score, instead of `input`; each is a list of messages.
    #[schema(value_type = Option<Vec<Vec<Object>>>)]
    pub(crate) messages: Option<Vec<Vec<llm_tokenizer::ChatMessage>>>,
}

/// The scores.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScoreResponse {
    pub(crate) id: String,
    /// Always `list`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) data: Vec<Score>,
    pub(crate) usage: Usage,
}

/// One score.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Score {
    pub(crate) index: usize,
    /// Always `score`.
    pub(crate) object: &'static str,
    pub(crate) score: f32,
}

/// A request to order documents by how well they answer a query.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    pub(crate) model: Option<String>,
    pub(crate) query: String,
    pub(crate) documents: Vec<Document>,
    /// Return only the first n.
    #[schema(minimum = 1)]
    pub(crate) top_n: Option<usize>,
    /// Return the documents, too.
    pub(crate) return_documents: Option<bool>,
}

/// A document: a text, or an object with a text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a text or {\"text\": …}")]
pub(crate) enum Document {
    /// A text.
    Plain(String),
    /// An object with a text.
    Object { text: String },
}

impl Document {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Object { text } => text,
        }
    }
}

/// The documents in order, the best first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankResponse {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) results: Vec<Ranked>,
    pub(crate) usage: Usage,
}

/// A document in its place.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ranked {
    /// Its index in the request.
    pub(crate) index: usize,
    pub(crate) relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) document: Option<RankedDocument>,
}

/// The text of a document.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedDocument {
    pub(crate) text: String,
}
