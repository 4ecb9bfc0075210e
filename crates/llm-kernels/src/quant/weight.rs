//! A frozen weight in blocks.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use llm_files::Bytes;
use rayon::prelude::*;

use super::BlockFormat;
use super::dots::dequantize_row;
use crate::cpu::gemm::Precision;
use crate::cpu::rounding::Rounded;
use crate::cpu::uninit::par_rows;
use crate::cpu::{cpu_slice, simd};

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
        let w = w.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = w.storage_and_layout();
        if !simd::all_finite(cpu_slice(&storage, layout)?) {
            bail!("a weight of {rows} x {cols} has values that are not finite; {format:?} cannot represent them");
        }
        drop(storage);
        let Some(dtype) = ggml_dtype(format) else {
            bail!("{format:?} is read only; quantise to q8_0, q4_0, q4_k or q6_k")
        };
        let quantized = QTensor::quantize(&w, dtype)?;
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
        Tensor::from_vec(values, self.shape, &Device::Cpu)
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
        Tensor::from_vec(values, (index.len(), cols), &Device::Cpu)
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.shape.1 / self.format.elements() * self.format.bytes()
    }

    /// The weight rounded to `T`, `(out, in)`.
    pub(crate) fn dequantize_to<T: Rounded>(&self) -> Vec<T> {
        let ((rows, cols), bytes) = (self.shape, self.row_bytes());
        let fill = |(): &mut (), row: usize, out: &mut [f32]| {
            dequantize_row(self.format, &self.blocks[row * bytes..][..bytes], out);
        };
        par_rows(rows * cols, cols, || (), fill).0
    }

    pub(crate) fn dequantize_rows(&self, rows: Range<usize>, out: &mut Vec<f32>) {
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

/// candle's name of a format; none if candle has no such format.
pub(super) fn ggml_dtype(format: BlockFormat) -> Option<GgmlDType> {
    Some(match format {
        BlockFormat::Q8_0 => GgmlDType::Q8_0,
        BlockFormat::Q4_0 => GgmlDType::Q4_0,
        BlockFormat::Q4_K => GgmlDType::Q4K,
        BlockFormat::Q6_K => GgmlDType::Q6K,
        BlockFormat::Q4_1 => GgmlDType::Q4_1,
        BlockFormat::Q5_0 => GgmlDType::Q5_0,
        BlockFormat::Q5_1 => GgmlDType::Q5_1,
        BlockFormat::Q2_K => GgmlDType::Q2K,
        BlockFormat::Q3_K => GgmlDType::Q3K,
        BlockFormat::Q5_K => GgmlDType::Q5K,
        BlockFormat::IQ4_NL => return None,
    })
}
