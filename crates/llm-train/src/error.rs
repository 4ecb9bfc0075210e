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
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// An invalid recipe, folder or option.
    #[error("{0}")]
    Input(String),
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
        use llm_eval::Error as Eval;
        match self {
            Self::Candle(_)
            | Self::Engine(llm_engine::Error::Candle(_))
            | Self::Eval(Eval::Candle(_) | Eval::Engine(llm_engine::Error::Candle(_)))
            | Self::Diverged { .. }
            | Self::Interrupted { .. } => false,
            Self::Io { source, .. }
            | Self::Data(llm_data::Error::Io { source, .. })
            | Self::Eval(Eval::Data(llm_data::Error::Io { source, .. })) => is_callers(source),
            Self::Model(e)
            | Self::Engine(llm_engine::Error::Model(e))
            | Self::Eval(Eval::Model(e) | Eval::Engine(llm_engine::Error::Model(e))) => match e {
                llm_model::Error::Io { source, .. } => is_callers(source),
                llm_model::Error::Candle(_) => false,
                _ => true,
            },
            Self::Tokenizer(e)
            | Self::Data(llm_data::Error::Tokenizer(e))
            | Self::Engine(llm_engine::Error::Tokenizer(e))
            | Self::Eval(Eval::Tokenizer(e) | Eval::Engine(llm_engine::Error::Tokenizer(e))) => match e {
                llm_tokenizer::Error::Read { cause, .. } | llm_tokenizer::Error::Write { cause, .. } => {
                    is_callers(cause)
                }
                _ => true,
            },
            Self::Data(_) | Self::Engine(_) | Self::Eval(_) | Self::Feedback(_) | Self::Input(_) => true,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Whether an I/O error is caused by the request, and not by the machine.
fn is_callers(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::AlreadyExists
            | Kind::InvalidData
            | Kind::InvalidFilename
            | Kind::InvalidInput
            | Kind::IsADirectory
            | Kind::NotADirectory
            | Kind::NotFound
            | Kind::UnexpectedEof
    )
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
        assert!(Error::Input("no".to_owned()).is_callers_fault());
    }

    #[test]
    fn the_resume_command_is_quoted_for_a_shell() {
        assert_eq!(shell_word(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(shell_word(Path::new("my run's")), r"'my run'\''s'");
    }
}
