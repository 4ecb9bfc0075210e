//! Distillation where the answer is known (L8).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor, Var};
use common::{fresh_model, quietly};
use llm_data::{Conversation, Message, write_jsonl};
use llm_kernels::{AdamWStep, adamw_step, kl_divergence};
use llm_model::{Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use llm_train::examples::{Example, answer_states, read_examples};
use llm_train::loss;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{DistillInputs, DistillRecipe, PrepareInputs, distill, prepare};
use serde_json::Value;

/// Lowers `f` of some parameters by Adam.
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
fn logits_of_their_own_reach_the_teachers_distribution_in_both_directions() {
    let teacher = Tensor::randn(0f32, 2., (16, 32), &Device::Cpu).unwrap();
    let student = Var::zeros((16, 32), DType::F32, &Device::Cpu).unwrap();
    let forward = |x: &Tensor| scalar(&loss::distillation(x, &teacher, 1.).unwrap());
    assert!(forward(&student) > 0.5);
    for temperature in [1., 4.] {
        minimise(&student, 600, 0.1, |x| loss::distillation(x, &teacher, temperature).unwrap());
        let reverse = scalar(&kl_divergence(&teacher, &student.detach(), 1.).unwrap().mean_all().unwrap());
        assert!(forward(&student) < 1e-3 && reverse < 1e-3, "T = {temperature}: {}, {reverse}", forward(&student));
    }
}

/// A bell curve over 41 places, of free mean and width: too small for a teacher with two peaks.
fn bell(parameters: &Tensor) -> Tensor {
    let places = Tensor::arange(-20f32, 21., &Device::Cpu).unwrap();
    let mean = parameters.narrow(0, 0, 1).unwrap();
    let width = parameters.narrow(0, 1, 1).unwrap().exp().unwrap();
    let x = places.broadcast_sub(&mean).unwrap().broadcast_div(&width).unwrap();
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
    minimise(&forward, 1500, 0.05, |p| loss::distillation(&bell(p), &teacher, 1.).unwrap());
    let reverse = start();
    minimise(&reverse, 1500, 0.05, |p| {
        // KL(student || teacher), composed of candle's own operations.
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

/// Few conversations, a peaked teacher: what the recipe comes to with its logits and with the labels alone.
#[test]
fn the_teachers_logits_teach_more_than_labels_and_a_copy_of_the_teacher_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = "one two three four five six seven eight nine ten eleven twelve";
    fresh_model(&path("teacher"), &text.repeat(10), 24, 0.25);
    let words: Vec<&str> = text.split(' ').collect();
    let conversation = |i: usize| Conversation {
        messages: vec![
            Message::user(words[i % 12]),
            Message::assistant((1..6).map(|k| words[(i * k + i / 12) % 12]).collect::<Vec<_>>().join(" ")),
        ],
    };
    write_jsonl(&path("train.jsonl"), &(0..96).map(conversation).collect::<Vec<_>>()).unwrap();
    write_jsonl(&path("held_out.jsonl"), &(96..144).map(conversation).collect::<Vec<_>>()).unwrap();
    let (teacher, data, held_out) = (path("teacher"), path("train.jsonl"), path("held_out.jsonl"));
    let run = |name: &str, alpha: f64, epochs: u64| {
        let recipe = DistillRecipe {
            alpha,
            temperature: 1.,
            text_steps: 0,
            epochs,
            batch_size: 32,
            eval_every: 1,
            optimizer: OptimizerConfig { learning_rate: 1e-2, weight_decay: 0., ..DistillRecipe::default().optimizer },
            student: Model::load(&teacher).unwrap().config().clone(),
            ..DistillRecipe::default()
        };
        let inputs = DistillInputs {
            teacher: &teacher,
            text_teacher: None,
            student: None,
            data: &data,
            held_out: Some(&held_out),
            text: None,
        };
        quietly(|options| distill(&recipe, inputs, &path(name), options)).unwrap();
        (figures(&path(name), "eval_kl"), held_out_kl(&teacher, &path(name), &held_out))
    };
    let (logged, taught) = run("taught", 1., 60);
    let (none, labelled) = run("labelled", 0., 60);
    let (before, last) = (logged[0], logged[logged.len() - 1]);
    assert!((last - taught).abs() < 1e-4 * taught.max(1e-3), "{last} in the log, {taught} computed from the files");
    assert!(none.is_empty(), "no teacher is run where its weight is 0");
    assert!(taught < 0.5 * before && taught < 0.5 * labelled, "{before} before, {taught} taught, {labelled} labelled");
}

/// `KL(teacher ‖ student)` of a token of the answers.
fn held_out_kl(teacher: &Path, student: &Path, held_out: &Path) -> f64 {
    let tokenizer = Tokenizer::from_dir(teacher).unwrap();
    let (teacher, student) = (Model::load(teacher).unwrap(), Model::load(student).unwrap());
    let examples = read_examples(held_out, &tokenizer, 512).unwrap();
    let examples: Vec<&Example> = examples.iter().collect();
    let (theirs, labels) = answer_states(&teacher, &examples, 0).unwrap();
    let (ours, _) = answer_states(&student, &examples, 0).unwrap();
    student.distillation(&ours, (&teacher, &theirs), &labels, 1., 1.).unwrap().kl
}

fn figures(run: &Path, key: &str) -> Vec<f64> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[key].as_f64()).collect()
}

/// A teacher of conversations, a teacher of text of the same tokenizer, shards of it, and shards of another tokenizer.
struct Schools {
    dir: tempfile::TempDir,
}

impl Schools {
    fn new() -> Self {
        let schools = Self { dir: tempfile::tempdir().unwrap() };
        let text = "one two three four five six seven eight nine ten eleven twelve ".repeat(40);
        fresh_model(&schools.path("teacher"), &text, 16, 0.3);
        fresh_model(&schools.path("base"), &text, 24, 0.3);
        // As many tokens, of other words.
        fresh_model(&schools.path("stranger"), &text.replace('e', "a"), 16, 0.3);
        for name in ["teacher", "stranger"] {
            let inputs = PrepareInputs {
                tokenizer: &schools.path(name),
                train: &[schools.path("base.txt")],
                held_out: &[],
                held_out_share: 0.2,
            };
            quietly(|options| prepare(&inputs, &schools.path(&format!("{name}-shards")), options)).unwrap();
        }
        let answer = |i: usize| Message::assistant(["one two", "nine ten"][i % 2]);
        let turns = |i: usize| vec![Message::user(format!("say {i}")), answer(i)];
        let conversations: Vec<_> = (0..40).map(|i| Conversation { messages: turns(i) }).collect();
        write_jsonl(&schools.path("data.jsonl"), &conversations).unwrap();
        schools
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
            teacher: &teacher,
            text_teacher: text_teacher.as_deref(),
            student: None,
            data: &data,
            held_out: None,
            text: Some(&text),
        };
        quietly(|options| distill(&recipe, inputs, &self.path(out), options)).map(|_| ())
    }
}

