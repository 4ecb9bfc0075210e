//! Errors of models and model files.

use std::path::PathBuf;

/// An error of this crate. The message names the file, the key and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {}", path.display(), llm_files::error_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file is not valid JSON.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The position and the cause.
        source: serde_json::Error,
    },
    /// A configuration is inconsistent, incomplete or not supported.
    #[error("{origin}: {message}")]
    Config {
        /// The file or other source of the configuration.
        origin: String,
        /// The key, the problem and the fix.
        message: String,
    },
    /// A safetensors file is damaged.
    #[error("{}: not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        message: String,
    },
    /// A GGUF file is damaged or not supported.
    #[error("{}: cannot read this GGUF file: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The key or tensor, and the problem.
        message: String,
    },
    /// The tensors of a checkpoint do not match its configuration.
    #[error("{origin}: {}", problems.join("; "))]
    Tensors {
        /// The file or other source of the tensors.
        origin: String,
        /// One entry for each tensor that is missing, unexpected or has the wrong shape.
        problems: Vec<String>,
    },
    /// The input does not fit the model.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// Whether the caller can fix it: a missing, damaged or unsupported file, an input that does not fit the model. Other errors
    /// come from the machine, such as a full disk, or from the computation.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Candle(_) => false,
            Self::Io { source, .. } => llm_files::is_callers_fault(source),
            Self::Json { .. }
            | Self::Config { .. }
            | Self::Safetensors { .. }
            | Self::Gguf { .. }
            | Self::Tensors { .. }
            | Self::Input(_) => true,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn config(origin: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { origin: origin.into(), message: message.into() }
    }
}

impl From<llm_files::Error> for Error {
    fn from(error: llm_files::Error) -> Self {
        match error {
            llm_files::Error::Io { path, source } => Self::Io { path, source },
            llm_files::Error::Safetensors { path, message } => Self::Safetensors { path, message },
            llm_files::Error::Gguf { path, message } => Self::Gguf { path, message },
        }
    }
}
