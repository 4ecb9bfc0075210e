//! Memory of a training step: what the graph of this decoder keeps for its backward, counted operation by operation.
//!
//! candle keeps every tensor that an operation read, and each fused operation what its backward needs beside it. The
//! order here is that of `decoder.rs` and `experts.rs`; what is added there is added here. Letters: n tokens.

use llm_kernels::Precision;
use serde::Serialize;

use crate::config::{AttentionBias, ExpertsConfig, NormKind};
use crate::{Head, ModelConfig, ParamCount};

/// A training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingShape {
    /// Rows of a micro-batch.
    pub batch_size: u64,
    /// Tokens of a row.
    pub seq_len: u64,
    /// Whether blocks run again in the backward ([`crate::Model::checkpoint_activations`]).
    pub checkpointed: bool,
    /// What the products are made in.
    pub precision: Precision,
}

/// Bytes of a training step in f32 with AdamW, where they are most: in the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// The weights.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// What the forward leaves for the backward, the output layer's gradients among it.
    pub activations: u64,
    /// About what the largest step of the backward holds for itself.
    pub working: u64,
}

impl TrainingMemory {
    /// Of a model all of whose parameters train; a language model by [`crate::Model::cross_entropy`].
    pub fn of(config: &ModelConfig, head: Head, shape: &TrainingShape) -> Self {
        let weights = ParamCount::of(config, head).total() as u64 * 4;
        let kept = Kept { config, head, n: shape.batch_size * shape.seq_len, precision: shape.precision };
        let (activations, running) = kept.by_the_forward(shape.checkpointed);
        let working = kept.at_work_at_the_ends().max(running + kept.at_work_in_a_block());
        Self { weights, gradients: weights, moments: 2 * weights, activations, working }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.moments + self.activations + self.working
    }
}

struct Kept<'a> {
    config: &'a ModelConfig,
    head: Head,
    n: u64,
    precision: Precision,
}

/// Results of a linear map of `out` numbers: a bias is added in a step of its own.
fn linear(out: u64, bias: bool) -> u64 {
    if bias { 2 * out } else { out }
}