#[test]
fn plain_text_has_a_teacher_of_its_own_or_is_learnt_from_its_labels() {
    let schools = Schools::new();
    schools.distill("labels", 0.5, "teacher-shards", None).unwrap();
    let figure = |run: &str, key: &str| figures(&schools.path(run), key);
    assert_eq!(figure("labels", "kl_loss").len(), 5, "40 conversations less a twentieth in batches of 8");
    let (loss, labels) = (figure("labels", "loss"), figure("labels", "cross_entropy_loss"));
    assert_eq!(loss[..4], labels[..4]);
    assert_ne!(loss[4], labels[4]);
    schools.distill("guided", 0.5, "teacher-shards", Some("base")).unwrap();
    assert_eq!(figure("guided", "kl_loss").len(), 9);
    // Of the text its own teacher, and no other.
    schools.distill("misguided", 0.5, "teacher-shards", Some("teacher")).unwrap();
    assert_ne!(figure("guided", "kl_loss")[0], figure("misguided", "kl_loss")[0]);
    assert_eq!(figure("guided", "cross_entropy_loss")[0], figure("misguided", "cross_entropy_loss")[0]);
}

#[test]
fn a_student_without_a_teacher_sees_the_same_tokens_and_needs_no_teachers_weights() {
    let schools = Schools::new();
    schools.distill("taught", 1e-9, "teacher-shards", Some("base")).unwrap();
    for name in ["teacher", "base"] {
        std::fs::remove_file(schools.path(name).join("model.safetensors")).unwrap();
    }
    schools.distill("alone", 0., "teacher-shards", Some("base")).unwrap();
    let losses = |run: &str| figures(&schools.path(run), "cross_entropy_loss");
    let (taught, alone) = (losses("taught"), losses("alone"));
    assert_eq!(taught.len(), alone.len());
    for (taught, alone) in taught.iter().zip(alone) {
        assert!((taught - alone).abs() < 1e-3, "{taught} and {alone}");
    }
    assert!(figures(&schools.path("alone"), "kl_loss").is_empty());
}

#[test]
fn text_or_a_text_teacher_of_another_tokenizer_is_refused_before_a_folder_is_made() {
    let schools = Schools::new();
    let sizes = ["teacher", "stranger"].map(|name| Tokenizer::from_dir(&schools.path(name)).unwrap().vocab_size());
    assert_eq!(sizes[0], sizes[1], "the sizes must not tell them apart");
    let message = schools.distill("run", 0.5, "stranger-shards", None).unwrap_err().to_string();
    assert!(message.contains("stranger-shards: was prepared with another tokenizer"), "{message}");
    let message = schools.distill("run", 0.5, "teacher-shards", Some("stranger")).unwrap_err().to_string();
    assert!(message.contains("stranger: has another tokenizer"), "{message}");
    assert!(!schools.path("run").exists());
}
