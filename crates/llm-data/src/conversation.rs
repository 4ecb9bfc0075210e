//! Conversations: the messages of chat templates, and the readers of instruction datasets.

use std::path::Path;

use llm_tokenizer::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{described, kind};
use crate::messages::{IgnoredKeys, messages, refuse_unsupported_keys, text_of};
use crate::records::for_each_record;
use crate::split::{Duplicates, ItemKeys, Keyed, SplitKey};
use crate::{Error, Result, Warnings};

/// The author of a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system message: instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One message of a [`Conversation`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The author.
    pub role: Role,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message with this role and content.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An assistant message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }
}

/// A list of messages (`{"messages": [...]}` in JSONL).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
}

/// The split key of a prompt: a hash of the contents of all its messages.
pub fn prompt_key(prompt: &[Message]) -> SplitKey {
    SplitKey::of(prompt.iter().map(|message| message.content.as_str()))
}

/// The text of all messages but system messages.
pub(crate) fn spoken(messages: &[Message]) -> String {
    let texts = messages.iter().filter(|m| m.role != Role::System).map(|m| m.content.as_str());
    texts.collect::<Vec<_>>().join("\n")
}

impl Keyed for Conversation {
    /// The prompt is the messages before the first answer, because all later messages depend on them. If these have no text,
    /// the prompt is the whole conversation.
    fn keys(&self) -> ItemKeys {
        let whole = prompt_key(&self.messages);
        let before = self.messages.iter().take_while(|m| m.role != Role::Assistant);
        let before: Vec<&str> = before.map(|m| m.content.as_str()).filter(|text| !text.trim().is_empty()).collect();
        ItemKeys { prompt: if before.is_empty() { whole } else { SplitKey::of(before) }, whole }
    }

    fn texts(&self) -> Vec<String> {
        vec![spoken(&self.messages)]
    }
}

/// The conversations of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversations {
    /// The conversations, in the order of the file.
    pub conversations: Vec<Conversation>,
    /// Problems that are not errors.
    pub warnings: Warnings,
}

/// Reads conversations from a JSONL file or a JSON array (either may be compressed as `.gz`). Supported formats of a record:
///
/// - `{"messages": [{"role", "content"}, …]}`, or a bare list of messages;
/// - `{"conversations": [{"from", "value"}, …]}` (ShareGPT), with an optional `system`;
/// - `{"prompt", "completion"}` (TRL), both texts or lists of messages;
/// - `{"question", "answer"}` (GSM8K), or `{"instruction", "input", "output"}` (Alpaca), with an optional `system` and
///   `history` (earlier turns as pairs of texts).
///
/// A content is a string or a list of text parts. A conversation without an assistant message is an error, and so are tools,
/// images, and weights or labels that exclude a message from training.
pub fn read_conversations(path: impl AsRef<Path>) -> Result<Conversations> {
    let path = path.as_ref();
    let (mut conversations, mut warnings) = (Vec::new(), Warnings::default());
    for_each_record(path, &mut |_, value| {
        let messages = parse(&value, &mut warnings.ignored_keys)?;
        let Some(first) = messages.iter().position(|m| m.role == Role::Assistant) else {
            return Err("no assistant message".to_owned());
        };
        let empty = |m: &Message| m.role == Role::Assistant && m.content.trim().is_empty();
        warnings.empty_answers += usize::from(messages.iter().any(empty));
        warnings.without_question += usize::from(!messages[..first].iter().any(|m| m.role == Role::User));
        conversations.push(Conversation { messages });
        Ok(())
    })?;
    if conversations.is_empty() {
        return Err(Error::unusable(path, "contains no conversations"));
    }
    warnings.records = conversations.len();
    warnings.duplicates = Duplicates::within(conversations.iter().map(Keyed::keys));
    Ok(Conversations { conversations, warnings })
}

/// Reads prompts from a JSONL file or a JSON array (either may be compressed as `.gz`): `{"prompt": string or messages}`, or any
/// format of [`read_conversations`], whose last assistant message is removed. A prompt without a user message is an error.
pub fn read_prompts(path: impl AsRef<Path>) -> Result<Vec<Vec<Message>>> {
    let path = path.as_ref();
    let mut prompts = Vec::new();
    for_each_record(path, &mut |_, value| {
        let mut ignored_keys = IgnoredKeys::new();
        let mut prompt = match value.as_object().filter(|object| object.contains_key("prompt")) {
            Some(object) => side(object, "prompt", Role::User, &mut ignored_keys)?,
            None => parse(&value, &mut ignored_keys)?,
        };
        if prompt.last().is_some_and(|m| m.role == Role::Assistant) {
            prompt.pop();
        }
        if !prompt.iter().any(|m| m.role == Role::User) {
            return Err("no user message".to_owned());
        }
        prompts.push(prompt);
        Ok(())
    })?;
    if prompts.is_empty() {
        return Err(Error::unusable(path, "contains no prompts"));
    }
    Ok(prompts)
}

