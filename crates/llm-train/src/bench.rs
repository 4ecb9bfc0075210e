//! Measures the cost of a pre-training step on random tokens.

use std::time::Instant;

use candle_core::Device;
use llm_engine::peak_memory;
use llm_model::{Batch, Head, Model};
use rand::RngExt;
use serde::Serialize;

use crate::optim::Learner;
use crate::recipes::PretrainRecipe;
use crate::run::rng;
use crate::{Error, Result, loss};

/// Measured cost of a training step.
#[derive(Debug, Clone, Serialize)]
pub struct TrainingCost {
    /// Trainable parameters.
    pub parameters: usize,
    /// Tokens per step.
    pub tokens_per_step: usize,
    /// Tokens per second of the median step.
    pub tokens_per_second: f64,
    /// Seconds of the median step.
    pub seconds_per_step: f64,
    /// Peak memory of the process in bytes; `None` if the system does not report it.
    pub peak_memory: Option<u64>,
    /// The loss of the last step. For random tokens it is about `ln(vocab_size)`.
    pub loss: f64,
}

/// Times `steps` steps (forward, backward, clipping, AdamW) of the recipe's model and batch, after one warm-up step.
pub fn bench(recipe: &PretrainRecipe, steps: usize, device: &Device) -> Result<TrainingCost> {
    if steps == 0 {
        return Err(Error::BadRequest("--steps is 0; it must be at least 1".to_owned()));
    }
    let model = Model::init(recipe.model.clone(), Head::LanguageModel, recipe.seed)?.to_device(device)?;
    let mut learner = Learner::new(model, &recipe.optimizer)?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let (tokens, vocab) = (recipe.batch_size * recipe.seq_len, learner.model.config().vocab_size as u32);
    let mut seconds = Vec::with_capacity(steps);
    let mut last = f64::NAN;
    for step in 0..=steps as u64 {
        let mut random = rng(recipe.seed, 7, step);
        let ids: Vec<u32> = (0..tokens).map(|_| random.random_range(0..vocab)).collect();
        let labels: Vec<i64> = (0..tokens).map(|_| i64::from(random.random_range(0..vocab))).collect();
        let start = Instant::now();
        let hidden = learner.model.hidden(&Batch::from_flat(&ids, recipe.seq_len)?, None)?;
        let loss = learner.model.cross_entropy(&hidden.flatten(0, 1)?, &labels)?;
        learner.backward(&loss)?;
        last = loss::scalar(&loss)?;
        drop((hidden, loss));
        learner.step(recipe.optimizer.learning_rate)?;
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[steps / 2];
    Ok(TrainingCost {
        parameters: learner.model.count().total(),
        tokens_per_step: tokens,
        tokens_per_second: tokens as f64 / median,
        seconds_per_step: median,
        peak_memory: peak_memory(),
        loss: last,
    })
}
