//! How a program ends.

use std::process::ExitCode;

/// Why a program stops: one line for the person, and an exit code for the script.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What the person gave cannot be used: exit code 2.
    pub fn input(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// Anything else that went wrong: exit code 1.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// The reader of standard output has gone: nothing to say, exit code 0.
    pub(crate) fn nobody_reads() -> Self {
        Self { message: String::new(), code: 0 }
    }
}

/// Runs a program to its exit code; a failure is one line on standard error.
pub fn run(program: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                let line: Vec<&str> = failure.message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
                eprintln!("error: {}", line.join(" "));
            }
            ExitCode::from(failure.code)
        }
    }
}
