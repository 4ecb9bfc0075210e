//! Invariants of PPO on tiny models (M1 to M8), each with a negative control.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod best_of;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod gradients;
mod rollouts;
mod runs;
mod updates;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use common::fresh_model;
use llm_model::{ExpertsConfig, Head, Model, ModelConfig, ModelType, Params};
use llm_tokenizer::Tokenizer;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoRecipe, PpoTrainer, SpecialIds};
use llm_train::rewards::{Prompt, Reward};
use serde_json::json;

const PAD: u32 = 0;
const EOS: u32 = 1;

fn model(head: Head, seed: u64) -> Model {
    let config = ModelConfig {
        vocab_size: 24,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        initializer_range: 0.3,
        ..ModelConfig::default()
    };
    Model::init(config, head, seed).unwrap()
}

/// A mixture of experts of the same size, with this coefficient of the load-balancing loss.
fn with_experts(router_aux_loss_coef: f64) -> Model {
    let experts =
        ExpertsConfig { num_experts: 4, moe_intermediate_size: 16, router_aux_loss_coef, ..ExpertsConfig::default() };
    let dense = model(Head::LanguageModel, 1).config().clone();
    let config = ModelConfig { model_type: ModelType::Mixtral, intermediate_size: 16, experts: Some(experts), ..dense };
    Model::init(config, Head::LanguageModel, 1).unwrap()
}

fn recipe() -> PpoRecipe {
    let optimizer =
        OptimizerConfig { learning_rate: 1e-3, warmup_steps: 0, max_grad_norm: 0., ..PpoRecipe::default().optimizer };
    PpoRecipe {
        num_ppo_epochs: 1,
        max_new_tokens: 12,
        temperature: 0.7,
        updates: 10,
        value_optimizer: optimizer.clone(),
        optimizer,
        ..PpoRecipe::default()
    }
}

/// Ten queries of 1 to 4 tokens.
fn queries() -> Vec<Prompt> {
    let query = |i: u32| (0..=i % 4).map(|t| 2 + (3 * i + 5 * t) % 22).collect::<Vec<u32>>();
    (0..10).map(|i| query(i).into()).collect()
}

/// The queries, repeated.
fn many(times: usize) -> Vec<Prompt> {
    vec![queries(); times].concat()
}

/// A learnable score: the number of tokens with id 5.
#[allow(clippy::unnecessary_wraps, reason = "a score may fail")]
fn fives(rows: &[Vec<u32>]) -> llm_train::Result<Vec<f64>> {
    Ok(rows.iter().map(|row| row.iter().filter(|&&id| id == 5).count() as f64).collect())
}

fn trainer(recipe: &PpoRecipe) -> PpoTrainer<'_> {
    let ids = SpecialIds { pad: PAD, eos: EOS };
    PpoTrainer::new(&model(Head::LanguageModel, 1), model(Head::Token, 2), Reward::of_rows(fives), ids, recipe).unwrap()
}

fn metric(metrics: &[(&str, f64)], name: &str) -> f64 {
    metrics.iter().find(|f| f.0 == name).unwrap_or_else(|| panic!("{name} is missing")).1
}

/// The bytes of all parameters.
fn bytes(params: &Params) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    params.tensors().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

/// Writes a random reward model with these statistics and returns its folder.
fn reward_folder(dir: &Path, mean: f64, std: f64) -> PathBuf {
    fresh_model(&dir.join("model"), &"The sun and the rain. Say it again.".repeat(20), 16, 0.3);
    let mut reward = Model::load(dir.join("model")).unwrap().with_head(Head::Sequence, 3).unwrap();
    reward.extra.insert("reward_mean".to_owned(), json!(mean));
    reward.extra.insert("reward_std".to_owned(), json!(std));
    reward.save(dir.join("reward")).unwrap();
    Tokenizer::load(dir.join("model")).unwrap().save(dir.join("reward")).unwrap();
    dir.join("reward")
}
