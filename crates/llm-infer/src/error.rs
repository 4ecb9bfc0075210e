//! What can go wrong on the way from a prompt to a text.

/// An error of this crate; its text names what is wrong and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// The tokenizer, its files or its chat template.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// A prompt or an option that cannot be served.
    #[error("{0}")]
    Input(String),
}
