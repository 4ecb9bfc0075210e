//! Memory of a training step: the tensors that the autograd graph of this decoder saves for the backward.
//!
//! candle saves the inputs of every operation, that is the results of those before it; what a fused operation saves besides
//! is asked of the operation (`llm_kernels::saved_bytes`). The order is that of `decoder.rs` and `experts.rs`; changes there
//! need changes here. n: tokens.

use llm_kernels::{Precision, saved_bytes};
use serde::Serialize;

use crate::config::{AttentionBias, ExpertsConfig, NormKind};
use crate::{Head, ModelConfig, ParamCount};

/// The settings of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingShape {
    /// Rows per micro-batch.
    pub batch_size: u64,
    /// Tokens per row.
    pub seq_len: u64,
    /// Whether activations are checkpointed ([`crate::Model::checkpoint_activations`]).
    pub checkpointed: bool,
    /// Compute precision of the matmuls.
    pub precision: Precision,
}

/// Peak memory of a training step in f32 with AdamW, in bytes. The peak is in the backward, which releases saved tensors while
/// it computes the gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// The weights.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// Tensors saved for the backward, including the gradients of the output layer.
    pub activations: u64,
    /// Temporary memory of the largest step of the backward (estimated).
    pub working: u64,
    /// The part of activations, gradients and temporary memory that does not exist at the peak, because the backward has released
    /// it or not computed it yet (estimated).
    pub not_at_peak: u64,
}

impl TrainingMemory {
    /// For full training of a model; a language model with the loss [`crate::Model::cross_entropy`].
    pub fn of(config: &ModelConfig, head: Head, shape: &TrainingShape) -> Self {
        let weights = ParamCount::of(config, head).total() as u64 * 4;
        let saved = SavedTensors { config, head, n: shape.batch_size * shape.seq_len, precision: shape.precision };
        let (activations, recomputed) = saved.after_forward(shape.checkpointed);
        let working = saved.ends_workspace().max(recomputed + saved.block_workspace());
        let mut memory =
            Self { weights, gradients: weights, moments: 2 * weights, activations, working, not_at_peak: 0 };
        let peak = saved.peak(&memory, shape.checkpointed, recomputed);
        memory.not_at_peak = (activations + weights + working).saturating_sub(peak);
        memory
    }

    /// The peak.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.moments + self.activations + self.working - self.not_at_peak
    }
}

struct SavedTensors<'a> {
    config: &'a ModelConfig,
    head: Head,
    n: u64,
    precision: Precision,
}

/// Outputs of a linear layer with `out` features: adding a bias is a separate operation with a separate output.
fn linear(out: u64, bias: bool) -> u64 {
    if bias { 2 * out } else { out }
}

