//! Products of matrices in f32 on plain slices: the `gemm` crate behind checked bounds, and rows against a vector.
//!
//! candle's own product reads the machine's core count from the system on every call and clears its result first; a
//! model of a few million parameters spends more time there than in the product.

use gemm::Parallelism;
use half::bf16;
use rayon::prelude::*;

use crate::simd::halved;

/// A view of `rows x cols` numbers in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `cols` numbers, one behind the other.
    #[inline]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` numbers that begin `row_stride` apart.
    #[inline]
    pub fn with_stride(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
        assert!(data.len() >= needed, "a matrix reaches beyond its memory");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Rows.
    #[inline]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Row `i` of a view that is not transposed.
    #[inline]
    pub fn row(self, i: usize) -> &'a [f32] {
        debug_assert_eq!(self.col_stride, 1);
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// The transposed view.
    #[inline]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Over how many threads a product is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The one that asks: inside a loop that is parallel itself.
    One,
    /// All of rayon's pool.
    All,
}

/// `a · b`, row by row.
pub fn product(a: Matrix, b: Matrix, threads: Threads) -> Vec<f32> {
    let len = a.rows * b.cols;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    if a.cols == 0 {
        out.resize(len, 0.);
        return out;
    }
    // SAFETY: `with_capacity` gave room for `len` numbers, rows of `b.cols` one behind the other; `run` reads none of
    // them and writes each of them, as `a.cols` is not 0.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, out.as_mut_ptr(), b.cols, false, 1., threads);
        out.set_len(len);
    }
    out
}

/// `out = a · b · scale`, or `out += a · b · scale`; `out` holds rows of `b.cols` numbers that begin `stride` apart.
#[inline]
pub fn product_into(a: Matrix, b: Matrix, out: &mut [f32], stride: usize, add: bool, scale: f32, threads: Threads) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    assert!(stride >= b.cols && out.len() >= (a.rows - 1) * stride + b.cols, "a product needs more room");
    if a.cols == 0 {
        if !add {
            out.chunks_mut(stride).take(a.rows).for_each(|row| row[..b.cols].fill(0.));
        }
        return;
    }
    // SAFETY: the assertion above says that every row of the result lies within `out`, which nobody else borrows.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, out.as_mut_ptr(), stride, add, scale, threads);
    }
}

/// # Safety
/// `out` must be valid for writes of `a.rows` rows of `b.cols` numbers `stride` apart, and for reads too if `add`.
#[allow(unsafe_code)]
unsafe fn run(a: Matrix, b: Matrix, out: *mut f32, stride: usize, add: bool, scale: f32, threads: Threads) {
    assert_eq!(a.cols, b.rows, "the inner sizes of a product differ");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `Matrix` checked that all its numbers lie within its slice; the caller answers for `out`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The most rows of `x` for which [`few_rows`] beats the general product: the weight is read once for all of them.
pub const FEW_ROWS: usize = 4;

/// A number of a weight as it lies in memory.
pub trait Element: Copy + Send + Sync {
    /// The number in f32.
    fn widen(self) -> f32;

    /// The product of each row of `w` with each row of `x`, both of `k` numbers: `(rows of w, rows of x)`.
    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]);
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]) {
        dots_f32(x, w, k, out);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new().filter(|_| x.len() == k) {
            return simd.vectorize(crate::avx2::HalfDots { simd, x, w, y: out });
        }
        dots_bf16(x, w, k, out);
    }
}

/// `x · wᵀ` for at most [`FEW_ROWS`] rows `x` `(n, k)`, bound by how fast `w` `(m, k)` is read: `(n, m)`.
pub fn few_rows<W: Element>(x: &[f32], w: &[W], k: usize) -> Vec<f32> {
    let (n, m) = (x.len() / k, w.len() / k);
    let mut columns = vec![0f32; n * m]; // (m, n): each task owns whole columns of the result
    let rows = crate::norm::rows_per_task(k).min(m.div_ceil(rayon::current_num_threads()).max(1));
    columns.par_chunks_mut((rows * n).max(1)).zip(w.par_chunks(rows * k)).for_each(|(out, w)| W::dots(x, w, k, out));
    if n == 1 {
        return columns;
    }
    (0..n).flat_map(|i| (0..m).map(move |j| (i, j))).map(|(i, j)| columns[j * n + i]).collect()
}

#[pulp::with_simd(dots_f32 = pulp::Arch::new())]
#[inline(always)]
fn dots_f32_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [f32], k: usize, out: &'a mut [f32]) {
    dots(x, w, k, out);
}

#[pulp::with_simd(dots_bf16 = pulp::Arch::new())]
#[inline(always)]
fn dots_bf16_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [bf16], k: usize, out: &'a mut [f32]) {
    dots(x, w, k, out);
}

