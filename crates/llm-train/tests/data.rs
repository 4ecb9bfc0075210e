//! Data files in common formats, and error messages for unusable data.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{fresh_model, quietly};
use llm_train::Result;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, RewardInputs, RewardRecipe, distill, finetune, reward,
};
use serde_json::Value;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A folder with a model.
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        fresh_model(&fixture.path("model"), "the quick brown fox jumps over the lazy dog", 16, 0.1);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn finetune(&self, data: &Path, validation: Option<&Path>) -> Result<()> {
        let recipe = FinetuneRecipe { epochs: 1, batch_size: 4, max_length: 64, ..FinetuneRecipe::default() };
        let (data, validation) = (data.to_owned(), validation.map(Path::to_owned));
        let inputs =
            FinetuneInputs { adapter: None, model: self.path("model"), data: vec![data], validation, text: None };
        self.run(|out| quietly(|options| finetune(&recipe, &inputs, out, options)).map(drop))
    }

    fn reward(&self, data: &Path, validation: Option<&Path>) -> Result<()> {
        let recipe = RewardRecipe { batch_size: 4, ..RewardRecipe::default() };
        let (data, validation) = (data.to_owned(), validation.map(Path::to_owned));
        let inputs = RewardInputs { adapter: None, model: self.path("model"), data: vec![data], validation };
        self.run(|out| quietly(|options| reward(&recipe, &inputs, out, options)).map(drop))
    }

    fn distill(&self, data: &Path, validation: Option<&Path>) -> Result<()> {
        let student = llm_model::ModelConfig { hidden_size: 16, ..DistillRecipe::default().student };
        let recipe = DistillRecipe { epochs: 1, batch_size: 4, student, ..DistillRecipe::default() };
        let teacher = self.path("model");
        let (data, validation) = (data.to_owned(), validation.map(Path::to_owned));
        let inputs = DistillInputs { teacher, data: vec![data], validation, ..DistillInputs::default() };
        self.run(|out| quietly(|options| distill(&recipe, &inputs, out, options)).map(drop))
    }

    /// Runs a stage in a new folder, which must not exist after an error.
    fn run(&self, stage: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let out = self.path("out");
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        let done = stage(&out);
        assert_eq!(done.is_ok(), out.exists(), "{done:?}");
        done
    }
}