impl Kept<'_> {
    fn width(&self) -> u64 {
        self.config.hidden_size as u64
    }

    /// Numbers of all queries, and of all keys, of a token.
    fn heads(&self) -> (u64, u64) {
        let d = self.config.head_dim;
        ((self.config.num_attention_heads * d) as u64, (self.config.num_key_value_heads * d) as u64)
    }

    /// Bytes that the forward leaves, and bytes of the block that runs again.
    fn by_the_forward(&self, checkpointed: bool) -> (u64, u64) {
        let layers = 0..self.config.num_hidden_layers;
        let ends = self.embedding() + self.shared(checkpointed) + self.head() + self.routing();
        if !checkpointed {
            return (ends + layers.map(|layer| self.block(layer)).sum::<u64>(), 0);
        }
        // A block's result, and with a router its logits beside it, once in one and once apart.
        let results = layers.clone().map(|layer| match self.config.experts_of(layer) {
            None => self.width(),
            Some(experts) => 2 * (self.width() + experts.num_experts as u64),
        });
        let running = layers.map(|layer| self.block(layer)).max().unwrap_or(0) + 4 * self.n * self.width();
        (ends + 4 * self.n * results.sum::<u64>(), running)
    }

    /// The rows of the embedding, scaled, with positions added; the final norm.
    fn embedding(&self) -> u64 {
        let mut numbers = 2 * self.width();
        if self.config.scale_embeddings {
            numbers += self.width();
        }
        if self.config.learned_positions {
            numbers += 2 * self.width() + 1;
        }
        4 * self.n * numbers
    }

    /// What all blocks share: cosines and sines, and the first key that each token sees. A block that runs again holds
    /// them even if it does not turn.
    fn shared(&self, checkpointed: bool) -> u64 {
        let mut tables = 0;
        if checkpointed || !self.config.learned_positions {
            tables += 1 + u64::from(self.config.rope_local_theta.is_some());
        }
        4 * self.n * (tables * self.config.rotary_dim() as u64 + u64::from(self.config.sliding_window.is_some()))
    }

    /// The output layer: both its gradients are made with the loss; with a soft cap all logits stand, four times.
    fn head(&self) -> u64 {
        let vocab = self.config.vocab_size as u64;
        match self.config.final_logit_softcapping {
            _ if self.head != Head::LanguageModel => 0, // a number for each token at most
            Some(_) => 4 * self.n * 4 * vocab,
            None => 4 * (self.n + vocab) * self.width() + 8 * self.n,
        }
    }

    /// The losses of the routers, over the logits of all layers.
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

        let mut bytes = if self.is_half(attention_in, attention_out) && self.is_plain_attention() {
            self.attention_half()
        } else {
            4 * self.n * (attention_in * width + self.attention(layer) + 2 * attention_out * width)
        };
        bytes += match config.experts_of(layer) {
            None if !config.parallel_residual && self.is_half(mlp_in, mlp_out) && self.is_plain_network() => {
                let inner = config.intermediate_size as u64;
                self.n * (self.number() + 4) * width + self.network(inner) + 4 * width
            }
            None => {
                let result = linear(width, config.mlp_bias) + (mlp_in + 2 * mlp_out) * width;
                self.network_alone(config.intermediate_size as u64, mlp_out) + 4 * self.n * result
            }
            Some(experts) => self.experts(experts) + 4 * self.n * (mlp_in + mlp_out + 1) * width,
        };
        if config.norm == NormKind::RmsPlusOne {
            bytes += 4 * norms.iter().sum::<u64>() * width; // 1 + w
        }
        bytes
    }

    /// Whether a norm before a part, and none behind it, lets the part be half of a block in one operation.
    fn is_half(&self, norm_in: u64, norm_out: u64) -> bool {
        norm_in > norm_out && self.config.norm != NormKind::Layer
    }

    fn is_plain_attention(&self) -> bool {
        self.config.attention_bias == AttentionBias::None && self.config.qk_norm.is_none()
    }

    fn is_plain_network(&self) -> bool {
        self.config.gated_mlp && !self.config.mlp_bias
    }

    /// Bytes of a number that is only multiplied again.
    fn number(&self) -> u64 {
        if self.precision == Precision::F32 { 4 } else { 2 }
    }

    /// Attention from norm to residual stream in one operation, with its parameters side by side.
    fn attention_half(&self) -> u64 {
        let (width, (q, kv)) = (self.width(), self.heads());
        let kept = self.number() * (width + q + 2 * kv) + 4 * (q + self.config.num_attention_heads as u64);
        self.n * (kept + 4 * width) + 4 * (1 + q + 2 * kv) * width
    }

    /// Numbers of a token that attention keeps step by step, between its norms.
    fn attention(&self, layer: usize) -> u64 {
        let (config, (q, kv)) = (self.config, self.heads());
        let bias = config.attention_bias != AttentionBias::None;
        let turns = !config.learned_positions && !config.layers_without_rope.contains(&layer);
        let mut numbers = linear(q, bias) + 2 * linear(kv, bias);
        numbers += u64::from(config.qk_norm.is_some()) * (q + kv) + u64::from(turns) * (q + kv);
        numbers += q + config.num_attention_heads as u64; // the mixture, the logarithms of the softmaxes' sums
        numbers + linear(self.width(), config.attention_bias == AttentionBias::All)
    }

    /// A gated network in one operation: the branches and their product; its parameters side by side.
    fn network(&self, inner: u64) -> u64 {
        3 * self.n * self.number() * inner + 4 * 2 * inner * self.width()
    }

    /// A network that is no half of a block, but for its result; without a norm behind it the last map adds to the stream.
    fn network_alone(&self, inner: u64, mlp_out: u64) -> u64 {
        match mlp_out > 0 && self.is_plain_network() {
            true => self.n * self.number() * self.width() + self.network(inner),
            false => self.steps_of_a_network(inner),
        }
    }

    /// A network before its last map, step by step.
    fn steps_of_a_network(&self, inner: u64) -> u64 {
        let (gated, bias) = (self.config.gated_mlp, self.config.mlp_bias);
        4 * self.n * (linear(inner, bias) * (1 + u64::from(gated)) + inner)
    }

    /// The router, the tokens sorted by expert, the experts, and their results put back, weighed and summed.
    fn experts(&self, experts: &ExpertsConfig) -> u64 {
        let (e, k) = (experts.num_experts as u64, experts.num_experts_per_tok as u64);
        let inner = experts.moe_intermediate_size as u64;
        let shares = if experts.norm_topk_prob { 3 * k + 1 } else { 2 * k };
        let router = e + (3 * e + 2) + shares;
        let pairs = k * (5 * self.width() + 2);
        let network = match self.is_plain_network() {
            true => k * self.n * self.number() * (3 * inner + self.width()) + e * 4 * 2 * inner * self.width(),
            false => k * self.steps_of_a_network(inner),
        };
        network + 4 * self.n * (router + pairs + self.width())
    }

    /// The largest step of a block's backward. candle makes a gradient, zeros to add it to, and their sum.
    fn at_work_in_a_block(&self) -> u64 {
        let (n, width, (q, kv)) = (self.n, self.width(), self.heads());
        let inner = self.config.intermediate_size as u64;
        let taken = self.config.experts.as_ref().map_or(0, |experts| experts.num_experts_per_tok as u64);
        let names = self.config.norm_placement.names();
        let [attention_out, mlp_out] = [names.attention_out, names.mlp_out].map(|name| u64::from(name.is_some()));
        let feed_forward = match self.is_half(1, mlp_out) && self.is_plain_network() {
            true => n * (2 * self.number() * inner + 12 * width) + 4 * 3 * inner * width,
            false => 4 * (3 * n * (inner + width) + 2 * inner * width),
        };
        let attention = match self.is_half(1, attention_out) && self.is_plain_attention() {
            true => n * (self.number() * (q + 2 * kv) + 4 * (q.max(width) + 2 * width)) + 4 * (2 * q + 2 * kv) * width,
            false => 4 * n * (4 * q + 4 * kv + width),
        };
        feed_forward.max(attention).max(16 * n * taken * width)
    }

    /// That of the embedding and the output layer: the embedding's gradient is copied as rows are added to it; that of a
    /// soft cap holds all that it was made of until the next step is done.
    fn at_work_at_the_ends(&self) -> u64 {
        let vocab = self.config.vocab_size as u64;
        let capped = self.config.final_logit_softcapping.is_some() && self.head == Head::LanguageModel;
        let logits = if capped { 9 * self.n * vocab } else { 0 };
        4 * logits.max(vocab * self.width())
    }
}
