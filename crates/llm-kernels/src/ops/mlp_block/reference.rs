//! The MLP block as single operations, for all weights, dtypes and devices.

use candle_core::{Result, Tensor};

use super::MlpBlock;
use crate::ops::activation::{activate, gated_activation};
use crate::ops::norm::apply_norm;
use crate::ops::projection::Projection;

/// [`super::mlp_block`] of `x` after the first norm.
pub fn mlp_block(x: &Tensor, block: &MlpBlock) -> Result<Tensor> {
    let inner = inner(x, block)?;
    match (block.residual, &block.output_norm) {
        (Some(residual), None) => block.down.forward_residual(&inner, residual),
        _ => add_to_residual(&block.down.forward(&inner)?, block),
    }
}

/// `residual + output_norm(y)`.
pub fn add_to_residual(y: &Tensor, block: &MlpBlock) -> Result<Tensor> {
    let y = apply_norm(block.output_norm.as_ref(), y)?;
    block.residual.map_or_else(|| Ok(y.clone()), |residual| residual + &y)
}

/// The input of the down projection, `(…, inner)`.
fn inner(x: &Tensor, block: &MlpBlock) -> Result<Tensor> {
    let Some(gate) = &block.gate else {
        return activate(&block.up.forward(x)?, block.activation);
    };
    let [gate, up] = match Projection::forward_joint([gate, &block.up], x)? {
        Some(both) => both,
        None => [gate.forward(x)?, block.up.forward(x)?],
    };
    gated_activation(&gate, &up, block.activation)
}
