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
        let inputs = FinetuneInputs { model: self.path("model"), data, validation, text: None };
        self.run(|out| quietly(|options| finetune(&recipe, &inputs, out, options)).map(drop))
    }

    fn reward(&self, data: &Path, validation: Option<&Path>) -> Result<()> {
        let recipe = RewardRecipe { batch_size: 4, ..RewardRecipe::default() };
        let (data, validation) = (data.to_owned(), validation.map(Path::to_owned));
        let inputs = RewardInputs { model: self.path("model"), data, validation };
        self.run(|out| quietly(|options| reward(&recipe, &inputs, out, options)).map(drop))
    }

    fn distill(&self, data: &Path, validation: Option<&Path>) -> Result<()> {
        let student = llm_model::ModelConfig { hidden_size: 16, ..DistillRecipe::default().student };
        let recipe = DistillRecipe { epochs: 1, batch_size: 4, student, ..DistillRecipe::default() };
        let teacher = self.path("model");
        let (data, validation) = (data.to_owned(), validation.map(Path::to_owned));
        let inputs = DistillInputs { teacher, text_teacher: None, student: None, data, validation, text: None };
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
