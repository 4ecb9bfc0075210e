//! The program with an adapter, and the model it merges the adapter into, match the logits of PEFT.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};

use clap::Parser;
use llm_infer::cli::{Arguments, execute};
use llm_model::{Head, LoraConfig, Model, ModelConfig, read_safetensors};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};
use serde_json::Value;

fn run(words: &[&str]) {
    // The default size of the global thread pool: a concurrent test may have started it already.
    let threads = std::thread::available_parallelism().unwrap().to_string();
    let words = ["llm-infer", "--threads", &threads].into_iter().chain(words.iter().copied());
    execute(Arguments::try_parse_from(words).unwrap()).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn logits_with_an_active_and_a_merged_adapter_match_peft() {
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
        std::fs::remove_file(&file).unwrap();
        (ours - &theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(gap(&model, &["--adapter", text(&adapter)]) < 1e-4);
    assert!(gap(&model, &[]) > 0.1);
    run(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&merged)]);
    assert!(gap(&merged, &[]) < 1e-4);
}

#[test]
fn a_merged_folder_has_the_end_of_turn_token_of_its_tokenizer_as_eos() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let plain = train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, ["the cat", "the dog"].iter()).unwrap();
    let config = ModelConfig {
        vocab_size: plain.vocab_size(),
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        eos_token_id: Some(0),
        ..ModelConfig::default()
    };
    let base = Model::init(config, Head::LanguageModel, 1).unwrap().frozen().unwrap();
    base.save(path("base")).unwrap();
    plain.save(path("base")).unwrap();
    let lora = LoraConfig { r: 2, target_modules: vec!["q_proj".to_owned()], ..LoraConfig::default() };
    base.with_lora(&lora, 1).unwrap().save_adapter(&path("adapter"), "base").unwrap();
    let merged = |name: &str| {
        run(&[
            "merge",
            "--model",
            text(&path("base")),
            "--adapter",
            text(&path("adapter")),
            "--out",
            text(&path(name)),
        ]);
        ["config.json", "generation_config.json"].map(|file| {
            let json: Value = serde_json::from_slice(&std::fs::read(path(name).join(file)).unwrap()).unwrap();
            json["eos_token_id"].as_u64()
        })
    };
    assert_eq!(merged("text"), [Some(0); 2], "without a chat template the eos of the base model stays");
    let chat = plain.with_default_chat_template().unwrap();
    chat.save(path("adapter")).unwrap();
    let end = chat.chat_format().unwrap().end_of_turn;
    assert!(end != 0 && merged("chat") == [Some(u64::from(end)); 2]);
    assert!(Tokenizer::load(path("chat")).unwrap().has_chat_template());
}

#[test]
fn merge_and_logits_name_their_result_and_the_next_command() {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "llm-model", "tests", "golden"].iter().collect();
    let (model, adapter) = (golden.join("tied"), golden.join("lora").join("dora"));
    let dir = tempfile::tempdir().unwrap();
    let said = |words: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_llm-infer"));
        let output = program.current_dir(dir.path()).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let merged = said(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", "merged"]);
    assert!(merged.starts_with("merged: ") && merged.contains("Next: llm-infer bench --model merged\n"), "{merged}");
    let logits = said(&["logits", "--model", "merged", "--ids", "1,2,3", "--out", "out.safetensors"]);
    assert!(logits.starts_with("out.safetensors: logits of 3 tokens. Next, in Python: "), "{logits}");
    assert!(logits.contains("load_file(\"out.safetensors\")"), "{logits}");

    // With a tokenizer the model generates text, with a chat template it chats.
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, ["the cat"].iter()).unwrap();
    tokenizer.save(dir.path().join("tokenizer")).unwrap();
    for (chat, next) in [(false, "generate --model plain --prompt TEXT"), (true, "chat --model talking")] {
        let base = dir.path().join("base");
        std::fs::create_dir_all(&base).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(model.join(name), base.join(name)).unwrap();
        }
        let tokenizer = if chat { tokenizer.clone().with_default_chat_template().unwrap() } else { tokenizer.clone() };
        tokenizer.save(&base).unwrap();
        let out = if chat { "talking" } else { "plain" };
        let merged = said(&["merge", "--model", "base", "--adapter", text(&adapter), "--out", out]);
        assert!(merged.ends_with(&format!("Next: llm-infer {next}\n")), "{merged}");
    }
}
