//! The messages of a conversation, with everything that a chat template reads.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// One message of a conversation, in the form of `transformers`: a dictionary that the chat template receives unchanged, in the
/// order of its keys.
///
/// Usual keys: `role` (required: `system`, `developer`, `user`, `assistant`, `tool`, or any other that the template knows),
/// `content` (a text, a list of parts such as `{"type": "text", "text": …}`, or null), `reasoning_content`, `tool_calls` (with
/// arguments as text or object), `name`, `tool_call_id`. The keys `train` (true or false) and `weight` (0 or 1) select the
/// messages that are trained on; the template does not receive them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
pub struct ChatMessage {
    /// The keys for the template.
    fields: Map<String, Value>,
    train: Option<bool>,
}

impl ChatMessage {
    /// A message with this role and text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let entries = [("role", role.into()), ("content", content.into())];
        Self {
            fields: entries.map(|(key, text)| (key.to_owned(), Value::from(text))).into_iter().collect(),
            train: None,
        }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// An assistant message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A message with these keys. An error if `role` is not a text, `content` is neither a text nor a list nor null, `train` is
    /// not a boolean, `weight` is not 0 or 1, both disagree, or a message of another role than `assistant` asks for training.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self> {
        let wrong = |key: &str, value: Option<&Value>, expected: &str| Error::MessageKey {
            key: key.to_owned(),
            value: value.map_or_else(|| "missing".to_owned(), shortened),
            expected: expected.to_owned(),
        };
        let Some(role) = fields.get("role").and_then(Value::as_str).map(str::to_owned) else {
            return Err(wrong("role", fields.get("role"), "a text such as \"user\""));
        };
        if let Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) = fields.get("content") {
            return Err(wrong("content", Some(other), "a text, a list of parts or null"));
        }
        let train = match fields.shift_remove("train") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(train)) => Some(train),
            Some(other) => return Err(wrong("train", Some(&other), "true or false")),
        };
        let weight = match fields.shift_remove("weight") {
            None | Some(Value::Null) => None,
            Some(value) if value.as_f64() == Some(0.0) => Some(false),
            Some(value) if value.as_f64() == Some(1.0) => Some(true),
            Some(other) => return Err(wrong("weight", Some(&other), "0 or 1")),
        };
        if let (Some(train), Some(weight)) = (train, weight)
            && train != weight
        {
            return Err(wrong("weight", Some(&Value::from(u8::from(weight))), "equal to \"train\""));
        }
        let train = train.or(weight);
        if train == Some(true) && role != "assistant" {
            return Err(wrong("train", Some(&Value::Bool(true)), "false or missing where the role is not assistant"));
        }
        Ok(Self { fields, train })
    }

    /// The author.
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of `content`: the text itself, or the texts of its parts one after another. Empty if there is none.
    pub fn text(&self) -> Cow<'_, str> {
        match self.fields.get("content") {
            Some(Value::String(text)) => Cow::Borrowed(text),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str())).collect()
            }
            _ => Cow::Borrowed(""),
        }
    }

    /// All keys for the template, without `train` and `weight`.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// `train` or `weight` as a boolean, if the message has one of them.
    pub fn train(&self) -> Option<bool> {
        self.train
    }

    /// The message with this value of `train`.
    #[must_use]
    pub fn with_train(mut self, train: bool) -> Self {
        self.train = Some(train);
        self
    }
}

impl TryFrom<Map<String, Value>> for ChatMessage {
    type Error = Error;

    fn try_from(fields: Map<String, Value>) -> Result<Self> {
        Self::from_fields(fields)
    }
}

impl From<ChatMessage> for Map<String, Value> {
    fn from(message: ChatMessage) -> Self {
        let mut fields = message.fields;
        fields.extend(message.train.map(|train| ("train".to_owned(), train.into())));
        fields
    }
}

/// The beginning of a value as JSON, for an error message.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A conversation with all that its chat template receives (`{"messages": […], "tools": […], …}`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<ChatMessage>,
    /// The functions that the assistant may call, as JSON schemas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// Documents for templates with retrieval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template, such as `enable_thinking`.
    #[serde(default, rename = "chat_template_kwargs", skip_serializing_if = "Map::is_empty")]
    pub variables: Map<String, Value>,
}

