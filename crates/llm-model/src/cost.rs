//! Cost of a model: memory for inference and training, and FLOPs per token.
//!
//! Computed from the [`ModelConfig`] alone without allocating tensors, so models larger than the machine work too. The
//! memory figures are those of this workspace's decoder, kernels and optimizer.
//!
//! ```
//! use llm_model::{Head, WeightDtype, cost, presets::preset};
//!
//! let llama = preset("llama-3-8b").unwrap();
//! assert_eq!(cost::weight_bytes(&llama, Head::LanguageModel, WeightDtype::Bf16), 16_061_054_976);
//! assert_eq!(cost::kv_cache_bytes(&llama, 1, 8192), 2 * 1024 * 1024 * 1024);
//! assert!((cost::Flops::of(&llama, Head::LanguageModel, 8192).forward() / 17.2e9 - 1.).abs() < 0.01);
//! ```

mod activations;

use serde::Serialize;

pub use activations::{TrainingMemory, TrainingShape};

use crate::{Head, KvDtype, KvPool, ModelConfig, Role, TensorSpec, WeightDtype};

/// Bytes of the weights with matrices in `dtype`; norms, biases and routers are always f32.
pub fn weight_bytes(config: &ModelConfig, head: Head, dtype: WeightDtype) -> u64 {
    let bytes = |spec: &TensorSpec| {
        let row = spec.shape.last().copied().unwrap_or(0);
        let bytes = spec.dtype_in(dtype).row_bytes(row).unwrap_or(0) as u64;
        bytes * (spec.elements() / row.max(1)) as u64
    };
    config.tensor_specs(head).iter().map(bytes).sum()
}

/// Bytes of a [`KvCache`](crate::KvCache) for `rows` rows of `context` tokens: `2 · layers · rows · context · g · d` f32 values, with
/// `context` in whole pages of [`KvPool::PAGE`] tokens.
///
/// Sliding-window layers cache the whole context too.
pub fn kv_cache_bytes(config: &ModelConfig, rows: u64, context: u64) -> u64 {
    let page = KvPool::page_bytes(config, KvDtype::F32) as u64;
    rows * context.div_ceil(KvPool::PAGE as u64) * page
}

/// Bytes of the state of an optimizer in f32 that trains the matrices of the blocks with Muon, which has one number per weight, and the
/// other weights with `AdamW`, which has two.
pub fn muon_bytes(config: &ModelConfig, head: Head) -> u64 {
    let bytes = |spec: &TensorSpec| spec.elements() as u64 * if spec.is_hidden_matrix() { 4 } else { 8 };
    config.tensor_specs(head).iter().map(bytes).sum()
}

/// FLOPs of a forward pass per token, averaged over a sequence.
///
/// A vector times a matrix of n elements is 2n FLOPs (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Norms,
/// activations, rotary embeddings and the softmax are ignored: they are under 1 % for a model of a billion parameters
/// (Hoffmann et al. 2022, arXiv 2203.15556, appendix F, counts the softmax). The embedding is a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flops {
    /// The matrices of the blocks; for experts only the selected ones.
    pub matrices: f64,
    /// `Q·Kᵀ` and `P·V`: `4 · h · d · keys` per layer, with the mean number of unmasked keys. Kaplan and Hoffmann count
    /// all keys of the sequence, about twice as many.
    pub attention: f64,
    /// The output layer.
    pub head: f64,
}

impl Flops {
    /// FLOPs per token for sequences of `seq_len` tokens.
    pub fn of(config: &ModelConfig, head: Head, seq_len: u64) -> Self {
        let outputs = if head == Head::LanguageModel { config.vocab_size } else { 1 };
        let mut matrices = 0.;
        for spec in config.tensor_specs(head).iter().filter(|spec| spec.is_matrix()) {
            let share = match (spec.role, &config.experts) {
                (Role::Embedding | Role::PositionEmbedding | Role::Output | Role::Score, _) => continue,
                (Role::Expert(_), Some(experts)) => experts.num_experts_per_tok as f64 / experts.num_experts as f64,
                _ => 1.,
            };
            matrices += 2. * share * spec.elements() as f64;
        }
        let width = (config.num_attention_heads * config.head_dim) as f64;
        let keys = (0..config.num_hidden_layers).map(|layer| mean_keys(seq_len, config.window_of(layer)));
        Self {
            matrices,
            attention: 4. * width * keys.sum::<f64>(),
            head: 2. * outputs as f64 * config.hidden_size as f64,
        }
    }

    /// FLOPs of the forward pass per token.
    pub fn forward(&self) -> f64 {
        self.matrices + self.attention + self.head
    }

    /// FLOPs of a training step per token: the backward has two matmuls for each one of the forward (Kaplan et al. 2020);
    /// with activation checkpointing (`checkpointed`) the blocks run forward twice.
    pub fn training(&self, checkpointed: bool) -> f64 {
        3. * self.forward() + if checkpointed { self.matrices + self.attention } else { 0. }
    }

    /// FLOPs of training per token as they are counted for the utilisation of a machine (Chowdhery et al. 2022, arXiv 2204.02311, appendix
    /// B): `6 ·` the parameters of the matrices and of the head `+ Σ 12 · h · d · keys` over the layers, where `keys` are all keys of the
    /// sequence or the window, masked ones too. A recomputation of activations does not count.
    pub fn of_utilisation(config: &ModelConfig, head: Head, seq_len: u64) -> f64 {
        let forward = Self::of(config, head, seq_len);
        let keys = |layer| config.window_of(layer).map_or(seq_len, |window| seq_len.min(window as u64)) as f64;
        let width = (config.num_attention_heads * config.head_dim) as f64;
        3. * (forward.matrices + forward.head) + 12. * width * (0..config.num_hidden_layers).map(keys).sum::<f64>()
    }
}

