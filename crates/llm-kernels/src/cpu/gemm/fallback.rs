//! Matmul with the `gemm` crate, for any machine. Factors that are not f32, or that must be rounded, are copied first.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{Element, GemmOptions, Matrix, OutputView, Precision, Threads};

/// Output columns per part, so that a copy of a whole weight is never in memory.
const COLS_PER_PART: usize = 512;

/// `a · b`.
///
/// # Safety
/// `out` is valid as described at [`OutputView`] for `a.rows` rows of `b.cols` elements.
#[allow(unsafe_code)]
pub unsafe fn matmul<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, out: OutputView, options: GemmOptions) {
    if let (Some(a), Some(b)) = (borrow_f32(a, options), borrow_f32(b, options)) {
        // SAFETY: the caller guarantees `out`; the sizes are unchanged.
        return unsafe { matmul_f32(a, b, out, options.threads) };
    }
    let (a, bt) = (F32Copy::new(a, options), b.t());
    for start in (0..bt.rows).step_by(COLS_PER_PART) {
        let part = F32Copy::new(bt.rows_from(start, COLS_PER_PART), options);
        // SAFETY: `start` is a column of the result, and `part` has the columns from there on, all inside the caller's
        // output.
        unsafe {
            let out = OutputView { data: { out }.data.add(start), ..out };
            matmul_f32(a.matrix(), part.matrix().t(), out, options.threads);
        }
    }
}

fn borrow_f32<T: Element>(matrix: Matrix<T>, options: GemmOptions) -> Option<Matrix<f32>> {
    let Matrix { data, rows, cols, row_stride, col_stride } = matrix;
    let data = T::as_f32(data).filter(|_| options.precision == Precision::F32)?;
    Some(Matrix { data, rows, cols, row_stride, col_stride })
}

/// A copy of a matrix in f32, rounded to the precision of the matmul.
struct F32Copy {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl F32Copy {
    fn new<T: Element>(matrix: Matrix<T>, options: GemmOptions) -> Self {
        let transposed = matrix.col_stride != 1;
        let matrix = if transposed { matrix.t() } else { matrix };
        let mut data = vec![0f32; matrix.rows * matrix.cols];
        let copy = |(i, row): (usize, &mut [f32])| match options.precision {
            Precision::F32 => copy_widened(matrix.row(i), row),
            Precision::Bf16 => copy_rounded(matrix.row(i), row),
        };
        match options.threads {
            Threads::One => data.chunks_mut(matrix.cols.max(1)).enumerate().for_each(copy),
            Threads::All => data.par_chunks_mut(matrix.cols.max(1)).enumerate().for_each(copy),
        }
        Self { data, rows: matrix.rows, cols: matrix.cols, transposed }
    }

    fn matrix(&self) -> Matrix<'_> {
        let matrix = Matrix::new(&self.data, self.rows, self.cols);
        if self.transposed { matrix.t() } else { matrix }
    }
}

fn copy_widened<T: Element>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

fn copy_rounded<T: Element>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bf16_bits()) << 16);
    }
}

/// # Safety
/// As [`matmul`].
#[allow(unsafe_code)]
unsafe fn matmul_f32(a: Matrix, b: Matrix, out: OutputView, threads: Threads) {
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `Matrix` checked that all its elements are inside its slice, and `run` checked that the inner dimensions
    // are equal. The caller guarantees `out`, which is read only if `out.accumulate`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.data,
            1,
            out.stride as isize,
            out.accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.,
            out.scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
