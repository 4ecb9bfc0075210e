//! The linear layer `x · wᵀ` and its backward. An input that does not need a gradient costs nothing in the backward.
//!
//! candle's backward zeroes and copies a full gradient for each node of the graph, including reshapes and sums. So
//! these operations reshape their result and add the residual themselves.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::cpu::gemm::{Element, FEW_ROWS, GemmOptions, Matrix, Precision, matmul, matmul_few_rows, matmul_into};
use crate::cpu::{contiguous, cpu_slice};

/// `x · wᵀ`, a linear layer without bias. `x` is `(…, in)`, `w` is `(out, in)`; the result is `(…, out)`.
///
/// A frozen `w` may be bf16 with `x` in f32; this reads half the memory, which bounds decoding.
///
/// Inputs that do not depend on a variable get no gradient, so the frozen weights under an adapter or a reward head
/// cost nothing.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    linear_with_precision(x, w, Precision::F32)
}

/// [`linear`] with its factors rounded to `precision`, forward and backward (mixed precision). Sums, `x`, `w`, the
/// result and the gradients are f32, so that a weight in training keeps small updates.
///
/// In f64, and on other devices than the CPU, nothing is rounded.
pub fn linear_with_precision(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    let out = w.dims2()?.0;
    let leading = x.rank().saturating_sub(1);
    linear_reshaped(x, w, &[&x.dims()[..leading], &[out]].concat(), precision)
}

/// [`linear_with_precision`] with a result of the given shape: from `(b, t, in)` to the attention heads
/// `(b, t, h, d)`, or back. `x` may have its last two dimensions in place of `in`.
pub fn linear_reshaped(x: &Tensor, w: &Tensor, shape: &[usize], precision: Precision) -> Result<Tensor> {
    let n = rows(x, w, shape)?;
    if let Some(op) = Linear::new(x, w, shape, precision) {
        return x.contiguous()?.apply_op2(&w.contiguous()?, op);
    }
    reference(x, w, n)?.reshape(shape)
}

/// `residual + x · wᵀ`, with the shape of `residual`.
pub fn linear_residual(x: &Tensor, w: &Tensor, residual: &Tensor, precision: Precision) -> Result<Tensor> {
    let n = rows(x, w, residual.dims())?;
    if let Some(op) = Linear::new(x, w, residual.dims(), precision).filter(|_| crate::is_fused(residual)) {
        return x.contiguous()?.apply_op3(&w.contiguous()?, &residual.contiguous()?, op);
    }
    residual + reference(x, w, n)?.reshape(residual.dims())?
}

/// The number of rows of `x`. It is an error if the shapes do not match, or if a weight in bf16 needs a gradient in f32.
fn rows(x: &Tensor, w: &Tensor, shape: &[usize]) -> Result<usize> {
    let (m, k) = w.dims2()?;
    let width = match x.dims() {
        [.., heads, last] if *last != k => heads * last,
        [.., last] => *last,
        [] => 0,
    };
    let n = x.elem_count().checked_div(k).unwrap_or_else(|| x.dims().iter().rev().skip(1).product());
    if width != k || shape.iter().product::<usize>() != n * m {
        bail!(
            "linear: x is {:?}, the weight {:?}, the result {shape:?}; these shapes do not match",
            x.dims(),
            w.dims()
        );
    }
    if w.dtype() == DType::BF16 && x.dtype() == DType::F32 && w.track_op() {
        bail!("linear: a weight in bf16 cannot be trained; keep it in f32");
    }
    Ok(n)
}

fn reference(x: &Tensor, w: &Tensor, n: usize) -> Result<Tensor> {
    x.reshape((n, w.dim(1)?))?.matmul(&w.to_dtype(x.dtype())?.t()?)
}

struct Linear {
    dx: bool,
    dw: bool,
    shape: Vec<usize>,
    precision: Precision,
}

impl Linear {
    /// `None` if the reference implementation must run.
    fn new(x: &Tensor, w: &Tensor, shape: &[usize], precision: Precision) -> Option<Self> {
        let w_is_bf16 = w.dtype() == DType::BF16 && w.device().is_cpu();
        if !crate::is_fused(x) || !(w_is_bf16 || crate::is_fused(w)) {
            return None;
        }
        let precision = if w_is_bf16 { Precision::for_bf16_weights() } else { precision };
        Some(Self { dx: x.track_op(), dw: w.track_op(), shape: shape.to_vec(), precision })
    }

    fn forward(&self, x: &[f32], w: WeightSlice, (m, k): (usize, usize), residual: Option<&[f32]>) -> Vec<f32> {
        let n = self.shape.iter().product::<usize>().checked_div(m).unwrap_or_default();
        w.forward(x, [n, k, m], residual, GemmOptions::all_threads(self.precision))
    }

