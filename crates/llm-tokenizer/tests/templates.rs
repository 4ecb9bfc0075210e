//! Renders published chat templates and compares with what transformers rendered (`golden/make_templates.py`): the texts, and the
//! parts inside of `{% generation %}`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use llm_tokenizer::{Conversation, TemplateOptions, Tokenizer, TrainConfig, TrainOn, TrainingExample, train_bpe};
use serde_json::{Value, json};

/// TRL's templates whose generation prompt is the role only. (Those of Nemotron 3 or Qwen 3.5 begin the reasoning in the prompt, so that
/// a model does not generate its tag; gpt-oss ends the last answer with another token than earlier ones.)
const PLAIN: [&str; 10] = [
    "cohere",
    "cohere2",
    "deepseekv3",
    "gemma",
    "gemma3",
    "lfm2",
    "llama3",
    "qwen2_5",
    "qwen3_instruct_2507",
    "qwen3_vl",
];

/// The texts in a template that are special tokens of its model, by their form.
fn special_tokens(template: &str) -> Vec<&str> {
    let mut tokens: Vec<&str> = Vec::new();
    for (at, _) in template.match_indices('<') {
        let Some(end) = template[at..].find('>') else { continue };
        let token = &template[at..=at + end];
        let bars =
            ['|', '｜'].iter().any(|bar| token[1..].starts_with(*bar) && token[..token.len() - 1].ends_with(*bar));
        let plain = !token.contains(['\'', '"', ' ', '\n', '{']) && token.len() > 4;
        if plain && (bars || ["</s>", "<end_of_turn>", "<start_of_turn>"].contains(&token)) && !tokens.contains(&token)
        {
            tokens.push(token);
        }
    }
    tokens
}

/// A tokenizer with the special tokens of the script, and this template with its special tokens.
fn tokenizer(template: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["the cat sat on the mat"];
    train_bpe(&TrainConfig { vocab_size: 262, min_frequency: 2 }, texts.iter()).unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut vocabulary: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let known = vocabulary["added_tokens"].as_array_mut().unwrap();
    for token in special_tokens(template) {
        if !known.iter().any(|known| known["content"] == token) {
            let id = 262 - 6 + known.len();
            known.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}));
        }
    }
    fs::write(&path, vocabulary.to_string()).unwrap();
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

/// The parts of an example that are trained on, as text.
fn trained(tokenizer: &Tokenizer, example: &TrainingExample) -> Vec<String> {
    let (special, mut parts, mut run) = (tokenizer.special_ids(), Vec::new(), Vec::new());
    for (id, in_loss) in example.ids.iter().zip(&example.loss_mask).chain([(&0, &false)]) {
        if *in_loss {
            run.push(*id);
        } else if !run.is_empty() {
            let runs = run.chunk_by(|a, b| special.contains(a) == special.contains(b));
            let text = |ids: &[u32]| match special.contains(&ids[0]) {
                true => ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect(),
                false => tokenizer.decode(ids).unwrap(),
            };
            parts.push(runs.map(text).collect::<String>());
            run.clear();
        }
    }
    parts
}

/// Compares the trained parts of all templates with `{% generation %}`; returns the number of equal ones, and the differences.
fn compare_spans(folder: &Path) -> (usize, Vec<String>) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |path: PathBuf| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let (conversations, expected) = (read(golden.join("conversations.json")), read(folder.join("expected_spans.json")));
    let texts = read(folder.join("expected.json"));
    let (mut equal, mut different) = (0, Vec::<String>::new());
    for (name, of_template) in expected.as_object().unwrap() {
        let original = name.replace("_training", "");
        for conversation in conversations.as_array().unwrap() {
            let title = conversation["name"].as_str().unwrap();
            let Some(spans) = of_template[title].as_array() else { continue };
            let spans: Vec<String> = spans.iter().map(|span| span.as_str().unwrap().to_owned()).collect();
            let chat: Conversation = serde_json::from_value(conversation.clone()).unwrap();
            let parts = |file: &str| {
                let tokenizer = tokenizer(&fs::read_to_string(folder.join(file)).unwrap());
                let examples = tokenizer.encode_for_training(&chat, TrainOn::All).map_err(|error| error.to_string())?;
                Ok::<_, String>(examples.iter().flat_map(|example| trained(&tokenizer, example)).collect::<Vec<_>>())
            };
            let mut check =
                |file: &str, found: Result<Vec<String>, String>, same: &dyn Fn(&[String]) -> bool| match found {
                    Ok(found) if same(&found) => equal += 1,
                    found => different.push(format!("{file}, {title}:\n{found:?}\ninstead of\n{spans:?}")),
                };
            // Spans without text between them are one part.
            check(name, parts(name), &|found| found.concat() == spans.concat());
            // A template without the tag that writes the same text trains on the same answers. The tags of TRL also cover the role
            // before some of them and the line end after them, which a model does not generate.
            let same_text = original != *name && texts[&original][title] == texts[name][title];
            if same_text && PLAIN.iter().any(|plain| original == format!("{plain}.jinja")) {
                let within = |found: &[String]| {
                    let mut rest = spans.concat();
                    let found = found.iter().all(|part| match rest.find(part.as_str()) {
                        Some(at) => {
                            rest.replace_range(at..at + part.len(), "");
                            true
                        }
                        None => false,
                    });
                    let headers =
                        ["<｜Assistant｜>", "<|assistant|>"].iter().fold(rest, |rest, header| rest.replace(header, ""));
                    found && headers.trim().is_empty()
                };
                check(&original, parts(&original), &within);
            }
        }
    }
    (equal, different)
}

