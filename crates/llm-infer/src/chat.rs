//! The command `chat`: a conversation in the terminal, or line by line from standard input.

use std::io::{BufRead, IsTerminal};

use llm_cli::Failure;
use llm_engine::TextModel;
use llm_tokenizer::ChatMessage;

use crate::args::ChatArgs;
use crate::failure::{input, io_failure};
use crate::text_model::stream_reply;

/// What `/help` prints.
const COMMANDS: &str = "\
/help   this list
/clear  start a new conversation, also /new
/exit   end the chat, also /bye, quit or Ctrl-D
Every other line is a message to the model.
";

/// A line of the user.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// Pasted text can have empty lines: they are no messages.
    Empty,
    Help,
    Clear,
    Exit,
    /// One word after a slash that is not a command.
    Unknown(&'a str),
    Message(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic() || c == '?');
        match line {
            "" => Self::Empty,
            "/help" | "/?" => Self::Help,
            "/clear" | "/new" => Self::Clear,
            "/exit" | "/quit" | "/bye" | "exit" | "quit" => Self::Exit,
            _ if line.strip_prefix('/').is_some_and(is_word) => Self::Unknown(line),
            _ => Self::Message(line),
        }
    }
}

/// Runs the command.
pub(crate) fn chat(args: &ChatArgs) -> Result<(), Failure> {
    args.generation.check()?;
    let text_model = args.generation.load()?;
    let options = args.generation.options(&text_model);
    if !text_model.tokenizer.has_chat_template() {
        let dir = args.generation.model.display();
        let message = format!("{dir}: this model has no chat template; use `llm-infer generate` to continue a text");
        return Err(Failure::input(message));
    }
    let mut messages = args.generation.system_message();
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        llm_cli::print("Type a message and press Enter. /help lists the commands, /exit or Ctrl-D ends the chat.\n")?;
    }
    loop {
        if terminal {
            llm_cli::print("> ")?;
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        if read.map_err(|e| io_failure("standard input", &e))? == 0 {
            return Ok(());
        }
        match Line::parse(&line) {
            Line::Empty => {}
            Line::Help => llm_cli::print(COMMANDS)?,
            Line::Clear => messages = args.generation.system_message(),
            Line::Exit => return Ok(()),
            Line::Unknown(word) => tracing::warn!("{word} is not a command; /help lists the commands"),
            Line::Message(text) => {
                messages.push(ChatMessage::new("user", text));
                let prompt = prompt(&text_model, &mut messages, options.max_new_tokens)?;
                let context_length = text_model.model.config().max_position_embeddings;
                if terminal && prompt.len() >= context_length {
                    let tokens = prompt.len();
                    tracing::warn!(
                        "the message has {tokens} tokens; it must be shorter than the context length of {context_length}"
                    );
                    messages.pop();
                    continue;
                }
                let reply = stream_reply(&text_model, &prompt, &options)?;
                messages.push(ChatMessage::new("assistant", reply));
            }
        }
    }
}

/// The token ids of a conversation. If they leave no room for a reply, the oldest questions with their answers are removed; the
/// last question always stays.
fn prompt(text_model: &TextModel, messages: &mut Vec<ChatMessage>, max_new_tokens: usize) -> Result<Vec<u32>, Failure> {
    let context_length = text_model.model.config().max_position_embeddings;
    let room = max_new_tokens.min(context_length / 4).max(1);
    let mut removed = 0;
    loop {
        let prompt = text_model.chat_ids(messages.as_slice()).map_err(input)?;
        let mut questions = (0..messages.len()).filter(|&i| messages[i].role() == "user");
        match (questions.next(), questions.next()) {
            (Some(first), Some(second)) if prompt.len() + room > context_length => {
                messages.drain(first..second);
                removed += 1;
            }
            _ => {
                if removed > 0 {
                    tracing::warn!(
                        "the context of {context_length} tokens is full: the oldest messages are left out; /clear starts a new \
                         conversation"
                    );
                }
                return Ok(prompt);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_not_messages() {
        for (line, expected) in [
            ("\n", Line::Empty),
            ("/help\n", Line::Help),
            (" /clear \r\n", Line::Clear),
            ("/new", Line::Clear),
            ("/exit\n", Line::Exit),
            ("/bye\n", Line::Exit),
            ("quit\n", Line::Exit),
            ("/halp\n", Line::Unknown("/halp")),
            ("How do I quit?\n", Line::Message("How do I quit?")),
            ("/etc/hosts is a file\n", Line::Message("/etc/hosts is a file")),
            ("3 / 4", Line::Message("3 / 4")),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }
}
