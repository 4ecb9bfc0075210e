//! Where the prompt of `generate` comes from.

use std::io::{IsTerminal, Read};
use std::path::Path;

use llm_cli::Failure;

use crate::failure::io_failure;

/// The prompt: an argument, a file, or standard input. One line break at the end of a file or of standard input is removed.
pub(crate) fn read_prompt(argument: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    let text = match (argument, file) {
        (Some("-"), _) => standard_input()?,
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) if path == Path::new("-") => standard_input()?,
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            without_line_break(text.map_err(|e| io_failure(path.display(), &e))?)
        }
        (None, None) if std::io::stdin().is_terminal() => {
            return Err(Failure::input("no prompt; give it as an argument, with --file, or on standard input"));
        }
        (None, None) => standard_input()?,
    };
    if text.trim().is_empty() {
        return Err(Failure::input("the prompt is empty; give at least one word"));
    }
    Ok(text)
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|e| io_failure("standard input", &e))?;
    Ok(without_line_break(text))
}

fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}
