//! Matmuls of a few rows, as in decoding, with one or several weights in one parallel loop.
//!
//! With weights in blocks, activations are quantised to 8 bits in groups of 32 and multiplied as integers. Without AVX-512 and
//! VNNI, weights in formats that are only read are dequantised instead.

use crate::BlockFormat;
use crate::cpu::columns::par_columns;
use crate::cpu::gemm::AnyMatrix;
use crate::quant::{DotInput, QuantizedWeight, dots};

pub(crate) use crate::cpu::gemm::FEW_ROWS;

/// A weight `(m, k)`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FewRowsWeight<'a> {
    Dense(AnyMatrix<'a>),
    Blocks(&'a QuantizedWeight),
}

impl FewRowsWeight<'_> {
    /// `(m, k)`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(w) => (w.rows(), w.cols()),
            Self::Blocks(w) => w.shape(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => w.bytes(),
            Self::Blocks(w) => w.blocks().len(),
        }
    }
}

/// `x · wᵀ` for `x` `(n, k)`, at least one row of at least one number, and each weight `w` `(m, k)`: `(n, m)`. The result of a
/// row is the same for any number of rows, weights and threads.
pub(crate) fn few_rows(x: &[f32], weights: &[FewRowsWeight]) -> Vec<Vec<f32>> {
    let (widths, k): (Vec<usize>, Vec<usize>) = weights.iter().map(FewRowsWeight::shape).unzip();
    let k = k.first().copied().unwrap_or(1).max(1);
    let mut inputs: Vec<(BlockFormat, DotInput<'_>)> = Vec::new();
    for weight in weights {
        if let FewRowsWeight::Blocks(w) = weight
            && inputs.iter().all(|(format, _)| *format != w.format())
        {
            inputs.push((w.format(), DotInput::new(x, k, w.format())));
        }
    }
    let bytes = weights.iter().map(FewRowsWeight::bytes).sum();
    par_columns(x.len() / k, &widths, bytes, |weight, rows, out| match weights[weight] {
        FewRowsWeight::Dense(w) => w.times_few_rows(rows, x, out),
        FewRowsWeight::Blocks(w) => {
            let row_bytes = w.row_bytes();
            let blocks = &w.blocks()[rows.start * row_bytes..rows.end * row_bytes];
            for (_, input) in inputs.iter().filter(|(format, _)| *format == w.format()) {
                dots(w.format(), blocks, row_bytes, input, out);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Result, Tensor};
    use half::bf16;
    use llm_files::Bytes;

    use super::*;
    use crate::testing::random;
    use crate::{MappedWeight, Precision, linear_mapped, linear_quantized, linear_residual, linear_with_precision};

    fn bits(x: &Tensor) -> Vec<u32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// The result of a row is the same alone and in a batch, for the operations, any number of threads and any task size.
    #[test]
    fn the_bits_of_a_row_depend_on_neither_rows_nor_threads() -> Result<()> {
        if crate::skip_on_reference_path("its sums depend on the number of rows") {
            return Ok(());
        }
        let (k, m) = (70, 2100);
        let (x, w) = (random(&[FEW_ROWS, k], 1, 1.)?, random(&[m, k], 2, 1.)?);
        let (narrow, residual) = (w.to_dtype(DType::BF16)?, random(&[FEW_ROWS, m], 3, 1.)?);
        let bytes: Vec<u8> = narrow.flatten_all()?.to_vec1::<bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mapped = MappedWeight::new(Bytes::from(bytes), (m, k), DType::BF16)?;
        let run = |first: usize, n: usize| -> Result<Vec<Tensor>> {
            let (x, residual) = (x.narrow(0, first, n)?, residual.narrow(0, first, n)?);
            Ok(vec![
                linear_with_precision(&x, &w, Precision::F32)?,
                linear_with_precision(&x, &w, Precision::Bf16)?,
                linear_with_precision(&x, &narrow, Precision::F32)?,
                linear_residual(&x, &w, &residual, Precision::F32)?,
                linear_mapped(&x, &mapped)?,
            ])
        };
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let alone = (0..FEW_ROWS).map(|row| pool(1).install(|| run(row, 1))).collect::<Result<Vec<_>>>()?;
        for threads in 1..=4 {
            for n in [1, 2, 3, 4, 5, 6, 7, 8, 13, 31, 63, FEW_ROWS] {
                let together = pool(threads).install(|| run(0, n))?;
                for (op, y) in together.iter().enumerate() {
                    let rows: Vec<u32> = alone[..n].iter().flat_map(|all| bits(&all[op])).collect();
                    assert_eq!(bits(y), rows, "operation {op}, {n} rows, {threads} threads");
                }
            }
        }
        assert_eq!(bits(&alone[0][2]), bits(&alone[0][4]));
        Ok(())
    }

    #[test]
    fn the_bits_of_a_row_with_blocks_depend_on_neither_rows_nor_threads() -> Result<()> {
        if crate::skip_on_reference_path("its sums depend on the number of rows") {
            return Ok(());
        }
        let k = 256;
        let x = random(&[FEW_ROWS, k], 1, 1.)?;
        for format in BlockFormat::ALL {
            let w = crate::testing::quantized(100, k, 2, 1., format)?;
            let run = |first: usize, n: usize| linear_quantized(&x.narrow(0, first, n)?, &w);
            let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let alone = (0..FEW_ROWS).map(|row| pool(1).install(|| run(row, 1))).collect::<Result<Vec<_>>>()?;
            let alone: Vec<u32> = alone.iter().flat_map(bits).collect();
            for (threads, n) in [(1, 64), (2, 2), (2, 7), (3, 33), (4, 64)] {
                let together = bits(&pool(threads).install(|| run(0, n))?);
                assert_eq!(together, alone[..n * 100], "{format:?}, {n} rows, {threads} threads");
            }
        }
        Ok(())
    }
}
