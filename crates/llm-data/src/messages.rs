//! Parses messages in the formats of public datasets: `role` and `content`, or `from` and `value`; several names per role;
//! contents in parts; tool calls.

use llm_tokenizer::ChatMessage;
use serde_json::{Map, Value, json};

use crate::rows::{IgnoredKeys, RowError, is_set, refuse_media, shortened};
use crate::value::{kind, text_of};

/// Keys of a message that the chat template receives, besides role and content.
const TEMPLATE_KEYS: [&str; 5] = ["reasoning_content", "thinking", "tool_calls", "tool_call_id", "name"];

/// Keys that select the messages to train on. The last two are other names of `train`.
const TRAIN_KEYS: [&str; 4] = ["train", "weight", "trainable", "loss"];

/// Parses a list of messages: `{"role", "content"}`, or `{"from", "value"}` (ShareGPT).
pub(crate) fn messages(list: &[Value], ignored_keys: &mut IgnoredKeys) -> Result<Vec<ChatMessage>, RowError> {
    let one = |(at, value)| {
        let parsed = message(value, ignored_keys);
        parsed.map_err(|wrong: RowError| wrong.within(&format!("message {}", at + 1)))
    };
    list.iter().enumerate().map(one).collect()
}

fn message(value: &Value, ignored_keys: &mut IgnoredKeys) -> Result<ChatMessage, RowError> {
    let Some(object) = value.as_object() else {
        return Err(format!("is {}; it must be an object with \"role\" and \"content\"", kind(value)).into());
    };
    let (role_key, content_key) = match object.contains_key("from") && !object.contains_key("role") {
        true => ("from", "value"),
        false => ("role", "content"),
    };
    let role = role(role_key, text_of(object, role_key)?)?;
    refuse_media(object)?;
    let mut fields = Map::new();
    fields.insert("role".to_owned(), role.template_name().into());
    let calls = tool_calls(object, role, content_key)?;
    let content = match (role, &calls) {
        (Role::FunctionCall, _) => String::new(),
        (_, calls) => content(object, content_key, calls.is_some())?,
    };
    fields.insert("content".to_owned(), content.into());
    let kept = TEMPLATE_KEYS.iter().filter_map(|key| Some((*key, object.get(*key).filter(|value| is_set(value))?)));
    fields.extend(kept.map(|(key, value)| (key.to_owned(), value.clone())));
    fields.extend(calls.map(|calls| ("tool_calls".to_owned(), calls)));
    for key in TRAIN_KEYS {
        if let Some(value) = object.get(key).filter(|value| !value.is_null()) {
            let name = if key == "weight" { "weight" } else { "train" };
            fields.insert(name.to_owned(), value.clone());
        }
    }
    let known = |key: &str| {
        [role_key, content_key, "function_call"].contains(&key)
            || TEMPLATE_KEYS.contains(&key)
            || TRAIN_KEYS.contains(&key)
    };
    let unknown = object.iter().filter(|(key, value)| !known(key) && !value.is_null());
    ignored_keys.extend(unknown.map(|(key, _)| key.clone()));
    ChatMessage::from_fields(fields).map_err(|error| error.to_string().into())
}

/// The author of a message in the names of datasets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
    /// A call of a function by the assistant, with the JSON of the call as content (ShareGPT).
    FunctionCall,
}

impl Role {
    fn template_name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant | Self::FunctionCall => "assistant",
            Self::Tool => "tool",
        }
    }
}

fn role(key: &str, name: &str) -> Result<Role, String> {
    match name {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" | "model" => Ok(Role::Assistant),
        "tool" | "function" | "ipython" | "observation" | "tool_response" => Ok(Role::Tool),
        "function_call" | "tool_call" => Ok(Role::FunctionCall),
        other => Err(format!(
            "\"{key}\" is {}; it must be system, user or assistant, or tool for the result of a tool call",
            shortened(&other.into())
        )),
    }
}

/// The content of a message: a text, or the texts of its parts one after the other. Empty if it may be null and is.
fn content(object: &Map<String, Value>, key: &str, may_be_null: bool) -> Result<String, RowError> {
    match object.get(key) {
        Some(Value::Array(parts)) => parts.iter().map(|part| text_part(key, part)).collect(),
        Some(Value::String(text)) => Ok(text.clone()),
        None | Some(Value::Null) if may_be_null => Ok(String::new()),
        Some(other) => Err(format!("\"{key}\" is {}; it must be a string or a list of text parts", kind(other)).into()),
        None => Err(format!("\"{key}\" is missing").into()),
    }
}

