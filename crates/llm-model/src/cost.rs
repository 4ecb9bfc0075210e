//! What a model costs: bytes to serve and to train it, and floating-point operations for each token.
//!
//! Plain arithmetic on a [`ModelConfig`]: nothing is allocated, so that a model far larger than the machine is counted at
//! once. Bytes are those of this workspace's decoder, kernels and optimizer.
//!
//! ```
//! use llm_model::{Head, WeightFormat, cost, presets::preset};
//!
//! let llama = preset("llama-3-8b").unwrap();
//! assert_eq!(cost::weight_bytes(&llama, Head::LanguageModel, WeightFormat::Bf16), 16_061_054_976);
//! assert_eq!(cost::kv_cache_bytes(&llama, 1, 8192), 2 * 1024 * 1024 * 1024);
//! assert!((cost::Flops::of(&llama, Head::LanguageModel, 8192).forward() / 17.2e9 - 1.).abs() < 0.01);
//! ```

mod activations;

use serde::Serialize;

pub use activations::{TrainingMemory, TrainingShape};

use crate::{Head, ModelConfig, WeightFormat};

/// Bytes of a frozen model whose matrices are held in `format`; norms, biases and routers are f32 always.
pub fn weight_bytes(config: &ModelConfig, head: Head, format: WeightFormat) -> u64 {
    config.tensor_shapes(head).iter().map(|(name, shape)| format.bytes_of(name, shape)).sum()
}

/// Bytes of a [`crate::KvCache`] for `rows` rows of `context` tokens: `2 · layers · rows · context · g · d` in f32.
///
/// Layers that look through a window hold all tokens too.
pub fn kv_cache_bytes(config: &ModelConfig, rows: u64, context: u64) -> u64 {
    let width = (config.num_key_value_heads * config.head_dim) as u64;
    2 * config.num_hidden_layers as u64 * rows * context * width * 4
}

/// Floating-point operations of a forward pass for each token, in the mean over a text.
///
/// A product of a vector and a matrix of n numbers is 2n operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
/// Norms, activations, rotations and the softmax, under a hundredth of a model of a billion parameters, do not count
/// (Hoffmann et al. 2022, arXiv 2203.15556, appendix F, counts the softmax). The embedding is a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flops {
    /// The matrices of the blocks; of experts, those that a token takes.
    pub matrices: f64,
    /// Queries times keys and weights times values, `4 · h · d · keys` for each layer; a token looks at the keys before
    /// it, or at those of its window. Kaplan and Hoffmann count all keys of the text, about twice as many.
    pub attention: f64,
    /// The output layer.
    pub head: f64,
}

impl Flops {
    /// Of one token in a text of `seq_len` tokens.
    pub fn of(config: &ModelConfig, head: Head, seq_len: u64) -> Self {
        let outputs = if head == Head::LanguageModel { config.vocab_size } else { 1 };
        let mut matrices = 0.;
        for (name, shape) in config.tensor_shapes(head) {
            if !name.starts_with("model.layers.") || shape.len() != 2 {
                continue;
            }
            let share = match &config.experts {
                Some(experts) if name.contains(".mlp.experts.") => {
                    experts.num_experts_per_tok as f64 / experts.num_experts as f64
                }
                _ => 1.,
            };
            matrices += 2. * share * shape.iter().product::<usize>() as f64;
        }
        let width = (config.num_attention_heads * config.head_dim) as f64;
        let keys = (0..config.num_hidden_layers).map(|layer| mean_keys(seq_len, config.window_of(layer)));
        Self {
            matrices,
            attention: 4. * width * keys.sum::<f64>(),
            head: 2. * outputs as f64 * config.hidden_size as f64,
        }
    }

    /// All of them.
    pub fn forward(&self) -> f64 {
        self.matrices + self.attention + self.head
    }

    /// Of a training step: the backward is two products for each of the forward's (Kaplan et al. 2020), and with
    /// `checkpointed` activations the blocks run forward once more.
    pub fn training(&self, checkpointed: bool) -> f64 {
        3. * self.forward() + if checkpointed { self.matrices + self.attention } else { 0. }
    }
}

