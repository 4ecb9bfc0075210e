//! Time and memory of opening a large model. The only test in this file, because it measures the memory of the process.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;

use llm_model::{Head, Model, ModelConfig, TensorSpec, families};
use serde_json::{Value, json};

#[test]
fn a_mapped_model_opens_quickly_with_little_memory() {
    // Llama 3.2 1B. The file is sparse and contains only zeros.
    let config = ModelConfig {
        vocab_size: 128_256,
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        ..ModelConfig::default()
    };
    let config = config.validated("test").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for TensorSpec { name, shape, .. } in config.tensor_specs(Head::LanguageModel) {
        let (from, size) = (end, 2 * shape.iter().product::<usize>());
        end += size;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [from, end]}));
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len()); // aligns the data, as other writers do
    let path = dir.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((8 + header.len() + end) as u64).unwrap();
    fs::write(dir.path().join("config.json"), families::to_json(&config, Head::LanguageModel).unwrap().to_string())
        .unwrap();

    let anonymous_memory = || {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).map(str::trim);
        line.and_then(|line| line.strip_suffix(" kB")?.parse::<usize>().ok()).unwrap_or(0)
    };
    let (before, start) = (anonymous_memory(), std::time::Instant::now());
    let model = Model::open(dir.path()).unwrap();
    let (memory, seconds) = (anonymous_memory().saturating_sub(before) / 1024, start.elapsed().as_secs_f64());
    assert_eq!(model.count().total(), 1_235_814_400);
    assert!(seconds < 2. && memory < 100, "{seconds} s, {memory} MB");
}
