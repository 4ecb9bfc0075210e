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
//!
//! A debug build of a program that uses this crate needs `[profile.dev.package."*"]` with `opt-level = 3` in its `Cargo.toml`:
//! Cargo ignores the profiles of a dependency, and tensor code without optimisation is too slow to run models.
//!
//! `examples/gradients.rs` is an example to copy: gradient descent on an attention layer.
#![allow(clippy::inline_always)] // a helper is compiled with the SIMD features of its caller only if it is inlined

mod cpu;
mod ops;
mod quant;
#[cfg(test)]
mod testing;

pub use cpu::gemm::{FEW_ROWS, Precision, matmul_flops, peak_flops};
pub use cpu::threads::{default_threads, spin_workers, with_threads};
pub use cpu::unit::skip_on_reference_path;
pub use ops::activation::{Activation, activate, gated_activation};
pub use ops::adamw::{AdamWStep, adamw_step, sum_of_squares};
pub use ops::attention::{
    AttentionMask, AttentionParams, KvPages, PagedKv, Sequences, attention, attention_weights, paged_attention,
};
pub use ops::attention_block::{AttentionBlock, AttentionHeads, HeadHook, QkNorm, attention_block};
pub use ops::cross_entropy::{IGNORE_INDEX, cross_entropy};
pub use ops::distillation::{
    DistillationLoss, DistillationOptions, Divergence, HeadInputs, TeacherLogits, TopKLogprobs, distillation_of_logits,
    linear_distillation,
};
pub use ops::dropout::{Dropout, dropout, residual_dropout};
pub use ops::head::{CrossEntropyLoss, cross_entropy_z, linear_cross_entropy, linear_cross_entropy_z};
pub use ops::kl_divergence::kl_divergence;
pub use ops::layer_norm::layer_norm;
pub use ops::linear::{linear, linear_reshaped, linear_residual, linear_with_precision};
pub use ops::linear_mapped::{MappedWeight, linear_mapped};
pub use ops::linear_quantized::linear_quantized;
pub use ops::logits::{count_up_to, exp_logits, logit_range, sum_up_to, sum_weights};
pub use ops::mlp_block::{MlpBlock, mlp_block};
pub use ops::muon::{MuonStep, muon_step};
pub use ops::norm::Norm;
pub use ops::projection::{LoraWeights, Projection, ProjectionWeight};
pub use ops::recompute::{RecomputedGradients, recompute};
pub use ops::replace_rows::replace_rows;
pub use ops::rms_norm::rms_norm;
pub use ops::rotary::{RotaryCache, RotaryFrequencies, RotaryTable, rope};
pub use ops::token_logprobs::{token_logprobs, token_logprobs_and_entropies};
pub use quant::{BlockFormat, QuantizedWeight};

/// Bytes that the fast path of an operation saves for its backward, apart from its inputs and its result.
pub mod saved_bytes {
    pub use crate::ops::attention::saved_bytes as attention;
    pub use crate::ops::attention_block::saved_bytes as attention_block;
    pub use crate::ops::head::saved_bytes as linear_cross_entropy;
    pub use crate::ops::mlp_block::saved_bytes as mlp_block;
}

use candle_core::{DType, Device, Tensor};

/// True if the fused path supports the tensor, f32 in CPU memory, and is not switched off.
fn is_fused(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && x.device().is_cpu() && !cpu::unit::reference_only()
}

/// The dtype in which a reference computes what f32 is not precise enough for: f64, which Metal does not have.
fn widest_dtype(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

/// True if a fused block with a backward applies to these f32 tensors in CPU memory: none is empty, and one needs a gradient.
fn is_trained(x: &Tensor, params: &[&Tensor]) -> bool {
    let mut all = params.iter().copied().chain([x]);
    all.clone().all(|x| x.elem_count() > 0) && all.any(Tensor::track_op)
}
