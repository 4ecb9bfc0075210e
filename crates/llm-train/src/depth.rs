//! One number for a model: `--depth N` sets shape, batch, learning rate and number of steps of pre-training.
//!
//! | what | rule |
//! |---|---|
//! | shape | `N` layers, width `64 · N`, heads of 64, MLP of 8/3 of the width (rounded up to a multiple of 64) |
//! | parameters `P` | those that multiply a token: the matrices of the blocks and the output layer, not the embedding |
//! | tokens `D` | `tokens_per_parameter · P`; 12 is near the compute optimum of small models (Hoffmann et al. 2022, arXiv 2203.15556) |
//! | batch `B` in tokens | `2^19 · (D / D₁₂)^0.383`, where `D₁₂` is the `D` of depth 12 (Bergsma et al. 2025, arXiv 2505.13738), at most `D / 2000`, rounded down to a power of two from 512 to 2^21 |
//! | learning rate | `3e-3 · (B / 1024)^0.25 · (192 / width)^0.5`, at most 6e-3 |
//! | warm-up | 1/50 of the steps |
//!
//! The bound `D / 2000` is ours: below about 100 million tokens the published rule asks for so few and large steps that a model hardly
//! learns.

use llm_model::cost::Flops;
use llm_model::{Head, ModelConfig};
use serde::Serialize;

use crate::{Error, Result};

/// Size of an attention head, and width per layer.
const HEAD_DIM: usize = 64;
/// Default of the tokens per parameter.
pub const TOKENS_PER_PARAMETER: f64 = 12.;
/// The least number of optimizer steps.
const STEPS: f64 = 2000.;
/// Tokens per micro-batch: larger ones need more memory and are not faster on a CPU.
const MICRO_BATCH: usize = 4096;

/// The settings of a depth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DepthSettings {
    /// The shape of the model; all other keys are those of the given model.
    #[serde(skip)]
    pub model: ModelConfig,
    /// Parameters that multiply a token.
    pub parameters: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
}

/// The parameters of a model that multiply a token, `P`: matrices of the blocks (of experts the selected ones) and the output layer.
pub fn multiplying_parameters(config: &ModelConfig) -> f64 {
    let flops = Flops::of(config, Head::LanguageModel, 1);
    // A parameter takes a multiplication and an addition.
    0.5 * (flops.matrices + flops.head)
}

/// The shape of a model of `depth` layers; the other keys are those of `base`.
fn shape(depth: usize, base: &ModelConfig) -> ModelConfig {
    let hidden_size = HEAD_DIM * depth;
    ModelConfig {
        hidden_size,
        intermediate_size: (hidden_size * 8).div_ceil(3).next_multiple_of(64),
        num_hidden_layers: depth,
        num_attention_heads: depth,
        num_key_value_heads: depth,
        head_dim: HEAD_DIM,
        ..base.clone()
    }
}

/// The shape of a model of `depth` layers with the other keys of `base`; an error for a depth that is not from 1 to 64.
pub(crate) fn checked_shape(depth: usize, base: &ModelConfig) -> Result<ModelConfig> {
    match (1..=64).contains(&depth) {
        true => Ok(shape(depth, base)),
        false => Err(Error::BadRequest(format!("the depth is {depth}; it must be a whole number from 1 to 64"))),
    }
}

impl DepthSettings {
    /// The settings of a model of `depth` layers (1 to 64) with the vocabulary and the other keys of `base`, trained on
    /// `tokens_per_parameter` tokens for each parameter that multiplies a token, in sequences of `seq_len` tokens.
    pub fn of(depth: usize, base: &ModelConfig, seq_len: usize, tokens_per_parameter: f64) -> Result<Self> {
        let tokens = tokens_per_parameter * multiplying_parameters(&checked_shape(depth, base)?);
        Self::with_tokens(depth, base, seq_len, tokens)
    }