#[test]
fn published_templates_are_rendered_as_transformers_renders_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/templates");
    let (texts, errors, different) = compare(&folder);
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    assert_eq!((texts, errors), (81, 15));
    let (equal, different) = compare_spans(&folder);
    assert!(different.is_empty(), "{}", different.join("\n\n"));
    assert!(equal > 20, "{equal}");
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
        let (equal, different) = compare_spans(&folder);
        println!("{}: {equal} equal parts, {} different", folder.display(), different.len());
        all.extend(different);
    }
    assert!(all.is_empty(), "{}", all.join("\n\n"));
}

/// `CHAT_MASKS=FOLDER`: a tokenizer with the file of `make_masks.py`, such as that of Qwen 3 with the templates `qwen*_training.jinja` of TRL (the other
/// templates have control tokens that this vocabulary lacks).
#[test]
fn ids_and_masks_are_those_of_transformers() {
    let Some(folder) = std::env::var_os("CHAT_MASKS").map(PathBuf::from) else {
        println!("skipped: CHAT_MASKS is not set");
        return;
    };
    let text = fs::read_to_string(folder.join("expected_masks.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_str(&text).unwrap();
    let (copy, mut equal, mut different) = (tempfile::tempdir().unwrap(), 0, Vec::new());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    let mut tokenizers = std::collections::HashMap::new();
    for case in &expected {
        let template = case["template"].as_str().unwrap();
        let tokenizer = tokenizers.entry(template).or_insert_with(|| {
            fs::write(copy.path().join("chat_template.jinja"), template).unwrap();
            Tokenizer::load(copy.path()).unwrap()
        });
        let chat: Conversation = serde_json::from_value(case["chat"].clone()).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let mask: Vec<bool> = case["mask"].as_array().unwrap().iter().map(|one| one == 1).collect();
        let examples = tokenizer.encode_for_training(&chat, TrainOn::All).unwrap();
        match &examples[..] {
            [example] if example.ids == ids && example.loss_mask == mask => equal += 1,
            other => {
                let found: Vec<_> =
                    other.iter().map(|example| (trained(tokenizer, example), &example.boundaries)).collect();
                different.push(format!("{}: {found:?}", case["name"]));
            }
        }
    }
    println!("{equal} equal masks, {} different:\n{}", different.len(), different.join("\n"));
    assert!(equal > 0 && different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn an_added_token_in_a_message_is_text_also_if_it_is_not_marked_as_special() {
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}<|end|>{% endfor %}";
    let folder = tempfile::tempdir().unwrap();
    tokenizer(template).save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut vocabulary: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let known = vocabulary["added_tokens"].as_array_mut().unwrap();
    let first = 256 + u32::try_from(known.len()).unwrap();
    for (id, token) in (first..).zip(["<think>", "</think>", "  "]) {
        known.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false}));
    }
    fs::write(path, vocabulary.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let chat = |text: &str| -> Conversation {
        serde_json::from_value(
            json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}),
        )
        .unwrap()
    };
    let ids = tokenizer.encode_chat(&chat("a <think>  b</think><|end|>"), false).unwrap();
    let of = |token: &str| tokenizer.token_id(token).unwrap();
    let control: Vec<u32> =
        ids.iter().copied().filter(|id| *id >= first || tokenizer.special_ids().contains(id)).collect();
    let blanks = of("  ");
    let turn = |role: &str| [of(role), blanks, of("<|end|>")];
    let [user, assistant] = ["<|user|>", "<|assistant|>"].map(turn);
    let thought = [of("<think>"), of("</think>")];
    assert_eq!(control, [&user[..], &assistant[..1], &thought, &assistant[1..]].concat(), "{ids:?}");
    assert_eq!(
        tokenizer.decode(&ids).unwrap(),
        "a <think>  b</think><|end|><think></think>a <think>  b</think><|end|>"
    );
}
