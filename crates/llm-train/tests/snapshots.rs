//! Snapshots of the help of every command and of the most common errors. After an intended change:
//! `INSTA_UPDATE=always cargo test -p llm-train --test snapshots`, then check the difference.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;
use std::process::{Command, Stdio};

use llm_tokenizer::{TrainConfig, train_bpe};

/// Runs the program in a folder. Returns the exit code, the standard output and the standard error, as for a terminal of 100
/// columns without colours.
fn run(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
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

/// Checks the help of a command and of the commands below it; returns their number.
fn check_help(path: &[&str]) -> usize {
    let help = run(Path::new("."), &[path, &["--help"]].concat());
    check(&["help"].iter().chain(path).copied().collect::<Vec<_>>().join("-"), &help);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line of the description of a command is indented further.
    let names = lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    1 + names.filter(|name| *name != "help").map(|name| check_help(&[path, &[name]].concat())).sum::<usize>()
}

#[test]
fn help() {
    assert!(check_help(&[]) >= 15);
}

#[test]
fn quiet_hides_what_a_command_did_and_keeps_its_result() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), "the cat sat on the mat\n").unwrap();
    let train = |out| ["tokenizer", "train", "--vocab-size", "280", "--input", "text.txt", "--out", out];
    assert!(run(dir.path(), &train("shown")).contains("shown: done. Next: llm-train prepare"));
    assert_eq!(run(dir.path(), &[&["--quiet"][..], &train("hidden")].concat()), "exit code 0\n");
    assert!(run(dir.path(), &["--quiet", "recipe"]).contains("pretrain\n"));
}

#[test]
fn errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let tokenizer = train_bpe(&TrainConfig { vocab_size: 280, min_frequency: 2 }, ["the cat sat on the mat"].iter());
    tokenizer.unwrap().save(path("tokenizer")).unwrap();
    std::fs::write(path("text.txt"), "the cat sat on the mat\n").unwrap();
    std::fs::write(path("chats.jsonl"), "{\"question\": \"2 + 2?\", \"answer\": \"4\"}\n").unwrap();
    std::fs::create_dir(path("out")).unwrap();
    std::fs::write(path("out").join("notes.txt"), "kept").unwrap();
    let pretrain = ["pretrain", "--tokenizer", "tokenizer", "--data", "shards", "--out", "run"];
    let finetune = ["finetune", "--data", "chats.jsonl", "--out", "run", "--model"];
    let tokenizer = ["tokenizer", "train", "--out"];
    let cases = [
        [&finetune[..], &["nowhere"]].concat(),
        [&finetune[..], &["HuggingFaceTB/SmolLM2-135M"]].concat(),
        [&pretrain[..], &["--step", "5"]].concat(),
        [&pretrain[..], &["--set", "learning_rate=3"]].concat(),
        [&pretrain[..], &["--set", "lr=3"]].concat(),
        [&pretrain[..], &["--set", "steps=0"]].concat(),
        [&pretrain[..], &["--set", "steps=many"]].concat(),
        [&pretrain[..], &["--set", "steps"]].concat(),
        [&pretrain[..], &["--set", "optimizer.precision=int8"]].concat(),
        [&pretrain[..], &["--recipe", "pre-train"]].concat(),
        pretrain.to_vec(),
        [&pretrain[..], &["--resume"]].concat(),
        [&tokenizer[..], &["out", "--input", "text.txt"]].concat(),
        [&tokenizer[..], &["new", "--input", "chats.jsonl"]].concat(),
        [&tokenizer[..], &["new", "--input", "no-such-file.txt"]].concat(),
        [&tokenizer[..], &["new"]].concat(),
        vec!["prepare", "--tokenizer", "tokenizer", "--train", "text.txt", "--out", "out"],
        vec!["recipes"],
        vec!["recipe", "sft"],
        vec!["resume", "out"],
        vec!["params", "gpt-5"],
        vec!["params", "llama-3-8b", "--threads", "0"],
    ];
    let mut all = String::new();
    for arguments in cases {
        all += &format!("$ llm-train {}\n{}\n", arguments.join(" "), run(dir.path(), &arguments));
    }
    check("errors", &all);
}

/// Runs the program with lines on its standard input.
fn run_with_input(dir: &Path, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.args(arguments).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env_remove("RUST_LOG").spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    format!("exit code {}\n{}{}", output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn answers_are_judged_by_lines_reported_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let items =
        "{\"prompt\": \"q\", \"answers\": [\"one\", \"two\"]}\n{\"prompt\": \"r\", \"answers\": [\"one\", \"two\"]}\n";
    std::fs::write(dir.path().join("items.jsonl"), items).unwrap();
    let feedback = |arguments: &[&str]| run(dir.path(), &[&["feedback"][..], arguments].concat());
    let imported = feedback(&["import", "--db", "v.sqlite", "items.jsonl"]);
    assert!(imported.contains("2 new items, 0 new judgements"), "{imported}");
    let rank = ["feedback", "rank", "--db", "v.sqlite", "--annotator", "ann"];
    let ranked = run_with_input(dir.path(), &rank, "12\nZ\n21\nT\n");
    assert!(ranked.contains("undone") && ranked.contains("2 judgements. Next: "), "{ranked}");
    let report = feedback(&["report", "--db", "v.sqlite"]);
    assert!(report.starts_with("exit code 0\n2 items, 2 of them ranked, 2 judgements\n"), "{report}");
    assert!(feedback(&["report", "--db", "v.sqlite", "--json"]).contains("\"judged_items\": 2"));
    let exported = feedback(&["export", "--db", "v.sqlite", "--to", "trl", "--out", "pairs.jsonl"]);
    assert!(exported.contains("pairs.jsonl: 1 records; left out: 1 tied pairs"), "{exported}");
    let pairs = std::fs::read_to_string(dir.path().join("pairs.jsonl")).unwrap();
    assert!(pairs.starts_with("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"chosen\":"), "{pairs}");
    for (arguments, part) in [
        (&["export", "--db", "v.sqlite", "--to", "trl", "--out", "pairs.jsonl"][..], "the file exists"),
        (&["export", "--db", "v.sqlite", "--to", "kto", "--out", "kto.jsonl"], "there is nothing to export"),
        (&["report", "--db", "missing.sqlite"], "missing.sqlite: there is no such file"),
        (&["report", "--db", "items.jsonl"], "items.jsonl: is not a database of this program"),
        (&["rank", "--db", "v.sqlite", "--annotator", "ann", "--overlap", "0"], "overlap is 0"),
        (&["simulate", "--db", "v.sqlite", "--overlap", "2"], "\"q\" is no question of the built-in world"),
    ] {
        let failed = feedback(arguments);
        assert!(failed.starts_with("exit code 2\n") && failed.contains(part), "{failed}");
    }
}
