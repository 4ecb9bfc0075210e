//! MLP block: the MLP sub-layer of a decoder, from its norm to the residual connection, or the MLP of an expert.

mod cpu;
mod reference;

use candle_core::{Result, Tensor};

pub use cpu::saved_bytes;

use super::activation::Activation;
use super::norm::{Norm, apply_norm};
use super::projection::Projection;

/// The weights and inputs of [`mlp_block`].
#[derive(Debug, Clone)]
pub struct MlpBlock<'a> {
    /// The norm before the projections.
    pub norm: Option<Norm>,
    /// Gate projection, `(inner, hidden)`; the activation is applied to it. Without it, to the up projection.
    pub gate: Option<Projection<'a>>,
    /// Up projection, `(inner, hidden)`.
    pub up: Projection<'a>,
    /// Down projection, `(hidden, inner)`.
    pub down: Projection<'a>,
    /// The activation.
    pub activation: Activation,
    /// The norm after the down projection.
    pub output_norm: Option<Norm>,
    /// The residual stream, to which the result is added.
    pub residual: Option<&'a Tensor>,
}

impl<'a> MlpBlock<'a> {
    /// A gated MLP with the projections `gate`, `up` and `down`, and without the optional parts.
    pub fn gated([gate, up, down]: [Projection<'a>; 3], activation: Activation) -> Self {
        Self { norm: None, gate: Some(gate), up, down, activation, output_norm: None, residual: None }
    }
}

/// `residual + down(activation(gate(y)) · up(y))` with `y = norm(x)`, or `residual + down(activation(up(y)))` without a gate.
/// The norms and the residual are optional.
///
/// `x`, the residual and the result are `(…, hidden)`. In training, a gated MLP is one fused operation with its biases and
/// `LoRA` adapters, and with its `RMSNorm` and residual connection if the residual is `x`; its backward runs once. With
/// `DoRA` or without a gate the parts run one by one, with the same result.
pub fn mlp_block(x: &Tensor, block: &MlpBlock) -> Result<Tensor> {
    if let Some(inputs) = cpu::Inputs::with_residual(x, block) {
        return cpu::fused(x, inputs, block.activation);
    }
    let y = apply_norm(block.norm.as_ref(), x)?;
    // Only the down projection of single operations can add the residual.
    let separate = block.residual.is_none() || block.output_norm.is_some();
    match cpu::Inputs::of_mlp(&y, block).filter(|_| separate) {
        Some(inputs) => reference::add_to_residual(&cpu::fused(&y, inputs, block.activation)?, block),
        None => reference::mlp_block(&y, block),
    }
}
