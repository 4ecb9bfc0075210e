//! Validation files that are the training data in another form: each command warns and goes on.

use std::fs;

use llm_data::{ChatMessage, Ranking, write_jsonl};
use serde_json::json;

use super::FIXTURE;
use super::program::output;

const WORDS: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];

fn ask(i: usize) -> String {
    format!("Say {i} and {} now.", WORDS[i % 8])
}

fn answer(i: usize) -> String {
    format!("It is {} of {}.", WORDS[i * 3 % 8], i * i)
}

/// The warning of a command whose validation file is `other.jsonl`, if it has one.
fn warning(dir: &std::path::Path, command: &str) -> Option<String> {
    let common = "--set epochs=1 --set batch_size=8 --set eval_batches=1 --set eval_every=0 --out run";
    let line = format!("{command} --data data.jsonl --validation other.jsonl {common}");
    let (code, _, message) = output(dir, &line);
    assert_eq!(code, Some(0), "{message}");
    fs::remove_dir_all(dir.join("run")).unwrap();
    message.lines().find(|line| line.contains("in another form")).map(str::to_owned)
}

#[test]
fn conversations_in_another_form_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let chat = |prompt: Vec<ChatMessage>, i: usize| json!({"messages": ([prompt, vec![ChatMessage::assistant(answer(i))]].concat())});
    let write = |name: &str, items: Vec<serde_json::Value>| write_jsonl(&dir.path().join(name), &items).unwrap();
    write("data.jsonl", (0..16).map(|i| chat(vec![ChatMessage::user(ask(i))], i)).collect());
    let model = FIXTURE.path("model").display().to_string();
    let student = "--set student.hidden_size=16 --set student.intermediate_size=32 --set student.num_hidden_layers=1 \
                   --set student.num_attention_heads=2 --set student.num_key_value_heads=1";
    let commands = [format!("finetune --model {model}"), format!("distill --teacher {model} {student}")];
    let forms: [fn(usize) -> Vec<ChatMessage>; 3] = [
        |i| vec![ChatMessage::system("You are a robot."), ChatMessage::user(ask(i))],
        |i| vec![ChatMessage::user(format!("Hello! {}", ask(i)))],
        |i| vec![ChatMessage::user("Hello!"), ChatMessage::assistant("Hi."), ChatMessage::user(ask(i))],
    ];
    for command in &commands {
        for form in forms {
            // Half of the items are new.
            write("other.jsonl", (8..24).map(|i| chat(form(i), i)).collect());
            let warning = warning(dir.path(), command).unwrap();
            assert!(warning.contains("other.jsonl: 8 of 16 records are records of data.jsonl"), "{warning}");
        }
        write("other.jsonl", (16..32).map(|i| chat(vec![ChatMessage::user(ask(i))], i)).collect());
        assert_eq!(warning(dir.path(), command), None);
    }
}

#[test]
fn rankings_in_another_form_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, prompt: &dyn Fn(usize) -> Vec<ChatMessage>, from: usize| {
        let ranking =
            |i: usize| Ranking::strict(i.to_string(), prompt(i), vec![answer(i), "Do not know.".to_owned()], &[0, 1]);
        write_jsonl(&dir.path().join(name), &(from..from + 16).map(ranking).collect::<Vec<_>>()).unwrap();
    };
    write("data.jsonl", &|i| vec![ChatMessage::user(ask(i))], 0);
    let command = format!("reward --model {}", FIXTURE.path("model").display());
    write("other.jsonl", &|i| vec![ChatMessage::system("You are a robot."), ChatMessage::user(ask(i))], 8);
    let found = warning(dir.path(), &command).unwrap();
    assert!(found.contains("8 of 16 records"), "{found}");
    write("other.jsonl", &|i| vec![ChatMessage::user(ask(i))], 16);
    assert_eq!(warning(dir.path(), &command), None);
}

#[test]
fn validation_text_that_is_joined_training_lines_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: usize| format!("{} {}", ask(i), answer(i));
    let train: Vec<String> = (0..40).map(line).collect();
    fs::write(dir.path().join("train.txt"), train.join("\n")).unwrap();
    let tokenizer = FIXTURE.path("model.tokenizer").display().to_string();
    let prepared = |text: String| {
        fs::write(dir.path().join("other.txt"), text).unwrap();
        let (code, _, message) = output(
            dir.path(),
            &format!("prepare --tokenizer {tokenizer} --train train.txt --validation other.txt --out run"),
        );
        assert_eq!(code, Some(0), "{message}");
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        message.lines().find(|line| line.contains("validation words are in sequences of 13 words")).map(str::to_owned)
    };
    assert!(prepared(train[5..15].join(" ")).is_some());
    assert_eq!(prepared((100..110).map(line).collect::<Vec<_>>().join(" ")), None);
}
