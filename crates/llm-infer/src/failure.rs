//! Failures of the program.

use std::fmt::Display;
use std::path::Path;

use llm_cli::Failure;
use llm_engine::Error;

/// The failure of the program for an error of the libraries.
pub(crate) fn input(error: impl Into<Error>) -> Failure {
    let error = error.into();
    Failure::of(&error, error.is_callers_fault())
}

/// The failure of the program for an I/O error of a file, a folder or a stream.
pub(crate) fn io_failure(name: impl Display, error: &std::io::Error) -> Failure {
    Failure::of(format!("{name}: {}", llm_files::error_text(error)), llm_files::is_callers_fault(error))
}

/// An error if the output exists: nothing is overwritten.
pub(crate) fn refuse_existing(out: &Path) -> Result<(), Failure> {
    if out.exists() {
        return Err(Failure::input(format!("{}: already exists; choose another --out", out.display())));
    }
    Ok(())
}
