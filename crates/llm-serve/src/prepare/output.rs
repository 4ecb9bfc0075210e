//! What an answer must match.

use llm_engine::Constraint;

use crate::error::{ApiError, Result};
use crate::wire::output::{ResponseFormat, StructuredOutputs};

/// The constraint of a request.
pub(crate) fn constraint(
    format: Option<ResponseFormat>,
    structured: Option<StructuredOutputs>,
) -> Result<Option<Constraint>> {
    let of_format = match format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(Constraint::JsonObject),
        Some(ResponseFormat::JsonSchema { json_schema }) => {
            let missing =
                || ApiError::invalid("response_format.json_schema.schema", "\"schema\" is missing; give a JSON schema");
            Some(Constraint::JsonSchema(json_schema.schema.ok_or_else(missing)?))
        }
    };
    let Some(structured) = structured else { return Ok(of_format) };
    let mut given: Vec<Constraint> = of_format.into_iter().collect();
    given.extend(structured.json.map(Constraint::JsonSchema));
    given.extend(structured.regex.map(Constraint::Regex));
    given.extend(structured.grammar.map(Constraint::Grammar));
    if let Some(choice) = structured.choice {
        if choice.is_empty() {
            return Err(ApiError::invalid("structured_outputs.choice", "\"choice\" is empty; give at least one text"));
        }
        given.push(Constraint::Choice(choice));
    }
    match given.len() {
        0 | 1 => Ok(given.pop()),
        _ => {
            let message =
                "give one of \"response_format\" and the keys of \"structured_outputs\"; an answer can match only one";
            Err(ApiError::invalid("structured_outputs", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(format: Value, structured: Value) -> Result<Option<Constraint>> {
        constraint(serde_json::from_value(format).unwrap(), serde_json::from_value(structured).unwrap())
    }

    #[test]
    fn each_form_has_its_constraint() {
        let schema = json!({"type": "object"});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        assert_eq!(read(format.clone(), Value::Null).unwrap(), Some(Constraint::JsonSchema(schema.clone())));
        assert_eq!(read(json!({"type": "json_object"}), Value::Null).unwrap(), Some(Constraint::JsonObject));
        assert_eq!(read(json!({"type": "text"}), json!({})).unwrap(), None);
        for (structured, expected) in [
            (json!({"json": schema}), Constraint::JsonSchema(schema.clone())),
            (json!({"regex": "a+"}), Constraint::Regex("a+".to_owned())),
            (json!({"choice": ["a"]}), Constraint::Choice(vec!["a".to_owned()])),
            (json!({"grammar": "start: \"a\""}), Constraint::Grammar("start: \"a\"".to_owned())),
        ] {
            assert_eq!(read(Value::Null, structured).unwrap(), Some(expected));
        }
        assert!(read(format, json!({"regex": "a"})).is_err() && read(Value::Null, json!({"choice": []})).is_err());
        assert!(read(Value::Null, json!({"regex": "a", "grammar": "b"})).is_err());
        let error = read(json!({"type": "json_schema", "json_schema": {"name": "x"}}), Value::Null).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "response_format.json_schema.schema");
    }
}
