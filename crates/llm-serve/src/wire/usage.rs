//! How many tokens a request used.

use llm_engine::Usage as Used;
use serde::Serialize;
use utoipa::ToSchema;

/// The tokens of a request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Generated tokens, with end tokens and those of stop strings.
    pub(crate) completion_tokens: usize,
    /// The sum of both.
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

/// Details of the prompt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Tokens whose keys and values were in the cache.
    pub(crate) cached_tokens: usize,
}

/// Details of the answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub(crate) struct CompletionDetails {
    /// Generated tokens of the reasoning.
    pub(crate) reasoning_tokens: usize,
}

/// `usage` of a stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum StreamUsage {
    /// Null, before the last chunk.
    Later,
    /// The tokens.
    Used(Usage),
}

impl Usage {
    /// Adds what one prompt used.
    pub(crate) fn add(&mut self, used: &Used) {
        self.prompt_tokens += used.prompt_tokens;
        self.completion_tokens += used.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
        self.prompt_tokens_details.cached_tokens += used.cached_tokens;
    }
}
