//! The linear layer `x · wᵀ` and its backward. An input that does not need a gradient costs nothing in the backward.
//!
//! candle's backward zeroes and copies a full gradient for each node of the graph, including reshapes and sums. So
//! these operations reshape their result and add the residual themselves.

mod cpu;
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use cpu::Linear;
pub(crate) use cpu::{WeightSlice, weight_slice};
use reference::reference;

use crate::Precision;

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
/// The forward of up to 64 rows rounds nothing, and the result of a row does not depend on the other rows.
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
