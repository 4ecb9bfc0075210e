//! Frozen weights in ggml's block formats, and their product with activations.
//!
//! A block holds 32 numbers (Q8_0, Q4_0) or 256 (Q4_K, Q6_K) as small integers with their scales; the layouts are those
//! of GGUF files. For a few rows, as in decoding, activations are rounded to 8 bits for each 32 numbers and multiplied as
//! integers, so that a weight is read as it lies in memory; for many rows parts of the weight are widened to f32.

mod blocks;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

pub(crate) use self::blocks::{Activations, bytes, half, scale_and_min};
use self::blocks::{Prepared, dots, widen_row};
use crate::Bytes;
use crate::matmul::{FEW_ROWS, How, Matrix, Precision, product_into, rows_of_a_part};
use crate::rms_norm::cpu;
use crate::simd::contiguous;

/// How the numbers of a frozen weight are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum BlockFormat {
    /// 8 bits and a scale for each 32: 8.5 bits for each number.
    Q8_0,
    /// 4 bits and a scale for each 32: 4.5 bits for each number.
    Q4_0,
    /// 4 bits; 6-bit scales and minima for each 32, in blocks of 256: 4.5 bits for each number.
    Q4_K,
    /// 6 bits; 8-bit scales for each 16, in blocks of 256: 6.56 bits for each number.
    Q6_K,
}

impl BlockFormat {
    /// Numbers in a block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q6_K => GgmlDType::Q6K,
        }
    }
}

/// A frozen weight `(out, in)` in blocks along its rows.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    format: BlockFormat,
    shape: (usize, usize),
    blocks: Bytes,
}

impl QuantizedWeight {
    /// Rounds `w` `(out, in)` to `format`; `in` must be a multiple of the block's size, and every number finite: blocks have no
    /// way to write another one.
    pub fn quantize(w: &Tensor, format: BlockFormat) -> Result<Self> {
        let (rows, cols) = w.dims2()?;
        if !cols.is_multiple_of(format.elements()) {
            bail!("{format:?} has blocks of {}, the weight has rows of {cols}", format.elements());
        }
        if rows * cols == 0 {
            return Self::from_blocks(Vec::new(), (rows, cols), format);
        }
        let w = w.to_dtype(candle_core::DType::F32)?.contiguous()?;
        let (storage, layout) = w.storage_and_layout();
        if !crate::simd::all_finite(cpu(&storage, layout)?) {
            bail!("a weight of {rows} x {cols} has numbers that are not finite; {format:?} cannot hold them");
        }
        drop(storage);
        let quantized = QTensor::quantize(&w, format.ggml())?;
        Self::from_blocks(quantized.data()?.into_owned(), (rows, cols), format)
    }

    /// The blocks of a GGUF file's tensor of `shape` (out, in), read where they lie.
    pub fn from_blocks(blocks: impl Into<Bytes>, shape: (usize, usize), format: BlockFormat) -> Result<Self> {
        let (blocks, (rows, cols)) = (blocks.into(), shape);
        let expected = cols.is_multiple_of(format.elements()).then(|| cols / format.elements() * format.bytes());
        if expected.and_then(|row| row.checked_mul(rows)) != Some(blocks.len()) {
            bail!("{} bytes are not {rows} x {cols} numbers in {format:?}", blocks.len());
        }
        Ok(Self { format, shape, blocks })
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// What activations are rounded to in a product of many rows with it.
    pub fn precision(&self) -> Precision {
        Precision::for_bf16_weights()
    }

    /// How it is written.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Its blocks, as they stand in a GGUF file.
    pub fn blocks(&self) -> &Bytes {
        &self.blocks
    }

    /// The numbers in f32, `(out, in)`.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut numbers = Vec::new();
        self.widen(0..self.shape.0, &mut numbers);
        Tensor::from_vec(numbers, self.shape, &candle_core::Device::Cpu)
    }

    /// Some rows in f32.
    pub fn gather_rows(&self, index: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.shape;
        let mut numbers = Vec::with_capacity(index.len() * cols);
        let mut row = Vec::new();
        for &i in index {
            if i as usize >= rows {
                bail!("row {i} of a weight of {rows} rows");
            }
            self.widen(i as usize..i as usize + 1, &mut row);
            numbers.extend_from_slice(&row);
        }
        Tensor::from_vec(numbers, (index.len(), cols), &candle_core::Device::Cpu)
    }

    fn row_bytes(&self) -> usize {
        self.shape.1 / self.format.elements() * self.format.bytes()
    }

    fn widen(&self, rows: std::ops::Range<usize>, out: &mut Vec<f32>) {
        let (bytes, cols) = (self.row_bytes(), self.shape.1);
        out.clear();
        out.resize(rows.len() * cols, 0.);
        if !out.is_empty() {
            let blocks = &self.blocks[rows.start * bytes..rows.end * bytes];
            out.par_chunks_mut(cols).zip(blocks.par_chunks(bytes)).with_min_len(8).for_each(|(out, row)| {
                widen_row(self.format, row, out);
            });
        }
    }
}

