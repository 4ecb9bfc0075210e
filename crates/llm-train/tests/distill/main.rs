//! Distillation: losses with known values and optima, and runs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../common/mod.rs"]
mod common;
mod losses;
mod policy;
mod stored;
mod students;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use common::{fresh_model, quietly};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::{Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use llm_train::Error;
use llm_train::examples::{Example, answer_states};
use llm_train::loss::{DistillationOptions, Divergence, Teacher};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{DistillInputs, DistillRecipe, PrepareInputs, distill, prepare};
use llm_train::rows::read_examples;
use llm_train::run::{Event, RunOptions};
use serde_json::Value;

/// Few conversations, and a student of the teacher's architecture.
#[test]
fn distillation_gets_closer_to_the_teacher_than_training_on_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = "one two three four five six seven eight nine ten eleven twelve";
    fresh_model(&path("teacher"), &text.repeat(10), 24, 0.25);
    let words: Vec<&str> = text.split(' ').collect();
    let conversation = |i: usize| {
        Conversation::from(vec![
            ChatMessage::user(words[i % 12]),
            ChatMessage::assistant((1..6).map(|k| words[(i * k + i / 12) % 12]).collect::<Vec<_>>().join(" ")),
        ])
    };
    write_jsonl(&path("train.jsonl"), &(0..96).map(conversation).collect::<Vec<_>>()).unwrap();
    write_jsonl(&path("validation.jsonl"), &(96..144).map(conversation).collect::<Vec<_>>()).unwrap();
    let (teacher, data, validation) = (path("teacher"), path("train.jsonl"), path("validation.jsonl"));
    let run = |name: &str, alpha: f64, epochs: u64| {
        let recipe = DistillRecipe {
            alpha,
            temperature: 1.,
            text_steps: 0,
            epochs,
            batch_size: 32,
            eval_every: 1,
            optimizer: OptimizerConfig {
                learning_rate: 1e-2,
                warmup_steps: 20,
                min_learning_rate_ratio: 0.1,
                weight_decay: 0.,
                ..DistillRecipe::default().optimizer
            },
            student: Model::load(&teacher).unwrap().config().clone(),
            ..DistillRecipe::default()
        };
        let inputs = DistillInputs {
            teacher: teacher.clone(),
            data: vec![data.clone()],
            validation: Some(validation.clone()),
            ..DistillInputs::default()
        };
        quietly(|options| distill(&recipe, &inputs, &path(name), options)).unwrap();
        (metrics(&path(name), "eval_kl"), validation_kl(&teacher, &path(name), &validation))
    };
    let (logged, taught) = run("taught", 1., 60);
    let (none, labelled) = run("labelled", 0., 60);
    let (before, last) = (logged[0], logged[logged.len() - 1]);
    assert!((last - taught).abs() < 1e-4 * taught.max(1e-3), "{last} in the log, {taught} computed from the files");
    assert!(none.is_empty(), "no teacher runs if its weight is 0");
    assert!(taught < 0.5 * before && taught < 0.5 * labelled, "{before} before, {taught} taught, {labelled} labelled");
}

/// `KL(teacher ‖ student)` per trained token of the validation data.
fn validation_kl(teacher: &Path, student: &Path, validation: &Path) -> f64 {
    let tokenizer = Tokenizer::load(teacher).unwrap();
    let (teacher, student) = (Model::load(teacher).unwrap(), Model::load(student).unwrap());
    let examples = read_examples(validation, &tokenizer, 512).unwrap();
    let examples: Vec<&Example> = examples.iter().collect();
    let (teacher_states, labels) = answer_states(&teacher, &examples, 0).unwrap();
    let (student_states, _) = answer_states(&student, &examples, 0).unwrap();
    let vocab = student.config().vocab_size;
    let options = DistillationOptions { alpha: 1., temperature: 1., divergence: Divergence::Forward, vocab };
    student
        .distillation(&student_states, Teacher::Model(&teacher, &teacher_states), &labels, &options)
        .unwrap()
        .divergence
}

fn metrics(run: &Path, key: &str) -> Vec<f64> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[key].as_f64()).collect()
}

