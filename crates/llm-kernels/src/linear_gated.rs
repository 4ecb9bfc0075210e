//! The first half of a gated feed-forward network in one: `activation(x · gateᵀ) · (x · upᵀ)`.
//!
//! The two branches are what a network keeps most of for its backward. Here they are kept once, in bf16 if the products
//! are rounded to it, and their gradients are never more than a step's.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::activation::{Activation, gate_all, gate_gradients_all, gated};
use crate::linear::{Numbers, linear_in};
use crate::matmul::{How, Matrix, Precision, product, product_into};
use crate::norm::cpu;
use crate::simd::{contiguous, zeros};

/// `activation(x · gateᵀ) · (x · upᵀ)` in `precision`: `x` is `(…, in)`, both weights are `(inner, in)`, the result is
/// `(…, inner)`. It equals [`crate::gated`] of two [`linear_in`]; weights in bf16 take that way.
pub fn linear_gated(
    x: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    precision: Precision,
) -> Result<Tensor> {
    if gate.dims() != up.dims() || x.dims().last() != gate.dims().last() {
        bail!("linear_gated: x is {:?}, gate {:?}, up {:?}; they do not fit", x.dims(), gate.dims(), up.dims());
    }
    if ![x, gate, up].into_iter().all(crate::is_fused) {
        return gated(&linear_in(x, gate, precision)?, &linear_in(x, up, precision)?, activation);
    }
    let wants = [x, gate, up].map(Tensor::track_op);
    let op = LinearGated { wants, activation, precision, branches: OnceLock::new() };
    x.contiguous()?.apply_op3(&gate.contiguous()?, &up.contiguous()?, op)
}

struct LinearGated {
    /// Whether the gradients of `x`, `gate` and `up` are asked for.
    wants: [bool; 3],
    activation: Activation,
    precision: Precision,
    /// `x · gateᵀ` and `x · upᵀ`.
    branches: OnceLock<[Kept; 2]>,
}

/// Numbers kept for the backward.
enum Kept {
    Full(Vec<f32>),
    Half(Vec<bf16>),
}

/// Numbers that are converted at a time.
const CHUNK: usize = 16384;

impl Kept {
    fn new(numbers: Vec<f32>, precision: Precision) -> Self {
        if precision == Precision::F32 {
            return Self::Full(numbers);
        }
        let mut halves: Vec<bf16> = zeros(numbers.len());
        halves
            .par_chunks_mut(CHUNK)
            .zip(numbers.par_chunks(CHUNK))
            .for_each(|(to, from)| to.convert_from_f32_slice(from));
        Self::Half(halves)
    }

    /// The numbers from `start` on, in f32.
    fn read(&self, start: usize, to: &mut [f32]) {
        let range = start..start + to.len();
        match self {
            Self::Full(numbers) => to.copy_from_slice(&numbers[range]),
            Self::Half(halves) => halves[range].convert_to_f32_slice(to),
        }
    }
}

impl CustomOp3 for LinearGated {
    fn name(&self) -> &'static str {
        "linear_gated"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        gs: &CpuStorage,
        gl: &Layout,
        us: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, k) = gl.shape().dims2()?;
        let n = xl.dims().iter().rev().skip(1).product();
        let (x, how) = (contiguous(xs, xl)?, How::all(self.precision));
        let (gate, up) = (contiguous(gs, gl)?, contiguous(us, ul)?);
        let times = |w| Numbers::F32(w).times(x, [n, k, m], None, how);
        let (gate, up) = crate::both(n, || times(gate), || times(up));
        let y = gate_all(self.activation, &gate, &up);
        if self.wants.contains(&true) {
            let kept = [gate, up].map(|branch| Kept::new(branch, self.precision));
            if self.branches.set(kept).is_err() {
                bail!("linear_gated: an operation is used once");
            }
        }
        let mut shape = xl.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = m;
        }
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    // With dg and du the gradients of the branches:
    //   dx = dg · gate + du · up,  dgate = dgᵀ · x,  dup = duᵀ · x.
    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some([kept_gate, kept_up]) = self.branches.get() else {
            bail!("linear_gated: its backward came before its forward");
        };
        let dy = dy.contiguous()?;
        let (m, k) = gate.dims2()?;
        let n = x.dims().iter().rev().skip(1).product();
        let (ds, dl) = dy.storage_and_layout();
        let dy = cpu(&ds, dl)?;
        let [dg, du] = gate_gradients_all(self.activation, dy, |start, [gate, up]| {
            kept_gate.read(start, gate);
            kept_up.read(start, up);
        });
        let (dg, du) = (Matrix::new(&dg, n, m), Matrix::new(&du, n, m));
        let ((xs, xl), (gs, gl), (us, ul)) =
            (x.storage_and_layout(), gate.storage_and_layout(), up.storage_and_layout());
        let rows = Matrix::new(cpu(&xs, xl)?, n, k);
        let how = How::all(self.precision);
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let [wants_x, wants_gate, wants_up] = self.wants;
        let dx = if wants_x {
            let mut dx = product(dg, Matrix::new(cpu(&gs, gl)?, m, k), how);
            product_into(du, Matrix::new(cpu(&us, ul)?, m, k), &mut dx, k, true, 1., how);
            Some(tensor(dx, x)?)
        } else {
            None
        };
        let dgate = wants_gate.then(|| tensor(product(dg.t(), rows, how), gate)).transpose()?;
        let dup = wants_up.then(|| tensor(product(du.t(), rows, how), up)).transpose()?;
        Ok((dx, dgate, dup))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn it_equals_the_two_maps_and_the_gate_in_f64() -> Result<()> {
        for (shape, m) in [(vec![1, 7], 5), (vec![33, 20], 40), (vec![2, 9, 12], 17)] {
            let k = *shape.last().unwrap();
            let (x, gate, up) = (random(&shape, 1, 1.)?, random(&[m, k], 2, 1.)?, random(&[m, k], 3, 1.)?);
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 1. / 32.)] {
                    let run = |t: &[Tensor]| linear_gated(&t[0], &t[1], &t[2], activation, precision);
                    assert_same_gradients(&[&x, &gate, &up], tolerance, run)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_train_has_no_gradient() -> Result<()> {
        let (x, gate, up) =
            (random(&[6, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?, Var::from_tensor(&random(&[3, 4], 3, 1.)?)?);
        let y = linear_gated(&x, &gate, &up, Activation::Silu, Precision::F32)?;
        let grads = y.sum_all()?.backward()?;
        assert!(grads.get(&up).is_some() && grads.get(&gate).is_none() && grads.get(&x).is_none());
        assert!(linear_gated(&x, &gate, &x, Activation::Silu, Precision::F32).is_err());
        Ok(())
    }
}
