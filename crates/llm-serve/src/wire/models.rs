//! `/v1/models`.

use serde::Serialize;
use utoipa::ToSchema;

/// The models of a server: the base model and its adapters.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// Always `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    /// The name for `model` of a request.
    pub(crate) id: String,
    /// Always `model`.
    pub(crate) object: &'static str,
    /// When the server loaded it, in seconds since 1970.
    pub(crate) created: u64,
    /// Always `llm-infer`.
    pub(crate) owned_by: &'static str,
    /// The base model of an adapter.
    pub(crate) parent: Option<String>,
    /// The context length in tokens.
    pub(crate) max_model_len: usize,
}