/// The tool calls of a message, as the list `[{"type": "function", "function": {"name", "arguments"}}]`.
fn tool_calls(object: &Map<String, Value>, role: Role, content_key: &str) -> Result<Option<Value>, RowError> {
    let single = match role {
        Role::FunctionCall => {
            let text = text_of(object, content_key)?;
            let parsed = serde_json::from_str(text);
            Some(parsed.map_err(|e| format!("\"{content_key}\" must be the JSON of a function call ({e})"))?)
        }
        _ => object.get("function_call").filter(|value| is_set(value)).cloned(),
    };
    let (key, calls) = match (single, object.get("tool_calls").filter(|value| is_set(value))) {
        (Some(Value::Array(calls)), _) => (content_key, calls),
        (Some(call), _) => (content_key, vec![call]),
        (None, Some(Value::Array(calls))) => ("tool_calls", calls.clone()),
        (None, Some(other)) => {
            return Err(format!("\"tool_calls\" is {}; it must be a list of function calls", kind(other)).into());
        }
        (None, None) => return Ok(None),
    };
    if !matches!(role, Role::Assistant | Role::FunctionCall) {
        return Err(format!("\"{key}\" of a message of another role than assistant").into());
    }
    let call = |call: Value| match call.get("function").unwrap_or(&call).get("name") {
        Some(Value::String(_)) if call.get("function").is_some() => Ok(call),
        Some(Value::String(_)) => Ok(json!({"type": "function", "function": call})),
        _ => Err(format!(
            "a function call of \"{key}\" must have \"name\" and \"arguments\"; it is {}",
            shortened(&call)
        )),
    };
    Ok(Some(calls.into_iter().map(call).collect::<Result<_, String>>()?))
}

/// The text of a content part: `{"type": "text", "text"}`.
fn text_part<'a>(key: &str, part: &'a Value) -> Result<&'a str, RowError> {
    let Some(object) = part.as_object() else {
        let is = kind(part);
        return Err(format!("a part of \"{key}\" is {is}; it must be {{\"type\": \"text\", \"text\": …}}").into());
    };
    match object.get("type").and_then(Value::as_str) {
        Some("text" | "input_text" | "output_text") => Ok(text_of(object, "text")?),
        Some(other) => {
            let other = shortened(&other.into());
            Err(RowError::Refused(format!("a part of \"{key}\" has the type {other}; only \"text\" is supported")))
        }
        None => {
            Err(format!("a part of \"{key}\" has no \"type\"; it must be {{\"type\": \"text\", \"text\": …}}").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(list: &Value) -> Result<Vec<ChatMessage>, String> {
        let read = messages(list.as_array().unwrap(), &mut IgnoredKeys::new());
        read.map_err(|(RowError::Broken(message) | RowError::Refused(message))| message)
    }

    #[test]
    fn tool_calls_reasoning_and_masks_are_kept() {
        let call = json!({"name": "add", "arguments": {"a": 1}});
        let calls = json!([{"type": "function", "function": call}]);
        let openai = json!([
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": null, "tool_calls": calls, "reasoning_content": "Add.", "train": false},
            {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"},
            {"role": "assistant", "content": "2", "weight": 1},
        ]);
        let read_openai = read(&openai).unwrap();
        assert_eq!(read_openai[1].fields()["tool_calls"], calls);
        assert_eq!(read_openai[1].fields()["reasoning_content"], "Add.");
        assert_eq!(
            read_openai.iter().map(ChatMessage::train).collect::<Vec<_>>(),
            [None, Some(false), None, Some(true)]
        );
        assert_eq!((read_openai[2].role(), &read_openai[2].fields()["name"]), ("tool", &json!("add")));
        let sharegpt = json!([
            {"from": "human", "value": "1 + 1?"},
            {"from": "function_call", "value": call.to_string()},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "2"},
        ]);
        let read_sharegpt = read(&sharegpt).unwrap();
        assert_eq!(
            read_sharegpt[1].fields(),
            json!({"role": "assistant", "content": "", "tool_calls": calls}).as_object().unwrap()
        );
        assert_eq!(read_sharegpt[2], ChatMessage::new("tool", "2"));
        let legacy = json!([{"role": "assistant", "content": null, "function_call": call}]);
        assert_eq!(read(&legacy).unwrap()[0], read_sharegpt[1]);
    }

    #[test]
    fn content_parts_and_alternative_role_names_are_read() {
        let parts = json!([
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"from": "human", "value": "q"},
            {"role": "model", "content": [], "weight": 1, "train": true, "tool_calls": [], "mood": "x"},
        ]);
        let mut ignored_keys = IgnoredKeys::new();
        let answer = ChatMessage::assistant("").with_train(true);
        let expected = [ChatMessage::system("Be brief."), ChatMessage::user("q"), answer];
        assert_eq!(messages(parts.as_array().unwrap(), &mut ignored_keys).unwrap(), expected);
        assert!(ignored_keys.contains("mood"), "{ignored_keys:?}");
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
            (json!({"from": "function_call", "value": "add(1)"}), "\"value\" must be the JSON of a function call"),
            (
                json!({"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}),
                "a function call of \"tool_calls\" must have \"name\"",
            ),
            (json!({"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}), "of another role than assistant"),
            (json!({"role": "assistant", "content": "a", "weight": 0.5}), "\"weight\" is 0.5; it must be 0 or 1"),
            (
                json!({"role": "assistant", "content": "a", "train": "no"}),
                "\"train\" is \"no\"; it must be true or false",
            ),
            (json!({"role": "user", "content": "q", "images": ["x.png"]}), "\"images\" is not supported"),
            (json!({"role": "robot", "content": "q"}), "must be system, user or assistant"),
            (json!({"role": "user", "content": ["q"]}), "a part of \"content\" is a string"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "has the type \"image_url\""),
            (json!({"role": "user", "content": [{"text": "q"}]}), "has no \"type\""),
        ] {
            let message = read(&json!([user, wrong])).unwrap_err();
            assert!(message.contains(part) && message.starts_with("message 2"), "{message}");
        }
    }
}
