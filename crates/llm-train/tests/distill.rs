//! Distillation with known optima (L8).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor, Var};
use common::{fresh_model, quietly};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_kernels::{AdamWStep, adamw_step, kl_divergence};
use llm_model::{Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use llm_train::examples::{Example, answer_states};
use llm_train::loss;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{DistillInputs, DistillRecipe, PrepareInputs, distill, prepare};
use llm_train::rows::read_examples;
use serde_json::Value;

/// Minimises `f` by Adam with a linear learning rate.
fn minimise(parameters: &Var, steps: u64, learning_rate: f64, f: impl Fn(&Tensor) -> Tensor) {
    let moments = Tensor::zeros((2, parameters.elem_count()), DType::F32, &Device::Cpu).unwrap();
    for step in 1..=steps {
        let grads = f(parameters).backward().unwrap();
        let learning_rate = learning_rate * (1. - (step - 1) as f64 / steps as f64);
        let numbers =
            AdamWStep { learning_rate, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0., step, gradient_scale: 1. };
        adamw_step(parameters, grads.get(parameters).unwrap(), &moments, &numbers).unwrap();
    }
}

fn scalar(x: &Tensor) -> f32 {
    x.to_scalar::<f32>().unwrap()
}

#[test]
fn free_logits_converge_to_the_teachers_distribution() {
    let teacher = Tensor::randn(0f32, 2., (16, 32), &Device::Cpu).unwrap();
    let student = Var::zeros((16, 32), DType::F32, &Device::Cpu).unwrap();
    let forward = |x: &Tensor| scalar(&loss::kl_divergence(x, &teacher, 1.).unwrap());
    assert!(forward(&student) > 0.5);
    for temperature in [1., 4.] {
        minimise(&student, 600, 0.1, |x| loss::kl_divergence(x, &teacher, temperature).unwrap());
        let reverse = scalar(&kl_divergence(&teacher, &student.detach(), 1.).unwrap().mean_all().unwrap());
        assert!(forward(&student) < 1e-3 && reverse < 1e-3, "T = {temperature}: {}, {reverse}", forward(&student));
    }
}

/// Logits of a bell curve over 41 positions, with parameters mean and log width: it cannot represent two peaks.
fn bell(parameters: &Tensor) -> Tensor {
    let positions = Tensor::arange(-20f32, 21., &Device::Cpu).unwrap();
    let mean = parameters.narrow(0, 0, 1).unwrap();
    let width = parameters.narrow(0, 1, 1).unwrap().exp().unwrap();
    let x = positions.broadcast_sub(&mean).unwrap().broadcast_div(&width).unwrap();
    (x.sqr().unwrap() * -0.5).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn forward_kl_covers_both_peaks_and_reverse_kl_chooses_one() {
    let peak = |at: f32| (Tensor::arange(-20f32, 21., &Device::Cpu).unwrap() - f64::from(at)).unwrap().sqr().unwrap();
    let two = ((peak(-9.) * -0.25).unwrap().exp().unwrap() + (peak(9.) * -0.25).unwrap().exp().unwrap()).unwrap();
    let teacher = (two + 1e-6).unwrap().log().unwrap().unsqueeze(0).unwrap();
    let start = || Var::new(&[6f32, 0.7], &Device::Cpu).unwrap();
    let softmax = |x: &Tensor| {
        let x = x.exp().unwrap();
        x.broadcast_div(&x.sum_keepdim(D::Minus1).unwrap()).unwrap()
    };

    let forward = start();
    minimise(&forward, 1500, 0.05, |p| loss::kl_divergence(&bell(p), &teacher, 1.).unwrap());
    let reverse = start();
    minimise(&reverse, 1500, 0.05, |p| {
        // KL(student || teacher), from candle's basic operations.
        let (student, target) = (softmax(&bell(p)), softmax(&teacher));
        let ratio = ((&student + 1e-9).unwrap().log().unwrap() - (target + 1e-9).unwrap().log().unwrap()).unwrap();
        (student * ratio).unwrap().sum_all().unwrap()
    });
    let shape = |p: &Var| {
        let p = p.to_vec1::<f32>().unwrap();
        (p[0], p[1].exp())
    };
    let ((mean, width), (chosen, narrow)) = (shape(&forward), shape(&reverse));
    assert!(mean.abs() < 1.5 && width > 7., "forward: mean {mean}, width {width}");
    assert!((chosen.abs() - 9.).abs() < 1.5 && narrow < 3., "reverse: mean {chosen}, width {narrow}");
}

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
            adapter: None,
            teacher: teacher.clone(),
            text_teacher: None,
            student: None,
            data: vec![data.clone()],
            validation: Some(validation.clone()),
            text: None,
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
    student.distillation(&student_states, (&teacher, &teacher_states), &labels, 1., 1.).unwrap().kl
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

    fn distill(&self, out: &str, alpha: f64, shards: &str, text_teacher: Option<&str>) -> llm_train::Result<()> {
        let student = ModelConfig {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        };
        let recipe = DistillRecipe {
            alpha,
            text_steps: 4,
            text_batch_size: 2,
            seq_len: 8,
            epochs: 1,
            batch_size: 8,
            student,
            ..DistillRecipe::default()
        };
        let text_teacher = text_teacher.map(|name| self.path(name));
        let (teacher, data, text) = (self.path("teacher"), self.path("data.jsonl"), self.path(shards));
        let inputs = DistillInputs {
            adapter: None,
            teacher: teacher.clone(),
            text_teacher,
            student: None,
            data: vec![data.clone()],
            validation: None,
            text: Some(text.clone()),
        };
        quietly(|options| distill(&recipe, &inputs, &self.path(out), options)).map(|_| ())
    }
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