    // dx = dy · w,  dw = dyᵀ · x.
    fn backward(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ws, wl), (ds, dl)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let (m, k) = w.dims2()?;
        let n = dy.elem_count().checked_div(m).unwrap_or_default();
        let x_rows = Matrix::new(cpu_slice(&xs, xl)?, n, k);
        let dy_rows = Matrix::new(cpu_slice(&ds, dl)?, n, m);
        let Storage::Cpu(ws) = &*ws else { bail!("linear: the weight is not in CPU memory") };
        let options = GemmOptions::all_threads(self.precision);
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let dx = match self.dx {
            true => Some(tensor(weight_slice(ws, wl)?.grad_input(dy_rows, k, options), x)?),
            false => None,
        };
        let dw = self.dw.then(|| tensor(matmul(dy_rows.t(), x_rows, options), w)).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(contiguous(xs, xl)?, weight_slice(ws, wl)?, wl.shape().dims2()?, None);
        Ok((CpuStorage::F32(y), Shape::from(self.shape.as_slice())))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, dy)
    }
}

/// With a residual.
impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear_residual"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
        rs: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = contiguous(rs, rl)?;
        let y = self.forward(contiguous(xs, xl)?, weight_slice(ws, wl)?, wl.shape().dims2()?, Some(residual));
        Ok((CpuStorage::F32(y), Shape::from(self.shape.as_slice())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _residual: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, dy)?;
        Ok((dx, dw, Some(dy.clone())))
    }
}

