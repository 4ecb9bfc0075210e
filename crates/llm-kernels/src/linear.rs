//! The linear map `x · wᵀ` with its backward; a side that does not train costs no gradient.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use crate::matmul::{FEW_ROWS, Matrix, Threads, few_rows, product, product_into, widened};
use crate::norm::cpu;
use crate::simd::contiguous;

/// `x · wᵀ`: a linear map without bias. `x` is `(…, in)`, `w` is `(out, in)`; the result is `(…, out)`.
///
/// A frozen `w` may be in bf16 beside an `x` in f32: half the memory to read, which is what decoding waits for.
///
/// No gradient is computed for a `w` or an `x` that is neither a variable nor made of one, so that the frozen weights
/// under an adapter or a reward head cost nothing.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else {
        bail!("linear: x is a scalar, it needs at least one dimension");
    };
    let (out, input) = w.dims2()?;
    if *last != input {
        bail!("linear: x is {:?}, its last dimension must be the second of the weight {:?}", x.dims(), w.dims());
    }
    *last = out;
    let rows: usize = shape.iter().rev().skip(1).product();
    let x = x.reshape((rows, input))?;
    let half = w.dtype() == DType::BF16 && x.dtype() == DType::F32;
    let y = if half && w.device().is_cpu() {
        if w.track_op() {
            bail!("linear: a weight in bf16 does not train; keep it in f32");
        }
        x.contiguous()?.apply_op2(&w.contiguous()?, HalfLinear)?
    } else if crate::is_fused(&x) && crate::is_fused(w) {
        let op = Linear { dx: x.track_op(), dw: w.track_op() };
        x.contiguous()?.apply_op2(&w.contiguous()?, op)?
    } else {
        x.matmul(&w.to_dtype(x.dtype())?.t()?)?
    };
    y.reshape(shape)
}

struct Linear {
    dx: bool,
    dw: bool,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, k), (m, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let (x, w) = (contiguous(xs, xl)?, contiguous(ws, wl)?);
        let y = if n <= FEW_ROWS && n * k * m > 0 {
            few_rows(x, w, k)
        } else {
            product(Matrix::new(x, n, k), Matrix::new(w, m, k).t(), Threads::All)
        };
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    // dx = dy · w,  dw = dyᵀ · x.
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ws, wl), (ds, dl)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let ((n, k), (m, _)) = (x.dims2()?, w.dims2()?);
        let x_rows = Matrix::new(cpu(&xs, xl)?, n, k);
        let w_rows = Matrix::new(cpu(&ws, wl)?, m, k);
        let dy_rows = Matrix::new(cpu(&ds, dl)?, n, m);
        let tensor = |wanted: bool, a: Matrix, b: Matrix, like: &Tensor| match wanted {
            true => Tensor::from_vec(product(a, b, Threads::All), like.shape(), like.device()).map(Some),
            false => Ok(None),
        };
        Ok((tensor(self.dx, dy_rows, w_rows, x)?, tensor(self.dw, dy_rows.t(), x_rows, w)?))
    }
}

/// A frozen weight in bf16: read as it is for a few rows, widened a part at a time for many.
struct HalfLinear;

/// Rows of a weight that are widened at a time.
const PART: usize = 512;

fn bf16s<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [bf16]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::BF16(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("linear: the weight must be contiguous bf16"),
    }
}

