//! Tools: which calls an answer may have, as a grammar.

use llm_engine::Constraint;
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::wire::chat::{Tool, ToolChoice, ToolMode};

/// How an answer may call tools.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Calls {
    /// It cannot.
    None,
    /// It may, in the form of the model.
    Auto,
    /// It must: the whole answer is calls.
    Forced(Constraint),
}

/// Which calls a request allows. `tags`: calls are written `<tool_call>…</tool_call>`, else as plain JSON.
pub(crate) fn calls(tools: &[Tool], choice: Option<&ToolChoice>, parallel: bool, tags: bool) -> Result<Calls> {
    for (index, tool) in tools.iter().enumerate() {
        let name = &tool.function.name;
        let is_valid = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(is_valid) {
            let message = format!("the name {name:?} must have 1 to 128 letters, digits, \"_\", \"-\" or \".\"");
            return Err(ApiError::invalid(format!("tools[{index}].function.name"), message));
        }
        if !tool.function.parameters().is_object() {
            let message = "\"parameters\" must be a JSON schema, an object";
            return Err(ApiError::invalid(format!("tools[{index}].function.parameters"), message));
        }
    }
    let needed =
        || ApiError::invalid("tool_choice", "\"tool_choice\" needs \"tools\"; give the functions that can be called");
    match choice {
        _ if tools.is_empty() => match choice {
            None | Some(ToolChoice::Mode(ToolMode::None | ToolMode::Auto)) => Ok(Calls::None),
            _ => Err(needed()),
        },
        None | Some(ToolChoice::Mode(ToolMode::Auto)) => Ok(Calls::Auto),
        Some(ToolChoice::Mode(ToolMode::None)) => Ok(Calls::None),
        Some(ToolChoice::Mode(ToolMode::Required)) => Ok(Calls::Forced(grammar(tools, parallel, tags))),
        Some(ToolChoice::Named { function }) => {
            let named: Vec<Tool> = tools.iter().filter(|tool| tool.function.name == function.name).cloned().collect();
            match named.is_empty() {
                true => {
                    let message = format!("there is no tool {:?} in \"tools\"", function.name);
                    Err(ApiError::invalid("tool_choice", message))
                }
                false => Ok(Calls::Forced(grammar(&named[..1], false, tags))),
            }
        }
    }
}

/// The schema of one call: the name first, so that it is known before the arguments.
fn call_schema(tools: &[Tool]) -> Value {
    let call = |(index, tool): (usize, &Tool)| {
        let mut parameters = tool.function.parameters();
        let place = if tools.len() == 1 { String::new() } else { format!("/anyOf/{index}") };
        relocate(&mut parameters, &format!("#{place}/properties/arguments"));
        json!({
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    let mut calls: Vec<Value> = tools.iter().enumerate().map(call).collect();
    if calls.len() == 1 { calls.swap_remove(0) } else { json!({"anyOf": calls}) }
}

/// References such as `#/$defs/x` are relative to the whole schema: they get the place of the schema in it.
fn relocate(value: &mut Value, place: &str) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get_mut("$ref")
                && target.starts_with('#')
            {
                target.replace_range(..1, place);
            }
            map.values_mut().for_each(|value| relocate(value, place));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| relocate(value, place)),
        _ => (),
    }
}

/// The grammar of an answer that is calls only.
fn grammar(tools: &[Tool], parallel: bool, tags: bool) -> Constraint {
    let mut schema = call_schema(tools);
    if !tags {
        return Constraint::JsonSchema(schema);
    }
    // The form in which templates write the calls of earlier messages.
    schema["x-guidance"] = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    let more = if parallel { "(\"\\n\" call)*" } else { "" };
    Constraint::Grammar(format!(
        "start: call {more}\ncall: \"<tool_call>\\n\" json \"\\n</tool_call>\"\njson: %json {schema}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(value: Value) -> Vec<Tool> {
        serde_json::from_value(value).unwrap()
    }

    fn choice(value: Value) -> ToolChoice {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_choice_says_which_calls_an_answer_has() {
        let two = tools(json!([
            {"type": "function", "function": {"name": "a", "parameters": {"type": "object", "$defs": {"x": {}}, "properties": {"y": {"$ref": "#/$defs/x"}}}}},
            {"type": "function", "function": {"name": "b"}},
        ]));
        assert_eq!(calls(&two, None, true, false).unwrap(), Calls::Auto);
        assert_eq!(calls(&two, Some(&choice(json!("auto"))), true, false).unwrap(), Calls::Auto);
        assert_eq!(calls(&two, Some(&choice(json!("none"))), true, false).unwrap(), Calls::None);
        let Calls::Forced(Constraint::JsonSchema(schema)) =
            calls(&two, Some(&choice(json!("required"))), true, false).unwrap()
        else {
            panic!()
        };
        let first = &schema["anyOf"][0]["properties"];
        assert_eq!(first["arguments"]["properties"]["y"]["$ref"], "#/anyOf/0/properties/arguments/$defs/x");
        assert_eq!(first["name"], json!({"const": "a"}));
        let named = choice(json!({"type": "function", "function": {"name": "b"}}));
        let Calls::Forced(Constraint::Grammar(grammar)) = calls(&two, Some(&named), true, true).unwrap() else {
            panic!()
        };
        assert!(grammar.contains("\"const\":\"b\"") && !grammar.contains("\"const\":\"a\""), "{grammar}");
    }

    #[test]
    fn tools_that_cannot_be_called_are_errors() {
        let bad_name = tools(json!([{"type": "function", "function": {"name": "a b"}}]));
        assert_eq!(calls(&bad_name, None, true, true).unwrap_err().body()["error"]["param"], "tools[0].function.name");
        let bad_schema = tools(json!([{"type": "function", "function": {"name": "a", "parameters": 3}}]));
        assert!(calls(&bad_schema, None, true, true).is_err());
        let good = tools(json!([{"type": "function", "function": {"name": "a"}}]));
        assert!(calls(&good, Some(&choice(json!({"function": {"name": "z"}}))), true, true).is_err());
        assert!(calls(&[], Some(&choice(json!("required"))), true, true).is_err());
        assert_eq!(calls(&[], Some(&choice(json!("none"))), true, true).unwrap(), Calls::None);
    }
}