/// `x · wᵀ` with a quantised, frozen `w` `(out, in)`; `x` is `(…, in)` in f32, the result `(…, out)`.
///
/// A gradient flows to `x`, through the widened weight: adapters train upon it.
pub fn linear_quantized(x: &Tensor, w: &QuantizedWeight) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, input) = w.shape;
    match shape.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear_quantized: x is {:?}, the weight is {out} x {input}", x.dims()),
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    x.reshape((rows, input))?.contiguous()?.apply_op1(Quantized(w.clone()))?.reshape(shape)
}

struct Quantized(QuantizedWeight);

/// Rows of a weight that are widened at a time.
const PART: usize = 512;

impl Quantized {
    /// Runs `f(first row, widened rows)` for one part of the weight after the other.
    fn parts(&self, mut f: impl FnMut(usize, Matrix)) {
        let ((rows, cols), mut wide) = (self.0.shape, Vec::new());
        for start in (0..rows).step_by(PART) {
            let end = (start + PART).min(rows);
            self.0.widen(start..end, &mut wide);
            f(start, Matrix::new(&wide, end - start, cols));
        }
    }
}

impl CustomOp1 for Quantized {
    fn name(&self) -> &'static str {
        "linear_quantized"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(xs, xl)?;
        let ((n, k), (m, _)) = (xl.shape().dims2()?, self.0.shape);
        let mut y = vec![0f32; n * m];
        if n * m * k == 0 {
            return Ok((CpuStorage::F32(y), Shape::from((n, m))));
        }
        if n <= FEW_ROWS {
            let bytes = self.0.row_bytes();
            for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(m)) {
                let x = Prepared::of(x, self.0.format);
                let rows = rows_of_a_part(m);
                y.par_chunks_mut(rows).zip(self.0.blocks.par_chunks(rows * bytes)).for_each(|(y, blocks)| {
                    dots(self.0.format, blocks, bytes, &x, y);
                });
            }
        } else {
            let x = Matrix::new(x, n, k);
            self.parts(|start, w| {
                product_into(x, w.t(), &mut y[start..], m, false, 1., How::all(self.0.precision()));
            });
        }
        Ok((CpuStorage::F32(y), Shape::from((n, m))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (ds, dl) = dy.storage_and_layout();
        let ((n, k), (m, _)) = (x.dims2()?, self.0.shape);
        let (dy, mut dx) = (cpu(&ds, dl)?, vec![0f32; n * k]);
        if n > 0 {
            self.parts(|start, w| {
                let dy = Matrix::with_stride(&dy[start..], n, w.rows(), m);
                product_into(dy, w, &mut dx, k, true, 1., How::all(Precision::F32));
            });
        }
        Tensor::from_vec(dx, (n, k), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::blocks::portable_dots;
    use super::*;
    use crate::testing::random;

    const ALL: [BlockFormat; 4] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_K, BlockFormat::Q6_K];

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_half_is_what_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (super::half(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{bits:x}: {ours} is not {theirs}");
        }
    }

    #[test]
    fn blocks_are_read_as_candle_reads_them() -> Result<()> {
        for format in ALL {
            for scale in [1., 1e-3, 50.] {
                let w = random(&[5, 512], 1, scale)?;
                let theirs = QTensor::quantize(&w, format.ggml())?.dequantize(&candle_core::Device::Cpu)?;
                let ours = QuantizedWeight::quantize(&w, format)?;
                let near = |a: &f32, b: &f32| (a - b).abs() <= 1e-6 * scale as f32;
                assert!(flat(&ours.dequantize()?).iter().zip(&flat(&theirs)).all(|(a, b)| near(a, b)), "{format:?}");
                let picked = flat(&ours.gather_rows(&[4, 0])?);
                assert_eq!(picked[..512], flat(&ours.dequantize()?)[4 * 512..]);
                assert!(ours.gather_rows(&[5]).is_err());
            }
        }
        Ok(())
    }

    /// Small integers survive the rounding of activations, so the product is exact to the rounding of f32.
    #[test]
    fn a_product_of_integers_is_that_of_the_widened_weight() -> Result<()> {
        for format in ALL {
            let w = QuantizedWeight::quantize(&random(&[37, 256], 1, 1.)?, format)?;
            for n in [1, 3, 9] {
                let mut x: Vec<f32> = flat(&random(&[n * 256], 2, 127.)?).iter().map(|x| x.round()).collect();
                x.iter_mut().step_by(32).for_each(|x| *x = 127.);
                let x = Tensor::from_vec(x, (n, 256), &candle_core::Device::Cpu)?;
                // Many rows are multiplied with the weight as it is widened, in bf16 where that is fast.
                let precision = if n > FEW_ROWS { Precision::for_bf16_weights() } else { Precision::F32 };
                let theirs = crate::linear_with_precision(&x, &w.dequantize()?, precision)?;
                let gap = flat(&(linear_quantized(&x, &w)? - &theirs)?).iter().fold(0f32, |a, b| a.max(b.abs()));
                assert!(gap < 2e-5 * flat(&theirs).iter().fold(0f32, |a, b| a.max(b.abs())), "{format:?} {n}: {gap}");
            }
        }
        Ok(())
    }

    /// The portable loops and those for AVX2, where the machine has it, on blocks of random bytes.
    #[test]
    fn every_path_gives_the_same_product() {
        for format in ALL {
            let (rows, cols) = (9, if matches!(format, BlockFormat::Q8_0 | BlockFormat::Q4_0) { 544 } else { 512 });
            let mut w = QuantizedWeight::quantize(&random(&[rows, cols], 1, 1.).unwrap(), format).unwrap();
            // Scales stay as they are; all other bits are as wild as a file may have them.
            let mut blocks = w.blocks.to_vec();
            let noise = flat(&random(&[blocks.len()], 2, 128.).unwrap());
            for (block, noise) in blocks.chunks_mut(format.bytes()).zip(noise.chunks(format.bytes())) {
                let wild = match format {
                    BlockFormat::Q8_0 | BlockFormat::Q4_0 => 2..format.bytes(),
                    BlockFormat::Q4_K => 4..144,
                    BlockFormat::Q6_K => 0..208,
                };
                for i in wild {
                    block[i] = noise[i].round().clamp(-128., 127.) as i8 as u8;
                }
            }
            w.blocks = blocks.into();
            let numbers = flat(&random(&[cols], 3, 5.).unwrap());
            let x = Activations::of(&numbers);
            let (mut chosen, mut portable) = (vec![0f32; rows], vec![0f32; rows]);
            dots(format, &w.blocks, w.row_bytes(), &Prepared::of(&numbers, format), &mut chosen);
            let mut avx2 = chosen.clone();
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                let (blocks, row_bytes) = (&w.blocks, w.row_bytes());
                simd.vectorize(crate::avx2::Dots { simd, format, blocks, row_bytes, x: &x, y: &mut avx2 });
            }
            portable_dots(format, &w.blocks, w.row_bytes(), &x, &mut portable);
            let scale = portable.iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!(scale > 0.1, "{format:?}: {portable:?}");
            for (a, b) in chosen.iter().chain(&avx2).zip(portable.iter().chain(&portable)) {
                assert!((a - b).abs() < 1e-5 * scale, "{format:?}: {a} and {b}");
            }
        }
    }

    #[test]
    fn the_error_of_any_product_is_that_of_rounding_to_8_bits() -> Result<()> {
        for format in ALL {
            for scale in [1e-4, 1., 1e4] {
                let w = QuantizedWeight::quantize(&random(&[16, 512], 1, 0.3)?, format)?;
                let x = random(&[2, 512], 3, scale)?;
                let (ours, theirs) = (linear_quantized(&x, &w)?, crate::linear(&x, &w.dequantize()?)?);
                // Each of 512 products is off by half a step (scale / 254) times at most 0.3, with random signs.
                let bound = 0.3 * scale as f32 / 254. * 512f32.sqrt() * 2.;
                let gap = flat(&(ours - theirs)?).iter().fold(0f32, |a, b| a.max(b.abs()));
                assert!(gap < bound && gap > 0., "{format:?} {scale}: {gap} of {bound}");
            }
        }
        let zeros = QuantizedWeight::quantize(&random(&[4, 256], 1, 1.)?, BlockFormat::Q4_K)?;
        let x = Tensor::zeros((1, 256), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        assert_eq!(flat(&linear_quantized(&x, &zeros)?), [0.; 4]);
        Ok(())
    }

    #[test]
    fn a_gradient_flows_through_the_weight() -> Result<()> {
        for format in ALL {
            let w = QuantizedWeight::quantize(&random(&[600, 256], 1, 1.)?, format)?;
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
    fn sizes_that_do_not_fit_are_errors() -> Result<()> {
        assert!(QuantizedWeight::quantize(&random(&[2, 64], 1, 1.)?, BlockFormat::Q4_K).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 33], (1, 32), BlockFormat::Q8_0).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 34], (1, 31), BlockFormat::Q8_0).is_err());
        let w = QuantizedWeight::from_blocks(vec![0; 34], (1, 32), BlockFormat::Q8_0)?;
        assert!(linear_quantized(&random(&[2, 31], 1, 1.)?, &w).is_err());
        Ok(())
    }
}
