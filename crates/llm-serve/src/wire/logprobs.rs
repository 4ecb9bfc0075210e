//! Log-probabilities in the shapes of the two endpoints.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The log-probabilities of a chat answer or of a chunk of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// One entry for each token of the content.
    pub(crate) content: Vec<ChatToken>,
    /// Always null.
    pub(crate) refusal: Option<Vec<ChatToken>>,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ChatToken {
    #[serde(flatten)]
    pub(crate) token: TokenLogprob,
    /// The most likely tokens at this position, the most likely first.
    pub(crate) top_logprobs: Vec<TokenLogprob>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// The text; a token that is no whole character is written `bytes:\xe4`.
    pub(crate) token: String,
    /// The natural logarithm of the probability; -9999 for a probability of 0.
    pub(crate) logprob: f32,
    /// The bytes of the text.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// The log-probabilities of a completion.
#[derive(Debug, Clone, PartialEq, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The position of each token in the text, in characters.
    pub(crate) text_offset: Vec<usize>,
    /// The log-probability of each token; null for the first token of a prompt.
    pub(crate) token_logprobs: Vec<Option<f32>>,
    /// The text of each token.
    pub(crate) tokens: Vec<String>,
    /// The most likely tokens at each position and the token itself, with their log-probabilities.
    pub(crate) top_logprobs: Vec<Option<Map<String, Value>>>,
}

impl CompletionLogprobs {
    /// Appends the entries of `other`.
    pub(crate) fn extend(&mut self, other: Self) {
        self.text_offset.extend(other.text_offset);
        self.token_logprobs.extend(other.token_logprobs);
        self.tokens.extend(other.tokens);
        self.top_logprobs.extend(other.top_logprobs);
    }
}