/// The formats of a record: (required keys, optional keys).
const FORMS: [(&[&str], &[&str]); 5] = [
    (&["messages"], &["system"]),
    (&["conversations"], &["system"]),
    (&["prompt", "completion"], &["system"]),
    (&["question", "answer"], &["system"]),
    (&["instruction", "output"], &["input", "system", "history"]),
];

fn parse(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Vec<Message>, String> {
    if let Some(list) = value.as_array() {
        return messages(list, ignored_keys);
    }
    let Some(object) = value.as_object() else {
        return Err(format!(
            "a record of this file must be an object such as {{\"prompt\": …, \"completion\": …}}; this one is {}",
            kind(value)
        ));
    };
    // Datasets merged from several tables have null columns; prefer a format whose keys are not null.
    let has = |keys: &[&str], null: bool| keys.iter().all(|k| object.get(*k).is_some_and(|v| null || !v.is_null()));
    let form = FORMS.iter().find(|form| has(form.0, false)).or_else(|| FORMS.iter().find(|form| has(form.0, true)));
    let Some((needed, optional)) = form else {
        return Err(format!(
            "{} is not a conversation; use the keys \"messages\", \"conversations\", \"prompt\" and \"completion\", \
             \"question\" and \"answer\", or \"instruction\" and \"output\"",
            described(value)
        ));
    };
    refuse_unsupported_keys(object)?;
    if object.get("label").is_some_and(Value::is_boolean) {
        let message = "\"label\" marks an answer as good or bad (KTO), which is not supported; keep the good answers and \
                       remove the key";
        return Err(message.to_owned());
    }
    let mut all = earlier_turns(object)?;
    match *needed {
        [list @ ("messages" | "conversations")] => match object.get(*list) {
            Some(Value::Array(turns)) => all.extend(messages(turns, ignored_keys)?),
            other => return Err(format!("\"{list}\" is {}; it must be a list of messages", kind_of(other))),
        },
        ["prompt", "completion"] => {
            all.extend(side(object, "prompt", Role::User, ignored_keys)?);
            all.extend(side(object, "completion", Role::Assistant, ignored_keys)?);
        }
        [question, answer] => {
            let mut asked = text_of(object, question)?.to_owned();
            if object.get("input").is_some_and(|input| !input.is_null()) && optional.contains(&"input") {
                let input = text_of(object, "input")?;
                asked = if input.is_empty() { asked } else { format!("{asked}\n\n{input}") };
            }
            all.extend([Message::user(asked), Message::assistant(text_of(object, answer)?)]);
        }
        _ => {}
    }
    let read = |key: &String| key == "id" || needed.iter().chain(*optional).any(|known| known == key);
    ignored_keys
        .extend(object.iter().filter(|(key, value)| !read(key) && !value.is_null()).map(|(key, _)| key.clone()));
    Ok(all)
}

fn kind_of(value: Option<&Value>) -> &'static str {
    value.map_or("missing", kind)
}

/// The messages of the keys `system` and `history`.
fn earlier_turns(object: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let mut turns = Vec::new();
    if object.get("system").is_some_and(|system| !system.is_null()) {
        let system = text_of(object, "system")?;
        turns.extend((!system.is_empty()).then(|| Message::system(system)));
    }
    match object.get("history").filter(|_| object.contains_key("instruction")) {
        None | Some(Value::Null) => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(asked), Value::String(answered)]) => {
                        turns.extend([Message::user(asked), Message::assistant(answered)]);
                    }
                    _ => return Err("\"history\" must be a list of pairs of strings".to_owned()),
                }
            }
        }
        Some(other) => return Err(format!("\"history\" is {}; it must be a list of pairs of strings", kind(other))),
    }
    Ok(turns)
}

/// The messages of a key: a string becomes one message of `role`, a list is a list of messages.
pub(crate) fn side(
    object: &Map<String, Value>,
    key: &str,
    role: Role,
    ignored_keys: &mut IgnoredKeys,
) -> Result<Vec<Message>, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(vec![Message::new(role, text)]),
        Some(Value::Array(list)) => messages(list, ignored_keys).map_err(|wrong| format!("\"{key}\": {wrong}")),
        other => Err(format!("\"{key}\" is {}; it must be a string or a list of messages", kind_of(other))),
    }
}

