//! Distillation where the answer is known (L8).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use candle_core::{D, DType, Device, Tensor, Var};
use common::{fresh_model, quietly};
use llm_data::{Conversation, Message, write_jsonl};
use llm_kernels::{AdamWStep, adamw_step, kl_divergence};
use llm_model::Model;
use llm_train::loss;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{DistillInputs, DistillRecipe, distill};

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
        let inputs =
            DistillInputs { teacher: &teacher, student: None, data: &data, held_out: Some(&held_out), text: None };
        quietly(|options| distill(&recipe, inputs, &path(name), options)).unwrap();
        let metrics = std::fs::read_to_string(path(name).join("metrics.jsonl")).unwrap();
        let seen: Vec<f64> = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["eval_kl"].as_f64())
            .collect();
        (seen[0], *seen.last().unwrap())
    };
    let (before, taught) = run("taught", 1., 60);
    let (_, labelled) = run("labelled", 0., 60);
    assert!(taught < 0.5 * before && taught < 0.5 * labelled, "{before} before, {taught} taught, {labelled} labelled");
}
