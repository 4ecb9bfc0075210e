//! Tensor data: from the bytes of a file to a matrix, and from a matrix to the bytes of any type.

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use llm_files::gguf::GgufTensor;
use llm_files::{BlockFormat, Bytes, WeightDtype};
use llm_kernels::{MappedWeight, QuantizedWeight};

use crate::weight::Weight;
use crate::{Error, Result};

/// The matrix (or vector) of a tensor. With `heads`, the rows of each head are interleaved and get de-interleaved.
pub(super) fn matrix(entry: &GgufTensor, heads: Option<usize>) -> Result<Weight> {
    let (rows, cols) = match *entry.shape.as_slice() {
        [count] if heads.is_some() => (count, 1),
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return Err(Error::Input(format!("shape {:?} is not a matrix", entry.shape))),
    };
    let bytes = match heads {
        Some(heads) if heads > 0 && rows.is_multiple_of(2 * heads) => {
            deinterleave_rows(&entry.bytes, rows, heads).into()
        }
        Some(heads) => {
            return Err(Error::Input(format!("{rows} rows cannot be split into {heads} heads of even size")));
        }
        None => entry.bytes.clone(),
    };
    let matrix = match entry.dtype {
        WeightDtype::Quantized(format) => Weight::Quantized(QuantizedWeight::from_blocks(bytes, (rows, cols), format)?),
        WeightDtype::F32 => Weight::Mapped(MappedWeight::new(bytes, (rows, cols), DType::F32)?),
        WeightDtype::F16 => Weight::Mapped(MappedWeight::new(bytes, (rows, cols), DType::F16)?),
        WeightDtype::Bf16 => Weight::Mapped(MappedWeight::new(bytes, (rows, cols), DType::BF16)?),
    };
    Ok(if entry.shape.len() == 1 { Weight::from(matrix.to_dense()?.flatten_all()?) } else { matrix })
}

/// The dtype of a matrix in memory.
pub(super) fn dtype_of(matrix: &Weight) -> WeightDtype {
    let dtype = match matrix {
        Weight::Quantized(w) => return WeightDtype::Quantized(w.format()),
        Weight::Mapped(w) => w.dtype(),
        Weight::Trainable(w) => w.dtype(),
        Weight::Dense(w) => w.dtype(),
    };
    match dtype {
        DType::BF16 => WeightDtype::Bf16,
        DType::F16 => WeightDtype::F16,
        _ => WeightDtype::F32,
    }
}

/// The dtype for a tensor of this shape, if `dtype` is requested for matrices.
pub(super) fn choose_dtype(dtype: WeightDtype, shape: &[usize], output: bool) -> WeightDtype {
    use BlockFormat::{Q4_0, Q4_K, Q6_K};
    let dtype = match dtype {
        _ if shape.len() < 2 => WeightDtype::F32,
        WeightDtype::Quantized(Q4_0 | Q4_K) if output => WeightDtype::Quantized(Q6_K),
        other => other,
    };
    dtype.for_rows_of(shape.last().copied().unwrap_or(0))
}

/// The data of a matrix in `dtype`.
pub(super) fn encode(matrix: &Weight, dtype: WeightDtype, name: &str) -> Result<Bytes> {
    match (matrix, dtype) {
        (Weight::Quantized(w), WeightDtype::Quantized(format)) if w.format() == format => {
            return Ok(w.blocks().clone());
        }
        (Weight::Mapped(w), _) if dtype_of(matrix) == dtype => return Ok(w.bytes().clone()),
        _ => {}
    }
    let tensor = matrix.to_dense()?.detach();
    let numbers = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
    Ok(match dtype {
        WeightDtype::Quantized(format) => QuantizedWeight::quantize(&tensor, format)?.blocks().clone(),
        WeightDtype::F32 => numbers(&tensor)?.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into(),
        WeightDtype::Bf16 => {
            let bytes = numbers(&tensor)?.into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes());
            bytes.collect::<Vec<u8>>().into()
        }
        WeightDtype::F16 => {
            let numbers = numbers(&tensor)?;
            if let Some(x) = numbers.iter().find(|x| x.is_finite() && x.abs() > f16::MAX.to_f32()) {
                let message = format!("tensor \"{name}\" contains {x}, which overflows f16; use bf16 or f32 instead");
                return Err(Error::Input(message));
            }
            numbers.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>().into()
        }
    })
}

/// Interleaves the rows of each head: 0, d/2, 1, d/2 + 1, …
pub(super) fn interleave_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let half = rows / heads / 2;
    permute_rows(bytes, rows, |row| {
        let (head, i) = (row / (2 * half), row % (2 * half));
        head * 2 * half + i % 2 * half + i / 2
    })
}

/// The inverse of [`interleave_rows`].
pub(in crate::formats) fn deinterleave_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let half = rows / heads / 2;
    permute_rows(bytes, rows, |row| {
        let (head, i) = (row / (2 * half), row % (2 * half));
        head * 2 * half + i % half * 2 + i / half
    })
}

/// Permutes rows: row `i` of the result is row `from(i)`.
fn permute_rows(bytes: &[u8], rows: usize, from: impl Fn(usize) -> usize) -> Vec<u8> {
    let row = bytes.len() / rows.max(1);
    (0..rows).flat_map(|i| &bytes[from(i) * row..][..row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deinterleaving_inverts_interleaving() {
        let rows: Vec<u8> = (0..12).collect();
        // Two heads of six rows.
        assert_eq!(interleave_rows(&rows, 12, 2), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(deinterleave_rows(&interleave_rows(&rows, 12, 2), 12, 2), rows);
    }
}
