//! Frozen weights as a file holds them, and their product with activations.
//!
//! A weight in f32, bf16 or f16 is read where it lies, in a mapped file or in memory, and packed from there for a product
//! with many rows.

use bytemuck::Pod;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::Bytes;
use crate::linear::Numbers;
use crate::matmul::{How, Matrix, Precision};
use crate::rms_norm::cpu;
use crate::simd::{contiguous, widened};

/// A frozen weight `(out, in)` in f32, bf16 or f16.
#[derive(Debug, Clone)]
pub struct MappedWeight {
    dtype: DType,
    shape: (usize, usize),
    bytes: Bytes,
}

impl MappedWeight {
    /// The little-endian numbers of a weight of `shape` (out, in); they are copied only where they are not aligned.
    pub fn new(bytes: Bytes, shape: (usize, usize), dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            bail!("a weight in {dtype:?} is not supported; f32, bf16 and f16 are");
        }
        let size = dtype.size_in_bytes();
        if shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(size)) != Some(bytes.len()) {
            bail!("{} bytes are not {} x {} numbers in {dtype:?}", bytes.len(), shape.0, shape.1);
        }
        if cfg!(target_endian = "big") {
            bail!("weights are read where they lie on little-endian machines only");
        }
        if bytes.as_ptr().align_offset(size) == 0 {
            return Ok(Self { dtype, shape, bytes });
        }
        // Memory of a vector of bytes may lie anywhere in theory: one number of room, and the numbers at the first fit.
        let mut moved = vec![0; bytes.len() + size];
        let start = moved.as_ptr().align_offset(size);
        moved[start..start + bytes.len()].copy_from_slice(&bytes);
        match Bytes::from(moved).slice(start..start + bytes.len()) {
            Some(bytes) => Ok(Self { dtype, shape, bytes }),
            None => bail!("no place for {} aligned bytes", bytes.len()),
        }
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// How its numbers are written.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its numbers, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Some rows of it, where they lie.
    pub fn slice_rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let row = self.shape.1 * self.dtype.size_in_bytes();
        let bytes = match rows.end <= self.shape.0 && rows.start <= rows.end {
            true => self.bytes.slice(rows.start * row..rows.end * row),
            false => None,
        };
        let Some(bytes) = bytes else { bail!("rows {rows:?} of a weight of {} rows", self.shape.0) };
        Ok(Self { bytes, shape: (rows.len(), self.shape.1), dtype: self.dtype })
    }

    /// The numbers in f32, `(out, in)`.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut wide = Vec::new();
        let numbers = in_f32(self.numbers(0..self.shape.0)?, &mut wide).to_vec();
        Tensor::from_vec(numbers, self.shape, &Device::Cpu)
    }

    /// Some rows in f32.
    pub fn gather_rows(&self, index: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.shape;
        let (mut numbers, mut wide) = (Vec::with_capacity(index.len() * cols), Vec::new());
        for &i in index {
            if i as usize >= rows {
                bail!("row {i} of a weight of {rows} rows");
            }
            numbers.extend_from_slice(in_f32(self.numbers(i as usize..i as usize + 1)?, &mut wide));
        }
        Tensor::from_vec(numbers, (index.len(), cols), &Device::Cpu)
    }

    /// What activations are rounded to in a product of many rows with it.
    pub fn precision(&self) -> Precision {
        if self.dtype == DType::BF16 { Precision::for_bf16_weights() } else { Precision::F32 }
    }

    fn numbers(&self, rows: std::ops::Range<usize>) -> Result<Numbers<'_>> {
        let row = self.shape.1 * self.dtype.size_in_bytes();
        let bytes = &self.bytes[rows.start * row..rows.end * row];
        Ok(match self.dtype {
            DType::F32 => Numbers::F32(cast(bytes)?),
            DType::BF16 => Numbers::Bf16(cast(bytes)?),
            _ => Numbers::F16(cast(bytes)?),
        })
    }
}

fn cast<T: Pod>(bytes: &[u8]) -> Result<&[T]> {
    bytemuck::try_cast_slice(bytes).map_err(|e| candle_core::Error::msg(format!("a stored weight: {e}")))
}