/// The elements of a weight `(m, k)`.
#[derive(Clone, Copy)]
pub(crate) enum WeightSlice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl WeightSlice<'_> {
    /// `x · wᵀ` for `x` `(n, k)`, plus `residual` if given.
    pub fn forward(self, x: &[f32], sizes: [usize; 3], residual: Option<&[f32]>, options: GemmOptions) -> Vec<f32> {
        match self {
            Self::F32(w) => forward(x, w, sizes, residual, options),
            Self::Bf16(w) => forward(x, w, sizes, residual, options),
            Self::F16(w) => forward(x, w, sizes, residual, options),
        }
    }

    /// The gradient of the input: `dy · w` for `dy` `(n, m)`.
    pub fn grad_input(self, dy: Matrix, k: usize, options: GemmOptions) -> Vec<f32> {
        match self {
            Self::F32(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
            Self::Bf16(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
            Self::F16(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
        }
    }
}

/// Elements of the residual that one task copies.
const COPY_CHUNK: usize = 1 << 16;

fn forward<W: Element>(
    x: &[f32],
    w: &[W],
    [n, k, m]: [usize; 3],
    residual: Option<&[f32]>,
    options: GemmOptions,
) -> Vec<f32> {
    let (x_rows, wt) = (Matrix::new(x, n, k), Matrix::new(w, m, k).t());
    if n <= FEW_ROWS && n * k * m > 0 {
        let mut y = matmul_few_rows(x, w, k);
        y.iter_mut().zip(residual.unwrap_or_default()).for_each(|(y, residual)| *y += residual);
        return y;
    }
    matmul_residual(residual, x_rows, wt, options)
}

/// `residual + a · b`, or `a · b`.
pub(crate) fn matmul_residual<A: Element, B: Element>(
    residual: Option<&[f32]>,
    a: Matrix<A>,
    b: Matrix<B>,
    options: GemmOptions,
) -> Vec<f32> {
    let Some(residual) = residual else { return matmul(a, b, options) };
    let mut y: Vec<f32> = residual.par_iter().copied().with_min_len(COPY_CHUNK).collect();
    matmul_into(a, b, &mut y, b.cols(), true, 1., options);
    y
}

fn weight_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<WeightSlice<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(WeightSlice::F32(&data[start..end])),
        (CpuStorage::BF16(data), Some((start, end))) => Ok(WeightSlice::Bf16(&data[start..end])),
        _ => bail!("linear: the weight must be contiguous, in f32 or bf16"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn fused_linear_equals_the_f64_reference() -> Result<()> {
        for (n, k, m, scale) in
            [(1, 1, 1, 1.), (1, 37, 50, 1.), (4, 9, 7, 1.), (5, 64, 33, 1e3), (130, 70, 65, 1e-4), (0, 4, 3, 1.)]
        {
            let (x, w) = (random(&[n, k], 1, scale)?, random(&[m, k], 2, 1.)?);
            assert_matches_reference(&[&x, &w], 2e-5, |t| linear(&t[0], &t[1]))?;
        }
        // Three dimensions, a transposed view, a broadcast row.
        let (x, w) = (random(&[2, 3, 6], 1, 1.)?, random(&[5, 6], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 2e-5, |t| linear(&t[0], &t[1]))?;
        let x = random(&[6, 9], 1, 1.)?;
        assert_matches_reference(&[&x, &w], 2e-5, |t| linear(&t[0].t()?, &t[1]))?;
        let x = random(&[1, 6], 1, 1.)?;
        assert_matches_reference(&[&x, &w], 2e-5, |t| linear(&t[0].broadcast_as((7, 6))?, &t[1]))?;
        // To heads and back.
        let (x, w) = (random(&[2, 5, 6], 1, 1.)?, random(&[12, 6], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 2e-5, |t| linear_reshaped(&t[0], &t[1], &[2, 5, 3, 4], Precision::F32))?;
        let (x, w) = (random(&[2, 5, 3, 4], 1, 1.)?, random(&[7, 12], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 2e-5, |t| linear_reshaped(&t[0], &t[1], &[2, 5, 7], Precision::F32))
    }

    #[test]
    fn a_residual_is_added() -> Result<()> {
        for (n, k, m) in [(1, 7, 5), (33, 20, 40)] {
            let (x, w, residual) = (random(&[n, k], 1, 1.)?, random(&[m, k], 2, 1.)?, random(&[n, m], 3, 1.)?);
            let run = |t: &[Tensor]| linear_residual(&t[0], &t[1], &t[2], Precision::F32);
            assert_matches_reference(&[&x, &w, &residual], 2e-5, run)?;
            let run = |t: &[Tensor]| linear_residual(&t[0], &t[1], &t[2].t()?.contiguous()?.t()?, Precision::F32);
            assert_matches_reference(&[&x, &w, &residual], 2e-5, run)?;
        }
        assert!(
            linear_residual(
                &random(&[2, 3], 1, 1.)?,
                &random(&[4, 3], 1, 1.)?,
                &random(&[2, 3], 1, 1.)?,
                Precision::F32
            )
            .is_err()
        );
        Ok(())
    }

    #[test]
    fn frozen_inputs_get_no_gradient() -> Result<()> {
        let (x, w) = (random(&[6, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?);
        let (x_var, w_var) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let grads = linear(&x_var, &w)?.sum_all()?.backward()?;
        assert!(grads.get(&x_var).is_some() && grads.get(&w).is_none());
        let grads = linear(&x, &w_var)?.sum_all()?.backward()?;
        assert!(grads.get(&w_var).is_some() && grads.get(&x).is_none());
        // A weight computed from a variable gets a gradient.
        let derived = (w_var.as_tensor() * 2.)?;
        assert!(linear(&x, &derived)?.sum_all()?.backward()?.get(&w_var).is_some());
        Ok(())
    }

    /// Tolerance of a bf16 matmul relative to the largest entry: each factor is rounded once.
    const BF16_TOLERANCE: f64 = 1. / 128.;

    #[test]
    fn bf16_linear_equals_the_f64_reference_up_to_rounding() -> Result<()> {
        for (n, k, m, scale) in [(5, 64, 33, 1.), (130, 70, 65, 1e3), (13, 257, 40, 1e-4), (0, 4, 3, 1.)] {
            let (x, w) = (random(&[n, k], 1, scale)?, random(&[m, k], 2, 1.)?);
            assert_matches_reference(&[&x, &w], BF16_TOLERANCE, |t| {
                linear_with_precision(&t[0], &t[1], Precision::Bf16)
            })?;
        }
        Ok(())
    }

    #[test]
    fn factors_representable_in_bf16_are_not_rounded() -> Result<()> {
        let to_bf16 = |t: Tensor| t.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        let (x, w) = (to_bf16(random(&[40, 90], 1, 1.)?)?, to_bf16(random(&[50, 90], 2, 1.)?)?);
        let difference = (linear_with_precision(&x, &w, Precision::Bf16)? - linear(&x, &w)?)?;
        assert!(difference.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? < 1e-5);
        Ok(())
    }

    #[test]
    fn a_bf16_weight_gives_the_same_as_its_f32_copy() -> Result<()> {
        for (n, k, m) in [(1, 37, 50), (4, 9, 7), (5, 64, 33), (30, 20, 1100), (0, 4, 3)] {
            let (x, w) = (random(&[n, k], 1, 1.)?, random(&[m, k], 2, 1.)?.to_dtype(DType::BF16)?);
            let run = |w: &Tensor, precision: Precision| -> Result<Vec<f32>> {
                let x = Var::from_tensor(&x)?;
                let y = linear_with_precision(&x, w, precision)?;
                let grads = (&y * &random(&[n, m], 3, 1.)?)?.flatten_all()?.sum(0)?.backward()?;
                Tensor::cat(&[y.flatten_all()?, grads.get(&x).unwrap().flatten_all()?], 0)?.to_vec1()
            };
            let (bf16, wide) =
                (run(&w, Precision::F32)?, run(&w.to_dtype(DType::F32)?, Precision::for_bf16_weights())?);
            assert!(bf16.iter().zip(wide).all(|(a, b)| (a - b).abs() < 1e-4), "{n} {k} {m}");
        }
        let trained = Var::from_tensor(&random(&[3, 4], 2, 1.)?.to_dtype(DType::BF16)?)?;
        assert!(linear(&random(&[2, 4], 1, 1.)?, &trained).is_err());
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_errors() -> Result<()> {
        let w = random(&[3, 4], 2, 1.)?;
        assert!(linear(&random(&[2, 5], 1, 1.)?, &w).is_err());
        assert!(linear(&random(&[1], 1, 1.)?.squeeze(0)?, &w).is_err());
        Ok(())
    }
}
