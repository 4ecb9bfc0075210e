//! A step of Muon on the CPU in f32, in place, with the momentum in f32 or bf16.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::{COEFFICIENTS, ITERATIONS, MIN_NORM, MuonStep};
use crate::Precision;
use crate::cpu::contiguous;
use crate::cpu::gemm::{GemmOptions, Matrix, matmul, matmul_into};
use crate::cpu::rounding::bf16_to_f32;
use crate::ops::adamw::{CHUNK, f32s_mut, sum_of_squares_of};

/// The step with access to the weight's memory; the momentum's memory comes with a second, nested operation.
pub(super) struct WithWeight<'a> {
    pub momentum: &'a Tensor,
    pub shape: (usize, usize),
    pub step: &'a MuonStep,
}

impl InplaceOp2 for WithWeight<'_> {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn cpu_fwd(&self, ws: &mut CpuStorage, wl: &Layout, gs: &CpuStorage, gl: &Layout) -> Result<()> {
        let weight = RefCell::new(f32s_mut(ws, wl)?);
        let (shape, step) = (self.shape, self.step);
        self.momentum.inplace_op1(&WithMomentum { weight, grad: contiguous(gs, gl)?, shape, step })
    }
}

/// The step with access to the memory of all three tensors.
struct WithMomentum<'a> {
    weight: RefCell<&'a mut [f32]>,
    grad: &'a [f32],
    shape: (usize, usize),
    step: &'a MuonStep,
}

impl InplaceOp1 for WithMomentum<'_> {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn cpu_fwd(&self, ms: &mut CpuStorage, ml: &Layout) -> Result<()> {
        let (scale, mu) = (self.step.gradient_scale as f32, self.step.momentum as f32);
        let one_minus_mu = (1. - self.step.momentum) as f32;
        // The new momentum, and the update of Nesterov's form.
        let next = |momentum: f32, grad: f32| {
            let grad = grad * scale * one_minus_mu;
            let momentum = momentum * mu + grad;
            (momentum, grad + momentum * mu)
        };
        let update = match (&mut *ms, ml.contiguous_offsets()) {
            (CpuStorage::BF16(momentum), Some((start, end))) => self.update(&mut momentum[start..end], |m, grad| {
                let (momentum, update) = next(bf16_to_f32(*m), grad);
                *m = bf16::from_f32(momentum);
                update
            }),
            _ => self.update(f32s_mut(ms, ml)?, |m, grad| {
                let update;
                (*m, update) = next(*m, grad);
                update
            }),
        };
        let update = orthogonalized(update, self.shape, self.step.precision);
        let (decay, step_size) = (self.step.decay() as f32, self.step.step_size(self.shape) as f32);
        let mut weight = self.weight.borrow_mut();
        weight.par_chunks_mut(CHUNK).zip(update.par_chunks(CHUNK)).for_each(|(w, u)| {
            w.iter_mut().zip(u).for_each(|(w, u)| *w = *w * decay - step_size * u);
        });
        Ok(())
    }
}

impl WithMomentum<'_> {
    /// The update of each element from its momentum, which `f` changes, and its gradient; on all threads.
    fn update<T: Send>(&self, momentum: &mut [T], f: impl Fn(&mut T, f32) -> f32 + Sync) -> Vec<f32> {
        let mut update = vec![0.; self.grad.len()];
        update
            .par_chunks_mut(CHUNK)
            .zip(momentum.par_chunks_mut(CHUNK).zip(self.grad.par_chunks(CHUNK)))
            .for_each(|(u, (m, g))| u.iter_mut().zip(m.iter_mut().zip(g)).for_each(|(u, (m, g))| *u = f(m, *g)));
        update
    }
}

/// The matrix `x` with its singular values brought near 1 by Newton-Schulz iterations. The products are those of the smaller side.
fn orthogonalized(mut x: Vec<f32>, (rows, cols): (usize, usize), precision: Precision) -> Vec<f32> {
    let [a, b, c] = COEFFICIENTS.map(|coefficient| coefficient as f32);
    let (options, small, is_wide) = (GemmOptions::all_threads(precision), rows.min(cols), rows <= cols);
    let factor = (1. / sum_of_squares_of(&x).sqrt().max(MIN_NORM)) as f32;
    x.iter_mut().for_each(|x| *x *= factor);
    for _ in 0..ITERATIONS {
        let view = Matrix::new(&x, rows, cols);
        let gram = if is_wide { matmul(view, view.t(), options) } else { matmul(view.t(), view, options) };
        let mut polynomial: Vec<f32> = gram.iter().map(|g| b * g).collect();
        let gram = Matrix::new(&gram, small, small);
        matmul_into(gram, gram, &mut polynomial, small, true, c, options); // b·A + c·A²
        let polynomial = Matrix::new(&polynomial, small, small);
        let mut next: Vec<f32> = x.iter().map(|x| a * x).collect();
        match is_wide {
            true => matmul_into(polynomial, view, &mut next, cols, true, 1., options),
            false => matmul_into(view, polynomial, &mut next, cols, true, 1., options),
        }
        x = next;
    }
    x
}
