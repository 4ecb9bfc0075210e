//! M7: gradients of micro-batches with rows of different lengths add up to the gradient of the whole batch, for fine-tuning, reward
//! model and distillation. As in TRL, checks the largest and the mean difference, relative to the largest gradient.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{D, DType, Tensor};
use common::{fresh_model, quietly};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_kernels::{DistillationOptions, Divergence};
use llm_model::{Batch, Head, Model, Teacher};
use llm_train::examples::{Example, answer_states};
use llm_train::loss;
use llm_train::optim::{Learner, OptimizerConfig};
use llm_train::recipes::{FinetuneInputs, FinetuneRecipe, finetune};
use serde_json::Value;

const TEXT: &str = "one two three four five six seven eight nine ten, and then one more and one more";

/// Six conversations with answers of 1 to 11 words.
fn conversations() -> Vec<Conversation> {
    let words: Vec<&str> = TEXT.split(' ').collect();
    let answer = |i: usize| words[i..(3 * i + 1).min(i + 11)].join(" ");
    let conversation = |i: usize| {
        Conversation::from(vec![ChatMessage::user(words[..=i].join(" ")), ChatMessage::assistant(answer(i).trim())])
    };
    (0..7).map(conversation).filter(|c| !c.messages[1].text().is_empty()).collect::<Vec<_>>()[..6].to_vec()
}

/// The largest and the mean difference, relative to the largest number of `b`.
fn residuals(a: &[f64], b: &[f64]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().map(|x| x.abs()).fold(0., f64::max);
    assert!(scale > 0.);
    let differences = || a.iter().zip(b).map(|(x, y)| (x - y).abs() / scale);
    (differences().fold(0., f64::max), differences().sum::<f64>() / a.len() as f64)
}

fn assert_same(a: &[f64], b: &[f64]) {
    let (largest, mean) = residuals(a, b);
    assert!(largest < 1e-4 && mean < 1e-5, "largest residual {largest}, mean {mean}");
}

fn numbers(tensors: &BTreeMap<String, Tensor>) -> Vec<f64> {
    let of = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    tensors.values().flat_map(of).collect()
}

/// Six conversations in one step, in micro-batches of 6, 3, 2 and 1. The large `eps` makes the step almost proportional to the
/// gradient.
#[test]
fn fine_tuning_accumulates_the_gradient_of_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (base, data) = (dir.path().join("base"), dir.path().join("data.jsonl"));
    fresh_model(&base, TEXT, 32, 0.1);
    write_jsonl(&data, &conversations()).unwrap();
    let validation = dir.path().join("validation.jsonl");
    write_jsonl(&validation, &[Conversation::from(vec![ChatMessage::user("one more"), ChatMessage::assistant("two")])])
        .unwrap();
    let before = numbers(&Model::load(&base).unwrap().params().tensors());
    let run = |batch_size: usize, micro_batches: u64| {
        let optimizer = OptimizerConfig {
            learning_rate: 1.,
            warmup_steps: 0,
            eps: 1.,
            weight_decay: 0.,
            max_grad_norm: 0.,
            ..OptimizerConfig::default()
        };
        let recipe = FinetuneRecipe {
            epochs: 1,
            batch_size,
            gradient_accumulation_steps: micro_batches,
            optimizer,
            ..FinetuneRecipe::default()
        };
        let out = dir.path().join(format!("run-{batch_size}"));
        let inputs = FinetuneInputs {
            adapter: None,
            model: base.clone(),
            data: vec![data.clone()],
            validation: Some(validation.clone()),
            text: None,
        };
        quietly(|options| finetune(&recipe, &inputs, &out, options)).unwrap();
        let after = numbers(&Model::load(&out).unwrap().params().tensors());
        let step: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        (first_step(&out), step)
    };
    let (whole, step) = run(6, 1);
    for (batch_size, micro_batches) in [(3, 2), (2, 3), (1, 6)] {
        let (metrics, micro_step) = run(batch_size, micro_batches);
        assert!(metrics.iter().zip(&whole).all(|(a, b)| (a / b - 1.).abs() < 1e-5), "{metrics:?} {whole:?}");
        assert_same(&micro_step, &step);
    }
}