#[inline(always)]
fn dots<W: Element>(x: &[f32], w: &[W], k: usize, out: &mut [f32]) {
    let n = x.len() / k;
    for (out, w) in out.chunks_exact_mut(n).zip(w.chunks_exact(k)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            *out = dot(x, w);
        }
    }
}

/// 32 lanes: four vectors of AVX2 hide the latency of an addition.
#[inline(always)]
fn dot<W: Element>(x: &[f32], w: &[W]) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let ((x_chunks, x_rest), (w_chunks, w_rest)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
    for (x, w) in x_chunks.iter().zip(w_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * w[i].widen();
        }
    }
    let mut rest = 0f32;
    for (x, w) in x_rest.iter().zip(w_rest) {
        rest += x * w.widen();
    }
    halved(&mut lanes) + rest
}

/// Some rows of a weight in f32.
pub fn widened(w: &[bf16], out: &mut Vec<f32>) {
    const PART: usize = 1 << 16;
    out.clear();
    out.resize(w.len(), 0.);
    out.par_chunks_mut(PART).zip(w.par_chunks(PART)).for_each(|(out, w)| widen_part(w, out));
}

#[pulp::with_simd(widen_part = pulp::Arch::new())]
#[inline(always)]
fn widen_part_simd<'a, S: pulp::Simd>(_simd: S, w: &'a [bf16], out: &'a mut [f32]) {
    for (out, w) in out.iter_mut().zip(w) {
        *out = w.widen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        crate::testing::random(&[n], seed, 1.).unwrap().to_vec1().unwrap()
    }

    /// `Σ_k a[i][k] b[k][j]`, in f64.
    fn by_hand(a: Matrix, b: Matrix, i: usize, j: usize) -> f64 {
        let at = |m: Matrix, i: usize, j: usize| f64::from(m.data[i * m.row_stride + j * m.col_stride]);
        (0..a.cols).map(|k| at(a, i, k) * at(b, k, j)).sum()
    }

    #[test]
    fn products_of_all_orientations_are_sums_of_products() {
        for (m, k, n) in [(1, 1, 1), (7, 5, 3), (33, 70, 65), (64, 1, 9), (3, 0, 4), (0, 3, 2), (200, 130, 150)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let (at, bt) = (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t());
            for (a, b) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (at, Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), bt),
            ] {
                for threads in [Threads::One, Threads::All] {
                    let out = product(a, b, threads);
                    assert_eq!(out.len(), m * n);
                    for (at, x) in out.iter().enumerate() {
                        assert!((f64::from(*x) - by_hand(a, b, at / n, at % n)).abs() < 1e-4);
                    }
                    let mut sum = vec![1f32; m * n];
                    product_into(a, b, &mut sum, n.max(1), true, 0.5, threads);
                    assert!(sum.iter().zip(&out).all(|(s, x)| (s - 1. - 0.5 * x).abs() < 1e-4));
                }
            }
        }
    }

    #[test]
    fn a_product_between_other_columns_leaves_them_alone() {
        let (a, b) = (numbers(6, 1), numbers(6, 2));
        let mut out = vec![9f32; 3 * 5];
        product_into(Matrix::new(&a, 3, 2), Matrix::new(&b, 2, 3), &mut out, 5, false, 1., Threads::One);
        assert!(out.chunks(5).all(|row| row[3..] == [9.; 2] && row[0] != 9.));
    }

    #[test]
    fn a_few_rows_are_the_general_product() {
        for (n, k, m) in [(1, 1, 1), (1, 37, 50), (3, 64, 129), (4, 100, 7)] {
            let (x, w) = (numbers(n * k, 1), numbers(m * k, 2));
            let general = product(Matrix::new(&x, n, k), Matrix::new(&w, m, k).t(), Threads::One);
            assert!(few_rows(&x, &w, k).iter().zip(&general).all(|(a, b)| (a - b).abs() < 1e-4), "{n} {k} {m}");
            let half: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
            let mut wide = Vec::new();
            widened(&half, &mut wide);
            assert!(wide.iter().zip(&half).all(|(a, b)| *a == b.to_f32()));
            for other in [few_rows(&x, &half, k), few_rows(&x, &wide, k)] {
                let mut portable = vec![0f32; n * m]; // (m, n)
                dots_bf16(&x, &half, k, &mut portable);
                assert!((0..n * m).all(|at| (other[at] - portable[at % m * n + at / m]).abs() < 1e-4), "{n} {k} {m}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "reaches beyond")]
    fn a_matrix_never_reaches_beyond_its_memory() {
        Matrix::new(&[0.; 5], 2, 3);
    }
}
