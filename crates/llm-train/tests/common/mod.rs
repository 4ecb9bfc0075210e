//! What the tests of the recipes share.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::path::Path;

use llm_data::{Message, Ranking, write_jsonl};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{Tokenizer, TrainConfig};
use llm_train::recipes::train_tokenizer;
use llm_train::run::RunOptions;

/// Hears nothing.
pub fn quietly<T>(work: impl FnOnce(RunOptions) -> T) -> T {
    work(RunOptions { resume: false, observer: &mut |_| () })
}

/// Writes a tokenizer and a fresh model of two layers that knows the words of `text`.
pub fn fresh_model(dir: &Path, text: &str, hidden_size: usize, initializer_range: f64) {
    let file = dir.with_extension("txt");
    std::fs::write(&file, text).unwrap();
    let config = TrainConfig { vocab_size: 400, min_frequency: 1 };
    let tokenizer_dir = dir.with_extension("tokenizer");
    train_tokenizer(&config, &[file], &tokenizer_dir, false).unwrap();
    let tokenizer = Tokenizer::from_dir(&tokenizer_dir).unwrap().with_default_chat_template().unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size,
        intermediate_size: 2 * hidden_size,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        initializer_range,
        bos_token_id: tokenizer.bos_id(),
        eos_token_id: Some(tokenizer.chat_format().unwrap().end_of_turn),
        pad_token_id: tokenizer.pad_id(),
        ..ModelConfig::default()
    };
    tokenizer.save(dir).unwrap();
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
}

/// Writes rankings of two answers each to the same kind of prompt.
pub fn write_pairs(path: &Path, pairs: &[(String, String)]) {
    let rankings: Vec<Ranking> = pairs
        .iter()
        .enumerate()
        .map(|(i, (better, worse))| {
            let answers = vec![better.clone(), worse.clone()];
            Ranking::strict(i.to_string(), vec![Message::user("Say it.")], answers, &[0, 1])
        })
        .collect();
    write_jsonl(path, &rankings).unwrap();
}
