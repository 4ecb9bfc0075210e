//! What the engine is asked for and what it answers.

use crate::{Error, Sampling};

/// One request: a prompt and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How many independent answers to generate; the prompt is computed once.
    pub choices: usize,
    /// Maximum number of tokens of each answer; 0: only the log-probabilities of the prompt.
    pub max_new_tokens: usize,
    /// An answer ends after any of these token ids. None: those of the model and its tokenizer.
    pub stop_ids: Option<Vec<u32>>,
    /// An answer ends before any of these strings; none may be empty.
    pub stop: Vec<String>,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// Report the log-probability of each generated token, and those of this many most likely tokens.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// What the text must match.
    pub constraint: Option<Constraint>,
    /// The name of an adapter of the engine; none: the base model.
    pub adapter: Option<String>,
    /// Requests of a higher priority are started first.
    pub priority: i32,
    /// Requests that wait are started in turn by key, so that one user cannot crowd out the others.
    pub key: Option<String>,
    /// Only requests with the same salt share cached pages of a prompt.
    pub cache_salt: Option<String>,
}

impl Request {
    /// A request for one answer of at most `max_new_tokens` tokens, with the defaults of [`Sampling`].
    pub fn new(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            choices: 1,
            max_new_tokens,
            stop_ids: None,
            stop: Vec::new(),
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
            adapter: None,
            priority: 0,
            key: None,
            cache_salt: None,
        }
    }
}

/// What a generated text must match from its first character to its last.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that is valid by this JSON schema.
    JsonSchema(serde_json::Value),
    /// A regular expression.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// A grammar in Lark's notation.
    Grammar(String),
}

/// A part of the answer to a request, in the order of generation.
#[derive(Debug)]
pub enum Event {
    /// The log-probabilities of the prompt, if asked for: one entry for each token; the first is none.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// New text of one answer.
    Text {
        /// The index of the answer, from 0.
        choice: usize,
        /// The text that cannot be part of a stop string any more; can be empty while tokens form no whole character.
        text: String,
        /// The tokens whose text ends in `text`.
        tokens: Vec<Token>,
    },
    /// The end of one answer.
    End {
        /// The index of the answer, from 0.
        choice: usize,
        /// Why it ended.
        reason: FinishReason,
        /// The number of its tokens, with the end token and those of a stop string.
        tokens: usize,
    },
    /// The last event: all answers have ended.
    Done(Usage),
    /// The last event: the request failed.
    Failed(Error),
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token id.
    pub id: u32,
    /// Its log-probability and those of the most likely tokens, if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// The log-probability of a token and of the most likely tokens at its position, in nats: `log_softmax` of the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token itself.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, the most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_new_tokens` or the context length.
    Length,
}

/// What a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache.
    pub cached_tokens: usize,
    /// Generated tokens of all answers.
    pub completion_tokens: usize,
    /// The seed that was used; the same request with this seed gives the same answers.
    pub seed: u64,
}