fn answers(count: usize) -> Vec<String> {
    (0..count).map(|i| format!(r#"{{"prompt": "the fox {i}", "completion": "the dog {}"}}"#, i % 3)).collect()
}

fn pairs(count: usize) -> Vec<String> {
    (0..count).map(|i| format!(r#"{{"id": "{i}", "prompt": "fox {i}", "chosen": "dog", "rejected": "fox"}}"#)).collect()
}

#[test]
fn common_file_formats_are_accepted() {
    let fixture = Fixture::new();
    let (lines, objects) = (answers(8).join("\r\n"), answers(8).join(",\n"));
    let pretty: Vec<String> = answers(8).iter().map(|line| line.replace(", ", ",\n  ").replace('{', "{\n  ")).collect();
    let conversational = answers(8).join("\n").replace("\"the fox", "[{\"role\": \"user\", \"content\": \"the fox");
    let conversational = conversational.replace("\", \"completion\"", "\"}], \"completion\"");
    for content in [format!("\u{feff}{lines}"), format!("[{objects}]"), pretty.join("\n"), conversational] {
        let data = fixture.write("data.jsonl", &content);
        fixture.finetune(&data, None).unwrap_or_else(|error| panic!("{error}: {content}"));
    }
    let ties =
        format!("{}\n{}", pairs(6).join("\n"), r#"{"prompt": "x", "answers": ["a", "b", "c"], "ranks": [1, 1, 2]}"#);
    fixture.reward(&fixture.write("pairs.jsonl", ties), None).unwrap();
}

#[test]
fn invalid_validation_data_is_refused_in_every_stage() {
    let fixture = Fixture::new();
    let one_prompt = |line: String| line.replace("fox 1", "fox").replace("fox 0", "Fox ");
    let same = fixture.write("same.jsonl", answers(2).into_iter().map(one_prompt).collect::<Vec<_>>().join("\n"));
    let ids = fixture.write("ids.jsonl", pairs(2).into_iter().map(one_prompt).collect::<Vec<_>>().join("\n"));
    for refused in [fixture.finetune(&same, None), fixture.distill(&same, None), fixture.reward(&ids, None)] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("a split needs two different prompts"), "{message}");
    }

    // The same records in another order and another JSON layout.
    let copy = |mut lines: Vec<String>| {
        lines.reverse();
        format!("[{}]", lines.join(","))
    };
    let (data, data_copy) =
        (fixture.write("a.jsonl", answers(8).join("\n")), fixture.write("a.json", copy(answers(8))));
    let (ranked, ranked_copy) =
        (fixture.write("r.jsonl", pairs(8).join("\n")), fixture.write("r.json", copy(pairs(8))));
    for refused in [
        fixture.finetune(&data, Some(&data)),
        fixture.finetune(&data, Some(&data_copy)),
        fixture.distill(&data, Some(&data_copy)),
        fixture.reward(&ranked, Some(&ranked_copy)),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("all 8 records are also in") && message.contains("--validation"), "{message}");
    }
}

#[test]
fn without_a_pad_token_the_end_token_pads_rows() {
    let fixture = Fixture::new();
    // Rows of different lengths, so that there is padding.
    let line = |i: usize| format!(r#"{{"prompt": "the{}", "completion": "the dog"}}"#, " fox".repeat(i));
    let data = fixture.write("data.jsonl", (1..12).map(line).collect::<Vec<_>>().join("\n"));
    let weights = || {
        let weights = |result: Result<()>| {
            result.unwrap();
            std::fs::read(fixture.path("out/model.safetensors")).unwrap()
        };
        [weights(fixture.finetune(&data, None)), weights(fixture.distill(&data, None))]
    };
    let padded = weights();
    for (file, key) in [("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")] {
        let file = fixture.path("model").join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert!(!json.as_object_mut().unwrap().remove(key).unwrap().is_null());
        std::fs::write(file, json.to_string()).unwrap();
    }
    assert!(weights() == padded, "the padding token must not matter");
}

#[test]
fn an_adapter_in_place_of_a_model_gives_a_helpful_error() {
    let fixture = Fixture::new();
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        std::fs::remove_file(fixture.path("model").join(file)).unwrap();
    }
    std::fs::write(fixture.path("model").join("adapter_config.json"), "{}").unwrap();
    let (data, ranked) =
        (fixture.write("a.jsonl", answers(8).join("\n")), fixture.write("r.jsonl", pairs(8).join("\n")));
    for refused in [fixture.finetune(&data, None), fixture.distill(&data, None), fixture.reward(&ranked, None)] {
        let message = refused.unwrap_err().to_string();
        assert!(
            message.contains(
                "this folder is an adapter, not a model; merge it into its base model with `llm-infer merge`"
            ),
            "{message}"
        );
    }
}

#[test]
fn an_error_is_one_line_even_with_backtraces_enabled() {
    let run = Command::new(env!("CARGO_BIN_EXE_llm-train"))
        .args(["--threads", "0", "params", "llama-3-8b"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(said, "error: --threads: the number of threads is 0; it must be at least 1\n");
}

/// The last lines of the warnings of `llm-train finetune` on this data, and whether it succeeded.
fn finetune_says(fixture: &Fixture, more: &[&str], data: &[&Path]) -> (bool, String) {
    let (model, out) = (fixture.path("model"), fixture.path("out"));
    if out.exists() {
        std::fs::remove_dir_all(&out).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-train"));
    command.args(["--threads", "1", "finetune", "--set", "epochs=1", "--set", "max_length=64"]);
    command.arg("--model").arg(model).arg("--out").arg(&out).args(more).arg("--data").args(data);
    let run = command.output().unwrap();
    assert_eq!(run.status.success(), out.exists(), "an error writes nothing");
    (run.status.success(), String::from_utf8(run.stderr).unwrap())
}

#[test]
fn broken_rows_are_left_out_with_file_and_line_or_refused() {
    let fixture = Fixture::new();
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"a\"}}", "a".repeat(50 << 20));
    let broken: [(&str, Vec<u8>, &str); 6] = [
        ("nul", b"{\"prompt\": \"\0\", \"completion\": \"a\"}".to_vec(), "line 9: byte 13 is NUL"),
        (
            "utf8",
            b"{\"prompt\": \"\xff\", \"completion\": \"a\"}".to_vec(),
            "line 9: byte 13 is not UTF-8; convert the file",
        ),
        ("long", long.into_bytes(), "line 9: the row has 52428834 bytes; it must have at most 33554432"),
        ("cut", b"{\"prompt\": \"a".to_vec(), "line 9: not JSON: EOF while parsing a string, at column 13"),
        ("shape", pairs(1)[0].clone().into_bytes(), "line 9: an object with the keys"),
        (
            "user",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}".to_vec(),
            "line 9: no assistant message",
        ),
    ];
    for (name, row, expected) in broken {
        let content = [answers(8).join("\n").as_bytes(), b"\n", &row, b"\n", answers(9)[8].as_bytes()].concat();
        let data = fixture.write(&format!("{name}.jsonl"), content);
        let (done, said) = finetune_says(&fixture, &[], &[&data]);
        let line = format!("1 of 10 records are broken and left out (--strict refuses them): {}", data.display());
        assert!(done && said.contains(&line) && said.contains(expected), "{said}");
        let (done, said) = finetune_says(&fixture, &["--strict"], &[&data]);
        assert!(!done && said.contains(expected) && said.trim_end().lines().count() == 1, "{said}");
    }
}

#[test]
fn unusable_files_are_refused_in_one_line() {
    let fixture = Fixture::new();
    let kto = r#"{"prompt": "q", "completion": "bad", "label": false}"#;
    for (content, expected) in [
        (String::new(), "contains no conversations"),
        (answers(1)[0].clone(), "a split needs two different prompts"),
        ("\u{0}".repeat(9), "1 of 1 records are broken"),
        (pairs(4).join("\n"), "preferences are data of `llm-train reward`"),
        ([kto; 10].join("\n"), "line 1: \"label\" is false: rows with a label are unpaired preferences (KTO)"),
        (answers(8).join("\n").replace('}', ", \"weight\": 0.5}"), "line 1: \"weight\" of a row is 0.5"),
        (answers(8).join("\n").replace('}', ", \"tools\": [{\"name\": \"f\"}]}"), "does not read \"tools\""),
    ] {
        let data = fixture.write("bad.jsonl", &content);
        let (done, said) = finetune_says(&fixture, &[], &[&data]);
        assert!(!done && said.contains(expected) && said.contains("bad.jsonl"), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
    let set = |value: &str| ["--set".to_owned(), value.to_owned()];
    let data = fixture.write("kto.jsonl", answers(8).join("\n").replace('}', ", \"label\": true}"));
    let ignored = set("data.ignored_columns=[\"label\"]");
    assert!(finetune_says(&fixture, &ignored.each_ref().map(String::as_str), &[&data]).0);
}

#[test]
fn columns_are_renamed_files_are_mixed_and_unknown_columns_are_listed_once() {
    let fixture = Fixture::new();
    let other =
        answers(8).join("\n").replace("prompt", "ask").replace("completion", "say").replace('}', ", \"mood\": 1}");
    let data = fixture.write("other.jsonl", other);
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("data.{key}={value}")];
    let columns = set("columns", "{ prompt = \"ask\", completion = \"say\" }");
    let said = finetune_says(&fixture, &columns.each_ref().map(String::as_str), &[&data]);
    assert!(said.0 && said.1.matches("the keys \"mood\" are not read").count() == 1, "{}", said.1);
    let wrong = set("columns", "{ prompt = \"question\" }");
    let said = finetune_says(&fixture, &wrong.each_ref().map(String::as_str), &[&data]).1;
    assert!(said.contains("data.columns: prompt = \"question\", but no row of") && said.lines().count() == 1, "{said}");

    let folder = fixture.path("folder");
    std::fs::create_dir_all(folder.join("more")).unwrap();
    std::fs::write(folder.join("more/a.csv"), "prompt,completion\nthe fox 90,the dog\nthe fox 91,the dog\n").unwrap();
    std::fs::write(folder.join("b.jsonl"), "{\"text\": \"the quick fox\"}\n{\"text\": \"the lazy dog\"}\n").unwrap();
    let plain = fixture.write("plain.jsonl", answers(8).join("\n"));
    let weights = set("weights", "[1, 3.0]");
    let (done, said) = finetune_says(&fixture, &weights.each_ref().map(String::as_str), &[&plain, &folder]);
    assert!(done, "{said}");
    let recipe = std::fs::read_to_string(fixture.path("out/recipe.toml")).unwrap();
    assert!(recipe.contains("[inputs.data]") && recipe.contains("[inputs.data_2]"), "{recipe}");
    let resumed = Command::new(env!("CARGO_BIN_EXE_llm-train"))
        .arg("resume")
        .arg(fixture.path("out"))
        .args(["--set", "epochs=2"])
        .output()
        .unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
}
