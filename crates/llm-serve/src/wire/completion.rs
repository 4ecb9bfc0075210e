//! `/v1/completions`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::StreamOptions;
use super::json::{OneOrMany, Texts};
use super::logprobs::CompletionLogprobs;
use super::output::{ResponseFormat, StructuredOutputs};
use super::usage::StreamUsage;

/// A request to continue texts. The keys of sampling are those of `Sampling`.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// The model or an adapter; by default the base model.
    pub(crate) model: Option<String>,
    /// The texts to continue, or their token ids.
    pub(crate) prompt: Texts,
    /// Maximum number of tokens to generate [default: 16]; with 0 and `echo` only the prompt is scored.
    pub(crate) max_tokens: Option<usize>,
    /// Number of answers to each prompt, from 1 to 128.
    #[schema(minimum = 1, maximum = 128)]
    pub(crate) n: Option<usize>,
    /// Generate this many answers and return the `n` most likely.
    #[schema(minimum = 1, maximum = 128)]
    pub(crate) best_of: Option<usize>,
    /// The answer begins with the prompt.
    pub(crate) echo: Option<bool>,
    /// Return the log-probabilities of each token and of this many most likely tokens, from 0 to 20.
    #[schema(maximum = 20)]
    pub(crate) logprobs: Option<usize>,
    /// Not supported.
    pub(crate) suffix: Option<String>,
    /// Texts before which an answer ends.
    pub(crate) stop: Option<OneOrMany<String>>,
    /// Send the answer while it is generated.
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// Begin with the begin-of-sequence token, if the tokenizer is configured to add it [default: true].
    pub(crate) add_special_tokens: Option<bool>,
    /// Keep only this many tokens at the end of the prompt.
    #[schema(minimum = 1)]
    pub(crate) truncate_prompt_tokens: Option<usize>,
    /// Requests of a higher priority start first.
    pub(crate) priority: Option<i32>,
    /// Only requests with the same salt share cached prompts.
    pub(crate) cache_salt: Option<String>,
    /// Waiting requests of several users are started in turn.
    pub(crate) user: Option<String>,
}

/// The answers, or a part of them: a stream has the same shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionResponse {
    pub(crate) id: String,
    /// Always `text_completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    pub(crate) choices: Vec<CompletionChoice>,
    /// Of a stream null but in the last chunk, and only with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::usage::Usage>)]
    pub(crate) usage: Option<StreamUsage>,
    /// The seed that was used: the same request with it gives the same answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

/// One answer: answer c of prompt p has the index p · n + c.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null while a stream goes on.
    pub(crate) finish_reason: Option<&'static str>,
}
