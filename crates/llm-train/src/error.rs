//! What can go wrong in training.

use std::path::PathBuf;

/// An error of this crate; its text names what is wrong and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// The tokenizer or its files.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// Data files.
    #[error(transparent)]
    Data(#[from] llm_data::Error),
    /// Generation.
    #[error(transparent)]
    Infer(#[from] llm_infer::Error),
    /// Rankings.
    #[error(transparent)]
    Feedback(#[from] llm_feedback::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A recipe, a folder or an option that cannot serve.
    #[error("{0}")]
    Input(String),
    /// The loss or the gradient is not a number any more.
    #[error("{}: training diverged at step {step}: {what}; the last good state is {kept}; lower optimizer.learning_rate", run.display())]
    Diverged {
        /// The run.
        run: PathBuf,
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: String,
        /// The checkpoint to go back to.
        kept: String,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
