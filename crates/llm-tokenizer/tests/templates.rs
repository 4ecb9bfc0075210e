//! Renders published chat templates and compares with what transformers rendered (`golden/make_templates.py`).

use std::fs;
use std::path::{Path, PathBuf};

use llm_tokenizer::{Conversation, TemplateOptions, Tokenizer, TrainConfig, train_bpe};
use serde_json::Value;

/// A tokenizer with the special tokens of the script and this template.
fn tokenizer(template: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["the cat sat on the mat"];
    train_bpe(&TrainConfig { vocab_size: 262, min_frequency: 2 }, texts.iter()).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["eos_token"] = "<|end|>".into();
    fs::write(path, config.to_string()).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let options = TemplateOptions { date: Some("2024-07-05".to_owned()), ..TemplateOptions::default() };
    Tokenizer::load(folder.path()).unwrap().with_template_options(options).unwrap()
}

/// The rendered conversation, or the error.
fn render(tokenizer: &Tokenizer, conversation: &Value) -> Result<String, String> {
    let chat: Conversation = serde_json::from_value(conversation.clone()).unwrap();
    let rendered = match conversation["continue_final_message"].as_bool() {
        Some(true) => tokenizer.render_open_chat(&chat),
        _ => tokenizer.render_chat(&chat, conversation["add_generation_prompt"].as_bool().unwrap_or(false)),
    };
    rendered.map_err(|error| error.to_string())
}

/// Compares all templates of a folder; returns the number of equal texts and of equal errors, and the differences.
fn compare(folder: &Path) -> (usize, usize, Vec<String>) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |path: PathBuf| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let (conversations, expected) = (read(golden.join("conversations.json")), read(folder.join("expected.json")));
    let (mut texts, mut errors, mut different) = (0, 0, Vec::new());
    for (name, of_template) in expected.as_object().unwrap() {
        let tokenizer = tokenizer(&fs::read_to_string(folder.join(name)).unwrap());
        for conversation in conversations.as_array().unwrap() {
            let title = conversation["name"].as_str().unwrap();
            match (render(&tokenizer, conversation), of_template[title].as_str()) {
                (Ok(text), Some(expected)) if text == expected => texts += 1,
                (Err(_), None) => errors += 1,
                (found, expected) => different.push(format!("{name}, {title}:\n{found:?}\ninstead of\n{expected:?}")),
            }
        }
    }
    (texts, errors, different)
}

#[test]
fn published_templates_are_rendered_as_transformers_renders_them() {
    let (texts, errors, different) = compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates"));
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    assert!(texts > 80 && errors < 16, "{texts} texts, {errors} errors");
}

/// `CHAT_TEMPLATES=FOLDER[:FOLDER]` with files of `make_templates.py`, such as llama.cpp's `models/templates` and TRL's
/// `chat_templates`.
#[test]
fn templates_of_other_projects_are_rendered_as_transformers_renders_them() {
    let Some(folders) = std::env::var_os("CHAT_TEMPLATES") else {
        println!("skipped: CHAT_TEMPLATES is not set");
        return;
    };
    let mut all = Vec::new();
    for folder in std::env::split_paths(&folders) {
        let (texts, errors, different) = compare(&folder);
        println!("{}: {texts} equal texts, {errors} equal errors, {} different", folder.display(), different.len());
        all.extend(different);
    }
    assert!(all.is_empty(), "{}", all.join("\n\n"));
}
