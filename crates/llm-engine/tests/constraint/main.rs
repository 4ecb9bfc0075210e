//! Constrained decoding with a model of random weights: what it writes is valid, or the constraint is refused.
//!
//! `LLM_TEST_TOKENIZER=DIR` uses the tokenizer of a folder, and `JSON_SCHEMA_TEST_SUITE=DIR` adds the schemas of the JSON Schema Test
//! Suite (its folder `tests/draft2020-12`).
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod kinds;
mod random;
mod schemas;

use llm_engine::{
    Constraint, Engine, EngineOptions, Event, FinishReason, Generation, Request, Sampling, SubmitError, TextModel,
};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

/// A byte-level tokenizer, or that of `LLM_TEST_TOKENIZER`.
fn tokenizer() -> Tokenizer {
    if let Some(folder) = std::env::var_os("LLM_TEST_TOKENIZER") {
        return Tokenizer::load(folder).unwrap();
    }
    let texts =
        [r#"{"name": "the cat", "age": 12, "list": [1, 2.5, true, false, null]}"#, "2024-01-31T12:00:00Z \"}, {\" ]]"];
    train_bpe(&TrainConfig { vocab_size: 400, min_frequency: 1 }, texts.iter()).unwrap()
}

/// An engine with a model of random weights.
fn engine(tokenizer: Tokenizer) -> Engine {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size() + 5, // rows without a token
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 1024,
        ..ModelConfig::default()
    };
    let model = Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap();
    Engine::start(TextModel { model, tokenizer }, EngineOptions::default()).unwrap()
}

/// Settings with which random weights end strings and lists after some tokens.
fn sampling(engine: &Engine, seed: u64) -> Sampling {
    let texts = engine.tokenizer().token_texts();
    let bias = (texts.len() as f32 * 0.1).ln();
    let ends = [&b"\""[..], b"}", b"]", b"\"}", b"\"]"];
    let biased = texts.iter().zip(0..).filter(|(text, _)| ends.contains(&text.as_slice()));
    let mut logit_bias: std::collections::BTreeMap<u32, f32> = biased.map(|(_, id)| (id, bias)).collect();
    logit_bias.extend(engine.tokenizer().eos_id().or(engine.tokenizer().document_end_id()).map(|id| (id, bias)));
    Sampling { logit_bias, seed: Some(seed), ..Sampling::default() }
}

fn submit(engine: &Engine, constraint: Constraint, seed: u64, tokens: usize) -> Result<Generation, SubmitError> {
    let constraint = Some(constraint);
    engine.submit(Request { constraint, sampling: sampling(engine, seed), ..Request::new(vec![10, 11, 12], tokens) })
}

/// The text of an answer and why it ended.
fn receive(mut generation: Generation) -> (String, FinishReason) {
    let (mut all, mut end) = (String::new(), None);
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Text { text, .. } => all.push_str(&text),
            Event::End { reason, .. } => end = Some(reason),
            Event::Failed(error) => panic!("{error} after {all:?}"),
            _ => (),
        }
    }
    (all, end.unwrap())
}

/// The text of a constraint that must be accepted; none if it was cut.
fn write(engine: &Engine, constraint: Constraint, seed: u64) -> Option<String> {
    let (text, end) = receive(submit(engine, constraint, seed, 400).unwrap_or_else(|error| panic!("{error:?}")));
    (end == FinishReason::Stop).then_some(text)
}

/// The error of a constraint that must be refused, and the caller's fault.
fn refusal(engine: &Engine, constraint: Constraint) -> String {
    match submit(engine, constraint, 0, 10) {
        Err(SubmitError::Invalid(error)) => {
            assert!(error.is_callers_fault());
            error.to_string()
        }
        other => panic!("not refused: {other:?}"),
    }
}
