//! `/v1/embeddings`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::json::Texts;

/// A request for embeddings.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    pub(crate) model: Option<String>,
    /// At most 2048 texts.
    pub(crate) input: Texts,
    #[serde(default)]
    pub(crate) encoding_format: Option<Encoding>,
    /// Keep only this many first components, and normalise again.
    #[schema(minimum = 1)]
    pub(crate) dimensions: Option<usize>,
    /// Of no effect.
    #[allow(dead_code, reason = "documented and checked, without effect")]
    pub(crate) user: Option<String>,
}

/// How the numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// The bytes of little-endian f32 numbers in base64.
    Base64,
}

/// The embeddings, in the order of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingResponse {
    /// Always `list`.
    pub(crate) object: &'static str,
    pub(crate) model: String,
    pub(crate) data: Vec<Embedding>,
    pub(crate) usage: EmbeddingUsage,
}

/// The embedding of one text, of length 1.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// Always `embedding`.
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Numbers,
}

/// The numbers of an embedding.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Numbers {
    /// A list of numbers.
    Float(Vec<f32>),
    /// base64.
    Base64(String),
}

/// The tokens of the texts.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}
