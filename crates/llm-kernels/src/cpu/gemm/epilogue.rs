//! Matmul with a fused per-row epilogue: each row of the result is passed on while it is in the cache, and the output
//! of the epilogue is rounded once.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::packed;
use super::{Element, GemmElement, GemmOptions, Matrix, Precision, Threads, fits, matmul};
use crate::cpu::uninit::{DisjointWriter, uninit_vec};

/// Rows per task if the `gemm` crate computes the matmul.
const ROWS_PER_TASK: usize = 64;

/// Matmul with an epilogue: `epilogue(row index, row of a · b, output row)` writes `width` elements for each row of
/// `a · b`, which are rounded to `T`. The result of the matmul itself is never in memory as a whole.
///
/// The output has the layout `(width / piece, rows, piece)`: the first `piece` elements of all rows, then the next
/// ones.
pub fn matmul_epilogue<A: Element, B: Element, T: GemmElement>(
    a: Matrix<A>,
    b: Matrix<B>,
    [width, piece]: [usize; 2],
    epilogue: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<T> {
    assert!(width.is_multiple_of(piece.max(1)), "a row consists of whole pieces");
    assert_eq!(a.cols, b.rows, "the inner dimensions of a matmul differ");
    assert!(
        a.cols > 0 && b.cols > 0 && fits(a.rows, width, width, isize::MAX as usize),
        "an empty or too large matmul"
    );
    let apply = |writer: DisjointWriter<T>, first: usize, rows: &[f32]| {
        let mut out_row = vec![0f32; width];
        for (i, row) in rows.chunks_exact(b.cols).enumerate() {
            epilogue(first + i, row, &mut out_row);
            for (index, piece) in out_row.chunks_exact(piece.max(1)).enumerate() {
                // SAFETY: each row of the matmul belongs to one task, and only this task writes the output of that
                // row.
                #[allow(unsafe_code)]
                unsafe {
                    writer.write((index * a.rows + first + i) * piece.len(), piece);
                }
            }
        }
    };
    let run = |writer: DisjointWriter<T>| {
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() {
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            return unsafe {
                match T::PRECISION {
                    Precision::F32 => packed::matmul_row_blocks::<false, A, B>(a, b, |i, rows| apply(writer, i, rows)),
                    Precision::Bf16 => packed::matmul_row_blocks::<true, A, B>(a, b, |i, rows| apply(writer, i, rows)),
                }
            };
        }
        let options = GemmOptions { precision: T::PRECISION, threads: Threads::One };
        (0..a.rows.div_ceil(ROWS_PER_TASK)).into_par_iter().with_max_len(1).for_each(|i| {
            apply(writer, i * ROWS_PER_TASK, &matmul(a.rows_from(i * ROWS_PER_TASK, ROWS_PER_TASK), b, options));
        });
    };
    // SAFETY: both paths pass every row of the matmul to `apply`, which writes all output elements of the row.
    #[allow(unsafe_code)]
    unsafe {
        uninit_vec(a.rows * width, |to| run(DisjointWriter::new(to)))
    }
}
