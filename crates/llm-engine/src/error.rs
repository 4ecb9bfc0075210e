//! Errors of text generation.

use std::path::PathBuf;

/// An error of this crate. The message names the problem and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of the model or its files.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// An error of the tokenizer, its files or its chat template.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// An option is out of range.
    #[error("{name} is {value}; it must be {expected}")]
    InvalidOption {
        /// The option.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range.
        expected: &'static str,
    },
    /// A token id is not in the vocabulary.
    #[error("{name}: token id {id} must be less than the vocabulary size {vocab_size}")]
    TokenOutsideVocabulary {
        /// The option with the id.
        name: &'static str,
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab_size: usize,
    },
    /// No sampler or order of samplers has this name.
    #[error(
        "samplers is {text:?}; it must be openai, llama.cpp, or names of penalties, dry, top_n_sigma, temperature, min_p, top_k, \
         typical_p, top_p, xtc with commas"
    )]
    UnknownSamplers {
        /// The text.
        text: String,
    },
    /// A sampler is in the order twice.
    #[error("samplers: {name} is in the list twice; name each sampler once")]
    SamplerTwice {
        /// The sampler.
        name: String,
    },
    /// A list of texts has an empty one.
    #[error("{name}: a text is empty; remove it")]
    EmptyText {
        /// The option.
        name: &'static str,
    },
    /// A constraint is not supported, too large, or cannot be met.
    #[error("constraint: {problem}")]
    Constraint {
        /// What is wrong.
        problem: String,
    },
    /// Bans and allowed ids leave no token to sample.
    #[error("no token can be sampled: allowed_ids without banned_ids must have at least one token")]
    NoTokenAllowed,
    /// A row of logits has another length than the vocabulary.
    #[error("{logits} logits for a vocabulary of {vocab_size} tokens")]
    OtherVocabulary {
        /// Number of logits.
        logits: usize,
        /// The vocabulary size.
        vocab_size: usize,
    },
    /// A prompt has no tokens.
    #[error("a prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A prompt does not fit the model.
    #[error("the prompt has {tokens} tokens; it must be shorter than the context length of {context_length}")]
    PromptTooLong {
        /// Number of tokens of the prompt.
        tokens: usize,
        /// The context length of the model.
        context_length: usize,
    },
    /// A text is too long for its attention to be computed.
    #[error("the text has {tokens} tokens; attention is computed for at most {limit}")]
    TextTooLong {
        /// Number of tokens of the text.
        tokens: usize,
        /// The most tokens: the context length of the model, at most [`crate::attention::MAX_TOKENS`].
        limit: usize,
    },
    /// A word is not in the text.
    #[error("{word:?} is not a word of the text; its words are: {words}")]
    NoSuchWord {
        /// The word.
        word: String,
        /// The words of the text.
        words: String,
    },
    /// A word is in the text more than once.
    #[error("{word:?} is {count} times in the text; write \"{word}:1\" for the first, up to \"{word}:{count}\"")]
    AmbiguousWord {
        /// The word.
        word: String,
        /// How often it is in the text.
        count: usize,
    },
    /// A word is not so many times in the text.
    #[error("\"{word}:{number}\": {word:?} is {count} times in the text; the number must be from 1 to {count}")]
    NoSuchOccurrence {
        /// The word.
        word: String,
        /// The number of the occurrence.
        number: usize,
        /// How often it is in the text.
        count: usize,
    },
    /// Prompt and reply of a benchmark do not fit the model.
    #[error(
        "{prompt_tokens} prompt tokens and {new_tokens} new tokens exceed the context length of {context_length}; use fewer"
    )]
    BenchTooLong {
        /// Number of tokens of the prompt.
        prompt_tokens: usize,
        /// Number of tokens to generate.
        new_tokens: usize,
        /// The context length of the model.
        context_length: usize,
    },
    /// The model has a head that does not predict tokens.
    #[error("this model has a score head and cannot generate text; use a causal language model")]
    NotALanguageModel,
    /// The tokenizer has more tokens than the model.
    #[error(
        "{} has {tokens} tokens, but \"vocab_size\" of the model is {vocab_size}; use the tokenizer of the model", origin.display()
    )]
    OtherTokenizer {
        /// The file of the tokenizer.
        origin: PathBuf,
        /// Number of tokens of the tokenizer.
        tokens: usize,
        /// The vocabulary size of the model.
        vocab_size: usize,
    },
    /// The model computed logits that are NaN or infinite.
    #[error("the logits are not finite; the weights of the model are damaged")]
    LogitsNotFinite,
    /// A field of a request is wrong.
    #[error("{field} {problem}")]
    InvalidRequest {
        /// The field of [`crate::Request`].
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The model has no score head.
    #[error("this model has no score head and cannot score texts; use a reward model")]
    NoScoreHead,
    /// A draft model that does not belong to the model.
    #[error(
        "the draft model has another vocabulary or a score head; use a language model with the tokenizer of the model"
    )]
    OtherDraft,
    /// The engine was shut down before the request ended.
    #[error("the engine was shut down before the request ended")]
    ShutDown,
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(String),
}

impl Error {
    /// Whether the caller can fix it: a bad request, a missing, damaged or unsupported file, a prompt that is too long. Other
    /// errors come from the machine or from the computation.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Candle(_)
            | Self::LogitsNotFinite
            | Self::OtherVocabulary { .. }
            | Self::ShutDown
            | Self::Engine(_) => false,
            Self::Model(error) => error.is_callers_fault(),
            Self::Tokenizer(error) => error.is_callers_fault(),
            Self::InvalidOption { .. }
            | Self::TokenOutsideVocabulary { .. }
            | Self::UnknownSamplers { .. }
            | Self::SamplerTwice { .. }
            | Self::EmptyText { .. }
            | Self::NoTokenAllowed
            | Self::Constraint { .. }
            | Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::BenchTooLong { .. }
            | Self::TextTooLong { .. }
            | Self::NoSuchWord { .. }
            | Self::AmbiguousWord { .. }
            | Self::NoSuchOccurrence { .. }
            | Self::NotALanguageModel
            | Self::OtherTokenizer { .. }
            | Self::InvalidRequest { .. }
            | Self::OtherDraft
            | Self::NoScoreHead => true,
        }
    }
}
