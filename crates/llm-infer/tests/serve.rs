//! `llm-infer serve` as a user runs it.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{TrainConfig, train_bpe};

fn save_model(dir: &Path) {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap().with_default_chat_template();
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        max_position_embeddings: 256,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.unwrap().save(dir).unwrap();
}

/// Starts the server; returns its first lines and its address.
fn start(arguments: &[&str]) -> (Child, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args(["serve", "--port", "0"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env_remove("RUST_LOG").spawn().unwrap();
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    let mut lines = String::new();
    (0..3).for_each(|_| assert!(out.read_line(&mut lines).unwrap() > 0));
    let address = lines.lines().next().unwrap().rsplit("http://").next().unwrap().to_owned();
    (child, lines, address)
}

fn request(address: &str, text: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_program_says_how_to_call_it_and_ends_after_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let (model, keys) = (dir.path().join("tiny"), dir.path().join("keys"));
    save_model(&model);
    std::fs::write(&keys, "# a comment\n\n  secret \n").unwrap();
    let (model, keys) = (model.to_str().unwrap(), keys.to_str().unwrap());
    let (mut child, lines, address) = start(&["--model", model, "--api-key-file", keys, "--deterministic"]);
    assert!(lines.starts_with("tiny with a context of 256 tokens is served at http://127.0.0.1:"), "{lines}");
    assert!(lines.contains("Authorization: Bearer $KEY") && lines.contains(&format!("http://{address}/v1")), "{lines}");
    // The request of the line that is printed.
    let body = lines.split(" -d '").nth(1).unwrap().trim_end().trim_end_matches('\'');
    let head = |key: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{key}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = request(&address, &head("Authorization: Bearer secret\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"model\":\"tiny\""), "{answer}");
    assert!(request(&address, &head("")).starts_with("HTTP/1.1 401 "));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(child.wait().unwrap().success(), "{errors}");
    assert_eq!(errors, "waiting for the running requests; press Ctrl-C again to stop at once\n");
}

#[test]
fn what_cannot_be_served_is_said_before_the_model_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (model, empty) = (dir.path().join("tiny"), dir.path().join("empty"));
    save_model(&model);
    std::fs::write(&empty, "\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (model, empty) = (model.to_str().unwrap(), empty.to_str().unwrap());
    for (arguments, expected) in [
        (vec!["--port", &port], "cannot listen"),
        (vec!["--api-key-file", empty], "has no key; write one per line"),
        (vec!["--adapter", "tiny=x"], "this is the name of the model"),
        (vec!["--template-kwargs", "3"], "--template-kwargs: not a JSON object"),
        (vec!["--host", "nowhere"], "invalid"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
        let output = command.args(["serve", "--model", model]).args(&arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && message.contains(expected), "{arguments:?}: {message}");
    }
}
