//! Frozen weights in ggml's block formats, and their matmul with activations.
//!
//! A block has 32 (Q8_0, Q4_0) or 256 (Q4_K, Q6_K) weights as small integers with scales, in the layout of GGUF files.
//! For a few rows, as in decoding, activations are quantised to 8 bits in groups of 32 and multiplied as integers, so
//! that the weight is read as it is in memory. For many rows, parts of the weight are dequantised to f32.

mod blocks;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use self::blocks::{DotInput, dequantize_row, dots};
pub(crate) use self::blocks::{QuantizedActivations, f16_to_f32, read_bytes, scale_and_min};
use crate::Bytes;
use crate::matmul::{FEW_ROWS, GemmOptions, Matrix, Precision, matmul_into, rows_per_thread};
use crate::rms_norm::cpu_slice;
use crate::simd::contiguous;

/// The block format of a quantised weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum BlockFormat {
    /// 8 bits and a scale per 32 weights: 8.5 bits per weight.
    Q8_0,
    /// 4 bits and a scale per 32 weights: 4.5 bits per weight.
    Q4_0,
    /// 4 bits; a 6-bit scale and minimum per 32 weights, in blocks of 256: 4.5 bits per weight.
    Q4_K,
    /// 6 bits; an 8-bit scale per 16 weights, in blocks of 256: 6.56 bits per weight.
    Q6_K,
}

impl BlockFormat {
    /// Weights per block.
    pub fn elements(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes per block.
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

/// A frozen weight `(out, in)`, quantised in blocks along its rows.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    format: BlockFormat,
    shape: (usize, usize),
    blocks: Bytes,
}

impl QuantizedWeight {
    /// Quantises `w` `(out, in)`. `in` must be a multiple of the block size and every value finite, because blocks
    /// cannot represent other values; otherwise it is an error.
    pub fn quantize(w: &Tensor, format: BlockFormat) -> Result<Self> {
        let (rows, cols) = w.dims2()?;
        if !cols.is_multiple_of(format.elements()) {
            bail!("{format:?} has blocks of {} weights, which do not divide rows of {cols}", format.elements());
        }
        if rows * cols == 0 {
            return Self::from_blocks(Vec::new(), (rows, cols), format);
        }
        let w = w.to_dtype(candle_core::DType::F32)?.contiguous()?;
        let (storage, layout) = w.storage_and_layout();
        if !crate::simd::all_finite(cpu_slice(&storage, layout)?) {
            bail!("a weight of {rows} x {cols} has values that are not finite; {format:?} cannot represent them");
        }
        drop(storage);
        let quantized = QTensor::quantize(&w, format.ggml())?;
        Self::from_blocks(quantized.data()?.into_owned(), (rows, cols), format)
    }

    /// The blocks of a GGUF tensor of `shape` (out, in), used in place. It is an error if the sizes do not match.
    pub fn from_blocks(blocks: impl Into<Bytes>, shape: (usize, usize), format: BlockFormat) -> Result<Self> {
        let (blocks, (rows, cols)) = (blocks.into(), shape);
        let expected = cols.is_multiple_of(format.elements()).then(|| cols / format.elements() * format.bytes());
        if expected.and_then(|row| row.checked_mul(rows)) != Some(blocks.len()) {
            bail!("{} bytes do not hold {rows} x {cols} weights in {format:?}", blocks.len());
        }
        Ok(Self { format, shape, blocks })
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The precision of a matmul of this weight with many rows.
    pub fn precision(&self) -> Precision {
        Precision::for_bf16_weights()
    }

    /// The block format.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The blocks, in the layout of a GGUF file.
    pub fn blocks(&self) -> &Bytes {
        &self.blocks
    }

    /// The weight in f32, `(out, in)`.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut values = Vec::new();
        self.dequantize_rows(0..self.shape.0, &mut values);
        Tensor::from_vec(values, self.shape, &candle_core::Device::Cpu)
    }

    /// The given rows in f32: `(index.len(), in)`.
    pub fn gather_rows(&self, index: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.shape;
        let mut values = Vec::with_capacity(index.len() * cols);
        let mut row = Vec::new();
        for &i in index {
            if i as usize >= rows {
                bail!("row {i} is out of range: the weight has {rows} rows");
            }
            self.dequantize_rows(i as usize..i as usize + 1, &mut row);
            values.extend_from_slice(&row);
        }
        Tensor::from_vec(values, (index.len(), cols), &candle_core::Device::Cpu)
    }

    fn row_bytes(&self) -> usize {
        self.shape.1 / self.format.elements() * self.format.bytes()
    }

    fn dequantize_rows(&self, rows: std::ops::Range<usize>, out: &mut Vec<f32>) {
        let (bytes, cols) = (self.row_bytes(), self.shape.1);
        out.clear();
        out.resize(rows.len() * cols, 0.);
        if !out.is_empty() {
            let blocks = &self.blocks[rows.start * bytes..rows.end * bytes];
            out.par_chunks_mut(cols).zip(blocks.par_chunks(bytes)).with_min_len(8).for_each(|(out, row)| {
                dequantize_row(self.format, row, out);
            });
        }
    }
}

/// `x · wᵀ` for a quantised, frozen `w` `(out, in)`; `x` is `(…, in)` in f32, the result `(…, out)`.
///
/// `x` gets a gradient through the dequantised weight, so adapters can be trained on it (`QLoRA`).
pub fn linear_quantized(x: &Tensor, w: &QuantizedWeight) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, input) = w.shape;
    match shape.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear_quantized: x is {:?}, the weight is {out} x {input}", x.dims()),
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    x.reshape((rows, input))?.contiguous()?.apply_op1(LinearQuantized(w.clone()))?.reshape(shape)
}

