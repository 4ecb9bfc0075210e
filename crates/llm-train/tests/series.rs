//! The commands that train several models: a series at equal compute, and the comparison of methods.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use llm_data::write_jsonl;
use llm_synthetic::{Split, World, WorldConfig};
use llm_tokenizer::TrainConfig;
use llm_train::read_recipe;
use llm_train::recipes::{
    CompareMethodsRecipe, PrepareInputs, PretrainInputs, ScalingRecipe, compare_methods, prepare, scaling,
    train_tokenizer,
};
use llm_train::run::RunOptions;

fn set(keys: &[(&str, &str)]) -> Vec<(String, String)> {
    keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_series_trains_every_model_with_every_budget_and_seed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let world = World::new(WorldConfig { corpus_bytes: 40_000, ..WorldConfig::default() });
    for (split, name) in [(Split::Train, "train.jsonl"), (Split::HeldOut, "validation.jsonl")] {
        let texts: Vec<_> = world.corpus(split).into_iter().map(|text| serde_json::json!({ "text": text })).collect();
        write_jsonl(path(name), &texts).unwrap();
    }
    let (tokenizer, data) = (path("tokenizer"), path("shards"));
    let config = TrainConfig { vocab_size: 300, ..TrainConfig::default() };
    train_tokenizer(&config, &[path("train.jsonl")], &tokenizer, false).unwrap();
    let inputs = PrepareInputs {
        tokenizer: tokenizer.clone(),
        train: vec![path("train.jsonl")],
        validation: vec![path("validation.jsonl")],
        ..PrepareInputs::default()
    };
    prepare(&inputs, &data, RunOptions::default()).unwrap();
    let keys = [
        ("depths", "[1, 2]"),
        ("budgets", "[2e9, 4e9, 8e9]"),
        ("seeds", "2"),
        ("num_experts", "4"),
        ("pretrain.seq_len", "32"),
        ("pretrain.eval_batches", "2"),
    ];
    let recipe: ScalingRecipe = read_recipe("scaling", &set(&keys)).unwrap();
    let inputs = PretrainInputs { model: None, tokenizer, data: vec![data] };
    let out = path("series");
    let report = scaling(&recipe, &inputs, &out, RunOptions::default()).unwrap();
    let runs = std::fs::read_dir(&out).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(runs, (2 + 1) * 3 * 2);
    assert!(report.contains("| 8e9 | mixture of experts of depth 2 |"), "{report}");
    assert!(report.contains("Does a larger model always mean a better one?") && report.contains("α = "), "{report}");
    let with_model = PretrainInputs { model: Some(path("model")), ..inputs.clone() };
    let message = scaling(&recipe, &with_model, path("other"), RunOptions::default()).unwrap_err().to_string();
    assert!(message.ends_with("remove --model") && !path("other").exists(), "{message}");
    let again = scaling(&recipe, &inputs, &out, RunOptions { resume: true, ..RunOptions::default() }).unwrap();
    assert_eq!(report, again);
}

#[test]
fn all_methods_are_trained_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let keys = [
        ("general_bytes", "30_000"),
        ("domain_bytes", "30_000"),
        ("tasks", "24"),
        ("held_out", "12"),
        ("tokenizer.vocab_size", "300"),
        ("pretrain.steps", "5"),
        ("pretrain.seq_len", "32"),
        ("pretrain.model.hidden_size", "32"),
        ("pretrain.model.intermediate_size", "32"),
        ("pretrain.model.num_hidden_layers", "1"),
        ("pretrain.model.num_attention_heads", "2"),
        ("pretrain.model.num_key_value_heads", "1"),
        ("finetune.epochs", "1"),
        ("finetune.batch_size", "64"),
        ("finetune.seq_len", "32"),
    ];
    let recipe: CompareMethodsRecipe = read_recipe("compare-methods", &set(&keys)).unwrap();
    let out = dir.path().join("methods");
    let report = compare_methods(&recipe, &out, RunOptions::default()).unwrap();
    assert_eq!(report.lines().filter(|line| line.starts_with("| ")).count(), 1 + 8, "{report}");
    for name in ["base", "scratch", "domain-mixed", "both-mixed"] {
        assert!(out.join(name).join("model.safetensors").exists(), "{name}");
    }
}