impl From<Vec<ChatMessage>> for Conversation {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// A borrowed [`Conversation`]. The functions that take one accept a slice of messages too.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    pub(crate) messages: &'a [ChatMessage],
    pub(crate) tools: Option<&'a [Value]>,
    pub(crate) documents: Option<&'a [Value]>,
    pub(crate) variables: Option<&'a Map<String, Value>>,
}

impl<'a> Chat<'a> {
    /// The number of bytes of all texts.
    pub(crate) fn size(self) -> usize {
        fn of(value: &Value) -> usize {
            match value {
                Value::String(text) => text.len(),
                Value::Array(list) => list.iter().map(of).sum(),
                Value::Object(map) => of_map(map),
                _ => 1,
            }
        }
        fn of_map(map: &Map<String, Value>) -> usize {
            map.iter().map(|(key, value)| key.len() + of(value)).sum()
        }
        let lists = [self.tools, self.documents].into_iter().flatten().flatten();
        let messages = self.messages.iter().map(|message| of_map(&message.fields));
        messages.chain(lists.map(of)).chain(self.variables.map(of_map)).sum()
    }

    /// The same conversation with these messages.
    pub(crate) fn with_messages(self, messages: &'a [ChatMessage]) -> Self {
        Self { messages, ..self }
    }
}

impl<'a> From<&'a Conversation> for Chat<'a> {
    fn from(conversation: &'a Conversation) -> Self {
        Self {
            messages: &conversation.messages,
            tools: conversation.tools.as_deref(),
            documents: conversation.documents.as_deref(),
            variables: Some(&conversation.variables),
        }
    }
}

impl<'a> From<&'a [ChatMessage]> for Chat<'a> {
    fn from(messages: &'a [ChatMessage]) -> Self {
        Self { messages, tools: None, documents: None, variables: None }
    }
}

impl<'a> From<&'a Vec<ChatMessage>> for Chat<'a> {
    fn from(messages: &'a Vec<ChatMessage>) -> Self {
        messages.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [ChatMessage; N]> for Chat<'a> {
    fn from(messages: &'a [ChatMessage; N]) -> Self {
        messages.as_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_all_keys_in_their_order_without_train_and_weight() {
        let text = r#"{"content":null,"role":"assistant","tool_calls":[{"b":1,"a":"{}"}],"x":2,"weight":0.0}"#;
        let message: ChatMessage = serde_json::from_str(text).unwrap();
        assert_eq!((message.role(), message.train()), ("assistant", Some(false)));
        let template = r#"{"content":null,"role":"assistant","tool_calls":[{"b":1,"a":"{}"}],"x":2}"#;
        assert_eq!(serde_json::to_string(message.fields()).unwrap(), template);
        let written = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<ChatMessage>(&written).unwrap(), message);
    }

    #[test]
    fn the_text_of_parts_is_joined() {
        let text =
            r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"}]}"#;
        assert_eq!(serde_json::from_str::<ChatMessage>(text).unwrap().text(), "ab");
        assert_eq!(serde_json::from_str::<ChatMessage>(r#"{"role":"tool"}"#).unwrap().text(), "");
    }

    #[test]
    fn errors_name_the_key_and_what_it_must_be() {
        for (text, expected) in [
            (r#"{"content":"x"}"#, "\"role\" is missing; it must be a text such as \"user\""),
            (r#"{"role":"user","content":3}"#, "\"content\" is 3; it must be a text, a list of parts or null"),
            (r#"{"role":"assistant","train":"yes"}"#, "\"train\" is \"yes\"; it must be true or false"),
            (r#"{"role":"assistant","weight":0.5}"#, "\"weight\" is 0.5; it must be 0 or 1"),
            (r#"{"role":"assistant","weight":0,"train":true}"#, "\"weight\" is 0; it must be equal to \"train\""),
            (r#"{"role":"tool","weight":1}"#, "\"train\" is true; it must be false or missing where the role is not"),
        ] {
            let error = serde_json::from_str::<ChatMessage>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
