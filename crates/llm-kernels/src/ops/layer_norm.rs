//! `LayerNorm` (Ba et al. 2016, arXiv 1607.06450): `y = (x - mean(x)) / sqrt(var(x) + eps) · w + b`.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::rows::{rows_per_task, zeros};
use crate::cpu::simd::{f32_epsilon, sum2};
use crate::cpu::{contiguous, cpu_slice};

/// Normalises each row of `x` `(…, n)` to mean 0 and variance 1, then multiplies by `weight` and adds `bias`, both
/// `(n,)`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dim(D::Minus1)? != weight.dims1()? || weight.dims() != bias.dims() {
        let (x, w, b) = (x.dims(), weight.dims(), bias.dims());
        bail!("layer_norm: x is {x:?}, its last dimension must be that of the weight {w:?} and of the bias {b:?}");
    }
    if crate::is_fused(x) && crate::is_fused(weight) && crate::is_fused(bias) {
        let op = LayerNorm { eps: f32_epsilon(eps) };
        x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    } else {
        reference(x, weight, bias, eps)
    }
}

fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    // Half precision loses the small terms of the mean, so it is computed in f32.
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let y = x.to_dtype(wide)?;
    let y = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
    let deviation = (y.sqr()?.mean_keepdim(D::Minus1)? + f64::from(f32_epsilon(eps)))?.sqrt()?;
    y.broadcast_div(&deviation)?.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
        bs: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (contiguous(xs, xl)?, contiguous(ws, wl)?, contiguous(bs, bl)?);
        let mut y = zeros(x.len());
        let size = rows_per_task(w.len()) * w.len().max(1);
        y.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(y, x)| forward(x, w, b, self.eps, y));
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ws, wl), (ds, dl)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let (x_data, w_data, dy_data) = (cpu_slice(&xs, xl)?, cpu_slice(&ws, wl)?, cpu_slice(&ds, dl)?);
        let n = w_data.len();
        let size = rows_per_task(n) * n.max(1);
        let mut dx = zeros(x_data.len());
        let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
            .par_chunks_mut(size)
            .zip(x_data.par_chunks(size))
            .zip(dy_data.par_chunks(size))
            .map(|((dx, x), dy)| backward(x, w_data, dy, self.eps, dx))
            .collect();
        let (mut dw, mut db) = (vec![0f32; n], vec![0f32; n]);
        for (w_part, b_part) in partial {
            dw.iter_mut().zip(w_part).for_each(|(sum, p)| *sum += p);
            db.iter_mut().zip(b_part).for_each(|(sum, p)| *sum += p);
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dw = Tensor::from_vec(dw, w.shape(), w.device())?;
        Ok((Some(dx), Some(dw), Some(Tensor::from_vec(db, b.shape(), b.device())?)))
    }
}

/// The mean of a row and the inverse of its standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum2(x, x, |a, _| a) / n;
    let variance = sum2(x, x, |a, b| (a - mean) * (b - mean)) / n;
    (mean, 1. / (variance + eps).sqrt())
}

#[pulp::with_simd(forward = crate::cpu::unit::arch())]
#[inline(always)]
fn forward_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, y: &'a mut [f32]) {
    let n = w.len();
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let (mean, inverse) = moments(x, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * inverse * w + b;
        }
    }
}

// With x̂ = (x - mean) · s:  dw = Σ_rows dy·x̂,  db = Σ_rows dy,  dx = s · (g - mean(g) - x̂ · mean(g·x̂)) with g = dy·w.
#[pulp::with_simd(backward = crate::cpu::unit::arch())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    x: &'a [f32],
    w: &'a [f32],
    dy: &'a [f32],
    eps: f32,
    dx: &'a mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let (mut dw, mut db) = (vec![0f32; n], vec![0f32; n]);
    for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let (mean, inverse) = moments(x, eps);
        for i in 0..n {
            dx[i] = dy[i] * w[i];
            dw[i] += dy[i] * (x[i] - mean) * inverse;
            db[i] += dy[i];
        }
        let mean_g = sum2(dx, dx, |a, _| a) / n as f32;
        let mean_gx = sum2(dx, x, |g, x| g * (x - mean)) * inverse / n as f32;
        for i in 0..n {
            dx[i] = inverse * (dx[i] - mean_g - (x[i] - mean) * inverse * mean_gx);
        }
    }
    (dw, db)
}

#[cfg(test)]
mod tests {
    use crate::testing::{assert_matches_reference, assert_matches_reference_within, random};

    #[test]
    fn fused_layer_norm_equals_the_f64_reference() -> candle_core::Result<()> {
        for (rows, n, scale) in [(1, 2, 1.), (3, 7, 1.), (130, 192, 1.), (5, 33, 1e-3), (5, 64, 1e4), (0, 8, 1.)] {
            let (x, w) = (random(&[rows, n], 1, scale)?, random(&[n], 2, 1.)?);
            let b = random(&[n], 3, 1.)?;
            // A row of two values is always 1 and -1, so its gradient is only rounding error.
            assert_matches_reference_within(&[&x, &w, &b], 2e-5, 1e-7, |t| {
                super::layer_norm(&t[0], &t[1], &t[2], 1e-5)
            })?;
        }
        // A transposed view; a mean far from 0 does not change the variance.
        let (x, w, b) = (random(&[9, 6], 3, 1.)?, random(&[9], 4, 1.)?, random(&[9], 5, 1.)?);
        let x = (x + 20.)?;
        assert_matches_reference(&[&x, &w, &b], 1e-4, |t| super::layer_norm(&t[0].t()?, &t[1], &t[2], 1e-5))
    }

    #[test]
    fn a_weight_or_bias_of_the_wrong_size_is_an_error() -> candle_core::Result<()> {
        let (x, four, five) = (random(&[2, 4], 1, 1.)?, random(&[4], 1, 1.)?, random(&[5], 1, 1.)?);
        assert!(super::layer_norm(&x, &five, &five, 1e-5).is_err());
        assert!(super::layer_norm(&x, &four, &five, 1e-5).is_err());
        Ok(())
    }
}
