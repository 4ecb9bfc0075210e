//! What can go wrong with a model or its files.

use std::path::PathBuf;

/// An error of this crate; its text names the file, the key and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A configuration is contradictory, incomplete or of a kind that is not supported.
    #[error("{origin}: {message}")]
    Config {
        /// The file, or where else the configuration came from.
        origin: String,
        /// The key, what is wrong with it, and the fix.
        message: String,
    },
    /// A safetensors file is damaged.
    #[error("{}: not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// A GGUF file is damaged, or of a kind that is not supported.
    #[error("{}: not a GGUF file that can be read: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The key or tensor, and what is wrong with it.
        message: String,
    },
    /// The tensors of a checkpoint are not those that its configuration asks for.
    #[error("{origin}: {}", problems.join("; "))]
    Tensors {
        /// The file, or where else the tensors came from.
        origin: String,
        /// One entry for each missing, extra or misshapen tensor.
        problems: Vec<String>,
    },
    /// The input does not fit the model.
    #[error("{0}")]
    Input(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn config(origin: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { origin: origin.into(), message: message.into() }
    }
}
