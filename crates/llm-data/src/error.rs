//! What can go wrong with data files.

use std::path::PathBuf;

/// An error of this crate; its text names the file, the line and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a file is not what it should be.
    #[error("{} line {line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A file or folder as a whole cannot serve.
    #[error("{}: {message}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// Why, and the fix.
        message: String,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// All items share one prompt, or there is a single one.
    #[error(
        "a split needs two different prompts, and there is one in the {items} items; give held-out data of their own"
    )]
    OnePrompt {
        /// How many items there are.
        items: usize,
    },
    /// Arguments that do not fit the data.
    #[error("{0}")]
    Input(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn unusable(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Unusable { path: path.into(), message: message.into() }
    }
}
