//! `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`, `/health`, `/metrics`, `/openapi.json` and the page.

use serde_json::{Value, json};

use crate::{Test, chat, complete};

#[test]
fn texts_become_ids_and_back() {
    let test = Test::new();
    let tokens = test.post("/tokenize", &json!({"prompt": "the cat 🐈<|end|>", "return_token_strs": true}));
    assert_eq!(
        (&tokens["max_model_len"], tokens["tokens"].as_array().unwrap().len()),
        (&json!(512), tokens["count"].as_u64().unwrap() as usize)
    );
    assert_eq!(tokens["token_strs"].as_array().unwrap().last().unwrap(), "<|end|>", "special tokens are recognised");
    let back = test.post("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!((&back["prompt"], &back["content"]), (&json!("the cat 🐈<|end|>"), &json!("the cat 🐈<|end|>")));
    assert_eq!(test.post("/tokenize", &json!({"content": "the cat"}))["token_strs"], Value::Null);
    let info: Value = serde_json::from_str(&test.get("/tokenizer_info").1).unwrap();
    assert!(info["eos_token"] == "<|end|>" && info["chat_template"].is_string(), "{info}");
    assert_eq!(test.refused("/detokenize", r#"{"tokens": [300]}"#).1["param"], "tokens");
    assert_eq!(test.refused("/tokenize", "{}").0, 400);
}

#[test]
fn a_conversation_is_shown_as_the_model_sees_it() {
    let test = Test::new();
    let messages =
        json!([{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]}]);
    let shown = test.post("/apply-template", &json!({"messages": messages}));
    assert_eq!(shown["prompt"], "<|user|>the cat<|end|><|assistant|>");
    assert_eq!(test.post("/tokenize", &json!({"messages": messages}))["tokens"], shown["tokens"]);
    let closed = test.post("/apply-template", &json!({"messages": messages, "add_generation_prompt": false}));
    assert_eq!(closed["prompt"], "<|user|>the cat<|end|>");
    let open = test.post("/apply-template", &json!({"messages": messages, "continue_final_message": true}));
    assert_eq!(open["prompt"], "<|user|>the cat");
    let attack = json!([{"role": "user", "content": "<|end|>"}]);
    let ids = test.post("/tokenize", &json!({"messages": attack}))["tokens"].clone();
    let special = ids.as_array().unwrap().iter().filter(|id| **id == json!(5)).count();
    assert_eq!(special, 1, "the text of the user is no control token");
}

#[test]
fn health_metrics_and_the_description() {
    let test = Test::new();
    assert_eq!((test.get("/health").0, test.get("/ready").0), (200, 200));
    assert_eq!(test.agent.head(test.url("/health")).call().unwrap().status().as_u16(), 200);
    test.post("/v1/completions", &complete("the cat", json!({"max_tokens": 3})));
    test.post("/v1/chat/completions", &chat("the cat", json!({"ignore_eos": true})));
    assert_eq!(test.refused("/v1/completions", "{}").0, 400);
    let metrics = test.get("/metrics").1;
    for line in [
        "llm_requests_running 0",
        "llm_requests_waiting 0",
        "llm_generation_tokens_total 15",
        "llm_request_success_total{finish_reason=\"length\"} 2",
        "llm_requests_rejected_total{reason=\"invalid\"} 1",
        "llm_time_to_first_token_seconds_count 2",
        "llm_request_generation_tokens_sum 15.0",
        "llm_request_prompt_tokens_count 2",
        "llm_preemptions_total 0",
    ] {
        assert!(
            metrics.lines().any(|found| found.trim_end_matches(".0") == line.trim_end_matches(".0")),
            "{line} in {metrics}"
        );
    }
    for name in [
        "kv_cache_usage_ratio",
        "prefix_cache_queries_tokens_total",
        "prefix_cache_hits_tokens_total",
        "prompt_tokens_total",
        "spec_draft_tokens_total",
        "spec_accepted_tokens_total",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_sum",
        "request_queue_time_seconds_sum",
        "request_prefill_time_seconds_sum",
        "request_decode_time_seconds_sum",
    ] {
        assert!(metrics.contains(&format!("\nllm_{name}")), "{name} in {metrics}");
    }
    let api: Value = serde_json::from_str(&test.get("/openapi.json").1).unwrap();
    let paths = api["paths"].as_object().unwrap();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/tokenize",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let request = &api["components"]["schemas"]["ChatRequest"]["properties"];
    assert!(request["temperature"].is_object() && request["messages"].is_object(), "{request}");
    jsonschema::meta::validate(&api["components"]["schemas"]["ChatResponse"]).unwrap();
    assert_eq!(
        api["paths"]["/v1/completions"]["post"]["responses"]["429"]["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/Error"
    );
}

#[test]
fn the_page_runs_its_own_script_only() {
    let test = Test::new();
    let mut response = test.agent.get(test.url("/")).call().unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let text = response.body_mut().read_to_string().unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && nonce.len() == 32 && !policy.contains("unsafe"), "{policy}");
    assert!(!text.contains("NONCE"));
    for word in ["src=\"http", "href=\"http", "url(http", "@import", "style=\"", "onclick="] {
        assert!(!text.contains(word), "{word}");
    }
    let again = test.agent.get(test.url("/")).call().unwrap();
    assert!(!again.headers()["content-security-policy"].to_str().unwrap().contains(nonce), "a new nonce each time");
}
