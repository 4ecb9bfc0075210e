//! Conversations, as chat templates and instruction data sets know them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result, read_jsonl};

/// Who speaks in a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sets the scene: a role to play, rules to keep.
    System,
    /// The person who asks.
    User,
    /// The model that answers.
    Assistant,
}

/// One turn of a [`Conversation`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// A message of the person who asks.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A message of the model that answers.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// A message that sets the scene.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }
}

/// Messages in the order in which they were said (`{"messages": [...]}` in JSONL).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
}

/// Reads a JSONL file (`.gz` too) of conversations. Each line may be
///
/// - `{"messages": [{"role", "content"}, …]}`, or a bare list of messages;
/// - `{"conversations": [{"from", "value"}, …]}` (ShareGPT);
/// - `{"prompt", "completion"}`, `{"question", "answer"}` (GSM8K), or `{"instruction", "input", "output"}` (Alpaca).
///
/// A conversation without an assistant's turn teaches nothing and is an error.
pub fn read_conversations(path: &Path) -> Result<Vec<Conversation>> {
    let mut conversations = Vec::new();
    for (line, value) in read_jsonl(path)? {
        let parsed = parse(&value).and_then(|messages| {
            let spoken = messages.iter().any(|m| m.role == Role::Assistant);
            if spoken { Ok(Conversation { messages }) } else { Err("no turn of the assistant".to_owned()) }
        });
        conversations.push(parsed.map_err(|message| Error::Line { path: path.into(), line, message })?);
    }
    if conversations.is_empty() {
        return Err(Error::unusable(path, "holds no conversations"));
    }
    Ok(conversations)
}

/// Reads a JSONL file (`.gz` too) of prompts: `{"prompt": text or messages}`, or anything that [`read_conversations`]
/// takes, without its last answer.
pub fn read_prompts(path: &Path) -> Result<Vec<Vec<Message>>> {
    let mut prompts = Vec::new();
    for (line, value) in read_jsonl(path)? {
        let parsed = match value.get("prompt") {
            Some(Value::String(text)) => Ok(vec![Message::user(text)]),
            Some(Value::Array(list)) => messages(list, "role", "content"),
            _ => parse(&value),
        };
        let checked = parsed.and_then(|mut prompt| {
            if prompt.last().is_some_and(|m| m.role == Role::Assistant) {
                prompt.pop();
            }
            if prompt.iter().any(|m| m.role == Role::User) { Ok(prompt) } else { Err("no turn of the user".to_owned()) }
        });
        prompts.push(checked.map_err(|message| Error::Line { path: path.into(), line, message })?);
    }
    if prompts.is_empty() {
        return Err(Error::unusable(path, "holds no prompts"));
    }
    Ok(prompts)
}

fn parse(value: &Value) -> Result<Vec<Message>, String> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    if let Some(list) = value.as_array().or_else(|| value.get("messages").and_then(Value::as_array)) {
        return messages(list, "role", "content");
    }
    if let Some(list) = value.get("conversations").and_then(Value::as_array) {
        return messages(list, "from", "value");
    }
    for (question, answer) in [("prompt", "completion"), ("question", "answer")] {
        if let (Some(question), Some(answer)) = (text(question), text(answer)) {
            return Ok(vec![Message::user(question), Message::assistant(answer)]);
        }
    }
    if let (Some(instruction), Some(output)) = (text("instruction"), text("output")) {
        let input = text("input").filter(|input| !input.is_empty());
        let user = input.map_or_else(|| instruction.to_owned(), |input| format!("{instruction}\n\n{input}"));
        return Ok(vec![Message::user(user), Message::assistant(output)]);
    }
    let keys: Vec<&str> = value.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
    Err(format!(
        "keys {keys:?} are no conversation; write \"messages\", \"conversations\", \"prompt\" and \"completion\", \
         \"question\" and \"answer\", or \"instruction\" and \"output\""
    ))
}

/// Messages whose speaker and words stand under these keys.
pub(crate) fn messages(list: &[Value], speaker: &str, words: &str) -> Result<Vec<Message>, String> {
    let one = |value: &Value| {
        let text =
            |key: &str| value.get(key).and_then(Value::as_str).ok_or(format!("a message has no string \"{key}\""));
        let role = match text(speaker)? {
            "system" => Role::System,
            "user" | "human" => Role::User,
            "assistant" | "gpt" => Role::Assistant,
            other => return Err(format!("\"{speaker}\" is \"{other}\"; write system, user or assistant")),
        };
        Ok(Message::new(role, text(words)?))
    };
    list.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<Conversation>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        read_conversations(&path)
    }

    #[test]
    fn every_form_becomes_the_same_conversation() {
        let expected = Conversation { messages: vec![Message::user("q"), Message::assistant("a")] };
        for line in [
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#,
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            r#"{"prompt": "q", "completion": "a"}"#,
            r#"{"question": "q", "answer": "a"}"#,
            r#"{"instruction": "q", "input": "", "output": "a"}"#,
        ] {
            assert_eq!(read(line).unwrap(), std::slice::from_ref(&expected), "{line}");
        }
        let with_input = read(r#"{"instruction": "Add.", "input": "1 2", "output": "3"}"#).unwrap();
        assert_eq!(with_input[0].messages[0].content, "Add.\n\n1 2");
    }

    #[test]
    fn prompts_are_conversations_without_their_last_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        for line in [
            r#"{"prompt": "q"}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}]}"#,
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"question": "q", "answer": "a"}"#,
        ] {
            std::fs::write(&path, line).unwrap();
            assert_eq!(read_prompts(&path).unwrap(), [vec![Message::user("q")]], "{line}");
        }
        std::fs::write(&path, r#"{"prompt": []}"#).unwrap();
        assert!(read_prompts(&path).unwrap_err().to_string().contains("no turn of the user"));
    }

    #[test]
    fn a_bad_line_is_named_with_what_it_should_say() {
        for (content, part) in [
            ("{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"promt\": \"q\"}", "line 2: keys [\"promt\"]"),
            (r#"{"messages": [{"role": "robot", "content": "q"}]}"#, "write system, user or assistant"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no turn of the assistant"),
            (r#"{"messages": [{"role": "user"}]}"#, "no string \"content\""),
            ("\n", "no conversations"),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("data.jsonl"), "{message}");
        }
    }
}
