//! Helpers of the recipe tests.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use llm_data::{ChatMessage, Ranking, write_jsonl};
use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{Tokenizer, TrainConfig};
use llm_train::recipes::train_tokenizer;
use llm_train::run::RunOptions;

/// Runs `work` with default options: no observer, no interruption, no resume.
pub fn quietly<T>(work: impl FnOnce(RunOptions) -> T) -> T {
    work(RunOptions::default())
}

/// Writes a tokenizer trained on `text` and a randomly initialised model of two layers.
pub fn fresh_model(dir: &Path, text: &str, hidden_size: usize, initializer_range: f64) {
    let file = dir.with_extension("txt");
    std::fs::write(&file, text).unwrap();
    let config = TrainConfig { vocab_size: 400, min_frequency: 1 };
    let tokenizer_dir = dir.with_extension("tokenizer");
    train_tokenizer(&config, &[file], &tokenizer_dir, false).unwrap();
    let tokenizer = Tokenizer::load(&tokenizer_dir).unwrap().with_default_chat_template().unwrap();
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

/// Writes a ranking of two answers for each (better, worse).
pub fn write_pairs(path: &Path, pairs: &[(String, String)]) {
    let rankings: Vec<Ranking> = pairs
        .iter()
        .enumerate()
        .map(|(i, (better, worse))| {
            let answers = vec![better.clone(), worse.clone()];
            Ranking::strict(i.to_string(), vec![ChatMessage::user("Say it.")], answers, &[0, 1])
        })
        .collect();
    write_jsonl(path, &rankings).unwrap();
}

/// The contents of all files below `dir`, by path, without files and fields that depend on time.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.file_name().unwrap();
            // A partial file of a killed program; nothing reads it.
            if llm_files::is_temp_name(name) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let bytes = match name.to_str().unwrap() {
                // Checksums include files with times.
                "times.json" | "report.md" | "summary.md" | "report.html" | "metrics.csv" | "checksums.b3" => continue,
                // Its name is a time.
                name if name.contains(".tfevents.") => continue,
                "metrics.jsonl" | "trainer_state.json" | "state.json" | "evaluation.json" => without_times(&bytes),
                _ => bytes,
            };
            all.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
        }
    }
    all
}

fn without_times(json: &[u8]) -> Vec<u8> {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                map.remove("elapsed_s");
                map.remove("tokens_per_second");
                map.remove("peak_share");
                map.values_mut().for_each(strip);
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut text = String::new();
    for value in serde_json::Deserializer::from_slice(json).into_iter::<serde_json::Value>() {
        let mut value = value.unwrap();
        strip(&mut value);
        text += &format!("{value}\n");
    }
    text.into_bytes()
}

/// The contents and modification times of all files below `dir`.
pub fn everything(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let read = |name: String| {
        let path = dir.join(&name);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        (name, (std::fs::read(path).unwrap(), modified))
    };
    llm_files::list_files(dir).unwrap().into_iter().map(read).collect()
}
