//! DPO, ORPO, `SimPO` and KTO through their recipes: known first losses, equal results of micro-batches, adapters and stored references,
//! and the known optimum of a small problem.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod learning;
mod oracle;
mod references;
mod steps;

use std::fs;
use std::path::{Path, PathBuf};

use common::fresh_model;
use llm_data::{ChatMessage, Ranking, write_jsonl};
use llm_model::Model;
use llm_tokenizer::{ChatFormat, Tokenizer};
use llm_train::optim::{OptimizerConfig, Schedule};
use llm_train::recipes::{DpoInputs, DpoRecipe, KtoInputs, KtoRecipe, PairLoss, dpo, kto};
use llm_train::rollout::reply_logprobs;
use llm_train::run::{Outcome, RunOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

const LOSSES: [PairLoss; 7] = [
    PairLoss::Sigmoid,
    PairLoss::SigmoidNorm,
    PairLoss::Robust,
    PairLoss::Hinge,
    PairLoss::Ipo,
    PairLoss::Orpo,
    PairLoss::Simpo,
];

/// (prompt, better answer, worse answer).
type Row = (&'static str, &'static str, &'static str);

/// Pairs with answers of different lengths.
const PAIRS: [Row; 8] = [
    ("Say one.", "one", "two three four"),
    ("Say two.", "two and two", "one"),
    ("Say three.", "three", "four"),
    ("Say four.", "four and four and four", "three two"),
    ("Say it again.", "it", "one one one one one"),
    ("And now?", "now", "not now"),
    ("What is red?", "the apple is red", "the sky"),
    ("What is blue?", "the sky is blue", "the apple is blue"),
];

const VALIDATION: [Row; 3] =
    [("Say five.", "five", "six six"), ("What is green?", "the leaf is green", "leaf"), ("Who?", "I am", "it is me")];

/// A folder with a model and data.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        let text =
            "say one two three four five six and it again now the apple is red the sky is blue the leaf is green";
        fresh_model(&world.path("model"), text, 32, 0.1);
        world.write("pairs.jsonl", &PAIRS);
        world.write("validation.jsonl", &VALIDATION);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes pairs as rankings.
    fn write(&self, name: &str, rows: &[Row]) {
        let ranking = |&(prompt, better, worse): &Row| {
            let answers = vec![better.to_owned(), worse.to_owned()];
            Ranking::strict(String::new(), vec![ChatMessage::user(prompt)], answers, &[0, 1])
        };
        write_jsonl(&self.path(name), &rows.iter().map(ranking).collect::<Vec<_>>()).unwrap();
    }

    fn inputs(&self) -> DpoInputs {
        DpoInputs {
            model: self.path("model"),
            data: vec![self.path("pairs.jsonl")],
            validation: Some(self.path("validation.jsonl")),
            adapter: None,
        }
    }

    fn dpo(&self, recipe: &DpoRecipe, out: &str) -> Outcome {
        dpo(recipe, &self.inputs(), self.path(out), RunOptions::default()).unwrap()
    }

    fn kto(&self, recipe: &KtoRecipe, out: &str) -> Outcome {
        let DpoInputs { model, data, validation, adapter } = self.inputs();
        kto(recipe, &KtoInputs { model, data, validation, adapter }, self.path(out), RunOptions::default()).unwrap()
    }

    /// The values of a metric of a run, in order.
    fn metrics(&self, run: &str, name: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[name].as_f64()).collect()
    }

    /// The log-probabilities of answers under a model, in f64 sums and one answer at a time, by the code of PPO: padded rows instead of
    /// a ragged batch. Also the lengths in tokens.
    fn logprobs(&self, model: &Model, answers: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let tokenizer = Tokenizer::load(self.path("model")).unwrap().with_end_of_turn_as_eos();
        let ChatFormat { pad, .. } = *tokenizer.chat_format().unwrap();
        let of = |&(prompt, answer): &(&str, &str)| {
            let mut messages = vec![ChatMessage::user(prompt)];
            let query = tokenizer.encode_chat(&messages, true).unwrap();
            messages.push(ChatMessage::assistant(answer));
            let whole = tokenizer.encode_answered(&messages).unwrap();
            let response = &whole[query.len()..];
            let logprobs = reply_logprobs(model, &[(&query, response)], 1., pad).unwrap();
            (per_reply_sums(&logprobs), response.len() as f64)
        };
        answers.iter().map(of).collect()
    }
}

/// The sum of log-probabilities `(n,)` in f64.
fn per_reply_sums(logprobs: &candle_core::Tensor) -> f64 {
    logprobs.to_vec1::<f32>().unwrap().into_iter().map(f64::from).sum()
}

fn optimizer(learning_rate: f64) -> OptimizerConfig {
    OptimizerConfig {
        learning_rate,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.,
        max_grad_norm: 0.,
        ..OptimizerConfig::default()
    }
}

/// One step over all pairs per epoch.
fn recipe(loss: PairLoss, epochs: u64) -> DpoRecipe {
    DpoRecipe {
        loss,
        epochs,
        batch_size: 8,
        eval_every: 0,
        save_every: 0,
        optimizer: optimizer(3e-3),
        ..DpoRecipe::default()
    }
}

/// One step over all answers per epoch.
fn kto_recipe(epochs: u64) -> KtoRecipe {
    KtoRecipe {
        epochs,
        batch_size: 16,
        eval_every: 0,
        save_every: 0,
        optimizer: optimizer(3e-3),
        ..KtoRecipe::default()
    }
}

fn near(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs().max(1.)
}

/// Writes lines of JSON.
fn write_lines(path: &Path, rows: &[Value]) {
    fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// A labelled answer in TRL's form.
fn labelled(prompt: &str, completion: &str, label: bool) -> Value {
    json!({ "prompt": prompt, "completion": completion, "label": label })
}
