//! Frozen weights in f32, bf16 or f16, used in place from a memory-mapped file or a buffer. A matmul with many rows
//! packs the weight from there.

use bytemuck::Pod;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::linear::WeightSlice;
use crate::cpu::gemm::{AnyMatrix, GemmOptions, Matrix, Precision};
use crate::cpu::storage::widen_to_f32;
use crate::cpu::{contiguous, cpu_slice};
use llm_files::Bytes;

/// A frozen weight `(out, in)` in f32, bf16 or f16.
#[derive(Debug, Clone)]
pub struct MappedWeight {
    dtype: DType,
    shape: (usize, usize),
    bytes: Bytes,
}

impl MappedWeight {
    /// A weight of `shape` (out, in) from little-endian elements. They are copied only if they are not aligned. It is
    /// an error if dtype or size do not match.
    pub fn new(bytes: Bytes, shape: (usize, usize), dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            bail!("weights in {dtype:?} are not supported; use f32, bf16 or f16");
        }
        let size = dtype.size_in_bytes();
        if shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(size)) != Some(bytes.len()) {
            bail!("{} bytes do not hold {} x {} elements of {dtype:?}", bytes.len(), shape.0, shape.1);
        }
        if cfg!(target_endian = "big") {
            bail!("memory-mapped weights need a little-endian machine");
        }
        if bytes.as_ptr().align_offset(size) == 0 {
            return Ok(Self { dtype, shape, bytes });
        }
        // A vector of bytes may have any alignment: allocate one more element and start at the first aligned byte.
        let mut moved = vec![0; bytes.len() + size];
        let start = moved.as_ptr().align_offset(size);
        moved[start..start + bytes.len()].copy_from_slice(&bytes);
        match Bytes::from(moved).slice(start..start + bytes.len()) {
            Some(bytes) => Ok(Self { dtype, shape, bytes }),
            None => bail!("could not align {} bytes", bytes.len()),
        }
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A range of rows, without a copy.
    pub fn slice_rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let row = self.shape.1 * self.dtype.size_in_bytes();
        let bytes = match rows.end <= self.shape.0 && rows.start <= rows.end {
            true => self.bytes.slice(rows.start * row..rows.end * row),
            false => None,
        };
        let Some(bytes) = bytes else { bail!("rows {rows:?} are out of range: the weight has {} rows", self.shape.0) };
        Ok(Self { bytes, shape: (rows.len(), self.shape.1), dtype: self.dtype })
    }

    /// The weight in f32, `(out, in)`.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut wide = Vec::new();
        let values = to_f32(self.weight_slice(0..self.shape.0)?, &mut wide).to_vec();
        Tensor::from_vec(values, self.shape, &Device::Cpu)
    }

    /// The given rows in f32: `(index.len(), in)`.
    pub fn gather_rows(&self, index: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.shape;
        let (mut values, mut wide) = (Vec::with_capacity(index.len() * cols), Vec::new());
        for &i in index {
            if i as usize >= rows {
                bail!("row {i} is out of range: the weight has {rows} rows");
            }
            values.extend_from_slice(to_f32(self.weight_slice(i as usize..i as usize + 1)?, &mut wide));
        }
        Tensor::from_vec(values, (index.len(), cols), &Device::Cpu)
    }

    /// The precision of a matmul of this weight with many rows.
    pub fn precision(&self) -> Precision {
        if self.dtype == DType::BF16 { Precision::for_bf16_weights() } else { Precision::F32 }
    }

    /// The elements as a matrix `(out, in)`.
    pub(crate) fn matrix(&self) -> Result<AnyMatrix<'_>> {
        let (rows, cols) = self.shape;
        Ok(self.weight_slice(0..rows)?.matrix(rows, cols))
    }

    fn weight_slice(&self, rows: std::ops::Range<usize>) -> Result<WeightSlice<'_>> {
        let row = self.shape.1 * self.dtype.size_in_bytes();
        let bytes = &self.bytes[rows.start * row..rows.end * row];
        Ok(match self.dtype {
            DType::F32 => WeightSlice::F32(cast(bytes)?),
            DType::BF16 => WeightSlice::Bf16(cast(bytes)?),
            _ => WeightSlice::F16(cast(bytes)?),
        })
    }
}

fn cast<T: Pod>(bytes: &[u8]) -> Result<&[T]> {
    bytemuck::try_cast_slice(bytes).map_err(|e| candle_core::Error::msg(format!("a memory-mapped weight: {e}")))
}

/// The elements in f32, converted into `wide` if necessary.
fn to_f32<'a>(values: WeightSlice<'a>, wide: &'a mut Vec<f32>) -> &'a [f32] {
    match values {
        WeightSlice::F32(w) => return w,
        WeightSlice::Bf16(w) => widen_to_f32(w, wide),
        WeightSlice::F16(w) => widen_to_f32(w, wide),
    }
    wide
}

/// `x · wᵀ` for a frozen `w` `(out, in)`; `x` is `(…, in)`, the result `(…, out)` with its dtype.
///
/// `x` gets a gradient, so adapters can be trained on such a weight.
pub fn linear_mapped(x: &Tensor, w: &MappedWeight) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, input) = w.shape;
    match shape.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear_mapped: x is {:?}, the weight is {out} x {input}", x.dims()),
    }
    if !crate::is_fused(x) {
        return reference(x, w);
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    x.reshape((rows, input))?.contiguous()?.apply_op1(LinearMapped(w.clone()))?.reshape(shape)
}