impl SavedTensors<'_> {
    fn width(&self) -> u64 {
        self.config.hidden_size as u64
    }

    /// Elements of all query heads and of all key heads of a token.
    fn heads(&self) -> (u64, u64) {
        let d = self.config.head_dim;
        ((self.config.num_attention_heads * d) as u64, (self.config.num_key_value_heads * d) as u64)
    }

    /// Bytes saved by the forward, and bytes of the block that is recomputed in the backward.
    fn after_forward(&self, checkpointed: bool) -> (u64, u64) {
        let layers = 0..self.config.num_hidden_layers;
        let ends = self.embedding() + self.shared(checkpointed) + self.head() + self.routing();
        if !checkpointed {
            return (ends + layers.map(|layer| self.block(layer)).sum::<u64>(), 0);
        }
        // The output of each block; with a router also its logits, once concatenated and once split.
        let results = layers.clone().map(|layer| match self.config.experts_of(layer) {
            None => self.width(),
            Some(experts) => 2 * (self.width() + experts.num_experts as u64),
        });
        let recomputed = layers.map(|layer| self.block(layer)).max().unwrap_or(0) + 4 * self.n * self.width();
        (ends + 4 * self.n * results.sum::<u64>(), recomputed)
    }

    /// The peak of the backward without weights and moments: each part computes gradients and releases what it saved, from the
    /// output layer over the blocks to the embedding.
    fn peak(&self, memory: &TrainingMemory, checkpointed: bool, recomputed: u64) -> u64 {
        let head = if self.config.final_logit_softcapping.is_none() { self.head() } else { 0 };
        let blocks = self.config.num_hidden_layers as u64;
        let embedding = 4 * self.config.vocab_size as u64 * self.width();
        let in_ends = if self.config.tie_word_embeddings { embedding } else { 2 * embedding };
        let of_block = memory.gradients.saturating_sub(in_ends) / blocks.max(1);
        let (mut saved, mut gradients) = (memory.activations - head, embedding);
        // The gradients of the output layer, zeros and the sum of both.
        let mut peak = memory.activations + self.ends_workspace().max(2 * embedding);
        for layer in (0..self.config.num_hidden_layers).rev() {
            gradients += of_block;
            peak = peak.max(saved + gradients + recomputed + self.block_workspace());
            saved -= if checkpointed { 0 } else { self.released(layer) };
        }
        peak.max(saved + memory.gradients + embedding)
    }

    /// Bytes that the backward of a block releases: what its fused operations save.
    fn released(&self, layer: usize) -> u64 {
        let names = self.config.norm_placement.names();
        let norms = [names.attention_in, names.attention_out, names.mlp_in, names.mlp_out];
        let [attention_in, attention_out, mlp_in, mlp_out] = norms.map(|name| u64::from(name.is_some()));
        let attention = match self.is_fused(attention_in, attention_out) {
            true => self.fused_attention() - 4 * self.n * self.width(),
            false => 0,
        };
        let fused_mlp = self.config.gated_mlp && !self.config.parallel_residual;
        let mlp = match self.config.experts_of(layer) {
            Some(experts) if self.config.gated_mlp => {
                self.fused_mlp(experts.num_experts_per_tok as u64 * self.n, experts.moe_intermediate_size)
            }
            None if fused_mlp && (self.is_fused(mlp_in, mlp_out) || mlp_out > 0) => {
                self.fused_mlp(self.n, self.config.intermediate_size)
            }
            _ => 0,
        };
        attention + mlp
    }

    /// The embeddings, scaled, with positions added; the final norm.
    fn embedding(&self) -> u64 {
        let mut elements = 2 * self.width();
        if self.config.scale_embeddings {
            elements += self.width();
        }
        if self.config.learned_positions {
            elements += 2 * self.width() + 1;
        }
        4 * self.n * elements
    }

    /// Shared by all blocks: the rotary tables and the first key of each query's window. A checkpointed block keeps the
    /// tables even without rotary embeddings.
    fn shared(&self, checkpointed: bool) -> u64 {
        let mut tables = 0;
        if checkpointed || !self.config.learned_positions {
            tables += 1 + u64::from(self.config.rope_local_theta.is_some());
        }
        4 * self.n * (tables * self.config.rotary_dim() as u64 + u64::from(self.config.sliding_window.is_some()))
    }

    /// The output layer and the loss; with a soft cap the logits are saved four times.
    fn head(&self) -> u64 {
        let vocab = self.config.vocab_size as u64;
        match self.config.final_logit_softcapping {
            _ if self.head != Head::LanguageModel => 0, // at most one element per token
            Some(_) => 4 * self.n * 4 * vocab,
            None => saved_bytes::linear_cross_entropy(self.n as usize, self.config.hidden_size, vocab as usize) as u64,
        }
    }

    /// The router losses over the logits of all layers.
    fn routing(&self) -> u64 {
        let layers = (0..self.config.num_hidden_layers).filter_map(|layer| self.config.experts_of(layer));
        4 * self.n * layers.map(|experts| 6 * experts.num_experts as u64 + 7).sum::<u64>()
    }

    fn block(&self, layer: usize) -> u64 {
        let (config, width) = (self.config, self.width());
        let names = config.norm_placement.names();
        let norms = [names.attention_in, names.attention_out, names.mlp_in, names.mlp_out];
        let norms = norms.map(|name| u64::from(name.is_some()));
        let [attention_in, attention_out, mlp_in, mlp_out] = norms;

        let mut bytes = if self.is_fused(attention_in, attention_out) {
            self.fused_attention()
        } else {
            4 * self.n * (attention_in * width + self.attention(layer) + 2 * attention_out * width)
        };
        bytes += match config.experts_of(layer) {
            None if !config.parallel_residual && self.is_fused(mlp_in, mlp_out) && config.gated_mlp => {
                self.fused_mlp(self.n, config.intermediate_size) + 4 * self.n * width
            }
            None => {
                let result = linear(width, config.mlp_bias) + (mlp_in + 2 * mlp_out) * width;
                self.mlp(config.intermediate_size, mlp_out) + 4 * self.n * result
            }
            Some(experts) => self.experts(experts) + 4 * self.n * (mlp_in + mlp_out + 1) * width,
        };
        if config.norm == NormKind::RmsPlusOne {
            bytes += 4 * norms.iter().sum::<u64>() * width; // 1 + w
        }
        bytes
    }

    /// Whether a sub-layer is one fused operation: an RMS norm before it and none after it.
    fn is_fused(&self, norm_in: u64, norm_out: u64) -> bool {
        norm_in > norm_out && self.config.norm != NormKind::Layer
    }

    /// Bytes per element of a tensor that the backward uses in matmuls only.
    fn matmul_bytes(&self) -> u64 {
        self.precision.size_in_bytes() as u64
    }

    /// The fused attention block from norm to residual addition, and its result.
    fn fused_attention(&self) -> u64 {
        let config = self.config;
        let heads = [config.num_attention_heads, config.num_key_value_heads];
        let (n, qk_norm) = (self.n as usize, config.qk_norm.is_some());
        let saved =
            saved_bytes::attention_block(n, config.hidden_size, heads, config.head_dim, qk_norm, self.precision);
        saved as u64 + 4 * self.n * self.width()
    }

    /// Elements per token saved by unfused attention, without the norms around it.
    fn attention(&self, layer: usize) -> u64 {
        let (config, (q, kv)) = (self.config, self.heads());
        let bias = config.attention_bias != AttentionBias::None;
        let rope = !config.learned_positions && !config.layers_without_rope.contains(&layer);
        let mut elements = linear(q, bias) + 2 * linear(kv, bias);
        elements += u64::from(config.qk_norm.is_some()) * (q + kv) + u64::from(rope) * (q + kv);
        elements += q + saved_bytes::attention(1, config.num_attention_heads) as u64 / 4; // the result and what is saved
        elements + linear(self.width(), config.attention_bias == AttentionBias::All)
    }

    /// The fused gated MLP of `n` tokens, without its result.
    fn fused_mlp(&self, n: u64, inner: usize) -> u64 {
        saved_bytes::mlp_block(n as usize, self.config.hidden_size, inner, self.precision) as u64
    }

    /// An MLP outside a fused block, without its output. Without an output norm, `down_proj` adds to the residual stream.
    fn mlp(&self, inner: usize, mlp_out: u64) -> u64 {
        match mlp_out > 0 && self.config.gated_mlp {
            true => self.fused_mlp(self.n, inner),
            false => self.unfused_mlp(inner as u64),
        }
    }

    /// An unfused MLP before `down_proj`.
    fn unfused_mlp(&self, inner: u64) -> u64 {
        let (gated, bias) = (self.config.gated_mlp, self.config.mlp_bias);
        4 * self.n * (linear(inner, bias) * (1 + u64::from(gated)) + inner)
    }

    /// The router, the tokens sorted by expert, the experts, and their outputs in token order, weighted and summed.
    fn experts(&self, experts: &ExpertsConfig) -> u64 {
        let (e, k) = (experts.num_experts as u64, experts.num_experts_per_tok as u64);
        let inner = experts.moe_intermediate_size;
        let weights = if experts.norm_topk_prob { 3 * k + 1 } else { 2 * k };
        let router = e + (3 * e + 2) + weights;
        let pairs = k * (5 * self.width() + 2);
        let mlps = match self.config.gated_mlp {
            true => self.fused_mlp(k * self.n, inner),
            false => k * self.unfused_mlp(inner as u64),
        };
        mlps + 4 * self.n * (router + pairs + self.width())
    }

    /// Temporary memory of the largest step in the backward of a block. candle allocates a gradient, zeros and their sum.
    fn block_workspace(&self) -> u64 {
        let (n, width, (q, kv)) = (self.n, self.width(), self.heads());
        let inner = self.config.intermediate_size as u64;
        let selected = self.config.experts.as_ref().map_or(0, |experts| experts.num_experts_per_tok as u64);
        let names = self.config.norm_placement.names();
        let [attention_out, mlp_out] = [names.attention_out, names.mlp_out].map(|name| u64::from(name.is_some()));
        let mlp = match self.is_fused(1, mlp_out) && self.config.gated_mlp {
            true => n * (2 * self.matmul_bytes() * inner + 12 * width) + 4 * 3 * inner * width,
            false => 4 * (3 * n * (inner + width) + 2 * inner * width),
        };
        let attention = match self.is_fused(1, attention_out) {
            true => {
                n * (self.matmul_bytes() * (q + 2 * kv) + 4 * (q.max(width) + 2 * width)) + 4 * (2 * q + 2 * kv) * width
            }
            false => 4 * n * (4 * q + 4 * kv + width),
        };
        mlp.max(attention).max(24 * n * selected * width)
    }

    /// Temporary memory of the backward of the embedding and the output layer. The gradient of the embedding is copied
    /// when rows are added to it; the backward of a soft cap keeps its inputs until the next step is done.
    fn ends_workspace(&self) -> u64 {
        let vocab = self.config.vocab_size as u64;
        let capped = self.config.final_logit_softcapping.is_some() && self.head == Head::LanguageModel;
        let logits = if capped { 9 * self.n * vocab } else { 0 };
        4 * logits.max(vocab * self.width())
    }
}
