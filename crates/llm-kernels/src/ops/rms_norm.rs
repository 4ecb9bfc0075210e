//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): `y = x / sqrt(mean(x²) + eps) · w`.

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};

use crate::cpu::rounding::Rounded;
use crate::cpu::simd::{f32_epsilon, sum2};
use crate::cpu::uninit::par_rows;
use crate::cpu::{contiguous, cpu_slice};

/// Normalises each row of `x` `(…, n)` to a root mean square of one and multiplies it by `weight` `(n,)`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dim(D::Minus1)? != weight.dims1()? {
        bail!("rms_norm: x is {:?}, its last dimension must be that of the weight {:?}", x.dims(), weight.dims());
    }
    if crate::is_fused(x) && crate::is_fused(weight) {
        x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: f32_epsilon(eps) })
    } else {
        reference(x, weight, eps)
    }
}

fn reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    // Half precision loses the small terms of the mean, so it is computed in f32.
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let y = x.to_dtype(wide)?;
    let rms = (y.sqr()?.mean_keepdim(D::Minus1)? + f64::from(f32_epsilon(eps)))?.sqrt()?;
    y.broadcast_div(&rms)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = rms_norm_rows(contiguous(xs, xl)?, contiguous(ws, wl)?, self.eps);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, xl) = x.storage_and_layout();
        let (ws, wl) = w.storage_and_layout();
        let (ds, dl) = dy.storage_and_layout();
        let (dx, dw) = rms_norm_backward(cpu_slice(&xs, xl)?, cpu_slice(&ws, wl)?, cpu_slice(&ds, dl)?, self.eps, None);
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}

/// [`rms_norm`] of rows on plain slices, rounded to `T`.
pub(crate) fn rms_norm_rows<T: Rounded>(x: &[f32], w: &[f32], eps: f32) -> Vec<T> {
    let n = w.len();
    assert!(x.len().is_multiple_of(n), "rows are as long as the weight");
    par_rows(x.len(), n, || (), |(), i, y| forward(&x[i * n..][..n], w, eps, y)).0
}

/// [`rms_norm`] of rows as long as `w`, into `y`.
pub(crate) fn rms_norm_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    forward(x, w, eps, y);
}

/// The gradient of a row, into `dx`; that of the weight is added to `dw`.
pub(crate) fn rms_norm_row_backward([x, w, dy]: [&[f32]; 3], eps: f32, dw: &mut [f32], dx: &mut [f32]) {
    backward([x, w, dy, &[]], eps, dw, dx);
}

/// The gradients of the rows, plus `residual`, and of the weight.
pub(crate) fn rms_norm_backward(
    x: &[f32],
    w: &[f32],
    dy: &[f32],
    eps: f32,
    residual: Option<&[f32]>,
) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    assert!(
        x.len().is_multiple_of(n) && dy.len() == x.len(),
        "rows are as long as the weight, and each has a gradient"
    );
    assert!(residual.is_none_or(|residual| residual.len() == x.len()), "each row has a residual");
    let (dx, parts) = par_rows(
        x.len(),
        n,
        || vec![0f32; n],
        |dw, i, dx| {
            let rows = i * n..(i + 1) * n;
            let residual = residual.map_or(&[][..], |residual| &residual[rows.clone()]);
            backward([&x[rows.clone()], w, &dy[rows], residual], eps, dw, dx);
        },
    );
    let mut dw = vec![0f32; n];
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    (dx, dw)
}

#[pulp::with_simd(forward = crate::cpu::unit::arch())]
#[inline(always)]
fn forward_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [f32], eps: f32, y: &'a mut [f32]) {
    let n = w.len();
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let inverse = 1. / (sum2(x, x, |a, b| a * b) / n as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * inverse * w;
        }
    }
}

// With s = 1/rms and x̂ = x·s:  dw = Σ_rows dy·x̂,  dx = s · (dy·w - x̂ · mean(dy·w·x̂)).
#[pulp::with_simd(backward = crate::cpu::unit::arch())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    [x, w, dy, residual]: [&'a [f32]; 4],
    eps: f32,
    dw: &'a mut [f32],
    dx: &'a mut [f32],
) {
    let n = w.len();
    let (x, dy, dw, dx) = (&x[..n], &dy[..n], &mut dw[..n], &mut dx[..n]);
    let inverse = 1. / (sum2(x, x, |a, b| a * b) / n as f32 + eps).sqrt();
    for i in 0..n {
        dx[i] = dy[i] * w[i];
        dw[i] += dy[i] * x[i] * inverse;
    }
    let mean = sum2(dx, x, |a, b| a * b) * inverse / n as f32;
    for i in 0..n {
        dx[i] = inverse * (dx[i] - x[i] * inverse * mean);
    }
    dx.iter_mut().zip(residual).for_each(|(dx, residual)| *dx += residual);
}

#[cfg(test)]
mod tests {
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn fused_rms_norm_equals_the_f64_reference() -> candle_core::Result<()> {
        for (rows, n, scale) in [(1, 2, 1.), (3, 7, 1.), (130, 192, 1.), (5, 33, 1e-4), (5, 64, 1e4), (0, 8, 1.)] {
            let x = random(&[rows, n], 1, scale)?;
            let w = random(&[n], 2, 1.)?;
            assert_matches_reference(&[&x, &w], 1e-5, |t| super::rms_norm(&t[0], &t[1], 1e-5))?;
        }
        // A transposed view.
        let x = random(&[9, 6], 3, 1.)?;
        let w = random(&[9], 4, 1.)?;
        assert_matches_reference(&[&x, &w], 1e-5, |t| super::rms_norm(&t[0].t()?, &t[1], 1e-5))
    }

    #[test]
    fn an_epsilon_too_small_for_f32_is_not_zero() -> candle_core::Result<()> {
        let (x, w) = (random(&[4, 6], 1, 1.)?.affine(0., 0.)?, random(&[6], 2, 1.)?);
        for eps in [1e-60, 1e-44, 1e-5] {
            assert_eq!(super::rms_norm(&x, &w, eps)?.flatten_all()?.to_vec1::<f32>()?, [0.; 24]);
            assert_eq!(crate::layer_norm(&x, &w, &w, eps)?.get(0)?.to_vec1::<f32>()?, w.to_vec1::<f32>()?);
        }
        Ok(())
    }

    #[test]
    #[should_panic(expected = "each has a gradient")]
    fn a_missing_gradient_panics() {
        super::rms_norm_backward(&[1.; 6], &[1.; 3], &[1.; 3], 1e-5, None);
    }

    #[test]
    #[should_panic(expected = "as long as the weight")]
    fn a_partial_row_panics() {
        super::rms_norm_rows::<f32>(&[1.; 7], &[1.; 3], 1e-5);
    }

    #[test]
    fn a_weight_of_the_wrong_size_is_an_error() -> candle_core::Result<()> {
        assert!(super::rms_norm(&random(&[2, 4], 1, 1.)?, &random(&[5], 1, 1.)?, 1e-5).is_err());
        Ok(())
    }
}
