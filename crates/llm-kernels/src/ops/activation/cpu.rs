//! The activations on the CPU in f32.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Activation, SQRT_2_OVER_PI};
use crate::cpu::rows::zeros;
use crate::cpu::simd::{exp, tanh};
use crate::cpu::{contiguous, cpu_slice};

const CHUNK: usize = 16384;

/// An activation at one `x`: `value = from · share`, and its derivative `slope`.
struct Curve {
    from: f32,
    value: f32,
    share: f32,
    slope: f32,
}

/// `x`, limited to at least `-end`, where the share is (nearly) 0 in f32: 0 times -inf would be NaN. NaN stays NaN.
#[inline(always)]
fn from(x: f32, end: f32) -> f32 {
    if x < -end { -end } else { x }
}

/// `x`, limited to `-end..end`, beyond which the function is linear in f32: the squares in a derivative must not
/// overflow. NaN stays NaN.
#[inline(always)]
fn within(x: f32, end: f32) -> f32 {
    let x = from(x, end);
    if x > end { end } else { x }
}

#[inline(always)]
fn silu(x: f32) -> Curve {
    const END: f32 = 88.;
    let e = exp(-x);
    let (from, share) = (from(x, END), 1. / (1. + e));
    Curve { from, value: from / (1. + e), share, slope: share + within(x, END) * share * (1. - share) }
}

// The derivative is Φ(x) + x · φ(x).
#[inline(always)]
fn gelu(x: f32) -> Curve {
    const END: f32 = 14.;
    let (from, share, x) = (from(x, END), normal_cdf(x), within(x, END));
    Curve { from, value: from * share, share, slope: share + x * 0.398_942_3 * exp(-0.5 * x * x) }
}

/// Φ(x) with an absolute error under 3e-7: Abramowitz and Stegun 7.1.26 for the error function.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1. / (1. + 0.327_591_1 * z);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * exp(-z * z); // 1 - Φ(|x|)
    if x < 0. { tail } else { 1. - tail }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> Curve {
    const SCALE: f32 = SQRT_2_OVER_PI as f32;
    const END: f32 = 10.;
    let t = tanh(SCALE * (x + 0.044_715 * x * x * x));
    let (from, share, x) = (from(x, END), 0.5 * (1. + t), within(x, END));
    let slope = share + 0.5 * x * (1. - t * t) * SCALE * (1. + 3. * 0.044_715 * x * x);
    Curve { from, value: from * share, share, slope }
}

/// `activation(gate) · up`.
pub(super) struct Gated(pub Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated_activation"
    }

    fn cpu_fwd(&self, gs: &CpuStorage, gl: &Layout, us: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gs, gl)?, contiguous(us, ul)?);
        let mut y = zeros(gate.len());
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| gated_forward(self.0, gate, up, y));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((gs, gl), (us, ul), (ds, dl)) =
            (gate.storage_and_layout(), up.storage_and_layout(), dy.storage_and_layout());
        let (gates, ups) = (cpu_slice(&gs, gl)?, cpu_slice(&us, ul)?);
        let (mut dg, mut du) = (zeros(gates.len()), zeros(ups.len()));
        let branches = gates.par_chunks(CHUNK).zip(ups.par_chunks(CHUNK));
        let chunks = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK)).zip(branches);
        chunks.zip(cpu_slice(&ds, dl)?.par_chunks(CHUNK)).for_each(|(((dg, du), (gate, up)), dy)| {
            dg.copy_from_slice(gate);
            du.copy_from_slice(up);
            gated_backward(self.0, dg, du, dy);
        });
        let shape = gate.shape();
        Ok((Some(Tensor::from_vec(dg, shape, gate.device())?), Some(Tensor::from_vec(du, shape, gate.device())?)))
    }
}

/// `activation(x)`.
pub(super) struct Plain(pub Activation);

impl CustomOp1 for Plain {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let mut y = zeros(x.len());
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| plain_forward(self.0, x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ds, dl)) = (x.storage_and_layout(), dy.storage_and_layout());
        let (data, d) = (cpu_slice(&xs, xl)?, cpu_slice(&ds, dl)?);
        let mut dx = zeros(data.len());
        dx.par_chunks_mut(CHUNK)
            .zip(data.par_chunks(CHUNK))
            .zip(d.par_chunks(CHUNK))
            .for_each(|((dx, x), d)| plain_backward(self.0, x, d, dx));
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

// Each loop is compiled for each instruction set and each activation: `curve` is inlined.

#[pulp::with_simd(gated_forward = crate::cpu::unit::arch())]
#[inline(always)]
pub(crate) fn gated_forward_simd<'a, S: pulp::Simd>(
    _simd: S,
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
) {
    match activation {
        Activation::Silu => gates(gate, up, y, silu),
        Activation::Gelu => gates(gate, up, y, gelu),
        Activation::GeluTanh => gates(gate, up, y, gelu_tanh),
    }
}

#[inline(always)]
fn gates(gate: &[f32], up: &[f32], y: &mut [f32], curve: impl Fn(f32) -> Curve) {
    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
        *y = curve(g).value * u;
    }
}

/// Replaces `gate` and `up` by their gradients.
#[pulp::with_simd(gated_backward = crate::cpu::unit::arch())]
#[inline(always)]
pub(crate) fn gated_backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a mut [f32],
    dy: &'a [f32],
) {
    match activation {
        Activation::Silu => gate_gradients(gate, up, dy, silu),
        Activation::Gelu => gate_gradients(gate, up, dy, gelu),
        Activation::GeluTanh => gate_gradients(gate, up, dy, gelu_tanh),
    }
}

#[inline(always)]
fn gate_gradients(gate: &mut [f32], up: &mut [f32], dy: &[f32], curve: impl Fn(f32) -> Curve) {
    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
        let at = curve(*gate);
        (*gate, *up) = (dy * *up * at.slope, dy * at.from * at.share);
    }
}

#[pulp::with_simd(plain_forward = crate::cpu::unit::arch())]
#[inline(always)]
fn plain_forward_simd<'a, S: pulp::Simd>(_simd: S, activation: Activation, x: &'a [f32], y: &'a mut [f32]) {
    match activation {
        Activation::Silu => values(x, y, silu),
        Activation::Gelu => values(x, y, gelu),
        Activation::GeluTanh => values(x, y, gelu_tanh),
    }
}

#[inline(always)]
fn values(x: &[f32], y: &mut [f32], curve: impl Fn(f32) -> Curve) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = curve(x).value;
    }
}

#[pulp::with_simd(plain_backward = crate::cpu::unit::arch())]
#[inline(always)]
fn plain_backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    activation: Activation,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
) {
    match activation {
        Activation::Silu => gradients(x, dy, dx, silu),
        Activation::Gelu => gradients(x, dy, dx, gelu),
        Activation::GeluTanh => gradients(x, dy, dx, gelu_tanh),
    }
}

#[inline(always)]
fn gradients(x: &[f32], dy: &[f32], dx: &mut [f32], curve: impl Fn(f32) -> Curve) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * curve(x).slope;
    }
}
