//! A step of AdamW in candle operations.

use candle_core::{DType, Result, Tensor};

use super::{AdamWStep, bias_correction};
use crate::cpu::simd::f32_epsilon;

/// [`super::adamw_step`].
pub(super) fn reference(weight: &Tensor, grad: &Tensor, moments: &Tensor, step: &AdamWStep) -> Result<()> {
    let (m, v) = (moments.get(0)?, moments.get(1)?);
    let g = (grad.flatten_all()?.to_dtype(DType::F32)? * step.gradient_scale)?;
    let m = ((m * step.beta1)? + (&g * (1. - step.beta1))?)?;
    let v = ((v * step.beta2)? + (g.sqr()? * (1. - step.beta2))?)?;
    let denominator = ((&v / bias_correction(step.beta2, step.step))?.sqrt()? + f64::from(f32_epsilon(step.eps)))?;
    let update = ((&m / bias_correction(step.beta1, step.step))? / denominator)?.reshape(weight.dims())?;
    let decayed = (weight * (1. - step.learning_rate * step.weight_decay))?;
    let new = (decayed - (update * step.learning_rate)?.to_dtype(weight.dtype())?)?;
    weight.slice_set(&new, 0, 0)?;
    moments.slice_set(&Tensor::stack(&[m, v], 0)?, 0, 0)
}
