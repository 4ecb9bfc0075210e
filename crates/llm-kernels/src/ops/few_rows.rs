//! Matmuls of a few rows, as in decoding, with one or several weights in one parallel loop.

use crate::cpu::columns::par_columns;
use crate::cpu::gemm::AnyMatrix;

pub(crate) use crate::cpu::gemm::FEW_ROWS;

/// `x · wᵀ` for `x` `(n, k)`, at least one row of at least one number, and each weight `w` `(m, k)`: `(n, m)`. The result of a
/// row is the same for any number of rows, weights and threads.
pub(crate) fn few_rows(x: &[f32], weights: &[AnyMatrix]) -> Vec<Vec<f32>> {
    let k = weights.first().map_or(1, AnyMatrix::cols).max(1);
    let widths: Vec<usize> = weights.iter().map(AnyMatrix::rows).collect();
    let bytes = weights.iter().map(AnyMatrix::bytes).sum();
    par_columns(x.len() / k, &widths, bytes, |weight, rows, out| weights[weight].times_few_rows(rows, x, out))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Result, Tensor};
    use half::bf16;
    use llm_files::Bytes;

    use super::*;
    use crate::testing::random;
    use crate::{MappedWeight, Precision, linear_mapped, linear_residual, linear_with_precision};

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
}
