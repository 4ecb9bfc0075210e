//! One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over each tensor, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

const CHUNK: usize = 32768;

/// The numbers of one step of [`adamw_step`], already corrected for the step count by the caller.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the *bias-corrected* second moment, as PyTorch does.
    pub eps: f64,
    /// Decoupled decay: the weight is first multiplied by `1 - learning_rate * weight_decay`.
    pub weight_decay: f64,
    /// The step's number from 1, for the correction of the moments' bias.
    pub step: u64,
    /// The gradient is multiplied by this before anything else (clipping, averaging over micro-batches).
    pub gradient_scale: f64,
}

/// Updates `weight` and `moments` in place. `moments` is `(2, n)`: first and second moment of the `n` weights.
///
/// All three are f32, contiguous and on the same device.
pub fn adamw_step(weight: &Tensor, grad: &Tensor, moments: &Tensor, step: &AdamWStep) -> Result<()> {
    if moments.dims() != [2, weight.elem_count()] || grad.dims() != weight.dims() {
        bail!("adamw_step: weight {:?}, gradient {:?}, moments {:?}", weight.dims(), grad.dims(), moments.dims());
    }
    let grad = grad.contiguous()?;
    if crate::is_fused(weight) {
        return weight.inplace_op2(&grad, &OnWeight { moments, step });
    }
    let (m, v) = (moments.get(0)?, moments.get(1)?);
    let g = (grad.flatten_all()?.to_dtype(DType::F32)? * step.gradient_scale)?;
    let m = ((m * step.beta1)? + (&g * (1. - step.beta1))?)?;
    let v = ((v * step.beta2)? + (g.sqr()? * (1. - step.beta2))?)?;
    let denominator = ((&v / bias(step.beta2, step.step))?.sqrt()? + step.eps)?;
    let update = ((&m / bias(step.beta1, step.step))? / denominator)?.reshape(weight.dims())?;
    let decayed = (weight * (1. - step.learning_rate * step.weight_decay))?;
    let new = (decayed - (update * step.learning_rate)?.to_dtype(weight.dtype())?)?;
    weight.slice_set(&new, 0, 0)?;
    moments.slice_set(&Tensor::stack(&[m, v], 0)?, 0, 0)
}

/// `Σ x²` of all elements, as the global gradient norm needs it; summed in f64.
pub fn square_sum(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    if !crate::is_fused(&x) {
        return x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    }
    let (storage, layout) = x.storage_and_layout();
    let data = crate::norm::cpu(&storage, layout)?;
    let parts: Vec<f64> = data.par_chunks(CHUNK).map(chunk_square_sum).collect();
    Ok(parts.iter().sum())
}

#[pulp::with_simd(chunk_square_sum = crate::unit::arch())]
#[inline(always)]
fn chunk_square_sum_simd<S: pulp::Simd>(_simd: S, x: &[f32]) -> f64 {
    x.chunks(1024).map(|x| f64::from(crate::simd::sum2(x, x, |a, b| a * b))).sum()
}

fn bias(beta: f64, step: u64) -> f64 {
    1. - beta.powf(step as f64)
}

fn f32s_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("adamw_step: weights and moments must be contiguous f32"),
    }
}

/// The step with the weight's memory in hand. candle lends an operation one tensor to change, so it takes the moments' memory
/// by a second operation within.
struct OnWeight<'a> {
    moments: &'a Tensor,
    step: &'a AdamWStep,
}

impl InplaceOp2 for OnWeight<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, ws: &mut CpuStorage, wl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<()> {
        let weight = RefCell::new(f32s_mut(ws, wl)?);
        self.moments.inplace_op1(&OnMoments { weight, grad: crate::simd::contiguous(gs, gl)?, step: self.step })
    }
}

/// The step with the memory of all three tensors in hand.
struct OnMoments<'a> {
    weight: RefCell<&'a mut [f32]>,
    grad: &'a [f32],
    step: &'a AdamWStep,
}

impl InplaceOp1 for OnMoments<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, ms: &mut CpuStorage, ml: &Layout) -> Result<()> {
        let (m, v) = f32s_mut(ms, ml)?.split_at_mut(self.grad.len());
        let numbers = Numbers::of(self.step);
        self.weight
            .borrow_mut()
            .par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .zip(self.grad.par_chunks(CHUNK))
            .for_each(|((w, (m, v)), grad)| update(w, m, v, grad, &numbers));
        Ok(())
    }
}

