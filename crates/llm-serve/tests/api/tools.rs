//! Tools, `response_format` and `structured_outputs`: answers that must match something.

use serde_json::{Value, json};

use crate::{TEMPLATE, Test, chat, complete, engine_options};

const PATH: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city", "days"], "additionalProperties": false, "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 3}}})
}

/// A request with two tools.
fn call(choice: Value) -> Value {
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "description": "it's <b>", "parameters": schema()}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    chat("the cat", json!({"tools": tools, "tool_choice": choice, "max_tokens": 300, "parallel_tool_calls": false}))
}

fn check_call(function: &Value) {
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    match function["name"].as_str().unwrap() {
        "weather" => assert!(jsonschema::is_valid(&schema(), &arguments), "{arguments}"),
        name => assert!(name == "now" && arguments == json!({}), "{function}"),
    }
}

#[test]
fn a_required_tool_is_called() {
    // Calls in tags, and calls as plain JSON.
    for template in [TEMPLATE.to_owned(), TEMPLATE.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>")]
    {
        let test = Test::with(llm_model::Head::LanguageModel, Some(&template), engine_options(), |_| ());
        let named = json!({"type": "function", "function": {"name": "weather"}});
        for choice in [json!("required"), named] {
            let request = call(choice.clone());
            let whole = test.post(PATH, &request);
            let answer = &whole["choices"][0];
            assert_eq!(answer["finish_reason"], "tool_calls", "{whole}");
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(
                (calls.len(), &answer["message"]["content"], &calls[0]["type"]),
                (1, &Value::Null, &json!("function"))
            );
            check_call(&calls[0]["function"]);
            assert!(choice.is_string() || calls[0]["function"]["name"] == "weather");
            crate::schema::check("CreateChatCompletionResponse", &whole);

            let chunks = test.stream(PATH, &request);
            chunks.iter().for_each(|chunk| crate::schema::check("CreateChatCompletionStreamResponse", chunk));
            let parts: Vec<&Value> =
                chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
            assert!(parts.iter().all(|part| part["index"] == 0));
            let id = parts[0]["id"].as_str().unwrap();
            assert!(id.starts_with("call_") && id != calls[0]["id"], "ids are unique");
            assert_eq!(parts[0]["function"]["name"], calls[0]["function"]["name"]);
            assert!(parts[1..].iter().all(|part| part["id"].is_null() && part["function"]["name"].is_null()));
            let arguments: String = parts.iter().map(|part| part["function"]["arguments"].as_str().unwrap()).collect();
            assert_eq!(arguments, calls[0]["function"]["arguments"]);
            let reasons = chunks.iter().filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
            assert_eq!(reasons.collect::<Vec<_>>(), ["tool_calls"]);
        }
    }
}

#[test]
fn a_call_that_is_cut_ends_by_its_length() {
    let test = Test::with_tools();
    let mut request = call(json!("required"));
    request["max_tokens"] = 20.into();
    assert_eq!(test.post(PATH, &request)["choices"][0]["finish_reason"], "length");
}

#[test]
fn tools_that_are_not_to_be_called_are_not_shown() {
    let test = Test::with_tools();
    let without = test.post(PATH, &chat("the cat", json!({"max_tokens": 300})));
    let none = test.post(PATH, &call(json!("none")));
    assert_eq!(
        (&none["choices"], &none["usage"]["prompt_tokens"]),
        (&without["choices"], &without["usage"]["prompt_tokens"])
    );
    let auto = test.post(PATH, &call(json!("auto")));
    assert!(auto["usage"]["prompt_tokens"].as_u64() > none["usage"]["prompt_tokens"].as_u64());
}

#[test]
fn an_answer_matches_its_form() {
    let test = Test::new();
    let content = |more: Value| {
        let answer = test.post(PATH, &chat("the cat", more));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema()}});
    for more in [json!({"response_format": format}), json!({"structured_outputs": {"json": schema()}})] {
        let mut more = more;
        more["max_tokens"] = 200.into();
        let value: Value = serde_json::from_str(&content(more)).unwrap();
        assert!(jsonschema::is_valid(&schema(), &value), "{value}");
    }
    let choice = content(json!({"structured_outputs": {"choice": ["red", "green"]}}));
    assert!(["red", "green"].contains(&choice.as_str()), "{choice}");
    let number = content(json!({"structured_outputs": {"regex": "[0-9]{3}x"}}));
    assert!(number.len() == 4 && number.ends_with('x') && number[..3].parse::<u32>().is_ok(), "{number}");
    assert_eq!(content(json!({"structured_outputs": {"grammar": "start: \"a\" \"b\"+ \"c\"\n"}}))[..2], *"ab");
    let object =
        test.post(PATH, &chat("the cat", json!({"response_format": {"type": "json_object"}, "max_tokens": 150})));
    let text = object["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.trim_start().starts_with('{'), "{text}");
    let is_object = serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    assert!(is_object || object["choices"][0]["finish_reason"] == "length", "{text}");
    let completed = test.post(
        "/v1/completions",
        &complete("the", json!({"ignore_eos": false, "structured_outputs": {"choice": ["yes"]}})),
    );
    assert_eq!(completed["choices"][0]["text"], "yes");
}

#[test]
fn a_form_that_cannot_be_kept_is_refused() {
    let test = Test::new();
    for structured in [
        json!({"json": {"type": "object", "x-unknown": 1, "not": {"type": "string"}}}),
        json!({"regex": "(((("}),
        json!({"grammar": "start: missing"}),
        json!({"choice": []}),
        json!({"choice": ["a"], "regex": "a"}),
    ] {
        let request = chat("the cat", json!({"structured_outputs": structured}));
        let (status, error) = test.refused(PATH, &request.to_string());
        assert_eq!(status, 400, "{structured}: {error}");
    }
    let mut both = call(json!("required"));
    both["response_format"] = json!({"type": "json_object"});
    assert_eq!(test.refused(PATH, &both.to_string()).1["param"], "tool_choice");
}

#[test]
fn the_python_package_openai_calls_tools() {
    let test = Test::with_tools();
    if let Some(answer) = crate::clients::python("openai_tools.py", "openai", &test, "tiny") {
        assert_eq!(answer, json!("ok"));
    }
}

#[test]
fn reasoning_has_both_names() {
    let test = Test::with_tools();
    let mut request = chat("", json!({"continue_final_message": true, "ignore_eos": true}));
    request["messages"] = json!([{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "<think>"}]);
    let whole = test.post(PATH, &request);
    let message = &whole["choices"][0]["message"];
    assert!(!message["reasoning"].as_str().unwrap().is_empty(), "the prompt ends within the reasoning");
    assert_eq!((&message["reasoning"], &message["content"]), (&message["reasoning_content"], &Value::Null));
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 12);
    let chunks = test.stream(PATH, &request);
    for name in ["reasoning", "reasoning_content"] {
        let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][name].as_str()).collect();
        assert_eq!(text, message["reasoning"]);
    }
    crate::schema::check("CreateChatCompletionResponse", &whole);
}