impl CustomOp2 for HalfLinear {
    fn name(&self) -> &'static str {
        "linear_bf16"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, k), (m, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let (x, w) = (contiguous(xs, xl)?, bf16s(ws, wl)?);
        if n <= FEW_ROWS && n * k * m > 0 {
            return Ok((CpuStorage::F32(few_rows(x, w, k)), Shape::from((n, m))));
        }
        let (mut y, mut wide) = (vec![0f32; n * m], Vec::new());
        if n > 0 {
            for (i, part) in w.chunks((PART * k).max(1)).enumerate() {
                widened(part, &mut wide);
                let part = Matrix::new(&wide, part.len() / k, k);
                product_into(Matrix::new(x, n, k), part.t(), &mut y[i * PART..], m, false, 1., Threads::All);
            }
        }
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((n, k), (m, _)) = (x.dims2()?, w.dims2()?);
        let ((ws, wl), (ds, dl)) = (w.storage_and_layout(), dy.storage_and_layout());
        let Storage::Cpu(ws) = &*ws else { bail!("linear: the weight left the CPU's memory") };
        let (w, dy) = (bf16s(ws, wl)?, cpu(&ds, dl)?);
        let (mut dx, mut wide) = (vec![0f32; n * k], Vec::new());
        if n > 0 {
            for (i, part) in w.chunks((PART * k).max(1)).enumerate() {
                widened(part, &mut wide);
                let rows = part.len() / k;
                let dy = Matrix::with_stride(&dy[i * PART..], n, rows, m);
                product_into(dy, Matrix::new(&wide, rows, k), &mut dx, k, true, 1., Threads::All);
            }
        }
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn fused_linear_equals_the_naive_one_in_f64() -> Result<()> {
        for (n, k, m, scale) in
            [(1, 1, 1, 1.), (1, 37, 50, 1.), (4, 9, 7, 1.), (5, 64, 33, 1e3), (130, 70, 65, 1e-4), (0, 4, 3, 1.)]
        {
            let (x, w) = (random(&[n, k], 1, scale)?, random(&[m, k], 2, 1.)?);
            assert_same_gradients(&[&x, &w], 2e-5, |t| linear(&t[0], &t[1]))?;
        }
        // Three dimensions, a transposed view, a broadcast row.
        let (x, w) = (random(&[2, 3, 6], 1, 1.)?, random(&[5, 6], 2, 1.)?);
        assert_same_gradients(&[&x, &w], 2e-5, |t| linear(&t[0], &t[1]))?;
        let x = random(&[6, 9], 1, 1.)?;
        assert_same_gradients(&[&x, &w], 2e-5, |t| linear(&t[0].t()?, &t[1]))?;
        let x = random(&[1, 6], 1, 1.)?;
        assert_same_gradients(&[&x, &w], 2e-5, |t| linear(&t[0].broadcast_as((7, 6))?, &t[1]))
    }

    #[test]
    fn what_does_not_train_has_no_gradient() -> Result<()> {
        let (x, w) = (random(&[6, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?);
        let (x_var, w_var) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let grads = linear(&x_var, &w)?.sum_all()?.backward()?;
        assert!(grads.get(&x_var).is_some() && grads.get(&w).is_none());
        let grads = linear(&x, &w_var)?.sum_all()?.backward()?;
        assert!(grads.get(&w_var).is_some() && grads.get(&x).is_none());
        // A weight made of a variable trains.
        let made = (w_var.as_tensor() * 2.)?;
        assert!(linear(&x, &made)?.sum_all()?.backward()?.get(&w_var).is_some());
        Ok(())
    }

    #[test]
    fn a_weight_in_bf16_gives_what_its_widened_self_gives() -> Result<()> {
        for (n, k, m) in [(1, 37, 50), (4, 9, 7), (5, 64, 33), (30, 20, 1100), (0, 4, 3)] {
            let (x, w) = (random(&[n, k], 1, 1.)?, random(&[m, k], 2, 1.)?.to_dtype(DType::BF16)?);
            let mask = random(&[n, m], 3, 1.)?;
            let run = |w: &Tensor| -> Result<(Tensor, Tensor)> {
                let x = Var::from_tensor(&x)?;
                let y = linear(&x, w)?;
                let grads = (&y * &mask)?.flatten_all()?.sum(0)?.backward()?;
                Ok((y, grads.get(&x).unwrap().clone()))
            };
            let (half, wide) = (run(&w)?, run(&w.to_dtype(DType::F32)?)?);
            for (half, wide) in [(half.0, wide.0), (half.1, wide.1)] {
                let (half, wide) = (half.flatten_all()?.to_vec1::<f32>()?, wide.flatten_all()?.to_vec1::<f32>()?);
                assert!(half.iter().zip(wide).all(|(a, b)| (a - b).abs() < 1e-4), "{n} {k} {m}");
            }
        }
        let trained = Var::from_tensor(&random(&[3, 4], 2, 1.)?.to_dtype(DType::BF16)?)?;
        assert!(linear(&random(&[2, 4], 1, 1.)?, &trained).is_err());
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() -> Result<()> {
        let w = random(&[3, 4], 2, 1.)?;
        assert!(linear(&random(&[2, 5], 1, 1.)?, &w).is_err());
        assert!(linear(&random(&[1], 1, 1.)?.squeeze(0)?, &w).is_err());
        Ok(())
    }
}
