//! JSON values in error messages.

use serde_json::{Map, Value};

/// The type of a JSON value, with an article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Describes a record in an error message: the keys of an object, or the type of another value.
pub(crate) fn described(value: &Value) -> String {
    match value.as_object() {
        Some(object) => format!("an object with the keys {:?}", object.keys().collect::<Vec<_>>()),
        None => kind(value).to_owned(),
    }
}

/// The string value of a key.
pub(crate) fn text_of<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("\"{key}\" is {}; it must be a string", kind(other))),
        None => Err(format!("\"{key}\" is missing")),
    }
}
