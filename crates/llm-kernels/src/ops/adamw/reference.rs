//! A step of AdamW in candle operations.

use candle_core::{DType, Device, Result, Tensor};

use super::cpu::{round_moments, rounding_seed};
use super::{AdamWStep, bias_correction};
use crate::cpu::simd::f32_epsilon;

/// [`super::adamw_step`].
pub(super) fn reference(weight: &Tensor, grad: &Tensor, moments: &Tensor, step: &AdamWStep) -> Result<()> {
    let wide = moments.to_dtype(DType::F32)?;
    let (m, v) = (wide.get(0)?, wide.get(1)?);
    let g = (grad.flatten_all()?.to_dtype(DType::F32)? * step.gradient_scale)?;
    let m = ((m * step.beta1)? + (&g * (1. - step.beta1))?)?;
    let v = ((v * step.beta2)? + (g.sqr()? * (1. - step.beta2))?)?;
    let denominator = ((&v / bias_correction(step.beta2, step.step))?.sqrt()? + f64::from(f32_epsilon(step.eps)))?;
    let update = ((&m / bias_correction(step.beta1, step.step))? / denominator)?.reshape(weight.dims())?;
    let decayed = (weight * (1. - step.learning_rate * step.weight_decay))?;
    let new = (decayed - (update * step.learning_rate)?.to_dtype(weight.dtype())?)?;
    weight.slice_set(&new, 0, 0)?;
    let new = match moments.dtype() {
        DType::BF16 => rounded(&m, &v, step)?.to_device(moments.device())?,
        _ => Tensor::stack(&[m, v], 0)?,
    };
    moments.slice_set(&new, 0, 0)
}

/// The moments in bf16 with the random numbers of the CPU's fast path, in CPU memory.
fn rounded(m: &Tensor, v: &Tensor, step: &AdamWStep) -> Result<Tensor> {
    let values = |x: &Tensor| x.to_device(&Device::Cpu)?.to_vec1::<f32>();
    let (m, v) = (values(m)?, values(v)?);
    let (n, seed) = (m.len(), rounding_seed(step.step, m.len()));
    let pairs = m.into_iter().zip(v).zip(0u32..).map(|((m, v), index)| round_moments(m, v, seed.wrapping_add(index)));
    let (m, v): (Vec<_>, Vec<_>) = pairs.map(|[m, v]| (m, v)).unzip();
    Tensor::from_vec([m, v].concat(), (2, n), &Device::Cpu)
}