/// The messages in the form of the chat template.
pub fn chat_messages(messages: &[Message]) -> Vec<ChatMessage> {
    let role = |role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    messages.iter().map(|m| ChatMessage::new(role(m.role), &m.content)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Conversations> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, content).unwrap();
        read_conversations(&path)
    }

    #[test]
    fn every_format_gives_the_same_conversation() {
        let expected = Conversation { messages: vec![Message::user("q"), Message::assistant("a")] };
        for line in [
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#,
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            r#"{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": ""}"#,
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"prompt": "q", "completion": "a"}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": "a", "label": null, "messages": null}"#,
            r#"{"question": "q", "answer": "a"}"#,
            r#"{"instruction": "q", "input": "", "output": "a", "history": []}"#,
        ] {
            assert_eq!(read(line).unwrap().conversations, std::slice::from_ref(&expected), "{line}");
        }
        let with_input = read(r#"{"instruction": "Add.", "input": "1 2", "output": "3"}"#).unwrap();
        assert_eq!(with_input.conversations[0].messages[0].content, "Add.\n\n1 2");
        let earlier = r#"{"instruction": "q", "output": "a", "system": "s", "history": [["x", "y"]]}"#;
        let all = [Message::system("s"), Message::user("x"), Message::assistant("y"), Message::user("q")];
        assert_eq!(read(earlier).unwrap().conversations[0].messages[..4], all);
    }

    #[test]
    fn a_prompt_is_a_conversation_without_its_last_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        for line in [
            r#"{"prompt": "q"}"#,
            r#"{"prompt": [{"role": "user", "content": "q"}]}"#,
            r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "completion": "a"}"#,
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"question": "q", "answer": "a"}"#,
        ] {
            std::fs::write(&path, line).unwrap();
            assert_eq!(read_prompts(&path).unwrap(), [vec![Message::user("q")]], "{line}");
        }
        std::fs::write(&path, r#"{"prompt": []}"#).unwrap();
        assert!(read_prompts(&path).unwrap_err().to_string().contains("no user message"));
        std::fs::write(&path, r#"{"prompt": 3}"#).unwrap();
        assert!(read_prompts(&path).unwrap_err().to_string().contains("line 1: \"prompt\" is a number"));
    }

    #[test]
    fn errors_name_the_line_and_the_expected_content() {
        for (content, part) in [
            (
                "{\"prompt\": \"q\", \"completion\": \"a\"}\n{\"promt\": \"q\"}",
                "line 2: an object with the keys [\"promt\"]",
            ),
            (r#"{"messages": [{"role": "robot", "content": "q"}]}"#, "must be system, user or assistant"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no assistant message"),
            (r#"{"messages": [{"role": "user"}]}"#, "message 1: \"content\" is missing"),
            (r#"{"messages": "q"}"#, "\"messages\" is a string; it must be a list of messages"),
            (r#"{"messages": null}"#, "\"messages\" is null"),
            (
                r#"{"prompt": 1, "completion": "a"}"#,
                "\"prompt\" is a number; it must be a string or a list of messages",
            ),
            (r#"{"prompt": "q", "completion": null}"#, "\"completion\" is null"),
            (
                r#"{"prompt": [{"role": "user", "content": 1}], "completion": "a"}"#,
                "\"prompt\": message 1: \"content\" is a number",
            ),
            (r#"{"question": "q", "answer": ["a"]}"#, "\"answer\" is a list; it must be a string"),
            (r#"{"instruction": "q", "input": 2, "output": "a"}"#, "\"input\" is a number"),
            (r#"{"prompt": "q", "completion": "a", "label": false}"#, "\"label\" marks an answer as good or bad (KTO)"),
            (r#"{"prompt": "q", "completion": "a", "tools": [{"name": "x"}]}"#, "\"tools\" is not supported"),
            ("3", "this one is a number"),
            (r#"["q", "a"]"#, "this one is a string"),
            ("\n", "no conversations"),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("data.jsonl"), "{message}");
        }
    }

    #[test]
    fn warnings_are_counted() {
        let lines = [
            r#"{"prompt": "q", "completion": "a", "source": "x", "id": 1}"#,
            r#"{"prompt": " Q ", "completion": "A", "id": 2}"#,
            r#"{"prompt": "q", "completion": "b"}"#,
            r#"{"prompt": "r", "completion": " "}"#,
            r#"{"prompt": "", "completion": ""}"#,
            r#"[{"role": "assistant", "content": "hello"}]"#,
            r#"[{"role": "system", "content": "s"}, {"role": "assistant", "content": "hello", "name": "z"}]"#,
        ];
        let warnings = read(&lines.join("\n")).unwrap().warnings;
        let ignored_keys = ["name", "source"].map(str::to_owned).into();
        let duplicates = Duplicates { exact: 1, same_prompt: 1 };
        let expected = Warnings {
            records: 7,
            duplicates,
            empty_answers: 2,
            without_question: 2,
            ignored_keys,
            ..Warnings::default()
        };
        assert_eq!(warnings, expected);
    }

    #[test]
    fn the_prompt_of_a_conversation_is_the_messages_before_the_first_answer() {
        let of = |messages: &[Message]| Conversation { messages: messages.to_vec() }.keys();
        let (q, a) = (Message::user("q"), Message::assistant("a"));
        let short = of(&[q.clone(), a.clone()]);
        let long = of(&[q.clone(), a.clone(), Message::user("r"), Message::assistant("b")]);
        assert_eq!(short.prompt, long.prompt, "the longer conversation contains the answer of the shorter one");
        assert_ne!(short.whole, long.whole);
        let empty_prompt = |text: &str| of(&[Message::user(" "), Message::assistant(text)]);
        assert_ne!(empty_prompt("a").prompt, empty_prompt("b").prompt);
    }
}
