//! GRPO and RLOO on tiny models: invariants, gradients, known optima and runs, each with a negative control.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../common/mod.rs"]
mod common;
mod learning;
mod losses;
mod runs;
mod updates;

use llm_model::{Head, Model, ModelConfig};
use llm_train::loss::LossType;
use llm_train::optim::{Learner, OptimizerConfig};
use llm_train::recipes::{GrpoRecipe, GrpoTrainer, SpecialIds};
use llm_train::rewards::{Prompt, Reward};
use llm_train::rl::ScaleRewards;

const PAD: u32 = 0;
const EOS: u32 = 1;
const IDS: SpecialIds = SpecialIds { pad: PAD, eos: EOS };

fn model(seed: u64) -> Model {
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
    Model::init(config, Head::LanguageModel, seed).unwrap()
}

fn recipe() -> GrpoRecipe {
    let optimizer = OptimizerConfig { learning_rate: 1e-3, max_grad_norm: 0., ..GrpoRecipe::default().optimizer };
    GrpoRecipe {
        updates: 10,
        prompts_per_update: 5,
        num_generations: 4,
        max_new_tokens: 12,
        temperature: 0.7,
        optimizer,
        ..GrpoRecipe::default()
    }
}

/// The recipe with this loss and what its paper divides rewards by.
fn with_loss(loss_type: LossType) -> GrpoRecipe {
    let scale_rewards = match loss_type {
        LossType::Grpo | LossType::Dapo => ScaleRewards::Group,
        LossType::DrGrpo | LossType::Rloo => ScaleRewards::None,
    };
    GrpoRecipe { loss_type, scale_rewards, ..recipe() }
}

const LOSSES: [LossType; 4] = [LossType::Grpo, LossType::DrGrpo, LossType::Dapo, LossType::Rloo];

/// Five prompts of 1 to 4 tokens.
fn prompts() -> Vec<Prompt> {
    (0..5).map(|i| Prompt::from((0..=i % 4).map(|t| 2 + (3 * i + 5 * t) % 22).collect::<Vec<u32>>())).collect()
}

/// A learnable reward: the number of tokens with id 5.
#[allow(clippy::unnecessary_wraps, reason = "a reward may fail")]
fn fives(rows: &[Vec<u32>]) -> llm_train::Result<Vec<f64>> {
    Ok(rows.iter().map(|row| row.iter().filter(|&&id| id == 5).count() as f64).collect())
}

/// A trainer of a copy of `start`, whose reference is `start` if there is a penalty.
fn trainer<'a>(start: &Model, reward: &'a Reward<'a>, recipe: &'a GrpoRecipe) -> GrpoTrainer<'a> {
    let policy = Learner::new(start.trainable().unwrap(), &recipe.optimizer).unwrap();
    let reference = (recipe.beta > 0.).then(|| start.frozen().unwrap());
    GrpoTrainer::new(policy, reference, reward, IDS, recipe).unwrap()
}

fn metric(metrics: &[(&str, f64)], name: &str) -> f64 {
    metrics.iter().find(|f| f.0 == name).unwrap_or_else(|| panic!("{name} is missing")).1
}
