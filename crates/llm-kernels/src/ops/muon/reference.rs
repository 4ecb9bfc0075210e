//! A step of Muon in candle operations.

use candle_core::{Result, Tensor};

use super::{COEFFICIENTS, ITERATIONS, MIN_NORM, MuonStep};

/// [`super::muon_step`].
pub(super) fn reference(weight: &Tensor, grad: &Tensor, momentum: &Tensor, step: &MuonStep) -> Result<()> {
    let mu = step.momentum;
    let grad = (grad.to_dtype(weight.dtype())? * (step.gradient_scale * (1. - mu)))?;
    let new = ((momentum.to_dtype(weight.dtype())? * mu)? + &grad)?;
    let update = orthogonalized(&(grad + (&new * mu)?)?)?;
    let decayed = (weight * step.decay())?;
    weight.slice_set(&(decayed - (update * step.step_size(weight.dims2()?))?)?.contiguous()?, 0, 0)?;
    momentum.slice_set(&new.to_dtype(momentum.dtype())?, 0, 0)
}

/// The matrix `x` with its singular values brought near 1.
fn orthogonalized(x: &Tensor) -> Result<Tensor> {
    let [a, b, c] = COEFFICIENTS;
    let (rows, cols) = x.dims2()?;
    let mut y = if rows > cols { x.t()?.contiguous()? } else { x.clone() };
    y = y.broadcast_div(&y.sqr()?.sum_all()?.sqrt()?.maximum(MIN_NORM)?)?;
    for _ in 0..ITERATIONS {
        let gram = y.matmul(&y.t()?.contiguous()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        y = ((&y * a)? + polynomial.matmul(&y)?)?;
    }
    if rows > cols { y.t()?.contiguous() } else { Ok(y) }
}
