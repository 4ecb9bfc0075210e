//! Errors of evaluation.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// An error of the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// An error in data files.
    #[error(transparent)]
    Data(#[from] llm_data::Error),
    /// An error during generation.
    #[error(transparent)]
    Engine(#[from] llm_engine::Error),
    /// Too few values, or values that do not match.
    #[error("{0}")]
    Input(String),
}
