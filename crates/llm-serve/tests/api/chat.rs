//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::{Test, chat};

const PATH: &str = "/v1/chat/completions";

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn the_chunks_of_a_stream_have_their_order() {
    let test = Test::new();
    let request = chat("the cat", json!({"n": 2, "stream_options": {"include_usage": true}, "ignore_eos": true}));
    let whole = test.post(PATH, &request);
    let chunks = test.stream(PATH, &request);
    for index in 0..2 {
        let own: Vec<&Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}), "the role first and alone");
        let last = own.len() - 1;
        assert_eq!((&own[last]["delta"], &own[last]["finish_reason"]), (&json!({}), &json!("length")));
        assert!(own[..last].iter().all(|choice| choice["finish_reason"].is_null()));
        assert!(
            own[1..last]
                .iter()
                .all(|choice| !text(&choice["delta"]["content"]).is_empty() && choice["delta"]["role"].is_null())
        );
        let content: String = own[1..last].iter().map(|choice| text(&choice["delta"]["content"])).collect();
        assert_eq!(content, whole["choices"][index]["message"]["content"]);
    }
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.as_object().unwrap().contains_key("usage")));
    for key in ["id", "created", "model", "object", "system_fingerprint"] {
        assert!(chunks.iter().all(|chunk| chunk[key] == chunks[0][key]), "{key}");
    }
    let plain = test.stream(PATH, &chat("the cat", json!({})));
    assert!(plain.iter().all(|chunk| !chunk.as_object().unwrap().contains_key("usage")));
    assert_eq!(whole["usage"]["total_tokens"], json!(24 + whole["usage"]["prompt_tokens"].as_u64().unwrap()));
}

#[test]
fn log_probabilities_are_those_of_the_content() {
    let test = Test::new();
    let request = chat("the dog é", json!({"logprobs": true, "top_logprobs": 4, "max_tokens": 40, "ignore_eos": true}));
    let whole = test.post(PATH, &request);
    let choice = &whole["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), text(&choice["message"]["content"]));
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["logprob"]), (4, &token["logprob"]), "greedy");
        assert!(!text(&token["token"]).is_empty());
    }
    assert!(choice["logprobs"]["refusal"].is_null());
    let streamed: Vec<Value> = test
        .stream(PATH, &request)
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(streamed, *content);
    // The values do not depend on the temperature.
    let mut hot = request.clone();
    hot["temperature"] = 2.into();
    hot["max_tokens"] = 1.into();
    let hot = test.post(PATH, &hot);
    assert_eq!(hot["choices"][0]["logprobs"]["content"][0]["top_logprobs"], content[0]["top_logprobs"]);
    assert!(test.post(PATH, &chat("the dog", json!({})))["choices"][0]["logprobs"].is_null());
}

#[test]
fn a_message_is_continued() {
    let test = Test::new();
    let messages = json!([{"role": "user", "content": "the"}, {"role": "assistant", "content": "the cat"}]);
    let more = |more: Value| {
        let mut request = chat("", more);
        request["messages"] = messages.clone();
        request
    };
    let continued = test.post(PATH, &more(json!({"continue_final_message": true, "ignore_eos": true})));
    let prompt = test.post("/apply-template", &json!({"messages": messages, "continue_final_message": true}));
    let request = json!({"prompt": prompt["tokens"], "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    let completed = test.post("/v1/completions", &request);
    assert_eq!(continued["choices"][0]["message"]["content"], completed["choices"][0]["text"], "the new text only");
    assert_eq!(continued["usage"]["prompt_tokens"], prompt["count"]);
    let (status, error) =
        test.refused(PATH, &more(json!({"continue_final_message": true, "add_generation_prompt": true})).to_string());
    assert_eq!((status, &error["param"]), (400, &json!("continue_final_message")));
}

#[test]
fn the_rest_of_the_context_is_the_default_length() {
    let test = Test::new();
    let mut request = chat("the cat", json!({"ignore_eos": true}));
    request.as_object_mut().unwrap().remove("max_tokens");
    let answer = test.post(PATH, &request);
    assert_eq!(
        (&answer["usage"]["total_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(512), &json!("length"))
    );
    request["max_completion_tokens"] = 3.into();
    request["max_tokens"] = 5.into();
    assert_eq!(test.post(PATH, &request)["usage"]["completion_tokens"], 3, "the new name wins");
}

#[test]
fn a_template_that_refuses_a_role_is_a_bad_request() {
    let test = Test::with_tools();
    let (status, error) = test.refused(PATH, r#"{"messages": [{"role": "critic", "content": "x"}]}"#);
    assert!(status == 400 && text(&error["message"]).contains("no critics here"), "{error}");
    assert_eq!(error["param"], "messages");
}
