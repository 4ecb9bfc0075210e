//! The operations. Each has a reference, composed of candle operations, and a fast path for the CPU.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod attention_block;
pub(crate) mod cross_entropy;
pub(crate) mod distillation;
pub(crate) mod dropout;
pub(crate) mod few_rows;
pub(crate) mod fused_projection;
pub(crate) mod head;
pub(crate) mod kl_divergence;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod linear_mapped;
pub(crate) mod linear_quantized;
pub(crate) mod logits;
pub(crate) mod mlp_block;
pub(crate) mod muon;
pub(crate) mod norm;
pub(crate) mod projection;
pub(crate) mod recompute;
pub(crate) mod replace_rows;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod token_logprobs;
