//! The norm of a block: `RMSNorm` or `LayerNorm` with its weights.

use candle_core::{Result, Tensor};

use super::layer_norm::layer_norm;
use super::rms_norm::rms_norm;

/// A norm over the last dimension, n.
#[derive(Debug, Clone)]
pub enum Norm {
    /// [`rms_norm`].
    Rms {
        /// `(n,)`.
        weight: Tensor,
        /// Added to the mean square.
        eps: f64,
    },
    /// [`layer_norm`].
    Layer {
        /// `(n,)`.
        weight: Tensor,
        /// `(n,)`.
        bias: Tensor,
        /// Added to the variance.
        eps: f64,
    },
}

impl Norm {
    /// `(…, n)` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => layer_norm(x, weight, bias, *eps),
        }
    }

    /// The weight and epsilon of an `RMSNorm`.
    pub(crate) fn rms(&self) -> Option<(&Tensor, f64)> {
        match self {
            Self::Rms { weight, eps } => Some((weight, *eps)),
            Self::Layer { .. } => None,
        }
    }
}

/// `norm(x)`, or `x` without a norm.
pub(crate) fn apply_norm(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
