//! `/tokenize`, `/detokenize` and `/apply-template`.

use llm_tokenizer::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A request for token ids: a `prompt` (or `content`), or `messages`.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    #[allow(dead_code, reason = "documented and checked, without effect")]
    pub(crate) model: Option<String>,
    /// The text.
    pub(crate) prompt: Option<String>,
    /// The same as `prompt`, with `add_special_tokens` false by default.
    pub(crate) content: Option<String>,
    /// A conversation.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) messages: Option<Vec<ChatMessage>>,
    /// Begin with the begin-of-sequence token, if the tokenizer is configured to add it; the default is true for `prompt`.
    #[serde(alias = "add_special")]
    pub(crate) add_special_tokens: Option<bool>,
    /// Return the text of each token.
    #[serde(alias = "with_pieces")]
    pub(crate) return_token_strs: Option<bool>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
    pub(crate) tools: Option<Vec<Value>>,
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

/// Token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeResponse {
    /// The number of tokens.
    pub(crate) count: usize,
    /// The context length of the model.
    pub(crate) max_model_len: usize,
    pub(crate) tokens: Vec<u32>,
    /// The text of each token, if it was asked for.
    pub(crate) token_strs: Option<Vec<String>>,
}

/// A request for the text of token ids.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    #[allow(dead_code, reason = "documented and checked, without effect")]
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
}

/// The text of token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeResponse {
    /// The text.
    pub(crate) prompt: String,
    /// The same text.
    pub(crate) content: String,
}

/// A conversation as the model sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateResponse {
    /// The text.
    pub(crate) prompt: String,
    /// Its token ids.
    pub(crate) tokens: Vec<u32>,
    /// The number of tokens.
    pub(crate) count: usize,
}
