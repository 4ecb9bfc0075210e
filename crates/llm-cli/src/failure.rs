//! Exit codes and the one-line error message.

use std::process::ExitCode;

const INTERRUPTED: u8 = 130;

/// Why a program stops: a message for the user and an exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// The user's input cannot be used: exit code 2.
    pub fn input(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// Any other error: exit code 1.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// An error of a library that says whether the caller can fix it: exit code 2 if so, else 1.
    pub fn of(error: impl std::fmt::Display, is_callers_fault: bool) -> Self {
        let failure = if is_callers_fault { Self::input } else { Self::internal };
        failure(error.to_string())
    }

    /// The user interrupted the program and it stopped cleanly: exit code 130, the shell's code for Ctrl-C.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: INTERRUPTED }
    }

    /// Whether the user's input cannot be used: exit code 2.
    pub fn is_input(&self) -> bool {
        self.code == 2
    }

    /// The reader of standard output closed the pipe: no message, exit code 0.
    pub(crate) fn broken_pipe() -> Self {
        Self { message: String::new(), code: 0 }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

/// Runs a program and returns its exit code. Prints a failure as one line on standard error.
pub fn run(program: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                let kind = if failure.code == INTERRUPTED { "" } else { "error: " };
                eprintln!("{kind}{}", one_line(&failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Joins the lines of a message, without the backtrace that candle appends to its errors if `RUST_BACKTRACE` is set.
fn one_line(message: &str) -> String {
    let is_frame = |line: &str| line.split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let before_trace = lines.enumerate().take_while(|(at, line)| *at == 0 || !is_frame(line));
    before_trace.map(|(_, line)| line).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_message_is_one_line_without_its_backtrace() {
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        assert!(trace.lines().count() > 2, "{trace}");
        assert_eq!(one_line(&format!("--threads: it is 0\n{trace}")), "--threads: it is 0");
        assert_eq!(one_line("3: not a frame\n\n  more of it\n1 | [key\n"), "3: not a frame more of it 1 | [key");
    }
}
