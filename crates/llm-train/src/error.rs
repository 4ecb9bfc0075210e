//! Errors of training.

use std::path::{Path, PathBuf};

/// An error of this crate. The message says what is wrong and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of the model or its files.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// An error of the tokenizer or its files.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// An error in data files.
    #[error(transparent)]
    Data(#[from] llm_data::Error),
    /// An error during generation.
    #[error(transparent)]
    Engine(#[from] llm_engine::Error),
    /// An error during evaluation.
    #[error(transparent)]
    Eval(#[from] llm_eval::Error),
    /// An error in rankings.
    #[error(transparent)]
    Feedback(#[from] llm_feedback::Error),
    /// A file could not be read or written.
    #[error("{}: {}", path.display(), llm_files::error_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// An option, a key of a recipe or an argument is not valid, or does not go with the others.
    #[error("{0}")]
    BadRequest(String),
    /// A file, a folder, a run or a checkpoint does not exist.
    #[error("{0}")]
    MissingFile(String),
    /// The content of a file is damaged, or not what it should be.
    #[error("{0}")]
    BadFile(String),
    /// A text or a sequence has too many tokens.
    #[error("{0}")]
    TooLong(String),
    /// The stage does not support this kind of model or run.
    #[error("{0}")]
    Unsupported(String),
    /// A failure that no change of the request can avoid.
    #[error("{0}")]
    Internal(String),
    /// The run was asked to stop. It saved its state before.
    #[error("{}: interrupted {done}; continue with: llm-train resume {}", run.display(), shell_word(run))]
    Interrupted {
        /// The run to resume.
        run: PathBuf,
        /// The progress, such as `after step 7 of 100`.
        done: String,
    },
    /// The loss, a gradient, a weight or an evaluation metric is not finite.
    #[error("{}: training diverged at step {step}: {what}; last good checkpoint: {kept}; lower {optimizer}.learning_rate", run.display())]
    Diverged {
        /// The run.
        run: PathBuf,
        /// The step, counted from 1.
        step: u64,
        /// The value that is not finite.
        what: String,
        /// The last good checkpoint.
        kept: String,
        /// The table of the recipe with the learning rate to lower.
        optimizer: &'static str,
    },
}

/// A path, quoted for a shell if needed.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || "/._-+:@%".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

impl Error {
    /// Whether the caller can fix it: a missing file, an invalid number, data in the wrong format. Other errors come from the
    /// machine (disk full, no permission) or from the computation.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Candle(_) | Self::Internal(_) | Self::Diverged { .. } | Self::Interrupted { .. } => false,
            Self::Io { source, .. } => llm_files::is_callers_fault(source),
            Self::Model(error) => error.is_callers_fault(),
            Self::Tokenizer(error) => error.is_callers_fault(),
            Self::Data(error) => error.is_callers_fault(),
            Self::Engine(error) => error.is_callers_fault(),
            Self::Eval(error) => error.is_callers_fault(),
            Self::Feedback(error) => error.is_callers_fault(),
            Self::BadRequest(_) | Self::MissingFile(_) | Self::BadFile(_) | Self::TooLong(_) | Self::Unsupported(_) => {
                true
            }
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_full_disk_is_not_the_callers_fault_in_any_crate() {
        for (kind, callers) in [
            (ErrorKind::StorageFull, false),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::ReadOnlyFilesystem, false),
            (ErrorKind::Interrupted, false),
            (ErrorKind::NotFound, true),
            (ErrorKind::NotADirectory, true),
        ] {
            let (path, io) = (PathBuf::from("file"), || std::io::Error::from(kind));
            for error in [
                Error::Io { path: path.clone(), source: io() },
                Error::Model(llm_model::Error::Io { path: path.clone(), source: io() }),
                Error::Data(llm_data::Error::Io { path: path.clone(), source: io() }),
                Error::Tokenizer(llm_tokenizer::Error::Write { path: path.clone(), cause: io() }),
                Error::Data(llm_tokenizer::Error::Read { path: path.clone(), cause: io() }.into()),
                Error::Engine(llm_model::Error::Io { path: path.clone(), source: io() }.into()),
                Error::Eval(llm_model::Error::Io { path: path.clone(), source: io() }.into()),
            ] {
                assert_eq!(error.is_callers_fault(), callers, "{error:?}");
            }
        }
        assert!(!Error::Candle(candle_core::Error::Msg("no".to_owned())).is_callers_fault());
        assert!(!Error::Internal("no".to_owned()).is_callers_fault());
        assert!(Error::BadRequest("no".to_owned()).is_callers_fault());
    }

    #[test]
    fn the_resume_command_is_quoted_for_a_shell() {
        assert_eq!(shell_word(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(shell_word(Path::new("my run's")), r"'my run'\''s'");
    }
}
