//! Products by the `gemm` crate, for any machine: what is not f32, or is to be rounded, is copied first.

use gemm::Parallelism;
use rayon::prelude::*;

use super::{Element, How, Matrix, Out, Precision, Threads};

/// Columns of the result that are made at a time, so that a copy of a whole weight never stands in memory.
const PART: usize = 512;

/// The product `a · b`.
///
/// # Safety
/// `out` is what [`Out`] says for `a.rows` rows of `b.cols` numbers.
#[allow(unsafe_code)]
pub unsafe fn product<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, out: Out, how: How) {
    if let (Some(a), Some(b)) = (as_it_is(a, how), as_it_is(b, how)) {
        // SAFETY: the caller answers for `out`, whose size is the same.
        return unsafe { product_f32(a, b, out, how.threads) };
    }
    let (a, bt) = (Copied::new(a, how), b.t());
    for start in (0..bt.rows).step_by(PART) {
        let part = Copied::new(bt.rows_from(start, PART), how);
        // SAFETY: `start` is one of the result's columns, and `part` has those from there on: of the caller's memory.
        unsafe {
            let out = Out { data: { out }.data.add(start), ..out };
            product_f32(a.matrix(), part.matrix().t(), out, how.threads);
        }
    }
}

fn as_it_is<T: Element>(matrix: Matrix<T>, how: How) -> Option<Matrix<f32>> {
    let Matrix { data, rows, cols, row_stride, col_stride } = matrix;
    let data = T::f32s(data).filter(|_| how.precision == Precision::F32)?;
    Some(Matrix { data, rows, cols, row_stride, col_stride })
}

/// A copy in f32 of what a matrix holds, rounded as asked.
struct Copied {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    turned: bool,
}

impl Copied {
    fn new<T: Element>(matrix: Matrix<T>, how: How) -> Self {
        let turned = matrix.col_stride != 1;
        let matrix = if turned { matrix.t() } else { matrix };
        let mut data = vec![0f32; matrix.rows * matrix.cols];
        let copy = |(i, row): (usize, &mut [f32])| match how.precision {
            Precision::F32 => widened(matrix.row(i), row),
            Precision::Bf16 => rounded(matrix.row(i), row),
        };
        match how.threads {
            Threads::One => data.chunks_mut(matrix.cols.max(1)).enumerate().for_each(copy),
            Threads::All => data.par_chunks_mut(matrix.cols.max(1)).enumerate().for_each(copy),
        }
        Self { data, rows: matrix.rows, cols: matrix.cols, turned }
    }

    fn matrix(&self) -> Matrix<'_> {
        let matrix = Matrix::new(&self.data, self.rows, self.cols);
        if self.turned { matrix.t() } else { matrix }
    }
}

fn widened<T: Element>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

fn rounded<T: Element>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.halve()) << 16);
    }
}

/// # Safety
/// As [`product`].
#[allow(unsafe_code)]
unsafe fn product_f32(a: Matrix, b: Matrix, out: Out, threads: Threads) {
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `Matrix` checked that all its numbers lie within its slice, and the inner sizes are the same (`run`); the caller
    // answers for `out`, which is read only if `out.add`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.data,
            1,
            out.stride as isize,
            out.add,
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
