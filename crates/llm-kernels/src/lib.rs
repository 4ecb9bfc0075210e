//! What candle lacks for training language models on a CPU: fused operations with their own backward.
//!
//! Each function here is a plain function on candle tensors. Behind it stand two ways to the same result: the
//! *naive* composition of candle operations, which serves every dtype and device and is the oracle of the tests, and
//! a *fused* path for f32 on the CPU, compiled for the widest vector unit of the machine at run time and spread over
//! rayon's pool. Both have a backward. This crate knows nothing of models, files or training.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//!
//! // Two tokens, a vocabulary of four; the second token's label is ignored.
//! let logits = Var::from_tensor(&Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?)?;
//! let loss = llm_kernels::cross_entropy(&logits, &[3, -100])?; // (2,)
//! assert_eq!(loss.to_vec1::<f32>()?, [4f32.ln(), 0.]);
//! let grads = loss.sum_all()?.backward()?;
//! assert!(grads.get(&logits).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Every function returns candle's `Result`; it fails on shapes that do not fit and on devices that candle does not
//! support. Where to look next: `llm-model` builds its decoder from these functions, `llm-train` its losses.
#![allow(clippy::inline_always)] // a vector unit's features reach a helper only if it is inlined

mod activation;
mod adamw;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bytes;
mod cross_entropy;
mod distillation;
mod feed_forward;
mod head;
mod kl;
mod layer_norm;
mod linear;
mod matmul;
#[cfg(test)]
mod non_finite;
mod norm;
mod operation;
mod quant;
mod recompute;
mod rope;
mod self_attention;
mod simd;
#[cfg(test)]
mod sizes;
mod stored;
#[cfg(test)]
mod testing;
mod threads;
mod token_logprobs;
mod unit;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod written;

pub use activation::{Activation, activate, gated};
pub use adamw::{AdamWStep, adamw_step, square_sum};
pub use attention::{Scores, Visible, attention, attention_weights};
pub use bytes::Bytes;
pub use cross_entropy::{IGNORED, cross_entropy};
pub use distillation::{Distillation, Output, linear_distillation};
pub use feed_forward::{GatedWeights, feed_forward};
pub use head::{CrossEntropyOptions, linear_cross_entropy};
pub use kl::kl_divergence;
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_add, linear_as, linear_in};
pub use matmul::{Precision, peak_flops};
pub use norm::rms_norm;
pub use quant::{BlockFormat, QuantizedWeight, linear_quantized};
pub use recompute::{Recomputed, recompute};
pub use rope::{Rotary, Rotation, rope};
pub use self_attention::{Projections, self_attention};
pub use stored::{StoredWeight, linear_stored};
pub use threads::{awake, both, default_threads, with_threads};
pub use token_logprobs::{token_logprobs, token_logprobs_and_entropies};

use candle_core::{DType, Tensor};

/// True where the fused path serves: f32 in the CPU's memory.
fn is_fused(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && x.device().is_cpu()
}

/// True where an operation of several steps serves: the fused path, with something in it, and a backward to come.
fn is_differentiated(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| is_fused(x) && x.elem_count() > 0) && tensors.iter().any(|x| x.track_op())
}
