//! The keys of `tokenizer_config.json`: defaults, special tokens and chat templates.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::chat_template::ChatTemplate;
use crate::{Error, Result};

/// The default `tokenizer_config.json`.
pub(crate) fn default_config() -> Map<String, Value> {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        // "No limit", as transformers writes it: the limit is a property of the model.
        "model_max_length": 1e30,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": false,
        "add_eos_token": false,
    });
    config.as_object().cloned().unwrap_or_default()
}

/// The chat templates of a configuration: a string, or a list of named templates.
pub(crate) fn chat_template(config: &Map<String, Value>, path: &Path) -> Result<Option<ChatTemplate>> {
    let key = "chat_template";
    let expected = "a string, or a list of {\"name\", \"template\"}";
    let wrong = || Error::ConfigKey { path: path.to_owned(), key, expected };
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(ChatTemplate::new(source))),
        Some(Value::Array(list)) if !list.is_empty() => {
            let text = |entry: &Value, key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            let named = list.iter().map(|entry| text(entry, "name").zip(text(entry, "template")));
            named.collect::<Option<Vec<_>>>().map(|named| Some(ChatTemplate::named(named))).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

/// The special tokens of a configuration.
pub(crate) fn special_tokens(config: &Map<String, Value>, path: &Path) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    for key in ["bos_token", "eos_token", "pad_token"] {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let expected = "the text of a token, {\"content\": text} or null";
        let token = token_text(value).ok_or_else(|| Error::ConfigKey { path: path.to_owned(), key, expected })?;
        tokens.push(token.to_owned());
    }
    let additional = config.get("additional_special_tokens").and_then(Value::as_array);
    tokens.extend(additional.into_iter().flatten().filter_map(token_text).map(str::to_owned));
    Ok(tokens)
}

/// The text of a token, written as a string or as `{"content": text}`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
