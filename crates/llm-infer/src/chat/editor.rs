//! Where the lines of a chat come from: an editor on a terminal, or the lines of standard input.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use llm_cli::Failure;
use reedline::{
    FileBackedHistory, HISTORY_SIZE, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal, ValidationResult,
    Validator,
};

use super::terminal::Terminal;
use crate::failure::io_failure;

/// Begins and ends a message of many lines.
const QUOTES: &str = "\"\"\"";

/// What the user entered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// A line, or a text of several lines.
    Text(String),
    /// Ctrl-C: the text of the line is gone.
    Interrupt,
    /// The end of the input.
    End,
}

/// The source of the lines.
pub(super) enum Reader {
    Editor(Box<Reedline>, Terminal),
    Lines,
}

impl Reader {
    /// An editor if both standard input and standard output are a terminal, with the history in `file`; else line by line.
    pub(super) fn open(file: Option<&Path>) -> Self {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Self::Lines;
        }
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let mut editor =
            Reedline::create().use_bracketed_paste(true).with_ansi_colors(!no_color).with_validator(Box::new(Quotes));
        if let Some(file) = file {
            match private_file(file)
                .map_err(|e| e.to_string())
                .and_then(|()| FileBackedHistory::with_file(HISTORY_SIZE, file.to_owned()).map_err(|e| e.to_string()))
            {
                Ok(history) => editor = editor.with_history(Box::new(history)),
                Err(error) => tracing::warn!("{}: the history is not kept: {error}", file.display()),
            }
        }
        Self::Editor(Box::new(editor), Terminal::hold())
    }

    /// Whether a person types the lines.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(..))
    }

    /// The next line.
    pub(super) fn next(&mut self) -> Result<Entered, Failure> {
        let failed = |e: &std::io::Error| io_failure("standard input", e);
        match self {
            Self::Lines => {
                let mut line = String::new();
                match std::io::stdin().lock().read_line(&mut line) {
                    Ok(0) => Ok(Entered::End),
                    Ok(_) => Ok(Entered::Text(line)),
                    Err(e) => Err(failed(&e)),
                }
            }
            Self::Editor(editor, _) => {
                let signal = editor.read_line(&Arrow).map_err(|e| failed(&e))?;
                Terminal::hold_again();
                Ok(match signal {
                    Signal::Success(text) => {
                        if let Err(error) = editor.sync_history() {
                            tracing::debug!("the history cannot be written: {error}");
                        }
                        Entered::Text(without_quotes(&text).to_owned())
                    }
                    Signal::CtrlC => Entered::Interrupt,
                    _ => Entered::End,
                })
            }
        }
    }
}

/// The file of the history: `chat-history` in the state directory of the user.
pub(super) fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("llm-infer").join("chat-history"))
}

/// Creates the file, which only its owner can read, unless it exists.
fn private_file(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// A message that begins with three quotes goes on until three quotes end it.
struct Quotes;

impl Validator for Quotes {
    fn validate(&self, line: &str) -> ValidationResult {
        let text = line.trim();
        let open = text.strip_prefix(QUOTES).is_some_and(|rest| !rest.ends_with(QUOTES));
        if open { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

/// The text between three quotes, if it is quoted.
fn without_quotes(text: &str) -> &str {
    let inner = text.trim().strip_prefix(QUOTES).and_then(|rest| rest.strip_suffix(QUOTES));
    inner.map_or(text, |inner| inner.trim_matches('\n'))
}

/// The prompt of the editor.
struct Arrow;

impl Prompt for Arrow {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        ". ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("(search: {}) ", search.term).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quotes_begin_and_end_a_message() {
        let is_open = |text: &str| matches!(Quotes.validate(text), ValidationResult::Incomplete);
        assert!(is_open("\"\"\"") && is_open("\"\"\"one\ntwo") && is_open("\"\"\"one \"\""));
        assert!(!is_open("\"\"\"one\ntwo\"\"\"") && !is_open("one \"\"\"") && !is_open("\"\"\"\"\"\""));
        assert_eq!(without_quotes("\"\"\"\none\n two\n\"\"\""), "one\n two");
        assert_eq!(without_quotes("one \"\"\"two\"\"\""), "one \"\"\"two\"\"\"");
    }
}
