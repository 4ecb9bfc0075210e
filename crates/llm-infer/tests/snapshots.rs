//! Snapshots of the help of every command and of the most common errors. After an intended change:
//! `INSTA_UPDATE=always cargo test -p llm-infer --test snapshots`, then check the difference.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;
use std::process::{Command, Stdio};

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{TrainConfig, train_bpe};

/// Runs the program in a folder. Returns the exit code, the standard output and the standard error, as for a terminal of 100
/// columns without colours.
fn run(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args(arguments).current_dir(dir).stdin(Stdio::null());
    // No network: names on the Hugging Face hub must be in a cache that is empty.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "/empty");
    let output = command.env_remove("RUST_LOG").env("NO_COLOR", "1").env("COLUMNS", "100").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    format!("exit code {}\n{}{}", output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn check(name: &str, text: &str) {
    let mut settings = insta::Settings::new();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// The names of the commands in a help text.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line of the description of a command is indented further.
    let names = lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn help() {
    let help = run(Path::new("."), &["--help"]);
    check("help", &help);
    let names = commands(&help);
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        check(&format!("help-{name}"), &run(Path::new("."), &[&name, "--help"]));
    }
}

#[test]
fn errors() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"));
    let long = "the cat sat on the mat ".repeat(20);
    let cases: [&[&str]; 13] = [
        &["generate", "--model", "nowhere", "Hello."],
        &["generate", "--model", "HuggingFaceTB/SmolLM2-135M", "Hello."],
        &["generate", "--model", "model", "--temprature", "0", "Hello."],
        &["server", "--model", "model"],
        &["merge", "--model", "model"],
        &["generate", "--model", "model", "--raw", &long],
        &["generate", "--model", "model", ""],
        &["generate", "--model", "model", "--file", "prompt.txt"],
        &["generate", "--model", "model", "--dtype", "int8", "Hello."],
        &["generate", "--model", "model", "--top-p", "2", "Hello."],
        &["chat", "--model", "model"],
        &["convert", "--model", "model", "--to", "safetensors", "--out", "model"],
        &["logits", "--model", "model", "--ids", "1,2", "--out", "model/model.safetensors"],
    ];
    let mut all = String::new();
    for arguments in cases {
        let shown = arguments.iter().map(|word| if word.len() > 60 { "LONG" } else { word }).collect::<Vec<_>>();
        all += &format!("$ llm-infer {}\n{}\n", shown.join(" "), run(dir.path(), arguments));
    }
    check("errors", &all);
}

/// Saves a model with random weights, a context length of 32 tokens and no chat template.
fn save_model(dir: &Path) {
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, ["the cat sat on the mat"].iter());
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        max_position_embeddings: 32,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.unwrap().save(dir).unwrap();
}