struct LinearQuantized(QuantizedWeight);

/// Rows of a weight that are dequantised at a time.
const ROWS_PER_PART: usize = 512;

impl LinearQuantized {
    /// Runs `f(first row, dequantised rows)` for each part of the weight.
    fn for_each_part(&self, mut f: impl FnMut(usize, Matrix)) {
        let ((rows, cols), mut wide) = (self.0.shape, Vec::new());
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
        let ((n, k), (m, _)) = (xl.shape().dims2()?, self.0.shape);
        let mut y = vec![0f32; n * m];
        if n * m * k == 0 {
            return Ok((CpuStorage::F32(y), Shape::from((n, m))));
        }
        if n <= FEW_ROWS {
            let bytes = self.0.row_bytes();
            for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(m)) {
                let x = DotInput::new(x, self.0.format);
                let rows = rows_per_thread(m);
                y.par_chunks_mut(rows).zip(self.0.blocks.par_chunks(rows * bytes)).for_each(|(y, blocks)| {
                    dots(self.0.format, blocks, bytes, &x, y);
                });
            }
        } else {
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
        let ((n, k), (m, _)) = (x.dims2()?, self.0.shape);
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
    use candle_core::Var;

    use super::blocks::portable_dots;
    use super::*;
    use crate::testing::random;

    const ALL: [BlockFormat; 4] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_K, BlockFormat::Q6_K];

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn f16_conversion_equals_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (super::f16_to_f32(&bits.to_le_bytes(), 0), half::f16::from_bits(bits).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{bits:x}: {ours} is not {theirs}");
        }
    }

    #[test]
    fn dequantization_equals_candle() -> Result<()> {
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

    /// Small integers are quantised exactly, so the result is exact up to the rounding of f32.
    #[test]
    fn matmul_of_integers_equals_that_of_the_dequantized_weight() -> Result<()> {
        for format in ALL {
            let w = QuantizedWeight::quantize(&random(&[37, 256], 1, 1.)?, format)?;
            for n in [1, 3, 9] {
                let mut x: Vec<f32> = flat(&random(&[n * 256], 2, 127.)?).iter().map(|x| x.round()).collect();
                x.iter_mut().step_by(32).for_each(|x| *x = 127.);
                let x = Tensor::from_vec(x, (n, 256), &candle_core::Device::Cpu)?;
                // Many rows are multiplied with the dequantised weight, in bf16 if that is fast.
                let precision = if n > FEW_ROWS { Precision::for_bf16_weights() } else { Precision::F32 };
                let theirs = crate::linear_with_precision(&x, &w.dequantize()?, precision)?;
                let gap = flat(&(linear_quantized(&x, &w)? - &theirs)?).iter().fold(0f32, |a, b| a.max(b.abs()));
                assert!(gap < 2e-5 * flat(&theirs).iter().fold(0f32, |a, b| a.max(b.abs())), "{format:?} {n}: {gap}");
            }
        }
        Ok(())
    }

    /// The portable loops and those for AVX2, if the machine has it, on random blocks.
    #[test]
    fn all_implementations_give_the_same_result() {
        for format in ALL {
            let (rows, cols) = (9, if matches!(format, BlockFormat::Q8_0 | BlockFormat::Q4_0) { 544 } else { 512 });
            let mut w = QuantizedWeight::quantize(&random(&[rows, cols], 1, 1.).unwrap(), format).unwrap();
            // Scales stay as they are; all other bits are random, as a file may have them.
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
            let values = flat(&random(&[cols], 3, 5.).unwrap());
            let x = QuantizedActivations::quantize(&values);
            let (mut chosen, mut portable) = (vec![0f32; rows], vec![0f32; rows]);
            dots(format, &w.blocks, w.row_bytes(), &DotInput::new(&values, format), &mut chosen);
            let mut avx2 = chosen.clone();
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                let (blocks, row_bytes) = (&w.blocks, w.row_bytes());
                simd.vectorize(crate::avx2::QuantizedDots { simd, format, blocks, row_bytes, x: &x, y: &mut avx2 });
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
    fn the_error_is_that_of_8_bit_activations() -> Result<()> {
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
    fn the_input_gradient_equals_that_of_the_dequantized_weight() -> Result<()> {
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
    fn wrong_sizes_are_errors() -> Result<()> {
        assert!(QuantizedWeight::quantize(&random(&[2, 64], 1, 1.)?, BlockFormat::Q4_K).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 33], (1, 32), BlockFormat::Q8_0).is_err());
        assert!(QuantizedWeight::from_blocks(vec![0; 34], (1, 31), BlockFormat::Q8_0).is_err());
        let w = QuantizedWeight::from_blocks(vec![0; 34], (1, 32), BlockFormat::Q8_0)?;
        assert!(linear_quantized(&random(&[2, 31], 1, 1.)?, &w).is_err());
        Ok(())
    }
}
