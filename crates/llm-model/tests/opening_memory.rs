//! What it takes to open a large model; alone in its process, whose memory is looked at.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;

use llm_model::{Head, Model, ModelConfig, families};
use serde_json::{Value, json};

#[test]
fn a_billion_parameters_open_at_once_and_in_no_memory() {
    // Llama 3.2's 1B; the file is all zeros and takes no room on the disk.
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
    for (name, shape) in config.tensor_shapes(Head::LanguageModel) {
        let (from, size) = (end, 2 * shape.iter().product::<usize>());
        end += size;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [from, end]}));
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len()); // as writers do: the numbers are aligned
    let path = dir.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((8 + header.len() + end) as u64).unwrap();
    fs::write(dir.path().join("config.json"), families::to_json(&config, Head::LanguageModel).unwrap().to_string())
        .unwrap();

    let own = || {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).map(str::trim);
        line.and_then(|line| line.strip_suffix(" kB")?.parse::<usize>().ok()).unwrap_or(0)
    };
    let (before, start) = (own(), std::time::Instant::now());
    let model = Model::open(dir.path()).unwrap();
    let (memory, seconds) = (own().saturating_sub(before) / 1024, start.elapsed().as_secs_f64());
    assert_eq!(model.count().total(), 1_235_814_400);
    assert!(seconds < 2. && memory < 100, "{seconds} s, {memory} MB");
}
