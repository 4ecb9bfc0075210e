//! The kinds of prompts: what the model sees (`--dry-run`), and what is printed of its answers.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;
use std::process::Command;

use llm_model::{Head, Model, ModelConfig};
use llm_tokenizer::{Tokenizer, TrainConfig, train_bpe};

/// A model with random weights, and with a chat template if `chat`.
fn save_model(dir: &Path, chat: bool) -> Tokenizer {
    let config = TrainConfig { vocab_size: 280, min_frequency: 2 };
    let mut tokenizer = train_bpe(&config, ["the cat sat on the mat"].iter()).unwrap();
    if chat {
        tokenizer = tokenizer.with_default_chat_template().unwrap();
    }
    let config = ModelConfig {
        vocab_size: 280,
        hidden_size: 48,
        num_hidden_layers: 1,
        initializer_range: 0.5,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir).unwrap();
    tokenizer.save(dir).unwrap();
    tokenizer
}

/// `generate` in a folder with the model `model`: exit code, standard output, standard error.
fn generate(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    run("generate", dir, arguments)
}

fn run(command: &str, dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let name = command;
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args([name, "-m", "model", "--max-new-tokens", "6"]).args(arguments).current_dir(dir);
    let output = command.env_remove("RUST_LOG").stdin(std::process::Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// What the model sees: the text of `--dry-run`, and all that follows it.
fn seen(dir: &Path, arguments: &[&str]) -> (String, String) {
    let (code, out, error) = generate(dir, &[arguments, &["--dry-run"]].concat());
    assert_eq!(code, 0, "{error}");
    let (rest, settings) = out.rsplit_once("\n\n").unwrap();
    let (text, ids) = rest.rsplit_once("\n\n").unwrap();
    (text.to_owned(), format!("{ids}\n{settings}"))
}

const SHOTS: &str = "{\"input\": \"cat\", \"output\": \"mat\"}\n{\"input\": \"dog\", \"output\": \"log\"}\n";

#[test]
fn a_dry_run_shows_the_text_the_ids_and_the_settings_with_their_sources() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = save_model(&dir.path().join("model"), true);
    let (text, rest) = seen(dir.path(), &["the <|end|> cat", "--top-k", "3", "--role", "teacher"]);
    assert!(text.starts_with("<|system|>You are a patient teacher."), "{text}");
    assert!(text.ends_with("<|end|><|user|>the <|end|> cat<|end|><|assistant|>"), "{text}");
    let ids: Vec<u32> =
        rest.lines().next().unwrap().split_once(": ").unwrap().1.split(' ').map(|id| id.parse().unwrap()).collect();
    // The text of the user is no control token: two turns, each with a begin and an end, and the begin of the answer.
    assert!(rest.starts_with(&format!("{} tokens, 5 of them special: ", ids.len())), "{rest}");
    let special = tokenizer.special_ids();
    assert_eq!(ids.iter().filter(|id| special.contains(id)).count(), 5);
    let plain = tokenizer.encode("the <|end|> cat").unwrap();
    assert!(ids.windows(plain.len()).any(|part| part == plain));
    assert!(rest.contains("top_k 3 (flag)") && rest.contains("temperature 0.7 (default)"), "{rest}");
    assert!(rest.contains("ends at ") && rest.contains("<|end|> (5)"), "{rest}");
}

#[test]
fn examples_are_turns_of_a_chat_or_a_text() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    std::fs::write(dir.path().join("shots.jsonl"), SHOTS).unwrap();
    let shots = |more: &[&str]| seen(dir.path(), &[&["sat", "--shots", "shots.jsonl"], more].concat());
    let turn = |input: &str, output: &str| format!("<|user|>{input}<|end|><|assistant|>{output}<|end|>");
    let question = "<|user|>sat<|end|><|assistant|>";
    let (cat, dog) = (turn("cat", "mat"), turn("dog", "log"));
    assert_eq!(shots(&[]).0, format!("{cat}{dog}{question}"));
    assert_eq!(shots(&["--num-shots", "1"]).0, format!("{cat}{question}"));
    assert_eq!(shots(&["--shots-order", "reverse"]).0, format!("{dog}{cat}{question}"));
    assert_eq!(
        shots(&["--shot-template", "{{ input }} -> {{ output }}"]).0,
        "<|user|>cat -> mat\n\ndog -> log\n\nsat -><|end|><|assistant|>"
    );
    let (text, rest) = shots(&["--raw"]);
    assert_eq!(text, "Input: cat\nOutput: mat\n\nInput: dog\nOutput: log\n\nInput: sat\nOutput:");
    assert!(rest.contains(r#"stop ["\nInput:"] (examples)"#), "{rest}");
    assert!(shots(&["--raw", "--stop", "END"]).1.contains(r#"stop ["END"] (flag)"#));
    let (text, _) = seen(dir.path(), &["sat", "--zero-shot"]);
    assert_eq!(text, "<|user|>Input: sat\nOutput:<|end|><|assistant|>");
}

#[test]
fn a_chain_of_thought_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    let (text, _) = seen(dir.path(), &["sat?", "--think"]);
    assert!(text.starts_with("<|user|>sat?\n\nThink step by step.") && text.contains("\"Answer:\".<|end|>"), "{text}");
    assert_eq!(seen(dir.path(), &["sat?", "--raw", "--think"]).0, "sat? Let's think step by step.");
    // A template with reasoning of its own gets a variable instead.
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>\
                    {% if enable_thinking is defined and enable_thinking %}<think>{% endif %}";
    let path = dir.path().join("model/tokenizer_config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(&path, config.to_string()).unwrap();
    std::fs::remove_file(dir.path().join("model/chat_template.jinja")).ok();
    assert_eq!(seen(dir.path(), &["sat?", "--think"]).0, "<|user|>sat?<|end|><|assistant|><think>");
    assert_eq!(seen(dir.path(), &["sat?"]).0, "<|user|>sat?<|end|><|assistant|>");
}

#[test]
fn a_prompt_file_has_variables_and_sampling() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    let file = "system = \"Be {{ how }}.\"\nprompt = \"{{ n }} words: {{ input }}\"\n[variables]\nn = 3\n[sampling]\ntop_k = 9\n";
    std::fs::write(dir.path().join("p.toml"), file).unwrap();
    let options = ["--prompt-file", "p.toml", "--var", "how=brief", "the {{ n }}"];
    let (text, rest) = seen(dir.path(), &options);
    assert_eq!(text, "<|system|>Be brief.<|end|><|user|>3 words: the {{ n }}<|end|><|assistant|>");
    assert!(rest.contains("top_k 9 (p.toml)"), "{rest}");
    assert!(seen(dir.path(), &[&options[..], &["--top-k", "2"]].concat()).1.contains("top_k 2 (flag)"));
    std::fs::write(dir.path().join("all.toml"), "prompt = \"the mat\"\n[sampling]\ntop_q = 1\n").unwrap();
    for (arguments, expected) in [
        (&["--prompt-file", "p.toml", "x"][..], "p.toml: the variable \"how\" has no value; add --var how=VALUE"),
        (&["--prompt-file", "all.toml"], "all.toml: \"top_q\" is not a setting; it must be one of "),
        (&["--prompt-file", "all.toml", "x"], "the prompt file has no {{ input }}"),
        (&["--role", "pirat", "x"], "--role is \"pirat\"; it must be one of assistant, "),
        (&["--vote", "x"], "--vote needs several answers; add --samples 10"),
        (&["--answer", "(", "x"], "--answer is not a regular expression"),
        (&["--shot-template", "{{ output }}", "x"], "--shot-template: it has no {{ input }}"),
    ] {
        let (code, _, error) = generate(dir.path(), arguments);
        assert!(code == 2 && error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn several_answers_are_printed_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    let (code, hot, error) = generate(dir.path(), &["the cat", "--samples", "3", "--temperature", "2"]);
    assert_eq!(code, 0, "{error}");
    let answers: Vec<&str> = hot.split(" of 3]\n").skip(1).collect();
    assert!(answers.len() == 3 && answers.iter().any(|answer| *answer != answers[0]), "{hot}");
    assert_eq!(generate(dir.path(), &["the cat", "--samples", "3", "--temperature", "2"]).1, hot, "the seed is 42");
    let (_, greedy, _) = generate(dir.path(), &["the cat", "--temperature", "0"]);
    let (code, vote, error) = generate(dir.path(), &["the cat", "--samples", "5", "--vote", "--temperature", "0"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(vote, format!("{}\n5 of 5 answers (100 %)\n", greedy.trim()));
}

#[test]
fn a_batch_answers_each_line_and_goes_on_after_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    let mut rows: Vec<String> = (0..40).map(|i| format!("{{\"id\": \"q{i}\", \"prompt\": \"the cat\"}}")).collect();
    rows[1] = r#"{"messages": [{"role": "user", "content": "the cat"}], "sampling": {"temperature": 0}, "meta": 7}"#
        .to_owned();
    rows[2] = r#"{"prompt": "sat", "id"#.to_owned();
    std::fs::write(dir.path().join("in.jsonl"), rows.join("\n")).unwrap();
    let run = |out: &str, more: &[&str]| generate(dir.path(), &[&["--batch", "in.jsonl", "--out", out], more].concat());
    let (code, _, error) = run("a.jsonl", &[]);
    assert!(code == 0 && error.contains("in.jsonl line 3: "), "{error}");
    let whole = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == 40 && lines[2]["error"].is_string() && lines[1]["meta"] == 7 && lines[1]["id"] == 2);
    assert_eq!(generate(dir.path(), &["the cat", "--temperature", "0"]).1.trim_end_matches('\n'), lines[1]["text"]);
    assert_eq!((&lines[5]["id"], lines[5]["text"] == lines[6]["text"]), (&"q5".into(), false), "each line is random");
    let (code, _, error) = run("a.jsonl", &[]);
    assert!(code == 2 && error.contains("a.jsonl: already exists"), "{error}");
    let (code, _, error) = run("b.jsonl", &["--strict"]);
    assert!(code == 2 && error.contains("in.jsonl line 3: ") && !dir.path().join("b.jsonl.part").exists(), "{error}");
    // Killed as soon as some lines are there.
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-infer"));
    command.args(["generate", "-m", "model", "--max-new-tokens", "6", "--batch", "in.jsonl", "--out", "c.jsonl"]);
    let mut child = command.current_dir(dir.path()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let part = dir.path().join("c.jsonl.part");
    while std::fs::read(&part).map_or(0, |bytes| bytes.len()) < 200 && child.try_wait().unwrap().is_none() {}
    child.kill().unwrap();
    child.wait().unwrap();
    if part.exists() {
        // As if the machine had stopped within a line.
        let mut bytes = std::fs::read(&part).unwrap();
        bytes.extend(b"{\"id\": \"q");
        std::fs::write(&part, bytes).unwrap();
        let (code, _, error) = run("c.jsonl", &["--top-k", "3"]);
        assert!(code == 2 && error.contains("c.jsonl.part: belongs to other options"), "{error}");
        assert_eq!(run("c.jsonl", &[]).0, 0);
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("c.jsonl")).unwrap(), whole);
    assert!(!part.exists() && !dir.path().join("c.jsonl.state").exists());
}

#[test]
fn answers_at_several_temperatures_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), true);
    let compare = |arguments: &[&str]| run("temperature", dir.path(), arguments);
    let greedy = generate(dir.path(), &["the <b>cat", "--temperature", "0"]).1.trim().to_owned();
    let (code, out, error) = compare(&["the <b>cat", "--right", &greedy, "--out", "all.json", "--samples", "6"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains(&format!("[temperature 0]\n{greedy}\n")) && out.contains("[temperature 1.5]\n"), "{out}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("all.json")).unwrap()).unwrap();
    let levels = json["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 6);
    let number = |level: usize, key: &str| levels[level][key].as_f64().unwrap();
    assert!(levels.iter().all(|level| level["answers"][0].as_array().unwrap().len() == 6));
    assert_eq!(
        (number(0, "entropy"), levels[0]["right"][0].as_f64()),
        (0., Some(1.)),
        "0 is always the most likely token"
    );
    // Hotter: more random.
    assert!((1..6).all(|level| number(level, "entropy") > number(level - 1, "entropy")), "{out}");
    assert!(number(5, "distinct_2") > number(0, "distinct_2"), "{out}");
    let (code, again, error) = compare(&["the <b>cat", "--right", &greedy, "--out", "page.html", "--samples", "6"]);
    assert!(
        code == 0 && again.replace("page.html", "all.json") == out,
        "the same seed gives the same answers: {error}"
    );
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(
        page.contains("<h2>the &lt;b&gt;cat</h2>")
            && page.contains("data:image/svg+xml;base64,")
            && !page.contains("<b>")
    );
    for place in ["STYLE", "TABLE", "PLOT", "QUESTIONS"] {
        assert!(!page.contains(place), "{place}");
    }

    std::fs::write(dir.path().join("two.jsonl"), "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"c\"}\n")
        .unwrap();
    let (code, _, error) = compare(&["--questions", "two.jsonl", "--temperatures", "0,1", "--out", "plot.svg"]);
    assert!(code == 0 && std::fs::read_to_string(dir.path().join("plot.svg")).unwrap().starts_with("<svg"), "{error}");
    std::fs::write(dir.path().join("broken.jsonl"), "{\"prompt\": \"a\"}\n{\"question\": \"c\"}\n").unwrap();
    for (arguments, expected) in [
        (["--questions", "broken.jsonl"], "broken.jsonl:2: missing field `prompt`"),
        (["--temperatures", "0,-1"], "-1 is not a temperature; it must be 0 or more"),
        (["--temperature", "0.5"], "give the list with --temperatures"),
        (["--out", "page.html"], "page.html: already exists"),
        (["--out", "page.pdf"], "must end in .html, .svg or .json"),
    ] {
        let prompt: &[&str] = if arguments[0] == "--questions" { &[] } else { &["the cat"] };
        let (code, _, error) = compare(&[prompt, &arguments].concat());
        assert!(code == 2 && error.contains(expected), "{arguments:?}: {error}");
    }
}
