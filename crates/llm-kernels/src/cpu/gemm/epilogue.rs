//! Matmul with a fused per-row epilogue: each row of the result is passed on while it is in the cache, and the output
//! of the epilogue is rounded once.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::packed;
use super::{AnyMatrix, Element, GemmElement, GemmOptions, Matrix, Precision, Threads, fits};
use crate::cpu::uninit::{DisjointWriter, uninit_vec};

/// Rows per task if the `gemm` crate computes the matmul.
const ROWS_PER_TASK: usize = 64;

/// Matmul with an epilogue: `epilogue(row index, row of a · b, output row)` writes `width` elements for each row of
/// `a · b`, which are rounded to `T`. The result of the matmul itself is never in memory as a whole; the epilogue may
/// change its row.
///
/// B consists of the columns of one or more matrices, given as their transposes `bts`.
///
/// The output has the layout `(width / piece, rows, piece)`: the first `piece` elements of all rows, then the next
/// ones.
pub fn matmul_epilogue<A: Element, T: GemmElement>(
    a: Matrix<A>,
    bts: &[AnyMatrix],
    [width, piece]: [usize; 2],
    epilogue: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<T> {
    let cols: usize = bts.iter().map(super::any_matrix::AnyMatrix::rows).sum();
    assert!(width.is_multiple_of(piece.max(1)), "a row consists of whole pieces");
    assert!(bts.iter().all(|bt| bt.cols() == a.cols), "the inner dimensions of a matmul differ");
    assert!(a.cols > 0 && cols > 0 && fits(a.rows, width, width, isize::MAX as usize), "an empty or too large matmul");
    let apply = |writer: DisjointWriter<T>, first: usize, rows: &mut [f32], stride: usize| {
        let mut out_row = vec![0f32; width];
        for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
            remove_padding(bts, row);
            epilogue(first + i, &mut row[..cols], &mut out_row);
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
            let stride = packed::row_stride(bts);
            let each = |first: usize, rows: &mut [f32]| apply(writer, first, rows, stride);
            // SAFETY: the instructions are available, checked above.
            #[allow(unsafe_code)]
            return unsafe {
                match T::PRECISION {
                    Precision::F32 => packed::matmul_row_blocks::<false, A>(a, bts, each),
                    Precision::Bf16 => packed::matmul_row_blocks::<true, A>(a, bts, each),
                }
            };
        }
        let options = GemmOptions { precision: T::PRECISION, threads: Threads::One };
        (0..a.rows.div_ceil(ROWS_PER_TASK)).into_par_iter().with_max_len(1).for_each(|i| {
            let a = a.rows_from(i * ROWS_PER_TASK, ROWS_PER_TASK);
            let (mut rows, mut first) = (vec![0f32; a.rows * cols], 0);
            for bt in bts {
                bt.t().matmul_into(a, &mut rows[first..], cols, false, options);
                first += bt.rows();
            }
            apply(writer, i * ROWS_PER_TASK, &mut rows, cols);
        });
    };
    // SAFETY: both paths pass every row of the matmul to `apply`, which writes all output elements of the row.
    #[allow(unsafe_code)]
    unsafe {
        uninit_vec(a.rows * width, |to| run(DisjointWriter::new(to)))
    }
}

/// Moves the columns of each matrix of `bts` next to those of the matrix before it, if the row has padding between them.
fn remove_padding(bts: &[AnyMatrix], row: &mut [f32]) {
    let cols: usize = bts.iter().map(super::any_matrix::AnyMatrix::rows).sum();
    if row.len() == cols {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    for (i, bt) in bts.iter().enumerate().skip(1) {
        let from = packed::row_stride(&bts[..=i]) - bt.rows();
        let to = bts[..i].iter().map(super::any_matrix::AnyMatrix::rows).sum();
        row.copy_within(from..from + bt.rows(), to);
    }
}