/// Mean number of unmasked keys per query, its own token included, in a sequence of `t` tokens.
fn mean_keys(t: u64, window: Option<usize>) -> f64 {
    let w = window.map_or(t, |window| t.min(window as u64)) as f64;
    if t == 0 { 0. } else { (w * (w + 1.) / 2. + (t as f64 - w) * w) / t as f64 }
}

#[cfg(test)]
mod tests {
    use llm_kernels::BlockFormat;

    use super::*;
    use crate::presets::preset;
    use crate::{KvCache, Model, Weight};

    fn small() -> ModelConfig {
        ModelConfig { vocab_size: 300, ..ModelConfig::default() }.validated("test").unwrap()
    }

    #[test]
    fn weight_bytes_match_the_allocated_tensors() {
        // A row of 192 elements is a multiple of 32, not of 256; 512 is a multiple of both. Experts add a router.
        let experts = Some(crate::ExpertsConfig::default());
        let experts = ModelConfig { model_type: crate::ModelType::Mixtral, experts, intermediate_size: 512, ..small() };
        let formats = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_K, BlockFormat::Q6_K];
        let formats = formats.map(WeightDtype::Quantized).into_iter().chain([WeightDtype::F32, WeightDtype::Bf16]);
        for format in formats {
            for config in [small(), ModelConfig { tie_word_embeddings: false, ..small() }, experts.clone()] {
                let model = Model::init(config, Head::LanguageModel, 1).unwrap().frozen_as(format).unwrap();
                let bytes = |(_, weight): (&str, &Weight)| match weight {
                    Weight::Quantized(w) => w.blocks().len(),
                    _ => weight.tensor().map_or(0, |t| t.elem_count() * t.dtype().size_in_bytes()),
                };
                let allocated = model.params().iter().map(bytes).sum::<usize>() as u64;
                assert_eq!(weight_bytes(model.config(), Head::LanguageModel, format), allocated, "{format:?}");
            }
        }
    }

    #[test]
    fn kv_cache_bytes_match_the_allocated_cache() {
        let config = small();
        let cache = KvCache::new(&config, 3, 40, &candle_core::Device::Cpu).unwrap();
        assert_eq!(kv_cache_bytes(&config, 3, 40), cache.bytes() as u64);
    }

    /// Kaplan's formula `2N + 2 · layers · keys · width` with N non-embedding parameters, for GPT-3 and 2048 keys.
    #[test]
    fn flops_match_the_formula_of_kaplan() {
        let gpt3 = preset("gpt-3-175b").unwrap();
        let flops = Flops::of(&gpt3, Head::LanguageModel, 2048);
        assert_eq!(flops.matrices, 2. * 12. * 96. * 12288f64.powi(2));
        assert_eq!(flops.attention, 4. * 96. * 12288. * 2049. / 2.);
        assert_eq!(flops.head, 2. * 50257. * 12288.);
        assert_eq!(flops.training(false), 3. * flops.forward());
        assert_eq!(flops.training(true), 4. * flops.forward() - flops.head);
        // GPT-3 paper, table D.1: 3.14e23 FLOPs for 300 billion tokens, counted as 6N per token.
        assert!((flops.training(false) * 300e9 / 3.14e23 - 1.).abs() < 0.04);
    }

    /// 6 per parameter of the matrices, and `12 · layers · h · d · t`.
    #[test]
    fn flops_of_utilisation_match_the_formula_of_palm() {
        let gpt3 = preset("gpt-3-175b").unwrap();
        let (layers, width, vocab, keys) = (96., 12288f64, 50257., 2048.);
        let parameters = 12. * layers * width.powi(2) + vocab * width;
        let expected = 6. * parameters + 12. * layers * width * keys;
        assert_eq!(Flops::of_utilisation(&gpt3, Head::LanguageModel, 2048), expected);
        let mistral = ModelConfig { sliding_window: Some(100), ..small() };
        let gap = Flops::of_utilisation(&small(), Head::LanguageModel, 300)
            - Flops::of_utilisation(&mistral, Head::LanguageModel, 300);
        let windowed = (0..4).filter(|&layer| mistral.window_of(layer).is_some()).count();
        assert_eq!(gap, 12. * 192. * 200. * windowed as f64);
    }

    #[test]
    fn only_selected_experts_count() {
        let mixtral = preset("mixtral-8x7b").unwrap();
        let two = 2. * 32. * (2. * 3. * 4096. * 14336. + 8. * 4096. + 4096. * 2. * (4096. + 1024.));
        assert_eq!(Flops::of(&mixtral, Head::LanguageModel, 1).matrices, two);
    }

    #[test]
    fn mean_keys_match_a_direct_count() {
        for (t, window) in [(1, None), (7, None), (7, Some(3)), (7, Some(7)), (7, Some(20))] {
            let keys = (0..t).map(|i| (i + 1).min(window.unwrap_or(t as usize) as u64)).sum::<u64>();
            assert_eq!(mean_keys(t, window), keys as f64 / t as f64, "{t} {window:?}");
        }
    }
}
