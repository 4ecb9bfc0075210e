//! A step of AdamW on the CPU in f32, in place, with moments in f32 or bf16.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::{AdamWStep, bias_correction};
use crate::cpu::contiguous;
use crate::cpu::rounding::bf16_to_f32;
use crate::cpu::simd::{f32_epsilon, sum2};

/// Elements that a thread updates at a time.
pub(crate) const CHUNK: usize = 32768;

/// The sum of the squares, in f64.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
    parts.iter().sum()
}

#[pulp::with_simd(chunk_sum_of_squares = crate::cpu::unit::arch())]
#[inline(always)]
fn chunk_sum_of_squares_simd<S: pulp::Simd>(_simd: S, x: &[f32]) -> f64 {
    x.chunks(1024).map(|x| f64::from(sum2(x, x, |a, b| a * b))).sum()
}

/// The memory of a contiguous f32 tensor that an optimizer changes.
pub(crate) fn f32s_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("an optimizer step: weights must be contiguous f32, moments contiguous f32 or bf16"),
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
        let (n, constants) = (self.grad.len(), StepConstants::of(self.step));
        match (&mut *ms, ml.contiguous_offsets()) {
            (CpuStorage::BF16(moments), Some((start, end))) => {
                let (m, v) = moments[start..end].split_at_mut(n);
                let seed = rounding_seed(self.step.step, n);
                self.for_each_chunk(m, v, |first, w, m, v, grad| {
                    update_bf16(w, m, v, grad, &constants, seed.wrapping_add(first as u32));
                });
            }
            _ => {
                let (m, v) = f32s_mut(ms, ml)?.split_at_mut(n);
                self.for_each_chunk(m, v, |_, w, m, v, grad| update(w, m, v, grad, &constants));
            }
        }
        Ok(())
    }
}

impl WithMoments<'_> {
    /// Runs `f(first index, weights, first moments, second moments, gradients)` for chunks, on all threads.
    fn for_each_chunk<T: Send>(
        &self,
        m: &mut [T],
        v: &mut [T],
        f: impl Fn(usize, &mut [f32], &mut [T], &mut [T], &[f32]) + Sync,
    ) {
        self.weight
            .borrow_mut()
            .par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .zip(self.grad.par_chunks(CHUNK))
            .enumerate()
            .for_each(|(i, ((w, (m, v)), grad))| f(i * CHUNK, w, m, v, grad));
    }
}

/// The first of the random numbers of a step on a tensor of `n` elements: the same step gives the same bits.
pub(super) fn rounding_seed(step: u64, n: usize) -> u32 {
    hash((step as u32) ^ hash(n as u32))
}

/// A random function of 32 bits ("lowbias32" of Wellons 2018, "Prospecting for Hash Functions").
#[inline(always)]
fn hash(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// The two moments as bf16, rounded up with a probability of the part that is cut off (stochastic rounding, Gupta et al. 2015,
/// arXiv 1502.02551): the mean of the rounded values is exact. `index` selects the random number.
///
/// Rounding to nearest would lose changes of less than 1/512 of the second moment, which are most of them with a `beta2` of 0.999.
#[inline(always)]
pub(super) fn round_moments(m: f32, v: f32, index: u32) -> [bf16; 2] {
    let random = hash(index);
    let round = |x: f32, random: u32| bf16::from_bits((x.to_bits().wrapping_add(random) >> 16) as u16);
    [round(m, random & 0xffff), round(v, random >> 16)]
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

/// [`update`] with moments in bf16; `first` is the index of the first random number. The step uses the moments before rounding.
#[pulp::with_simd(update_bf16 = crate::cpu::unit::arch())]
#[inline(always)]
fn update_bf16_simd<'a, S: pulp::Simd>(
    _simd: S,
    w: &'a mut [f32],
    m: &'a mut [bf16],
    v: &'a mut [bf16],
    grad: &'a [f32],
    constants: &'a StepConstants,
    first: u32,
) {
    let &StepConstants { scale, betas: [b1, b2], one_minus_betas: [c1, c2], decay, step_size, v_correction, eps } =
        constants;
    for ((((w, m), v), g), index) in w.iter_mut().zip(m).zip(v).zip(grad).zip(0u32..) {
        let g = g * scale;
        let new_m = bf16_to_f32(*m) * b1 + g * c1;
        let new_v = bf16_to_f32(*v) * b2 + g * g * c2;
        *w = *w * decay - step_size * new_m / (new_v.sqrt() * v_correction + eps);
        [*m, *v] = round_moments(new_m, new_v, first.wrapping_add(index));
    }
}
