//! Fused operations for training language models on a CPU, each with its backward, as functions on candle tensors.
//!
//! Each function has two implementations: a *reference* composed of candle operations, for every dtype and device, which
//! the tests use as the oracle; and a *fused* path for f32 on the CPU. The fused path is compiled for several SIMD
//! instruction sets, the widest one of the machine is chosen at run time, and loops run on rayon's thread pool. Both are
//! differentiable. This crate knows nothing of models, file formats or training loops.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//!
//! // Two tokens, a vocabulary of four; the label of the second token is ignored.
//! let logits = Var::from_tensor(&Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?)?;
//! let loss = llm_kernels::cross_entropy(&logits, &[3, -100])?; // (2,)
//! assert_eq!(loss.to_vec1::<f32>()?, [4f32.ln(), 0.]);
//! let grads = loss.sum_all()?.backward()?;
//! assert!(grads.get(&logits).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Every function returns candle's `Result`. It is an error if shapes do not match or if candle does not support the
//! device. Where to look next: `llm-model` builds its decoder from these functions, `llm-train` its losses.
#![allow(clippy::inline_always)] // a helper is compiled with the SIMD features of its caller only if it is inlined

mod activation;
mod adamw;
mod attention;
mod attention_block;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bytes;
mod cross_entropy;
mod distillation;
mod head;
mod kl_divergence;
mod layer_norm;
mod linear;
mod mapped_weight;
mod matmul;
mod mlp_block;
#[cfg(test)]
mod non_finite;
mod quant;
mod recompute;
mod rms_norm;
mod rotary;
mod simd;
mod slice_op;
#[cfg(test)]
mod small_sizes;
#[cfg(test)]
mod testing;
mod threads;
mod token_logprobs;
mod uninit;
mod unit;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use activation::{Activation, activate, gated_activation};
pub use adamw::{AdamWStep, adamw_step, sum_of_squares};
pub use attention::{AttentionMask, AttentionParams, attention, attention_weights};
pub use attention_block::{AttentionWeights, attention_block};
pub use bytes::Bytes;
pub use cross_entropy::{IGNORE_INDEX, cross_entropy};
pub use distillation::{DistillationLoss, HeadInputs, linear_distillation};
pub use head::{CrossEntropyOptions, linear_cross_entropy};
pub use kl_divergence::kl_divergence;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_reshaped, linear_residual, linear_with_precision};
pub use mapped_weight::{MappedWeight, linear_mapped};
pub use matmul::{Precision, peak_flops};
pub use mlp_block::{MlpWeights, mlp_block};
pub use quant::{BlockFormat, QuantizedWeight, linear_quantized};
pub use recompute::{RecomputedGradients, recompute};
pub use rms_norm::rms_norm;
pub use rotary::{RotaryFrequencies, RotaryTable, rope};
pub use threads::{default_threads, join, spin_workers, with_threads};
pub use token_logprobs::{token_logprobs, token_logprobs_and_entropies};

use candle_core::{DType, Tensor};

/// True if the fused path supports the tensor: f32 in CPU memory.
fn is_fused(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && x.device().is_cpu()
}

/// True if a fused block with a backward applies: f32 on the CPU, no tensor is empty, and some tensor needs a gradient.
fn is_differentiated(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| is_fused(x) && x.elem_count() > 0) && tensors.iter().any(|x| x.track_op())
}
