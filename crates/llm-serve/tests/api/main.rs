//! The server through HTTP, with small models.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod browser;
mod chat;
mod clients;
mod completions;
mod errors;
mod feedback;
mod limits;
mod load;
mod page;
mod picture;
mod schema;
mod texts;
mod tools;
mod vectors;

use std::path::Path;
use std::time::Duration;

use llm_engine::{Engine, EngineOptions, TextModel};
use llm_model::{Head, Model, ModelConfig};
use llm_serve::{ServeOptions, Server};
use llm_tokenizer::{TrainConfig, train_bpe};
use serde_json::{Value, json};

/// A template with tools and reasoning, as in Qwen's models.
const TEMPLATE: &str = "{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}\
    Answer with <tool_call>...</tool_call> or after <think>...</think>.<|end|>{% endif -%}\
    {%- for m in messages %}{%- if m.role == 'critic' %}{{- raise_exception('no critics here') }}{% endif -%}\
    <|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}\
    {%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>{% endfor -%}\
    {%- if add_generation_prompt %}<|assistant|>{% endif -%}";

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 300,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 512,
        initializer_range: 0.3, // large, so that an error changes the sampled token
        ..ModelConfig::default()
    }
}

/// Options with which equal requests have equal answers, whatever else runs.
fn engine_options() -> EngineOptions {
    EngineOptions { deterministic: true, max_running: 128, ..EngineOptions::default() }
}

/// Writes a model with this template, or the default one.
fn save(dir: &Path, head: Head, template: Option<&str>) {
    let texts = ["the cat sat on the mat", "the dog sat on the log, the bird sang"];
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 290, min_frequency: 2 }, texts.iter()).unwrap();
    // Descriptions of tools are long.
    let max_position_embeddings = if template.is_some() { 1024 } else { 512 };
    Model::init(ModelConfig { max_position_embeddings, ..config() }, head, 7).unwrap().save(dir).unwrap();
    tokenizer.with_default_chat_template().unwrap().save(dir).unwrap();
    if let Some(template) = template {
        let path = dir.join("tokenizer_config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["chat_template"] = template.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let _ = std::fs::remove_file(dir.join("chat_template.jinja"));
    }
}

/// A server with a client.
struct Test {
    server: Option<Server>,
    address: String,
    agent: ureq::Agent,
    dir: tempfile::TempDir,
}

impl Test {
    fn new() -> Self {
        Self::with(Head::LanguageModel, None, engine_options(), |_| ())
    }

    fn with_tools() -> Self {
        Self::with(Head::LanguageModel, Some(TEMPLATE), engine_options(), |_| ())
    }

    fn with(head: Head, template: Option<&str>, engine: EngineOptions, change: impl FnOnce(&mut ServeOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), head, template);
        let engine = Engine::start(TextModel::load(dir.path()).unwrap(), engine).unwrap();
        let mut options = ServeOptions::new("tiny");
        change(&mut options);
        let server = Server::start(engine, "127.0.0.1:0".parse().unwrap(), options).unwrap();
        let address = server.address().to_string();
        let client =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_mins(1)));
        Self { server: Some(server), address, agent: client.build().into(), dir }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The status, the headers and the text of a response.
    fn send(&self, path: &str, body: &str) -> (u16, ureq::http::HeaderMap, String) {
        let mut response = self.agent.post(self.url(path)).content_type("application/json").send(body).unwrap();
        let headers = response.headers().clone();
        (response.status().as_u16(), headers, response.body_mut().read_to_string().unwrap())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// The JSON of a good response.
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, _, text) = self.send(path, &body.to_string());
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The status and the error object of a refused request; all four keys are there.
    fn refused(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, _, text) = self.send(path, body);
        let parsed: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} {text}: {e}"));
        schema::check("ErrorResponse", &parsed);
        (status, parsed["error"].clone())
    }

    /// The data of the events of a stream, without the last one, which is checked.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let (status, headers, text) = self.send(path, &body.to_string());
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "text/event-stream"), "{text}");
        let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.starts_with(':')).collect();
        assert_eq!(events.split_off(events.len() - 2), ["data: [DONE]", ""]);
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

/// A chat request with one message of the user and greedy decoding.
fn chat(text: &str, more: Value) -> Value {
    let mut request =
        json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// A completion request with greedy decoding.
fn complete(prompt: impl Into<Value>, more: Value) -> Value {
    let mut request = json!({"model": "tiny", "prompt": prompt.into(), "temperature": 0, "ignore_eos": true});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}
