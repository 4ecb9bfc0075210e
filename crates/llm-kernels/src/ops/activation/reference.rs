//! The activations in candle operations.

use candle_core::{Result, Tensor};

use super::{Activation, SQRT_2_OVER_PI};

/// `activation(x)`.
pub(super) fn reference(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.)?,
        Activation::GeluTanh => {
            let cube = ((x * x)? * x)?;
            let inner = ((x + (cube * 0.044_715)?)? * SQRT_2_OVER_PI)?;
            (x * 0.5)? * (inner.tanh()? + 1.)?
        }
    }
}