    /// [`Self::of`] with a number of training tokens.
    pub fn with_tokens(depth: usize, base: &ModelConfig, seq_len: usize, tokens: f64) -> Result<Self> {
        let model = checked_shape(depth, base)?;
        let parameters = multiplying_parameters(&model);
        let reference = TOKENS_PER_PARAMETER * multiplying_parameters(&shape(12, base));
        let wanted = (2_f64.powi(19) * (tokens / reference).powf(0.383)).min(tokens / STEPS);
        let batch = 1_usize << wanted.log2().floor().clamp(9., 21.) as u32;
        let rows = (batch / seq_len).max(1);
        let batch_size = rows.min((MICRO_BATCH / seq_len).max(1));
        let gradient_accumulation_steps = (rows / batch_size).max(1) as u64;
        let per_step = batch_size as u64 * gradient_accumulation_steps * seq_len as u64;
        let steps = (tokens / per_step as f64).round().max(1.) as u64;
        let width = (192. / model.hidden_size as f64).sqrt();
        let learning_rate = (3e-3 * (per_step as f64 / 1024.).powf(0.25) * width).min(6e-3);
        // Three digits are enough, and read better in a recipe.
        let learning_rate = format!("{learning_rate:.2e}").parse().unwrap_or(learning_rate);
        let warmup_steps = steps / 50;
        Ok(Self {
            model,
            parameters,
            tokens,
            batch_size,
            gradient_accumulation_steps,
            steps,
            learning_rate,
            warmup_steps,
        })
    }

    /// The keys of a recipe of pre-training that these settings set, with their values as TOML.
    pub fn keys(&self) -> Vec<(String, String)> {
        let model = &self.model;
        let keys = [
            ("model.hidden_size", model.hidden_size.to_string()),
            ("model.intermediate_size", model.intermediate_size.to_string()),
            ("model.num_hidden_layers", model.num_hidden_layers.to_string()),
            ("model.num_attention_heads", model.num_attention_heads.to_string()),
            ("model.num_key_value_heads", model.num_key_value_heads.to_string()),
            ("model.head_dim", model.head_dim.to_string()),
            ("batch_size", self.batch_size.to_string()),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps.to_string()),
            ("steps", self.steps.to_string()),
            ("optimizer.learning_rate", self.learning_rate.to_string()),
            ("optimizer.warmup_steps", self.warmup_steps.to_string()),
        ];
        keys.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(vocab_size: usize) -> ModelConfig {
        ModelConfig { vocab_size, tie_word_embeddings: true, max_position_embeddings: 1024, ..ModelConfig::default() }
    }

    #[test]
    fn the_shape_of_depth_three_is_that_of_the_table() {
        let settings = DepthSettings::of(3, &base(4096), 128, 12.).unwrap();
        let model = &settings.model;
        assert_eq!((model.hidden_size, model.intermediate_size, model.num_hidden_layers), (192, 512, 3));
        assert_eq!((model.num_attention_heads, model.num_key_value_heads, model.head_dim), (3, 3, 64));
        // Four projections of 192 x 192, three of 192 x 512, and the output layer.
        let parameters = 3 * (4 * 192 * 192 + 3 * 192 * 512) + 4096 * 192;
        assert_eq!(settings.parameters, f64::from(parameters));
        assert_eq!(settings.tokens, 12. * f64::from(parameters));
    }

    #[test]
    fn batches_grow_with_the_horizon_and_leave_enough_steps() {
        let mut last = 0;
        for depth in 1..=24 {
            let settings = DepthSettings::of(depth, &base(4096), 128, 12.).unwrap();
            let batch = settings.batch_size as u64 * settings.gradient_accumulation_steps * 128;
            assert!(batch.is_power_of_two() && batch >= last, "depth {depth}: {batch} after {last}");
            assert!(settings.steps >= 2000 || batch == 512, "depth {depth}: {} steps", settings.steps);
            let trained = (batch * settings.steps) as f64;
            assert!((trained / settings.tokens - 1.).abs() < 0.001, "depth {depth}: {trained} of {}", settings.tokens);
            last = batch;
        }
        // The published rule applies at depth 12, rounded down: 2^19 tokens need 2000 steps, 1.05e9 tokens.
        let twelve = DepthSettings::of(12, &base(32768), 1024, 12.).unwrap();
        assert_eq!(twelve.batch_size as u64 * twelve.gradient_accumulation_steps * 1024, 1 << 19);
    }

    #[test]
    fn the_keys_are_those_of_a_recipe() {
        let settings = DepthSettings::of(2, &base(2048), 64, 4.).unwrap();
        let recipe: crate::recipes::PretrainRecipe = crate::read_recipe("pretrain", &settings.keys()).unwrap();
        assert_eq!(recipe.steps, settings.steps);
        assert_eq!(recipe.model.hidden_size, 128);
        assert_eq!(recipe.optimizer.learning_rate, settings.learning_rate);
        assert!(
            DepthSettings::of(0, &base(2048), 64, 4.).is_err() && DepthSettings::of(65, &base(2048), 64, 4.).is_err()
        );
    }
}
