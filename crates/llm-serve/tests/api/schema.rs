//! Answers are valid by OpenAI's own schema.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::{Test, chat, complete};

/// Checks a response against a component of `schema/openai.json`.
pub fn check(component: &str, value: &Value) {
    let mut schema: Value = serde_json::from_str(include_str!("../schema/openai.json")).unwrap();
    schema["$ref"] = format!("#/components/schemas/{component}").into();
    let validator: Validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{component} {errors:?} in {value:#}");
}

#[test]
#[should_panic(expected = "CreateCompletionResponse")]
fn a_wrong_answer_is_found() {
    check(
        "CreateCompletionResponse",
        &json!({"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [{}]}),
    );
}

#[test]
fn all_answers_are_valid() {
    let test = Test::with_tools();
    let logprobs = json!({"logprobs": true, "top_logprobs": 3, "n": 2});
    check("CreateChatCompletionResponse", &test.post("/v1/chat/completions", &chat("the cat", logprobs.clone())));
    check("CreateChatCompletionResponse", &test.post("/v1/chat/completions", &chat("the cat", json!({}))));
    let mut streamed = logprobs;
    streamed["stream_options"] = json!({"include_usage": true});
    for chunk in test.stream("/v1/chat/completions", &chat("the cat", streamed)) {
        check("CreateChatCompletionStreamResponse", &chunk);
    }
    let completion = complete(json!(["the cat", "a dog"]), json!({"logprobs": 2, "n": 2, "max_tokens": 4}));
    check("CreateCompletionResponse", &test.post("/v1/completions", &completion));
    for part in test.stream("/v1/completions", &completion) {
        check("CreateCompletionResponse", &with_reasons(part));
    }
    check("CreateEmbeddingResponse", &test.post("/v1/embeddings", &json!({"model": "tiny", "input": ["a", "b"]})));
    let models: Value = serde_json::from_str(&test.get("/v1/models").1).unwrap();
    check("ListModelsResponse", &models);
    check("Model", &serde_json::from_str(&test.get("/v1/models/tiny").1).unwrap());
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!("tiny"), &json!(1024)));
}

/// The schema has no parts of a stream: their `finish_reason` is null.
fn with_reasons(mut part: Value) -> Value {
    for choice in part["choices"].as_array_mut().unwrap() {
        if choice["finish_reason"].is_null() {
            choice["finish_reason"] = "stop".into();
        }
    }
    part
}
