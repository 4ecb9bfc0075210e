//! `/v1/chat/completions`.

use llm_tokenizer::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::json::OneOrMany;
use super::logprobs::ChatLogprobs;
use super::output::{ResponseFormat, StructuredOutputs};
use super::usage::{StreamUsage, Usage};

/// A request for the next message of a conversation. The keys of sampling are those of `Sampling`.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// The model or an adapter; by default the base model.
    pub(crate) model: Option<String>,
    /// The conversation, at least one message, each with `role` and `content` (a text, a list of text parts or null).
    #[schema(value_type = Vec<Object>, min_items = 1)]
    pub(crate) messages: Vec<ChatMessage>,
    /// Maximum number of tokens to generate, at least 1 [default: the rest of the context].
    #[schema(minimum = 1)]
    pub(crate) max_completion_tokens: Option<usize>,
    /// The old name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    pub(crate) max_tokens: Option<usize>,
    /// Number of answers, from 1 to 128.
    #[schema(minimum = 1, maximum = 128)]
    pub(crate) n: Option<usize>,
    /// Texts before which an answer ends.
    pub(crate) stop: Option<OneOrMany<String>>,
    /// Send the answer while it is generated.
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// Return the log-probability of each token.
    pub(crate) logprobs: Option<bool>,
    /// And those of this many most likely tokens, from 0 to 20.
    #[schema(maximum = 20)]
    pub(crate) top_logprobs: Option<usize>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// The functions that the model may call.
    pub(crate) tools: Option<Vec<Tool>>,
    /// `auto`, `none`, `required`, or the function to call.
    pub(crate) tool_choice: Option<ToolChoice>,
    /// More than one call in one answer [default: true].
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Begin an answer of the assistant [default: true].
    pub(crate) add_generation_prompt: Option<bool>,
    /// Continue the last message; the answer is the new text only.
    pub(crate) continue_final_message: Option<bool>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
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

/// Options of a stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk with `usage`.
    pub(crate) include_usage: Option<bool>,
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Tool {
    /// `function`
    #[serde(rename = "type")]
    pub(crate) kind: ToolKind,
    /// `name`, `description` and `parameters`, a JSON schema.
    #[schema(value_type = Object)]
    pub(crate) function: Function,
}

/// The kind of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolKind {
    Function,
}

/// A function; all its keys are given to the chat template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) others: Map<String, Value>,
}

impl Function {
    /// The JSON schema of the arguments; no arguments if there is none.
    pub(crate) fn parameters(&self) -> Value {
        let given = self.others.get("parameters").filter(|schema| !schema.is_null());
        given
            .cloned()
            .unwrap_or_else(|| serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false}))
    }
}

/// Which tools are called.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(crate) enum ToolChoice {
    Mode(ToolMode),
    Named { function: FunctionName },
}

/// A choice that names no tool.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolMode {
    Auto,
    None,
    Required,
}

/// The name of a function.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub(crate) struct FunctionName {
    pub(crate) name: String,
}

/// The answers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatResponse {
    pub(crate) id: String,
    /// Always `chat.completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
    /// The seed that was used: the same request with it gives the same answers.
    pub(crate) seed: u64,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: Message,
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub(crate) finish_reason: &'static str,
}

/// The message of the assistant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Message {
    /// Always `assistant`.
    pub(crate) role: &'static str,
    pub(crate) content: Option<String>,
    /// Always null.
    pub(crate) refusal: Option<String>,
    /// The text between `<think>` and `</think>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<String>,
    /// The same text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: FunctionCall,
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

/// A part of a streamed answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    pub(crate) id: String,
    /// Always `chat.completion.chunk`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    /// Empty in the last chunk with `include_usage`.
    pub(crate) choices: Vec<ChunkChoice>,
    /// Null but in the last chunk; only with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(crate) usage: Option<StreamUsage>,
    /// In the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

/// A part of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallDelta>,
}

/// A part of a call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ToolCallDelta {
    pub(crate) index: usize,
    /// In the first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// In the first part only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionDelta,
}

/// A part of a function call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct FunctionDelta {
    /// In the first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The next piece of the JSON text.
    pub(crate) arguments: String,
}