/// How many keys a token sees, itself among them, in the mean over a text of `t` tokens.
fn mean_keys(t: u64, window: Option<usize>) -> f64 {
    let w = window.map_or(t, |window| t.min(window as u64)) as f64;
    if t == 0 { 0. } else { (w * (w + 1.) / 2. + (t as f64 - w) * w) / t as f64 }
}

#[cfg(test)]
mod tests {
    use llm_kernels::BlockFormat;

    use super::*;
    use crate::presets::preset;
    use crate::{KvCache, Model};

    fn small() -> ModelConfig {
        ModelConfig { vocab_size: 300, ..ModelConfig::default() }.validated("test").unwrap()
    }

    #[test]
    fn weights_take_the_bytes_of_the_tensors_that_are_held() {
        // 192 numbers in a row are six blocks of 32 and no block of 256; 512 are two. Experts add a router.
        let experts = Some(crate::ExpertsConfig::default());
        let experts = ModelConfig { model_type: crate::ModelType::Mixtral, experts, intermediate_size: 512, ..small() };
        let formats = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_K, BlockFormat::Q6_K];
        let formats = formats.map(WeightFormat::Quantized).into_iter().chain([WeightFormat::F32, WeightFormat::Bf16]);
        for format in formats {
            for config in [small(), ModelConfig { tie_word_embeddings: false, ..small() }, experts.clone()] {
                let model = Model::init(config, Head::LanguageModel, 1).unwrap().frozen_as(format).unwrap();
                let dense = model.params().tensors().values().map(|t| t.elem_count() * t.dtype().size_in_bytes());
                let blocks = model.params().quantized().values().map(|w| w.blocks().len());
                let held = dense.chain(blocks).sum::<usize>() as u64;
                assert_eq!(weight_bytes(model.config(), Head::LanguageModel, format), held, "{format:?}");
            }
        }
    }

    #[test]
    fn the_cache_takes_the_bytes_of_its_tensors() {
        let config = small();
        let cache = KvCache::new(&config, 3, 40).unwrap();
        assert_eq!(kv_cache_bytes(&config, 3, 40), cache.bytes() as u64);
    }

    /// Kaplan's `2N + 2 · layers · keys · width` with the N of all but embeddings, for GPT-3 and 2048 keys.
    #[test]
    fn operations_are_those_of_the_formula() {
        let gpt3 = preset("gpt-3-175b").unwrap();
        let flops = Flops::of(&gpt3, Head::LanguageModel, 2048);
        assert_eq!(flops.matrices, 2. * 12. * 96. * 12288f64.powi(2));
        assert_eq!(flops.attention, 4. * 96. * 12288. * 2049. / 2.);
        assert_eq!(flops.head, 2. * 50257. * 12288.);
        assert_eq!(flops.training(false), 3. * flops.forward());
        assert_eq!(flops.training(true), 4. * flops.forward() - flops.head);
        // The paper's table D.1: 3.14e23 operations for 300 billion tokens, of 6N alone.
        assert!((flops.training(false) * 300e9 / 3.14e23 - 1.).abs() < 0.04);
    }

    #[test]
    fn experts_that_are_not_taken_do_not_compute() {
        let mixtral = preset("mixtral-8x7b").unwrap();
        let two = 2. * 32. * (2. * 3. * 4096. * 14336. + 8. * 4096. + 4096. * 2. * (4096. + 1024.));
        assert_eq!(Flops::of(&mixtral, Head::LanguageModel, 1).matrices, two);
    }

    #[test]
    fn keys_are_counted_as_they_are_seen() {
        for (t, window) in [(1, None), (7, None), (7, Some(3)), (7, Some(7)), (7, Some(20))] {
            let seen = (0..t).map(|i| (i + 1).min(window.unwrap_or(t as usize) as u64)).sum::<u64>();
            assert_eq!(mean_keys(t, window), seen as f64 / t as f64, "{t} {window:?}");
        }
    }
}
