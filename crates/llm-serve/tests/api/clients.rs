//! Clients that others wrote, unchanged.

use std::process::Command;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use llm_model::{Batch, Model};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use crate::{Test, chat, complete};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn async_openai_reads_all_answers() {
    let test = tokio::task::spawn_blocking(Test::with_tools).await.unwrap();
    let config = OpenAIConfig::new().with_api_base(test.url("/v1")).with_api_key("none");
    let client = Client::with_config(config);

    let request = chat("the cat", json!({"n": 2, "logprobs": true, "top_logprobs": 2, "ignore_eos": true}));
    let mut request: async_openai::types::chat::CreateChatCompletionRequest = read(request);
    let whole = client.chat().create(request.clone()).await.unwrap();
    assert_eq!((whole.choices.len(), whole.usage.unwrap().completion_tokens > 0), (2, true));
    let content = whole.choices[0].message.content.clone().unwrap();
    assert!(!whole.choices[0].logprobs.as_ref().unwrap().content.as_ref().unwrap().is_empty());
    request.stream = Some(true);
    let mut stream = client.chat().create_stream(request).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        text.extend(chunk.choices.iter().filter(|c| c.index == 0).filter_map(|c| c.delta.content.clone()));
    }
    assert_eq!(text, content);

    let mut request: async_openai::types::completions::CreateCompletionRequest =
        read(complete("the cat", json!({"max_tokens": 5, "logprobs": 1, "seed": 1})));
    let whole = client.completions().create(request.clone()).await.unwrap();
    assert!(!whole.choices[0].text.is_empty() && !whole.choices[0].logprobs.as_ref().unwrap().tokens.is_empty());
    request.stream = Some(true);
    let parts: Vec<_> = client.completions().create_stream(request).await.unwrap().collect().await;
    let text: String = parts.into_iter().flat_map(|part| part.unwrap().choices).map(|choice| choice.text).collect();
    assert_eq!(text, whole.choices[0].text);

    let request: async_openai::types::embeddings::CreateEmbeddingRequest =
        read(json!({"model": "tiny", "input": ["a", "b"]}));
    let vectors = client.embeddings().create(request).await.unwrap();
    let request = read(json!({"model": "tiny", "input": ["a", "b"], "encoding_format": "base64"}));
    let coded = client.embeddings().create_base64(request).await.unwrap();
    assert_eq!((vectors.data.len(), coded.data.len(), vectors.data[1].embedding.len()), (2, 2, 32));
    assert_eq!(client.models().list().await.unwrap().data[0].id, "tiny");
    assert_eq!(client.models().retrieve("tiny").await.unwrap().id, "tiny");

    let mut wrong = chat("the cat", json!({}));
    wrong["model"] = "other".into();
    let error = client.chat().create(read(wrong)).await.unwrap_err();
    let OpenAIError::ApiError(error) = error else { panic!("{error}") };
    assert_eq!((error.status_code.as_u16(), error.api_error.code.as_deref()), (404, Some("model_not_found")));
}

/// Runs a script of `tests/python` with the base address and an argument. None: there is no Python with its packages.
pub fn python(script: &str, package: &str, test: &Test, argument: &str) -> Option<Value> {
    let Some(python) = std::env::var_os("LLM_SERVE_PYTHON") else {
        eprintln!("skipped: set LLM_SERVE_PYTHON to a Python with the package {package}");
        return None;
    };
    let found = Command::new(&python).args(["-c", &format!("import {package}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: {} has no package {package}", python.display());
        return None;
    }
    let path = format!("{}/tests/python/{script}", env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new(&python).args([&path, &test.url(""), argument]).env("NO_PROXY", "127.0.0.1").output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    Some(serde_json::from_str(out.lines().last().unwrap()).unwrap())
}

#[test]
fn the_python_package_openai_reads_all_answers() {
    let test = Test::with_tools();
    if let Some(answer) = python("openai_client.py", "openai", &test, "tiny") {
        assert_eq!(answer, json!("ok"));
    }
}

/// The harness scores the continuations as the model itself does.
#[test]
fn lm_evaluation_harness_has_our_scores() {
    let test = Test::new();
    let cases = [
        ("the cat sat on", " the mat"),
        ("the dog sat on the", " log"),
        ("a bird", " sang é 🐈"),
        ("the log", ", the bird sang"),
    ];
    let lines: Vec<String> =
        cases.iter().map(|(context, end)| json!({"text": context, "end": end}).to_string()).collect();
    let Some(found) = python("lm_eval_client.py", "lm_eval", &test, &lines.join("\n")) else { return };
    let model = Model::load(test.dir.path()).unwrap();
    for ((context, end), found) in cases.iter().zip(found.as_array().unwrap()) {
        let ids = |text: &str| -> Vec<u32> { read(test.post("/tokenize", &json!({"prompt": text}))["tokens"].clone()) };
        let (whole, before) = (ids(&format!("{context}{end}")), ids(context).len());
        let logits = model
            .forward(&Batch::new(std::slice::from_ref(&whole)).unwrap())
            .unwrap()
            .get(0)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let (mut expected, mut greedy) = (0., true);
        for at in before..whole.len() {
            let row: Vec<f64> = logits[at - 1].iter().map(|x| f64::from(*x)).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let id = whole[at] as usize;
            expected += row[id] - max - row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            greedy &= row[id] == max;
        }
        let (score, is_greedy) = (found[0].as_f64().unwrap(), found[1].as_bool().unwrap());
        assert!((score - expected).abs() < 1e-4 && greedy == is_greedy, "{context}{end}: {found} and {expected}");
    }
}
