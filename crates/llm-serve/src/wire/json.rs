//! Reads the JSON of a request, and says which key is wrong.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ApiError, Result};

/// Parses the body of a request. Nesting deeper than 128 levels, lone surrogates and numbers out of range are errors.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let param = if path == "." { String::new() } else { path };
        match param.is_empty() {
            true => ApiError::invalid("", format!("the body is not valid: {}; send a JSON object", error.inner())),
            false => ApiError::invalid(param.clone(), format!("\"{param}\": {}", error.inner())),
        }
    })?;
    reader.end().map_err(|error| ApiError::invalid("", format!("the body is not one JSON object: {error}")))?;
    Ok(parsed)
}

/// One value or a list of values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a value or a list of values of this type")]
pub(crate) enum OneOrMany<T> {
    /// One value.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

/// Texts or token ids: one text, several texts, the ids of one text, or those of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a text, a list of texts, a list of token ids or a list of lists of token ids")]
pub(crate) enum Texts {
    /// One text.
    Text(String),
    /// Several texts.
    Several(Vec<String>),
    /// The token ids of one text.
    Ids(Vec<u32>),
    /// The token ids of several texts.
    IdLists(Vec<Vec<u32>>),
}

/// A text or its token ids.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextOrIds {
    Text(String),
    Ids(Vec<u32>),
}

impl Texts {
    /// One entry for each text. An error if there is none; `param` is the key of the request.
    pub(crate) fn entries(self, param: &str) -> Result<Vec<TextOrIds>> {
        let entries: Vec<TextOrIds> = match self {
            Self::Text(text) => vec![TextOrIds::Text(text)],
            Self::Several(texts) => texts.into_iter().map(TextOrIds::Text).collect(),
            Self::Ids(ids) => vec![TextOrIds::Ids(ids)],
            Self::IdLists(lists) => lists.into_iter().map(TextOrIds::Ids).collect(),
        };
        match entries.is_empty() || entries.contains(&TextOrIds::Ids(Vec::new())) {
            true => Err(ApiError::invalid(param, format!("\"{param}\" is empty; give at least one token"))),
            false => Ok(entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Example {
        #[allow(dead_code, reason = "only its type matters")]
        temperature: Option<f64>,
        prompt: Option<Texts>,
    }

    fn error(text: &str) -> Value {
        parse::<Example>(text.as_bytes()).unwrap_err().body()["error"].clone()
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let error = error(r#"{"x": 1, "temperature": "hot"}"#);
        assert_eq!((&error["param"], &error["type"]), (&json!("temperature"), &json!("invalid_request_error")));
        assert!(error["message"].as_str().unwrap().contains("invalid type: string \"hot\""), "{error}");
        assert!(error["code"].is_null());
    }

    #[test]
    fn a_body_that_is_no_json_is_an_error() {
        let deep = format!(r#"{{"prompt": {}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        let bad = [
            "",
            "nope",
            "[1]",
            r#"{"temperature": NaN}"#,
            r#"{"temperature": 1e999}"#,
            r#"{"prompt": "\ud800"}"#,
            &deep,
        ];
        for text in bad {
            assert!(parse::<Example>(text.as_bytes()).is_err(), "{text:.40}");
        }
        assert!(parse::<Example>(b"{} {}").is_err() && parse::<Example>(b"{\"prompt\": \"\xff\"}").is_err());
        assert!(parse::<Example>(br#"{"prompt": "\ud83d\ude00", "unknown": {}}"#).is_ok());
    }

    #[test]
    fn prompts_are_texts_or_ids() {
        let entries = |value: Value| {
            let body = json!({"prompt": value}).to_string();
            parse::<Example>(body.as_bytes()).unwrap().prompt.unwrap().entries("prompt")
        };
        let text = |text: &str| TextOrIds::Text(text.to_owned());
        assert_eq!(entries(json!("a")).unwrap(), [text("a")]);
        assert_eq!(entries(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(entries(json!([1, 2])).unwrap(), [TextOrIds::Ids(vec![1, 2])]);
        assert_eq!(entries(json!([[1], [2, 3]])).unwrap(), [TextOrIds::Ids(vec![1]), TextOrIds::Ids(vec![2, 3])]);
        assert!(entries(json!([])).is_err() && entries(json!([[1], []])).is_err());
        assert!(error(r#"{"prompt": [1, "a"]}"#)["message"].as_str().unwrap().contains("a list of token ids"));
        assert_eq!(error(r#"{"prompt": [-1]}"#)["param"], "prompt");
    }
}
