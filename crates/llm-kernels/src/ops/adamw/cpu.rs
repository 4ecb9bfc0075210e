//! A step of AdamW on the CPU in f32, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::{AdamWStep, bias_correction};
use crate::cpu::contiguous;
use crate::cpu::simd::{f32_epsilon, sum2};

const CHUNK: usize = 32768;

/// The sum of the squares, in f64.
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
    parts.iter().sum()
}

#[pulp::with_simd(chunk_sum_of_squares = crate::cpu::unit::arch())]
#[inline(always)]
fn chunk_sum_of_squares_simd<S: pulp::Simd>(_simd: S, x: &[f32]) -> f64 {
    x.chunks(1024).map(|x| f64::from(sum2(x, x, |a, b| a * b))).sum()
}

fn f32s_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("adamw_step: weights and moments must be contiguous f32"),
    }
}

/// The step with access to the weight's memory. candle gives an operation mutable access to one tensor, so it takes
/// the moments' memory with a second, nested operation.
pub(super) struct WithWeight<'a> {
    pub moments: &'a Tensor,
    pub step: &'a AdamWStep,
}

impl InplaceOp2 for WithWeight<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, ws: &mut CpuStorage, wl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<()> {
        let weight = RefCell::new(f32s_mut(ws, wl)?);
        self.moments.inplace_op1(&WithMoments { weight, grad: contiguous(gs, gl)?, step: self.step })
    }
}

/// The step with access to the memory of all three tensors.
struct WithMoments<'a> {
    weight: RefCell<&'a mut [f32]>,
    grad: &'a [f32],
    step: &'a AdamWStep,
}

impl InplaceOp1 for WithMoments<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, ms: &mut CpuStorage, ml: &Layout) -> Result<()> {
        let (m, v) = f32s_mut(ms, ml)?.split_at_mut(self.grad.len());
        let constants = StepConstants::of(self.step);
        self.weight
            .borrow_mut()
            .par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .zip(self.grad.par_chunks(CHUNK))
            .for_each(|((w, (m, v)), grad)| update(w, m, v, grad, &constants));
        Ok(())
    }
}

/// The constants of the inner loop.
struct StepConstants {
    scale: f32,
    betas: [f32; 2],
    /// One minus each beta, computed in f64: `1 - 0.999` in f32 has a relative error of 5e-5.
    one_minus_betas: [f32; 2],
    decay: f32,
    step_size: f32,
    v_correction: f32,
    eps: f32,
}

impl StepConstants {
    fn of(step: &AdamWStep) -> Self {
        Self {
            scale: step.gradient_scale as f32,
            betas: [step.beta1 as f32, step.beta2 as f32],
            one_minus_betas: [(1. - step.beta1) as f32, (1. - step.beta2) as f32],
            decay: (1. - step.learning_rate * step.weight_decay) as f32,
            step_size: (step.learning_rate / bias_correction(step.beta1, step.step)) as f32,
            v_correction: (1. / bias_correction(step.beta2, step.step)).sqrt() as f32,
            eps: f32_epsilon(step.eps),
        }
    }
}

#[pulp::with_simd(update = crate::cpu::unit::arch())]
#[inline(always)]
fn update_simd<'a, S: pulp::Simd>(
    _simd: S,
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    grad: &'a [f32],
    constants: &'a StepConstants,
) {
    let &StepConstants { scale, betas: [b1, b2], one_minus_betas: [c1, c2], decay, step_size, v_correction, eps } =
        constants;
    for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(grad) {
        let g = g * scale;
        *m = *m * b1 + g * c1;
        *v = *v * b2 + g * g * c2;
        *w = *w * decay - step_size * *m / (v.sqrt() * v_correction + eps);
    }
}
