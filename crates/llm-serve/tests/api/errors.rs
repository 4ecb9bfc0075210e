//! What is wrong with a request is said with a status and an error object, and never a failure of the server.

use llm_model::Head;
use serde_json::{Value, json};

use crate::{Test, chat, complete, engine_options};

#[test]
fn wrong_values_name_their_key() {
    let test = Test::new();
    let base = json!({"messages": [{"role": "user", "content": "a"}]});
    for (key, value) in [
        ("messages", json!([])),
        ("messages", json!("a")),
        ("messages[0]", json!([{"content": "a"}])),
        (
            "messages[0].content[0]",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!(-1)),
        ("n", json!(1.5)),
        ("max_tokens", json!(0)),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(2)),
        ("stop", json!([""])),
        ("stop", json!("")),
        ("stop", json!(3)),
        ("stream", json!("yes")),
        ("tools", json!(3)),
        ("tools[0].function.name", json!([{"type": "function", "function": {"name": "a b"}}])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!("sometimes")),
        ("response_format", json!({"type": "xml"})),
        ("truncate_prompt_tokens", json!(0)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(3)),
        ("logit_bias", json!({"300": 1})),
        ("logit_bias", json!({"7": 101})),
        ("logit_bias", json!({"x": 1})),
        ("samplers", json!(["top_k", "top_k"])),
        ("samplers", json!("best")),
        ("allowed_token_ids", json!([])),
        ("banned_token_ids", json!([300])),
        ("stop_token_ids", json!([300])),
        ("dry_breakers", json!([""])),
        ("logprobs_mode", json!("none")),
    ] {
        let mut request = base.clone();
        let name = key.split(['[', '.']).next().unwrap();
        request[name] = value.clone();
        let (status, error) = test.refused("/v1/chat/completions", &request.to_string());
        let param = error["param"].as_str().unwrap_or_default();
        assert!(status == 400 && param.starts_with(key), "{key} {value}: {status} {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for (key, value) in [
        ("prompt", json!([])),
        ("prompt", json!("")),
        ("prompt", json!([[1], []])),
        ("prompt", json!([300])),
        ("prompt", json!([1, "a"])),
        ("suffix", json!("x")),
        ("best_of", json!(1)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
    ] {
        let mut request = complete("a", json!({"n": 2}));
        request[key] = value.clone();
        let (status, error) = test.refused("/v1/completions", &request.to_string());
        assert_eq!((status, &error["param"]), (400, &json!(key)), "{value}: {error}");
    }
}

#[test]
fn unknown_keys_and_nulls_are_ignored() {
    let test = Test::new();
    let plain = test.post("/v1/completions", &complete("the cat", json!({})));
    let more = json!({"x": [1], "stop": null, "n": null, "logit_bias": {}, "user": "u", "suffix": "", "stream": null, "echo": null});
    assert_eq!(test.post("/v1/completions", &complete("the cat", more))["choices"], plain["choices"]);
}

#[test]
fn bodies_that_are_no_json_are_bad_requests() {
    let test = Test::new();
    let deep = format!(r#"{{"prompt": {}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let schema = format!(
        r#"{{"prompt": "a", "structured_outputs": {{"json": {}1{}}}}}"#,
        r#"{"a":"#.repeat(10_000),
        "}".repeat(10_000)
    );
    for body in [
        "",
        "x",
        "[]",
        "{",
        r#"{"prompt": "\ud800"}"#,
        r#"{"prompt": NaN}"#,
        r#"{"prompt": "a", "temperature": 1e999}"#,
        &deep,
        &schema,
    ] {
        let (status, error) = test.refused("/v1/completions", body);
        assert_eq!((status, &error["type"]), (400, &json!("invalid_request_error")), "{body:.40}");
    }
    let mut response = test.agent.post(test.url("/v1/completions")).send(&b"{\"prompt\": \"\xff\"}"[..]).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    assert!(response.status().as_u16() == 400 && text.contains("\"error\""), "{text}");
}

#[test]
fn unknown_models_paths_and_methods_are_told() {
    let test = Test::new();
    let mut request = chat("a", json!({}));
    request["model"] = "other".into();
    let (status, error) = test.refused("/v1/chat/completions", &request.to_string());
    assert_eq!((status, &error["param"], &error["code"]), (404, &json!("model"), &json!("model_not_found")));
    assert_eq!(test.get("/v1/models/other").0, 404);
    assert_eq!(test.refused("/v1/nothing", "{}").0, 404);
    assert_eq!(test.refused("/v1/models", "{}").0, 405);
    let (status, text) = test.get("/v1/chat/completions");
    assert!(status == 405 && text.contains("\"error\""), "{text}");
}

#[test]
fn a_prompt_that_is_too_long_is_refused_with_both_numbers() {
    let test = Test::new();
    let ids: Vec<u32> = (0..600).map(|i| 6 + i % 200).collect();
    let (status, error) = test.refused("/v1/completions", &complete(json!(ids), json!({})).to_string());
    let message = error["message"].as_str().unwrap();
    assert!(status == 400 && message.contains("600") && message.contains("512"), "{message}");
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(test.refused("/v1/completions", &complete(json!(ids[..512]), json!({})).to_string()).0, 400);
    let full = test.post("/v1/completions", &complete(json!(ids[..511]), json!({"max_tokens": 50})));
    assert_eq!(
        (&full["usage"]["completion_tokens"], &full["choices"][0]["finish_reason"]),
        (&json!(1), &json!("length"))
    );
    let cut =
        test.post("/v1/completions", &complete(json!(ids), json!({"truncate_prompt_tokens": 100, "max_tokens": 2})));
    let last = test.post("/v1/completions", &complete(json!(ids[500..]), json!({"max_tokens": 2})));
    assert_eq!((&cut["usage"]["prompt_tokens"], &cut["choices"]), (&json!(100), &last["choices"]));
}

#[test]
fn keys_are_needed_where_they_are_set() {
    let keys = |options: &mut llm_serve::ServeOptions| options.api_keys = vec!["secret".to_owned(), "other".to_owned()];
    let test = Test::with(Head::LanguageModel, None, engine_options(), keys);
    let status = |header: Option<&str>| {
        let mut request = test.agent.get(test.url("/v1/models"));
        if let Some(header) = header {
            request = request.header("Authorization", header);
        }
        request.call().unwrap().status().as_u16()
    };
    assert_eq!((status(Some("Bearer secret")), status(Some("bearer other"))), (200, 200));
    for header in [None, Some("Bearer secre"), Some("Bearer "), Some("Basic secret"), Some("secret")] {
        assert_eq!(status(header), 401, "{header:?}");
    }
    let (status, error) = test.refused("/v1/completions", "{}");
    assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")));
    assert_eq!((test.get("/health").0, test.get("/ready").0, test.get("/").0), (200, 200, 200));
    assert_eq!((test.get("/metrics").0, test.get("/openapi.json").0), (401, 401));
}

#[test]
fn pages_of_other_sites_cannot_use_the_server() {
    let test = Test::new();
    let status = |name: &str, value: &str| {
        let request = test.agent.get(test.url("/v1/models")).header(name, value);
        let mut response = request.call().unwrap();
        assert!(response.headers().keys().all(|header| !header.as_str().starts_with("access-control")));
        let text = response.body_mut().read_to_string().unwrap();
        assert!(response.status().is_success() || serde_json::from_str::<Value>(&text).unwrap()["error"].is_object());
        response.status().as_u16()
    };
    assert_eq!(status("Host", "evil.example"), 403, "DNS rebinding");
    assert_eq!(status("Origin", "http://evil.example"), 403);
    assert_eq!(status("Origin", "null"), 403);
    assert_eq!(status("Origin", &format!("http://{}", test.address)), 200, "the page of the server");
    assert_eq!(status("Host", "localhost:1"), 200);
}
