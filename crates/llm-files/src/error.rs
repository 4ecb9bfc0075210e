//! Errors of the containers.

use std::path::PathBuf;

/// A container could not be read or written. The message names the file and the problem.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {}", path.display(), crate::error_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
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
}

impl Error {
    /// Whether the caller can fix it: a missing, damaged or unsupported file. Other errors come from the machine, such as a full
    /// disk.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::is_callers_fault(source),
            Self::Safetensors { .. } | Self::Gguf { .. } => true,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