/// What the loop multiplies with.
struct Numbers {
    scale: f32,
    betas: [f32; 2],
    decay: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Numbers {
    fn of(step: &AdamWStep) -> Self {
        Self {
            scale: step.gradient_scale as f32,
            betas: [step.beta1 as f32, step.beta2 as f32],
            decay: (1. - step.learning_rate * step.weight_decay) as f32,
            rate: (step.learning_rate / bias(step.beta1, step.step)) as f32,
            root: (1. / bias(step.beta2, step.step)).sqrt() as f32,
            eps: step.eps as f32,
        }
    }
}

#[pulp::with_simd(update = crate::unit::arch())]
#[inline(always)]
fn update_simd<'a, S: pulp::Simd>(
    _simd: S,
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    grad: &'a [f32],
    numbers: &'a Numbers,
) {
    let &Numbers { scale, betas: [b1, b2], decay, rate, root, eps } = numbers;
    for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(grad) {
        let g = g * scale;
        *m = *m * b1 + g * (1. - b1);
        *v = *v * b2 + g * g * (1. - b2);
        *w = *w * decay - rate * *m / (v.sqrt() * root + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use candle_core::{Device, Var};

    /// Three steps of the paper's Algorithm 2 on one weight, in f64, written out.
    fn by_hand(mut w: f64, grads: &[f64], lr: f64, b1: f64, b2: f64, eps: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0., 0.);
        for (i, g) in grads.iter().enumerate() {
            let t = (i + 1) as i32;
            m = b1 * m + (1. - b1) * g;
            v = b2 * v + (1. - b2) * g * g;
            w -= lr * decay * w;
            w -= lr * (m / (1. - b1.powi(t))) / ((v / (1. - b2.powi(t))).sqrt() + eps);
        }
        w
    }

    #[test]
    fn three_steps_follow_the_algorithm() -> Result<()> {
        let n = 70_000; // more than one chunk
        let start = random(&[n], 5, 1.)?;
        let weight = Var::from_tensor(&start)?;
        let moments = Tensor::zeros((2, n), DType::F32, &Device::Cpu)?;
        let grads: Vec<Tensor> = (0..3).map(|i| random(&[n], 10 + i, 0.5)).collect::<Result<_>>()?;
        for (i, grad) in grads.iter().enumerate() {
            let step = AdamWStep {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-5,
                weight_decay: 0.1,
                step: i as u64 + 1,
                gradient_scale: 0.5,
            };
            adamw_step(&weight, grad, &moments, &step)?;
        }
        let (start, end) = (start.to_vec1::<f32>()?, weight.to_vec1::<f32>()?);
        let grads: Vec<Vec<f32>> = grads.iter().map(Tensor::to_vec1::<f32>).collect::<Result<_>>()?;
        for i in (0..n).step_by(997) {
            let g: Vec<f64> = grads.iter().map(|g| f64::from(g[i]) * 0.5).collect();
            let expected = by_hand(f64::from(start[i]), &g, 0.01, 0.9, 0.95, 1e-5, 0.1);
            assert!((f64::from(end[i]) - expected).abs() < 1e-5, "{} is not {expected}", end[i]);
        }
        Ok(())
    }

    #[test]
    fn square_sum_adds_every_element() -> Result<()> {
        let x = Tensor::ones((1001, 100), DType::F32, &Device::Cpu)?;
        assert_eq!(square_sum(&x)?, 100_100.);
        assert_eq!(square_sum(&x.to_dtype(DType::F64)?)?, 100_100.);
        Ok(())
    }

    #[test]
    fn moments_of_another_size_are_an_error() -> Result<()> {
        let (w, m) = (random(&[3], 1, 1.)?, random(&[2, 4], 1, 1.)?);
        let step = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.9,
            eps: 1e-8,
            weight_decay: 0.,
            step: 1,
            gradient_scale: 1.,
        };
        assert!(adamw_step(&w, &w, &m, &step).is_err());
        Ok(())
    }
}