/// The numbers in f32; `wide` is where they are put if they are not.
fn in_f32<'a>(numbers: Numbers<'a>, wide: &'a mut Vec<f32>) -> &'a [f32] {
    match numbers {
        Numbers::F32(w) => return w,
        Numbers::Bf16(w) => widened(w, wide),
        Numbers::F16(w) => widened(w, wide),
    }
    wide
}

/// `x · wᵀ` with a frozen `w` `(out, in)` as a file holds it; `x` is `(…, in)` in f32, the result `(…, out)`.
///
/// A gradient flows to `x`: adapters train upon such a weight.
pub fn linear_mapped(x: &Tensor, w: &MappedWeight) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, input) = w.shape;
    match shape.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear_mapped: x is {:?}, the weight is {out} x {input}", x.dims()),
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    x.reshape((rows, input))?.contiguous()?.apply_op1(Stored(w.clone()))?.reshape(shape)
}

struct Stored(MappedWeight);

impl CustomOp1 for Stored {
    fn name(&self) -> &'static str {
        "linear_mapped"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(xs, xl)?;
        let ((n, k), (m, _)) = (xl.shape().dims2()?, self.0.shape);
        let y = self.0.numbers(0..m)?.times(x, [n, k, m], None, How::all(self.0.precision()));
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (ds, dl) = dy.storage_and_layout();
        let ((n, k), (m, _)) = (x.dims2()?, self.0.shape);
        let dx = self.0.numbers(0..m)?.turned(Matrix::new(cpu(&ds, dl)?, n, m), k, How::all(self.0.precision()));
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

    /// `w` written in `dtype` behind `before` other bytes.
    fn stored(w: &Tensor, dtype: DType, before: usize) -> MappedWeight {
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

    fn far(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        flat(a).iter().zip(flat(b)).fold(0., |far, (a, b)| f32::max(far, (a - b).abs()))
    }

    #[test]
    fn the_product_and_its_gradient_are_those_of_the_widened_weight() -> Result<()> {
        for dtype in ALL {
            for (n, k, m) in [(1, 37, 50), (4, 9, 7), (5, 64, 33), (30, 20, 1100), (3, 20, 1100), (0, 4, 3), (2, 4, 0)]
            {
                let (x, w) = (random(&[n, k], 1, 1.)?, random(&[m, k], 2, 1.)?);
                let w = stored(&w, dtype, 0);
                assert_eq!(far(&w.to_tensor()?, &random(&[m, k], 2, 1.)?.to_dtype(dtype)?.to_dtype(DType::F32)?), 0.);
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
                // Beside halves many rows of activations are rounded too, where that is fast.
                let precision = if dtype == DType::BF16 { Precision::for_bf16_weights() } else { Precision::F32 };
                let wide = w.to_tensor()?;
                let (ours, theirs) =
                    (run(&|x| linear_mapped(x, &w))?, run(&|x| crate::linear_with_precision(x, &wide, precision))?);
                assert!(far(&ours.0, &theirs.0) < 1e-4 && far(&ours.1, &theirs.1) < 1e-4, "{dtype:?} {n} {k} {m}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_weight_at_an_odd_place_is_moved_and_another_is_not() -> Result<()> {
        let w = random(&[5, 6], 2, 1.)?;
        for dtype in ALL {
            assert_eq!(far(&stored(&w, dtype, 1).to_tensor()?, &stored(&w, dtype, 0).to_tensor()?), 0.);
            let bytes = stored(&w, dtype, 0).bytes;
            assert_eq!(MappedWeight::new(bytes.clone(), (5, 6), dtype)?.bytes().as_ptr(), bytes.as_ptr());
        }
        Ok(())
    }

    #[test]
    fn rows_are_picked_and_sizes_that_do_not_fit_are_errors() -> Result<()> {
        let w = stored(&random(&[5, 6], 2, 1.)?, DType::BF16, 0);
        assert_eq!(
            far(&w.gather_rows(&[4, 0])?, &w.to_tensor()?.index_select(&Tensor::new(&[4u32, 0], &Device::Cpu)?, 0)?),
            0.
        );
        assert!(w.gather_rows(&[5]).is_err());
        assert_eq!(far(&w.slice_rows(1..3)?.to_tensor()?, &w.to_tensor()?.narrow(0, 1, 2)?), 0.);
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
