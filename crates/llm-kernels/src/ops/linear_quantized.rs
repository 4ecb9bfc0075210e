//! Linear layer with a weight in ggml's block formats.
//!
//! For up to 64 rows, as in decoding, activations are quantised to 8 bits in groups of 32 and multiplied as integers, so
//! that the weight is read as it is in memory. For many rows, parts of the weight are dequantised to f32.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::few_rows::{FEW_ROWS, FewRowsWeight, few_rows};
use crate::cpu::gemm::{GemmOptions, Matrix, Precision, matmul_into};
use crate::cpu::{contiguous, cpu_slice};
use crate::quant::QuantizedWeight;

/// `x · wᵀ` for a quantised, frozen `w` `(out, in)`; `x` is `(…, in)`, the result `(…, out)` with its dtype.
///
/// `x` gets a gradient through the dequantised weight, so adapters can be trained on it (`QLoRA`).
pub fn linear_quantized(x: &Tensor, w: &QuantizedWeight) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, input) = w.shape();
    match shape.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear_quantized: x is {:?}, the weight is {out} x {input}", x.dims()),
    }
    if !crate::is_fused(x) {
        return reference(x, w);
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    x.reshape((rows, input))?.contiguous()?.apply_op1(LinearQuantized(w.clone()))?.reshape(shape)
}

/// Copies the dequantised weight to the device of `x` for each call.
fn reference(x: &Tensor, w: &QuantizedWeight) -> Result<Tensor> {
    crate::linear(x, &w.dequantize()?.to_device(x.device())?.to_dtype(x.dtype())?)
}

struct LinearQuantized(QuantizedWeight);

/// Rows of a weight that are dequantised at a time.
const ROWS_PER_PART: usize = 512;

impl LinearQuantized {
    /// Runs `f(first row, dequantised rows)` for each part of the weight.
    fn for_each_part(&self, mut f: impl FnMut(usize, Matrix)) {
        let ((rows, cols), mut wide) = (self.0.shape(), Vec::new());
        for start in (0..rows).step_by(ROWS_PER_PART) {
            let end = (start + ROWS_PER_PART).min(rows);
            self.0.dequantize_rows(start..end, &mut wide);
            f(start, Matrix::new(&wide, end - start, cols));
        }
    }
}

impl CustomOp1 for LinearQuantized {
    fn name(&self) -> &'static str {
        "linear_quantized"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(xs, xl)?;
        let ((n, k), (m, _)) = (xl.shape().dims2()?, self.0.shape());
        if n * m * k > 0 && n <= FEW_ROWS {
            let y = few_rows(x, &[FewRowsWeight::Blocks(&self.0)]).pop().unwrap_or_default();
            return Ok((CpuStorage::F32(y), Shape::from((n, m))));
        }
        let mut y = vec![0f32; n * m];
        if n * m * k > 0 {
            let x = Matrix::new(x, n, k);
            self.for_each_part(|start, w| {
                matmul_into(x, w.t(), &mut y[start..], m, false, 1., GemmOptions::all_threads(self.0.precision()));
            });
        }
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (ds, dl) = dy.storage_and_layout();
        let ((n, k), (m, _)) = (x.dims2()?, self.0.shape());
        let (dy, mut dx) = (cpu_slice(&ds, dl)?, vec![0f32; n * k]);
        if n > 0 {
            self.for_each_part(|start, w| {
                let dy = Matrix::with_stride(&dy[start..], n, w.rows(), m);
                matmul_into(dy, w, &mut dx, k, true, 1., GemmOptions::all_threads(Precision::F32));
            });
        }
        Tensor::from_vec(dx, (n, k), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::BlockFormat;
    use crate::testing::{quantized, random};

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The formats that are multiplied as integers on every machine.
    const INTEGERS: [BlockFormat; 4] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_K, BlockFormat::Q6_K];

    /// Small integers are quantised exactly, so the result is exact up to the rounding of f32.
    #[test]
    fn matmul_of_integers_equals_that_of_the_dequantized_weight() -> Result<()> {
        for format in BlockFormat::ALL {
            let w = quantized(37, 256, 1, 1., format)?;
            for n in [1, 3, 9, 64, 65] {
                let mut x: Vec<f32> = flat(&random(&[n * 256], 2, 127.)?).iter().map(|x| x.round()).collect();
                x.iter_mut().step_by(32).for_each(|x| *x = 127.);
                let x = Tensor::from_vec(x, (n, 256), &Device::Cpu)?;
                // Many rows are multiplied with the dequantised weight, in bf16 if that is fast.
                let precision = if n > FEW_ROWS { Precision::for_bf16_weights() } else { Precision::F32 };
                let theirs = crate::linear_with_precision(&x, &w.dequantize()?, precision)?;
                let gap = flat(&(linear_quantized(&x, &w)? - &theirs)?).iter().fold(0f32, |a, b| a.max(b.abs()));
                assert!(gap < 2e-5 * flat(&theirs).iter().fold(0f32, |a, b| a.max(b.abs())), "{format:?} {n}: {gap}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_error_is_that_of_8_bit_activations() -> Result<()> {
        if crate::skip_on_reference_path("it does not quantise activations") {
            return Ok(());
        }
        for format in BlockFormat::ALL {
            for scale in [1e-4, 1., 1e4] {
                let w = quantized(16, 512, 1, 0.3, format)?;
                let x = random(&[64, 512], 3, scale)?;
                let (ours, theirs) = (linear_quantized(&x, &w)?, crate::linear(&x, &w.dequantize()?)?);
                // Each of 512 products is off by half a step (scale / 254) times at most 0.3, with random signs.
                let bound = 0.3 * scale as f32 / 254. * 512f32.sqrt() * 2.;
                let gap = flat(&(ours - theirs)?).iter().fold(0f32, |a, b| a.max(b.abs()));
                let rounds = gap > 0. || !INTEGERS.contains(&format);
                assert!(gap < bound && rounds, "{format:?} {scale}: {gap} of {bound}");
            }
        }
        let zeros = QuantizedWeight::quantize(&random(&[4, 256], 1, 1.)?, BlockFormat::Q4_K)?;
        let x = Tensor::zeros((1, 256), DType::F32, &Device::Cpu)?;
        assert_eq!(flat(&linear_quantized(&x, &zeros)?), [0.; 4]);
        Ok(())
    }

    #[test]
    fn the_input_gradient_equals_that_of_the_dequantized_weight() -> Result<()> {
        for format in BlockFormat::ALL {
            let w = quantized(600, 256, 1, 1., format)?;
            let x = Var::from_tensor(&random(&[2, 3, 256], 2, 1.)?)?;
            let gradient = |y: Tensor| -> Result<Vec<f32>> {
                let mask = random(y.dims(), 3, 1.)?;
                Ok(flat((y * mask)?.sum_all()?.backward()?.get(&x).unwrap()))
            };
            let ours = gradient(linear_quantized(&x, &w)?)?;
            let theirs = gradient(crate::linear(&x, &w.dequantize()?)?)?;
            assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-3), "{format:?}");
        }
        Ok(())
    }

    #[test]
    fn a_mismatched_shape_is_an_error() -> Result<()> {
        let w = QuantizedWeight::from_blocks(vec![0; 34], (1, 32), BlockFormat::Q8_0)?;
        assert!(linear_quantized(&random(&[2, 31], 1, 1.)?, &w).is_err());
        Ok(())
    }
}
