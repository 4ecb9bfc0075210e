//! The program with an adapter gives what peft gives, and so does the model that it merges it into.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};

use clap::Parser;
use llm_infer::cli::{Arguments, execute};
use llm_model::read_safetensors;

fn run(words: &[&str]) {
    let words = ["llm-infer", "--threads", "1"].iter().chain(words);
    execute(Arguments::try_parse_from(words).unwrap()).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn logits_with_an_adapter_and_merged_are_those_of_peft() {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden"].iter().collect();
    let (model, adapter) = (golden.join("tied"), golden.join("lora").join("dora"));
    let dir = tempfile::tempdir().unwrap();
    let (file, merged) = (dir.path().join("logits.safetensors"), dir.path().join("merged"));
    let expected = read_safetensors(&adapter.join("expected.safetensors")).unwrap();
    let row = expected["input_ids"].to_vec2::<i64>().unwrap().swap_remove(0);
    let ids = row.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let theirs = expected["logits"].get(0).unwrap();
    let gap = |model: &Path, more: &[&str]| {
        run(&[&["logits", "--ids", &ids, "--model", text(model), "--out", text(&file)], more].concat());
        let ours = &read_safetensors(&file).unwrap()["logits"];
        (ours - &theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(gap(&model, &["--adapter", text(&adapter)]) < 1e-4);
    assert!(gap(&model, &[]) > 0.1);
    run(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&merged)]);
    assert!(gap(&merged, &[]) < 1e-4);
}