/// Loss and gradient norm of a run's first step.
fn first_step(run: &Path) -> [f64; 2] {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["grad_norm"].is_number()).unwrap();
    ["loss", "grad_norm"].map(|name| line[name].as_f64().unwrap())
}

/// The gradients of a sum of losses.
fn gradients(model: &Model, losses: impl Fn(&Model) -> Vec<Tensor>) -> Vec<f64> {
    let mut learner = Learner::new(model.trainable().unwrap(), &OptimizerConfig::default()).unwrap();
    for loss in losses(&learner.model) {
        learner.backward(&loss).unwrap();
    }
    numbers(learner.gradients())
}

fn model_and_examples(dir: &Path) -> (Model, Vec<Example>) {
    let base = dir.join("base");
    fresh_model(&base, TEXT, 32, 0.2);
    let data = dir.join("data.jsonl");
    write_jsonl(&data, &conversations()).unwrap();
    let tokenizer = llm_tokenizer::Tokenizer::load(&base).unwrap();
    let examples = llm_train::rows::read_examples(&data, &tokenizer, 512).unwrap();
    assert!(examples.iter().any(|e| e.ids.len() != examples[0].ids.len()), "lengths must be uneven");
    (Model::load(&base).unwrap(), examples)
}

/// The loss is a mean over tokens: micro-batches are weighted by their number of tokens. Negative control: equal weights.
#[test]
fn distillation_gradients_add_up_over_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let (student, examples) = model_and_examples(dir.path());
    let teacher = Model::init(student.config().clone(), Head::LanguageModel, 9).unwrap().frozen().unwrap();
    let loss = |student: &Model, examples: &[Example]| {
        let examples: Vec<&Example> = examples.iter().collect();
        let (student_states, labels) = answer_states(student, &examples, 0).unwrap();
        let (teacher_states, _) = answer_states(&teacher, &examples, 0).unwrap();
        let vocab = student.config().vocab_size;
        let options = DistillationOptions { alpha: 0.7, temperature: 2., divergence: Divergence::Jsd(0.3), vocab };
        let teacher = Teacher::Model(&teacher, &teacher_states);
        let losses = student.distillation(&student_states, teacher, &labels, &options).unwrap();
        (losses.loss, labels.len() as f64)
    };
    let whole = gradients(&student, |student| vec![loss(student, &examples).0]);
    let total: f64 = examples.iter().flat_map(|e| &e.loss_mask).filter(|&&trained| trained).count() as f64;
    let parts = |weighted: bool| {
        gradients(&student, |student| {
            let part = |examples: &[Example]| {
                let (loss, n) = loss(student, examples);
                (loss * if weighted { n / total } else { 1. / 3. }).unwrap()
            };
            examples.chunks(2).map(part).collect()
        })
    };
    assert_same(&parts(true), &whole);
    assert!(residuals(&parts(false), &whole).0 > 1e-3, "equal weights must give another gradient");
}

/// The loss is a mean over prompts; padding to the longest answer adds nothing.
#[test]
fn ranking_gradients_add_up_over_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let (base, examples) = model_and_examples(dir.path());
    let model = base.with_head(Head::Sequence, 4).unwrap();
    // Three prompts of two answers.
    let loss = |model: &Model, examples: &[Example]| {
        let rows: Vec<Vec<u32>> = examples.iter().map(|e| e.ids.clone()).collect();
        let scores = model.forward(&Batch::right_padded(&rows, 0).unwrap()).unwrap().squeeze(D::Minus1).unwrap(); // (b, t)
        let at = |(row, ids): (usize, &Vec<u32>)| scores.get(row).unwrap().get(ids.len() - 1).unwrap();
        let scores = Tensor::stack(&rows.iter().enumerate().map(at).collect::<Vec<_>>(), 0).unwrap();
        let pairs: Vec<Vec<(usize, usize)>> = (0..rows.len() / 2).map(|i| vec![(2 * i, 2 * i + 1)]).collect();
        loss::k_way(&scores, &pairs, &vec![0.; pairs.len()], 0.1).unwrap()
    };
    let whole = gradients(&model, |model| vec![loss(model, &examples)]);
    let parts = gradients(&model, |model| examples.chunks(2).map(|e| (loss(model, e) / 3.).unwrap()).collect());
    assert_same(&parts, &whole);
}
