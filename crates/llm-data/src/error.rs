//! The error type.

use std::path::PathBuf;

/// An error of this crate. The message names the file, the line and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A record of a file is invalid.
    #[error("{} line {line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, counted from 1.
        line: usize,
        /// What is wrong, and what is expected.
        message: String,
    },
    /// A file or folder cannot be used.
    #[error("{}: {message}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// The reason, and the fix.
        message: String,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// All items have the same prompt, so they cannot be split by prompt.
    #[error(
        "a split needs two different prompts, but all {items} items have the same one; give the validation data as a separate file"
    )]
    OnePrompt {
        /// Number of items.
        items: usize,
    },
    /// An argument is invalid or does not match the data.
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