/// A teacher, a teacher of plain text with the same tokenizer, a model with another tokenizer, and shards of both tokenizers.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        let text = "one two three four five six seven eight nine ten eleven twelve ".repeat(40);
        fresh_model(&fixture.path("teacher"), &text, 16, 0.3);
        fresh_model(&fixture.path("base"), &text, 24, 0.3);
        // The same vocabulary size, other tokens.
        fresh_model(&fixture.path("other"), &text.replace('e', "a"), 16, 0.3);
        for name in ["teacher", "other"] {
            let inputs = PrepareInputs {
                tokenizer: fixture.path(name),
                train: vec![fixture.path("base.txt")],
                validation: Vec::new(),
                validation_share: 0.2,
                ..PrepareInputs::default()
            };
            quietly(|options| prepare(&inputs, &fixture.path(&format!("{name}-shards")), options)).unwrap();
        }
        let answer = |i: usize| ChatMessage::assistant(["one two", "nine ten"][i % 2]);
        let turns = |i: usize| vec![ChatMessage::user(format!("say {i}")), answer(i)];
        let conversations: Vec<_> = (0..40).map(|i| Conversation::from(turns(i))).collect();
        write_jsonl(&fixture.path("data.jsonl"), &conversations).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The conversations with the first teacher.
    fn inputs(&self) -> DistillInputs {
        DistillInputs { teacher: self.path("teacher"), data: vec![self.path("data.jsonl")], ..DistillInputs::default() }
    }

    /// A recipe of a small student and few steps on conversations.
    fn recipe() -> DistillRecipe {
        let student = ModelConfig {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        };
        DistillRecipe {
            text_steps: 0,
            epochs: 2,
            batch_size: 8,
            max_new_tokens: 6,
            student,
            ..DistillRecipe::default()
        }
    }

    fn run(&self, recipe: &DistillRecipe, inputs: &DistillInputs, out: &str) -> llm_train::Result<()> {
        quietly(|options| distill(recipe, inputs, self.path(out), options)).map(|_| ())
    }

    fn distill(&self, out: &str, alpha: f64, shards: &str, text_teacher: Option<&str>) -> llm_train::Result<()> {
        let recipe =
            DistillRecipe { alpha, text_steps: 4, text_batch_size: 2, seq_len: 8, epochs: 1, ..Self::recipe() };
        let text_teacher = text_teacher.map(|name| self.path(name));
        let inputs = DistillInputs { text_teacher, text: Some(self.path(shards)), ..self.inputs() };
        self.run(&recipe, &inputs, out)
    }
}

/// Runs `work` until the observer has seen `steps` steps, then with resume to its end.
fn interrupted<T>(steps: u64, work: impl Fn(RunOptions) -> llm_train::Result<T>) -> T {
    let stop = AtomicBool::new(false);
    let mut observer = |event: Event| {
        if matches!(event, Event::Progress { done, .. } if done >= steps) {
            stop.store(true, SeqCst);
        }
    };
    let first = work(RunOptions { stop: &stop, observer: &mut observer, ..RunOptions::default() });
    assert!(matches!(first, Err(Error::Interrupted { .. })), "the run must be interrupted");
    work(RunOptions { resume: true, ..RunOptions::default() }).unwrap()
}

#[test]
fn plain_text_uses_its_own_teacher_or_labels_only() {
    let fixture = Fixture::new();
    fixture.distill("labels", 0.5, "teacher-shards", None).unwrap();
    let metric = |run: &str, key: &str| metrics(&fixture.path(run), key);
    assert_eq!(metric("labels", "kl_loss").len(), 5, "38 training conversations in batches of 8");
    let (loss, labels) = (metric("labels", "loss"), metric("labels", "cross_entropy_loss"));
    assert_eq!(loss[..4], labels[..4]);
    assert_ne!(loss[4], labels[4]);
    fixture.distill("guided", 0.5, "teacher-shards", Some("base")).unwrap();
    assert_eq!(metric("guided", "kl_loss").len(), 9);
    // Another text teacher gives another KL.
    fixture.distill("misguided", 0.5, "teacher-shards", Some("teacher")).unwrap();
    assert_ne!(metric("guided", "kl_loss")[0], metric("misguided", "kl_loss")[0]);
    assert_eq!(metric("guided", "cross_entropy_loss")[0], metric("misguided", "cross_entropy_loss")[0]);
}

#[test]
fn with_alpha_zero_the_tokens_are_equal_and_no_teacher_is_loaded() {
    let fixture = Fixture::new();
    fixture.distill("taught", 1e-9, "teacher-shards", Some("base")).unwrap();
    for name in ["teacher", "base"] {
        std::fs::remove_file(fixture.path(name).join("model.safetensors")).unwrap();
    }
    fixture.distill("alone", 0., "teacher-shards", Some("base")).unwrap();
    let losses = |run: &str| metrics(&fixture.path(run), "cross_entropy_loss");
    let (taught, alone) = (losses("taught"), losses("alone"));
    assert_eq!(taught.len(), alone.len());
    for (taught, alone) in taught.iter().zip(alone) {
        assert!((taught - alone).abs() < 1e-3, "{taught} and {alone}");
    }
    assert!(metrics(&fixture.path("alone"), "kl_loss").is_empty());
}

#[test]
fn another_tokenizer_is_refused_before_the_folder_is_created() {
    let fixture = Fixture::new();
    let sizes = ["teacher", "other"].map(|name| Tokenizer::load(fixture.path(name)).unwrap().vocab_size());
    assert_eq!(sizes[0], sizes[1], "the sizes must be equal");
    let message = fixture.distill("run", 0.5, "other-shards", None).unwrap_err().to_string();
    assert!(message.contains("other-shards: was prepared with another tokenizer"), "{message}");
    let message = fixture.distill("run", 0.5, "teacher-shards", Some("other")).unwrap_err().to_string();
    assert!(message.contains("other: has another tokenizer"), "{message}");
    assert!(!fixture.path("run").exists());
}
