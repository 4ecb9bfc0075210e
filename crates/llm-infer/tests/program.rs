//! The program as a user runs it: where the prompt comes from, what it prints without a command, exit codes.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{TrainConfig, train_bpe};

fn llm_infer(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env_remove("RUST_LOG").spawn().unwrap();
    // A program that does not read its input may have ended already.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

/// The standard output of a successful run.
fn printed(arguments: &[&str], input: &str) -> String {
    let output = llm_infer(arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and the standard error of a run.
fn failed(arguments: &[&str], input: &str) -> (i32, String) {
    let output = llm_infer(arguments, input);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn save_model(dir: &Path) {
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, ["the cat sat on the mat"].iter());
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        initializer_range: 0.5,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.unwrap().save(dir).unwrap();
}

#[test]
fn without_a_command_the_program_says_where_to_start() {
    let text = printed(&[], "");
    assert_eq!(text.lines().filter(|line| line.starts_with("  llm-infer ")).count(), 4, "{text}");
}

/// A model with a chat template and this context length.
fn save_chat_model(dir: &Path, context_length: usize) {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap().with_default_chat_template();
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        initializer_range: 0.5,
        max_position_embeddings: context_length,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.unwrap().save(dir).unwrap();
}

#[test]
fn a_chat_has_commands_which_the_model_does_not_get() {
    let dir = tempfile::tempdir().unwrap();
    save_chat_model(dir.path(), 256);
    let options = ["chat", "-m", dir.path().to_str().unwrap(), "--temperature", "0", "--max-new-tokens", "8"];
    let said = llm_infer(&options, "/help\n/halp\n\nquit\nthe cat\n");
    let (out, errors) = (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap());
    assert!(said.status.success(), "{errors}");
    assert!(out.contains("/clear") && out.ends_with("is a message to the model.\n"), "{out}");
    assert!(errors.contains("/halp is not a command; /help lists"), "{errors}");
    let first = printed(&options, "the cat\n");
    assert_eq!(printed(&options, "the cat\n/clear\nthe cat\n/exit\nthe cat\n"), first.repeat(2));
    assert_ne!(printed(&options, "the cat\nthe cat\n"), first.repeat(2), "the second reply depends on the first");
}

#[test]
fn the_commands_of_a_chat_change_save_and_load_the_conversation() {
    let dir = tempfile::tempdir().unwrap();
    save_chat_model(&dir.path().join("model"), 256);
    let talk = dir.path().join("talk.jsonl");
    let (model, talk) = (dir.path().join("model"), talk.to_str().unwrap());
    let options = ["chat", "-m", model.to_str().unwrap(), "--temperature", "0", "--max-new-tokens", "8"];
    let first = printed(&options, "the cat\n");
    let second = printed(&options, "the cat\nthe mat\n");
    let after = |commands: &str| printed(&[&options[..], &["--quiet"]].concat(), commands);
    assert_eq!(after("the cat\n/undo\nthe cat\n"), first.repeat(2));
    assert_eq!(after("the cat\n/retry\n"), first.repeat(2), "greedy answers are equal");
    assert_eq!(after("the cat\nthe mat\n/undo\nthe mat\n"), format!("{second}{}", &second[first.len()..]));
    assert_eq!(after(&format!("the cat\n/save {talk}\n/clear\n/load {talk}\nthe mat\n")), second);
    assert_eq!(after("/system\n/system Be brief.\n/system\n"), "There is no system message.\nBe brief.\n");
    assert_ne!(after("/system Be brief.\nthe cat\n"), format!("{first}"));
    assert_eq!(after("/temperature\n/temperature 0.5\n/temperature\n"), "0\n0.5\n");
    for (commands, expected) in [
        ("/undo\n", "there is no question yet"),
        (&format!("/save {talk}\n"), "talk.jsonl: already exists; choose another name"),
        ("/load nothing.jsonl\n", "nothing.jsonl: "),
    ] {
        let (code, error) = failed(&options, commands);
        assert!(code == 2 && error.contains(expected), "{error}");
    }
}

#[test]
fn answers_of_a_chat_differ_unless_a_seed_is_given() {
    let dir = tempfile::tempdir().unwrap();
    save_chat_model(dir.path(), 256);
    let run = |options: &[&str]| {
        let fixed = ["chat", "-m", dir.path().to_str().unwrap(), "--temperature", "2", "--max-new-tokens", "20"];
        let output = llm_infer(&[&fixed[..], options].concat(), "the cat\n/retry\n");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_ne!(run(&[]), run(&[]));
    let seeded = run(&["--seed", "7"]);
    assert_eq!(run(&["--seed", "7"]), seeded);
}

#[test]
fn a_chat_goes_on_when_the_context_is_full() {
    let dir = tempfile::tempdir().unwrap();
    save_chat_model(dir.path(), 64);
    let options = ["chat", "-m", dir.path().to_str().unwrap(), "--max-new-tokens", "8", "--system", "sat"];
    let said = llm_infer(&options, &"the cat sat on the mat\n".repeat(6));
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.success(), "{errors}");
    assert!(errors.contains("the context of 64 tokens is full"), "{errors}");
    let (code, error) = failed(&options, &"mat ".repeat(80));
    assert!(code == 2 && error.contains("shorter than the context length of 64"), "{error}");
}

#[test]
fn a_prompt_is_an_argument_a_file_or_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    save_model(&model);
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "the cat\n").unwrap();
    let (model, file) = (model.to_str().unwrap(), file.to_str().unwrap());
    let generate = |arguments: &[&str], input: &str| {
        let options = ["generate", "-m", model, "--raw", "--temperature", "0", "--max-new-tokens", "8"];
        printed(&[&options, arguments].concat(), input)
    };
    let expected = generate(&["--prompt", "the cat"], "");
    assert_ne!(expected, generate(&["--prompt", "on the mat"], ""), "the reply depends on the prompt");
    let same: [(&[&str], &str); 7] = [
        (&["the cat"], ""),
        (&["-p", "the cat"], ""),
        (&["-f", file], ""),
        (&["--file", "-"], "the cat\n"),
        (&["-"], "the cat\n"),
        (&["--prompt", "-"], "the cat\r\n"),
        (&[], "the cat\n"),
    ];
    for (arguments, input) in same {
        assert_eq!(generate(arguments, input), expected, "{arguments:?}");
    }
}

#[test]
fn a_missing_prompt_or_file_is_the_users_error() {
    let (code, message) = failed(&["generate", "-m", "nowhere"], " \n");
    assert_eq!((code, message.as_str()), (2, "error: the prompt is empty; give at least one word\n"));
    let (code, message) = failed(&["generate", "-m", "nowhere", "-f", "no-such-file.txt"], "");
    assert!(code == 2 && message.starts_with("error: no-such-file.txt: "), "{message}");
}

#[test]
fn quiet_and_verbose_set_what_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path());
    let model = dir.path().to_str().unwrap();
    let logged = |option: &str| {
        let output = llm_infer(&["generate", "-m", model, "--raw", option, "--max-new-tokens", "2", "the cat"], "");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(logged("--quiet"), "");
    assert!(logged("-v").contains("tokens/s"), "{}", logged("-v"));
}

