//! Errors of text generation.

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
    /// A prompt or an option is not valid.
    #[error("{0}")]
    Input(String),
}
