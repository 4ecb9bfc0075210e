//! What the user typed in a chat: a command, or a message to the model.

/// What `/help` prints.
pub(super) const COMMANDS: &str = "\
/help             this list, also /?
/clear            start a new conversation, also /new
/system [TEXT]    show the system message, or set it
/undo             remove the last question with its answer
/retry            answer the last question again
/save FILE        write the conversation as a line of JSON; the file must not exist
/load FILE        go on with a conversation that was saved
/temperature [X]  show the temperature, or set it; 0: the most likely answer
/bye              end the chat, also /exit, /quit or Ctrl-D
Every other line is a message to the model.
";

/// What is added to [`COMMANDS`] on a terminal.
pub(super) const KEYS: &str = "\
A message of many lines: Alt-Enter begins a line, a message that begins with \"\"\" ends with \"\"\", and a pasted text is one message.
Ctrl-C stops an answer; pressed again, or Ctrl-D, at the empty line it ends the chat. Arrow keys and Ctrl-R find earlier messages.
";

/// A line of the user.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// Pasted text can have empty lines: they are no messages.
    Empty,
    /// A command.
    Command(Command<'a>),
    /// A command that cannot be run: what is wrong, and the fix.
    Wrong(String),
    /// A message to the model.
    Message(&'a str),
}

/// A command of the chat.
#[derive(Debug, PartialEq)]
pub(super) enum Command<'a> {
    Help,
    Clear,
    /// None: show it.
    System(Option<&'a str>),
    Undo,
    Retry,
    Save(&'a str),
    Load(&'a str),
    /// None: show it.
    Temperature(Option<f64>),
    Exit,
}

impl<'a> Line<'a> {
    /// Text of several lines is always a message.
    pub(super) fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Empty;
        }
        if line.contains('\n') {
            return Self::Message(line);
        }
        if ["exit", "quit"].contains(&line) {
            return Self::Command(Command::Exit);
        }
        let (word, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim()));
        let argument = Some(rest).filter(|rest| !rest.is_empty());
        let alone = |command| match argument {
            None => Self::Command(command),
            Some(_) => Self::Wrong(format!("{word} takes no text; write {word} alone")),
        };
        let with_file = |command: fn(&'a str) -> Command<'a>| match argument {
            Some(file) => Self::Command(command(file)),
            None => Self::Wrong(format!("{word} needs a file: {word} talk.jsonl")),
        };
        match word {
            "/help" | "/?" => alone(Command::Help),
            "/clear" | "/new" => alone(Command::Clear),
            "/undo" => alone(Command::Undo),
            "/retry" => alone(Command::Retry),
            "/exit" | "/quit" | "/bye" => alone(Command::Exit),
            "/system" => Self::Command(Command::System(argument)),
            "/save" => with_file(Command::Save),
            "/load" => with_file(Command::Load),
            "/temperature" => match argument.map(str::parse::<f64>) {
                None => Self::Command(Command::Temperature(None)),
                Some(Ok(value)) if value.is_finite() && value >= 0. => Self::Command(Command::Temperature(Some(value))),
                Some(_) => Self::Wrong(format!("{word} is {rest:?}; it must be a number, 0 or more")),
            },
            _ if argument.is_none() && is_command_word(word) => {
                Self::Wrong(format!("{word} is not a command; /help lists the commands"))
            }
            _ => Self::Message(line),
        }
    }
}

/// Whether a word looks like a command: a slash and letters. `/etc/hosts` does not.
fn is_command_word(word: &str) -> bool {
    let letters = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic() || c == '?');
    word.strip_prefix('/').is_some_and(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_not_messages() {
        for (line, expected) in [
            ("\n", Line::Empty),
            ("/help\n", Line::Command(Command::Help)),
            (" /clear \r\n", Line::Command(Command::Clear)),
            ("/new", Line::Command(Command::Clear)),
            ("/exit\n", Line::Command(Command::Exit)),
            ("/bye\n", Line::Command(Command::Exit)),
            ("quit\n", Line::Command(Command::Exit)),
            ("/system", Line::Command(Command::System(None))),
            ("/system  Be brief. ", Line::Command(Command::System(Some("Be brief.")))),
            ("/save my talk.jsonl", Line::Command(Command::Save("my talk.jsonl"))),
            ("/temperature 0.5", Line::Command(Command::Temperature(Some(0.5)))),
            ("/temperature", Line::Command(Command::Temperature(None))),
            ("How do I quit?\n", Line::Message("How do I quit?")),
            ("/etc/hosts is a file\n", Line::Message("/etc/hosts is a file")),
            ("/undone work", Line::Message("/undone work")),
            ("3 / 4", Line::Message("3 / 4")),
            ("/exit\n/save x", Line::Message("/exit\n/save x")),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_wrong_command_says_how_to_write_it() {
        for (line, expected) in [
            ("/halp\n", "/halp is not a command; /help lists the commands"),
            ("/clear all", "/clear takes no text; write /clear alone"),
            ("/save", "/save needs a file: /save talk.jsonl"),
            ("/temperature hot", "/temperature is \"hot\"; it must be a number, 0 or more"),
            ("/temperature -1", "/temperature is \"-1\"; it must be a number, 0 or more"),
            ("/temperature nan", "/temperature is \"nan\"; it must be a number, 0 or more"),
        ] {
            assert_eq!(Line::parse(line), Line::Wrong(expected.to_owned()), "{line:?}");
        }
    }
}