#[test]
fn completions_and_manual_pages_are_generated() {
    assert!(printed(&["completions", "bash"], "").contains("--max-new-tokens"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man");
    printed(&["man", "--out", out.to_str().unwrap()], "");
    assert!(std::fs::read_to_string(out.join("llm-infer-generate.1")).unwrap().contains("temperature"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_not_the_users_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_llm-infer")).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message, "error: standard output: disk full; free some space and try again\n");

    // A file system of 64 KiB, visible to one process. Some machines do not let users mount one.
    let dir = tempfile::tempdir().unwrap();
    let (model, small) = (dir.path().join("model"), dir.path().join("small"));
    save_model(&model);
    std::fs::create_dir(&small).unwrap();
    let script = r#"mount -t tmpfs -o size=64k tmpfs "$3" || exit 77
        exec "$1" convert --model "$2" --to safetensors --out "$3/model""#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_llm-infer")]);
    let output = match command.args([&model, &small]).output() {
        Ok(output) if output.status.code() != Some(77) && !output.stderr.starts_with(b"unshare:") => output,
        _ => return eprintln!("skipped: this machine does not let users mount a file system"),
    };
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("model.safetensors: disk full ("), "{message}");
}

#[test]
fn sampling_defaults_come_from_the_model_and_a_flag_wins() {
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path());
    let file = dir.path().join("generation_config.json");
    let model = dir.path().to_str().unwrap();
    let run = |json: &str, flags: &[&str]| {
        std::fs::write(&file, json).unwrap();
        let words = ["generate", "-v", "-m", model, "--raw", "the cat"];
        let output = llm_infer(&[&words, flags].concat(), "");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (greedy, said) = run(r#"{"do_sample": false, "max_new_tokens": 9, "eos_token_id": [3]}"#, &[]);
    assert!(said.contains("temperature 0 (generation_config.json), top_k 0 (default), top_p 1 (default)"), "{said}");
    assert!(said.contains("max_new_tokens 9 (generation_config.json); ends at ") && said.contains(" (3)"), "{said}");
    let (again, said) = run(r#"{"temperature": 5.0, "top_k": 3}"#, &["--temperature", "0", "--max-new-tokens", "9"]);
    assert!(said.contains("temperature 0 (flag), top_k 3 (generation_config.json)"), "{said}");
    assert_eq!(again, greedy);
    let (hot, said) = run(r#"{"temperature": 5.0, "repetition_penalty": 1.3, "foo": 1}"#, &["--max-new-tokens", "9"]);
    assert_ne!(hot, greedy);
    assert_eq!(said.matches("not supported, and ignored: foo, repetition_penalty").count(), 1, "{said}");
    std::fs::write(&file, r#"{"top_p": 7}"#).unwrap();
    let (code, error) = failed(&["generate", "-m", model, "hello"], "");
    assert!(code == 2 && error.contains("generation_config.json: \"top_p\" is 7; it must be a number"), "{error}");
}

#[test]
fn a_model_of_the_hub_is_read_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--tiny");
    let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    save_model(&snapshot);
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "0123456789abcdef0123456789abcdef01234567").unwrap();
    let run = |model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
        command.args(["generate", "--offline", "--model", model, "--temperature", "0", "the cat"]);
        command.env("HF_HOME", home.path()).env_remove("HF_HUB_CACHE").env_remove("RUST_LOG").output().unwrap()
    };
    let (named, local) = (run("org/tiny"), run(snapshot.to_str().unwrap()));
    assert!(named.status.success(), "{}", String::from_utf8_lossy(&named.stderr));
    assert_eq!(named.stdout, local.stdout);
    assert_eq!(run("org/tiny@v2").status.code(), Some(2));
}