/// Copies the weight to the device of `x` for each call.
fn reference(x: &Tensor, w: &MappedWeight) -> Result<Tensor> {
    let (out, input) = w.shape;
    let weight = Tensor::from_raw_buffer(&w.bytes, w.dtype, &[out, input], x.device())?.to_dtype(x.dtype())?;
    crate::linear(x, &weight)
}

struct LinearMapped(MappedWeight);

impl CustomOp1 for LinearMapped {
    fn name(&self) -> &'static str {
        "linear_mapped"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(xs, xl)?;
        let ((n, k), (m, _)) = (xl.shape().dims2()?, self.0.shape);
        let y = self.0.weight_slice(0..m)?.forward(x, [n, k, m], None, GemmOptions::all_threads(self.0.precision()));
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (ds, dl) = dy.storage_and_layout();
        let ((n, k), (m, _)) = (x.dims2()?, self.0.shape);
        let dx = self.0.weight_slice(0..m)?.grad_input(
            Matrix::new(cpu_slice(&ds, dl)?, n, m),
            k,
            GemmOptions::all_threads(self.0.precision()),
        );
        Tensor::from_vec(dx, (n, k), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use half::{bf16, f16};

    use super::*;
    use crate::testing::random;

    const ALL: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

    /// `w` in `dtype`, at an offset of `before` bytes.
    fn mapped(w: &Tensor, dtype: DType, before: usize) -> MappedWeight {
        let flat = w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut bytes = vec![0; before];
        for x in flat {
            match dtype {
                DType::F32 => bytes.extend(x.to_le_bytes()),
                DType::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                _ => bytes.extend(f16::from_f32(x).to_le_bytes()),
            }
        }
        let part = Bytes::from(bytes).slice(before..before + w.elem_count() * dtype.size_in_bytes()).unwrap();
        MappedWeight::new(part, w.dims2().unwrap(), dtype).unwrap()
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        flat(a).iter().zip(flat(b)).fold(0., |max_difference, (a, b)| f32::max(max_difference, (a - b).abs()))
    }

    #[test]
    fn result_and_gradient_equal_those_of_the_f32_weight() -> Result<()> {
        for dtype in ALL {
            for (n, k, m) in [(1, 37, 50), (4, 9, 7), (5, 64, 33), (30, 20, 1100), (3, 20, 1100), (0, 4, 3), (2, 4, 0)]
            {
                let (x, w) = (random(&[n, k], 1, 1.)?, random(&[m, k], 2, 1.)?);
                let w = mapped(&w, dtype, 0);
                assert_eq!(
                    max_difference(&w.to_tensor()?, &random(&[m, k], 2, 1.)?.to_dtype(dtype)?.to_dtype(DType::F32)?),
                    0.
                );
                if n * m == 0 {
                    assert_eq!(linear_mapped(&x, &w)?.dims(), [n, m]);
                    continue;
                }
                let mask = random(&[n, m], 3, 1.)?;
                let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<(Tensor, Tensor)> {
                    let x = Var::from_tensor(&x)?;
                    let y = f(&x)?;
                    let grads = (&y * &mask)?.sum_all()?.backward()?;
                    Ok((y, grads.get(&x).unwrap().clone()))
                };
                // With a bf16 weight, many rows of activations are rounded too, if that is fast.
                let precision = if dtype == DType::BF16 { Precision::for_bf16_weights() } else { Precision::F32 };
                let wide = w.to_tensor()?;
                let (ours, theirs) =
                    (run(&|x| linear_mapped(x, &w))?, run(&|x| crate::linear_with_precision(x, &wide, precision))?);
                assert!(
                    max_difference(&ours.0, &theirs.0) < 1e-4 && max_difference(&ours.1, &theirs.1) < 1e-4,
                    "{dtype:?} {n} {k} {m}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn only_misaligned_weights_are_copied() -> Result<()> {
        let w = random(&[5, 6], 2, 1.)?;
        for dtype in ALL {
            assert_eq!(max_difference(&mapped(&w, dtype, 1).to_tensor()?, &mapped(&w, dtype, 0).to_tensor()?), 0.);
            let bytes = mapped(&w, dtype, 0).bytes;
            assert_eq!(MappedWeight::new(bytes.clone(), (5, 6), dtype)?.bytes().as_ptr(), bytes.as_ptr());
        }
        Ok(())
    }

    #[test]
    fn rows_are_gathered_and_wrong_sizes_are_errors() -> Result<()> {
        let w = mapped(&random(&[5, 6], 2, 1.)?, DType::BF16, 0);
        assert_eq!(
            max_difference(
                &w.gather_rows(&[4, 0])?,
                &w.to_tensor()?.index_select(&Tensor::new(&[4u32, 0], &Device::Cpu)?, 0)?
            ),
            0.
        );
        assert!(w.gather_rows(&[5]).is_err());
        assert_eq!(max_difference(&w.slice_rows(1..3)?.to_tensor()?, &w.to_tensor()?.narrow(0, 1, 2)?), 0.);
        assert!(w.slice_rows(3..6).is_err());
        assert!(linear_mapped(&random(&[2, 5], 1, 1.)?, &w).is_err());
        let bytes = || Bytes::from(vec![0; 12]);
        assert!(MappedWeight::new(bytes(), (2, 3), DType::BF16).is_ok());
        assert!(MappedWeight::new(bytes(), (2, 3), DType::F32).is_err());
        assert!(MappedWeight::new(bytes(), (usize::MAX, 3), DType::F16).is_err());
        assert!(MappedWeight::new(bytes(), (3, 1), DType::U32).is_err());
        Ok(())
    }
}
