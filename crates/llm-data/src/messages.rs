//! Parses messages in the formats of public datasets: `role` and `content`, or `from` and `value`; several names per role;
//! contents in parts.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::files::kind;
use crate::{Message, Role};

/// Keys of records and messages that this crate does not read.
pub(crate) type IgnoredKeys = BTreeSet<String>;

/// The string value of a key.
pub(crate) fn text_of<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("\"{key}\" is {}; it must be a string", kind(other))),
        None => Err(format!("\"{key}\" is missing")),
    }
}

/// Parses a list of messages: `{"role", "content"}`, or `{"from", "value"}` (ShareGPT).
pub(crate) fn messages(list: &[Value], ignored_keys: &mut IgnoredKeys) -> Result<Vec<Message>, String> {
    let one = |(at, value)| message(value, ignored_keys).map_err(|wrong| format!("message {}: {wrong}", at + 1));
    list.iter().enumerate().map(one).collect()
}

fn message(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<Message, String> {
    let Some(object) = value.as_object() else {
        return Err(format!("is {}; it must be an object with \"role\" and \"content\"", kind(value)));
    };
    let (role_key, content_key) = match object.contains_key("from") && !object.contains_key("role") {
        true => ("from", "value"),
        false => ("role", "content"),
    };
    let role = role(role_key, text_of(object, role_key)?)?;
    refuse_unsupported_keys(object)?;
    let content = match object.get(content_key) {
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| text_part(content_key, part)).collect::<Result<String, _>>()?
        }
        Some(Value::String(text)) => text.clone(),
        Some(other) => {
            let is = kind(other);
            return Err(format!("\"{content_key}\" is {is}; it must be a string or a list of text parts"));
        }
        None => return Err(format!("\"{content_key}\" is missing")),
    };
    ignored_keys.extend(object.keys().filter(|key| *key != role_key && *key != content_key).cloned());
    Ok(Message::new(role, content))
}

fn role(key: &str, name: &str) -> Result<Role, String> {
    match name {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" | "model" => Ok(Role::Assistant),
        "tool" | "function" | "ipython" | "observation" | "function_call" | "tool_call" | "tool_response" => {
            Err(format!(
                "\"{key}\" is \"{name}\"; tool calls and their results are not supported; remove conversations with tool calls"
            ))
        }
        other => Err(format!("\"{key}\" is \"{other}\"; it must be system, user or assistant")),
    }
}

/// The text of a content part: `{"type": "text", "text"}`.
fn text_part<'a>(key: &str, part: &'a Value) -> Result<&'a str, String> {
    let Some(object) = part.as_object() else {
        let is = kind(part);
        return Err(format!("a part of \"{key}\" is {is}; it must be {{\"type\": \"text\", \"text\": …}}"));
    };
    match object.get("type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") => text_of(object, "text"),
        Some(other) => Err(format!("a part of \"{key}\" has the type \"{other}\"; only \"text\" is supported")),
        None => Err(format!("a part of \"{key}\" has no \"type\"; it must be {{\"type\": \"text\", \"text\": …}}")),
    }
}

/// Returns an error for keys of a record or a message that change how it must be trained on and that this crate does not support.
/// Ignoring them would train on data that the author excluded.
pub(crate) fn refuse_unsupported_keys(object: &Map<String, Value>) -> Result<(), String> {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !matches!(text.trim(), "" | "[]" | "null"),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    for key in ["tools", "tool_calls", "function_call", "functions", "images", "image", "videos", "audios", "audio"] {
        if object.get(key).is_some_and(is_set) {
            return Err(format!(
                "\"{key}\" is not supported; remove such records, or remove the key if the text does not need it"
            ));
        }
    }
    for key in ["weight", "train", "trainable", "loss"] {
        let value = object.get(key).filter(|value| value.is_boolean() || value.is_number());
        if let Some(value) = value.filter(|value| value.as_bool() != Some(true) && value.as_f64() != Some(1.)) {
            return Err(format!(
                "\"{key}\" is {value}; all answers of a conversation are trained on with weight 1; end the conversation \
                 before this answer, or remove the key"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(list: Value) -> Result<Vec<Message>, String> {
        messages(list.as_array().unwrap(), &mut IgnoredKeys::new())
    }

    #[test]
    fn content_parts_and_alternative_role_names_are_read() {
        let parts = json!([
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"from": "human", "value": "q"},
            {"role": "model", "content": [], "weight": 1, "train": true, "tool_calls": [], "name": "x"},
        ]);
        let mut ignored_keys = IgnoredKeys::new();
        let expected = [Message::system("Be brief."), Message::user("q"), Message::assistant("")];
        assert_eq!(messages(parts.as_array().unwrap(), &mut ignored_keys).unwrap(), expected);
        assert!(ignored_keys.contains("name"), "{ignored_keys:?}");
    }

    #[test]
    fn errors_name_the_message_the_key_and_the_type() {
        let user = json!({"role": "user", "content": "q"});
        for (wrong, part) in [
            (json!("q"), "message 2: is a string; it must be an object"),
            (json!({"role": "user"}), "message 2: \"content\" is missing"),
            (json!({"role": 1, "content": "q"}), "\"role\" is a number; it must be a string"),
            (
                json!({"role": "user", "content": null}),
                "\"content\" is null; it must be a string or a list of text parts",
            ),
            (json!({"from": "gpt", "value": 3}), "\"value\" is a number"),
            (json!({"role": "tool", "content": "4"}), "\"role\" is \"tool\"; tool calls"),
            (json!({"from": "observation", "value": "4"}), "\"from\" is \"observation\"; tool calls"),
            (
                json!({"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}),
                "\"tool_calls\" is not supported",
            ),
            (json!({"role": "assistant", "content": "a", "weight": 0}), "\"weight\" is 0"),
            (json!({"role": "assistant", "content": "a", "train": false}), "\"train\" is false"),
            (json!({"role": "robot", "content": "q"}), "must be system, user or assistant"),
            (json!({"role": "user", "content": ["q"]}), "a part of \"content\" is a string"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "has the type \"image_url\""),
            (json!({"role": "user", "content": [{"text": "q"}]}), "has no \"type\""),
        ] {
            let message = read(json!([user, wrong])).unwrap_err();
            assert!(message.contains(part) && message.starts_with("message 2"), "{message}");
        }
    }
}
