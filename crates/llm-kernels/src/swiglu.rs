//! SwiGLU (Shazeer 2020, arXiv 2002.05202): `silu(gate) · up` with `silu(x) = x · sigmoid(x)`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::norm::cpu;
use crate::simd::{contiguous, exp};

const CHUNK: usize = 16384;

/// `silu(gate) · up`, element by element; both have the same shape, and so has the result.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu: gate is {:?}, up is {:?}; they must be alike", gate.dims(), up.dims());
    }
    if crate::is_fused(gate) && crate::is_fused(up) {
        gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
    } else {
        gate.silu()? * up
    }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gs: &CpuStorage, gl: &Layout, us: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gs, gl)?, contiguous(us, ul)?);
        let mut y = vec![0f32; gate.len()];
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| forward(gate, up, y));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((gs, gl), (us, ul), (ds, dl)) =
            (gate.storage_and_layout(), up.storage_and_layout(), dy.storage_and_layout());
        let (g, u, d) = (cpu(&gs, gl)?, cpu(&us, ul)?, cpu(&ds, dl)?);
        let (mut dg, mut du) = (vec![0f32; g.len()], vec![0f32; g.len()]);
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)))
            .zip(d.par_chunks(CHUNK))
            .for_each(|(((dg, du), (g, u)), d)| backward(g, u, d, dg, du));
        let shape = gate.shape();
        Ok((Some(Tensor::from_vec(dg, shape, gate.device())?), Some(Tensor::from_vec(du, shape, gate.device())?)))
    }
}

#[pulp::with_simd(forward = pulp::Arch::new())]
#[inline(always)]
fn forward_simd<'a, S: pulp::Simd>(_simd: S, gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1. + exp(-g)) * u;
    }
}

// silu'(g) = s + g · s · (1 - s) with s = sigmoid(g).
#[pulp::with_simd(backward = pulp::Arch::new())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    gate: &'a [f32],
    up: &'a [f32],
    dy: &'a [f32],
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
) {
    for i in 0..gate.len().min(up.len()).min(dy.len()).min(dgate.len()).min(dup.len()) {
        let s = 1. / (1. + exp(-gate[i]));
        dup[i] = dy[i] * gate[i] * s;
        dgate[i] = dy[i] * up[i] * (s + gate[i] * s * (1. - s));
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn fused_swiglu_equals_the_naive_one_in_f64() -> candle_core::Result<()> {
        for (shape, scale) in
            [([1, 1], 1.), ([3, 17], 1.), ([40, 512], 1.), ([3, 5], 60.), ([3, 5], 1e-4), ([0, 4], 1.)]
        {
            let (gate, up) = (random(&shape, 1, scale)?, random(&shape, 2, 1.)?);
            assert_same_gradients(&[&gate, &up], 1e-5, |t| super::swiglu(&t[0], &t[1]))?;
        }
        let (gate, up) = (random(&[5, 7], 1, 1.)?, random(&[7, 5], 2, 1.)?);
        assert_same_gradients(&[&gate, &up], 1e-5, |t| super::swiglu(&t[0].t()?, &t[1]))
    }

    #[test]
    fn shapes_that_differ_are_an_error() -> candle_core::Result<()> {
        assert!(super::swiglu(&random(&[2, 3], 1, 1.)?, &random(&[3, 2], 1, 1.)?).is_err());
        Ok(())
    }
}
