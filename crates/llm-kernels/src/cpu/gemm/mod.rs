//! Matrix multiplication on plain slices with checked bounds. Factors are f32 or rounded to bf16; sums are f32.
//!
//! CPUs with AVX-512 and bf16 instructions run [`packed`], other machines the `gemm` crate ([`fallback`]).
//! [`matmul_few_rows`] is the matmul of decoding.
//!
//! candle's own matmul reads the number of cores from the system on every call and zeroes its output first. A model of
//! a few million parameters spends more time there than in the matmul.

mod any_matrix;
mod epilogue;
mod fallback;
mod few_rows;
mod finite;
#[cfg(target_arch = "x86_64")]
mod packed;
mod packed_b;
mod peak;

use std::ops::Range;

use few_rows::Vectors;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::cpu::rounding::{Rounded, bf16_to_f32, f32_to_bf16_bits};

pub use any_matrix::AnyMatrix;
pub use epilogue::matmul_epilogue;
pub use few_rows::{FEW_ROWS, matmul_few_rows};
pub use packed_b::PackedB;
pub use peak::{matmul_flops, peak_flops};

/// A strided view of a `rows x cols` matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// `rows` contiguous rows of `cols` elements.
    #[inline]
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` elements, with `row_stride` elements from one row to the next.
    #[inline]
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(rows, cols, row_stride, data.len()), "a matrix is out of bounds");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Row `i`. Panics if the view is transposed.
    #[inline]
    pub fn row(self, i: usize) -> &'a [T] {
        self.row_reader()(i)
    }

    /// [`Self::row`] as a function of `i`, which checks the layout once instead of at each row of a loop.
    #[inline]
    pub fn row_reader(self) -> impl Fn(usize) -> &'a [T] {
        assert_eq!(self.col_stride, 1, "a transposed view has no contiguous rows");
        move |i| &self.data[i * self.row_stride..][..self.cols]
    }

    /// The transposed view.
    #[inline]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The elements of some rows. Panics if rows are not contiguous.
    fn row_slice(self, rows: Range<usize>) -> &'a [T] {
        assert!(self.col_stride == 1 && self.row_stride == self.cols, "rows must be contiguous");
        &self.data[rows.start * self.cols..rows.end * self.cols]
    }

    /// The rows from `start` on, at most `rows` of them.
    #[inline]
    fn rows_from(self, start: usize, rows: usize) -> Self {
        let data = self.data.get(start.saturating_mul(self.row_stride)..).unwrap_or_default();
        Self { data, rows: rows.min(self.rows.saturating_sub(start)), ..self }
    }

    /// The columns from `start` on, at most `cols` of them.
    #[inline]
    fn cols_from(self, start: usize, cols: usize) -> Self {
        self.t().rows_from(start, cols).t()
    }
}

/// True if `rows` rows of `cols` elements with the given stride fit in `len` elements. A size that overflows does not
/// fit.
fn fits(rows: usize, cols: usize, stride: usize, len: usize) -> bool {
    let last = || (rows - 1).checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || last().is_some_and(|needed| needed <= len)
}

/// An element type of a weight in memory.
pub trait Element: Copy + Default + Send + Sync {
    /// Converts to f32.
    fn widen(self) -> f32;

    /// The bits of the nearest bf16 value; ties go to even.
    fn to_bf16_bits(self) -> u16;

    /// Converts to a vector of f32.
    fn load<const L: usize, V: Vectors<L>>(vectors: V, x: &[Self; L]) -> V::F32s;

    /// True if every element is finite and stays finite when it is rounded to bf16.
    fn all_finite_as_bf16(rows: Matrix<Self>) -> bool;

    /// The same slice, if the elements are f32.
    fn as_f32(data: &[Self]) -> Option<&[f32]>;

    /// The bits of the elements, if they are bf16.
    fn as_bf16_bits(_: &[Self]) -> Option<&[u16]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        f32_to_bf16_bits(self)
    }

    #[inline(always)]
    fn load<const L: usize, V: Vectors<L>>(vectors: V, x: &[Self; L]) -> V::F32s {
        vectors.load_f32(x)
    }

    fn all_finite_as_bf16(rows: Matrix<Self>) -> bool {
        finite::f32s(rows)
    }

    fn as_f32(data: &[Self]) -> Option<&[f32]> {
        Some(data)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_to_f32(self)
    }

    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        self.to_bits()
    }

    #[inline(always)]
    fn load<const L: usize, V: Vectors<L>>(vectors: V, x: &[Self; L]) -> V::F32s {
        vectors.load_bf16(x)
    }

    fn all_finite_as_bf16(rows: Matrix<Self>) -> bool {
        finite::bf16s(rows)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn as_bf16_bits(data: &[Self]) -> Option<&[u16]> {
        Some(data.reinterpret_cast())
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        self.to_f32().to_bf16_bits()
    }

    #[inline(always)]
    fn load<const L: usize, V: Vectors<L>>(vectors: V, x: &[Self; L]) -> V::F32s {
        vectors.load_f16(x)
    }

    fn all_finite_as_bf16(rows: Matrix<Self>) -> bool {
        (0..rows.rows).all(|i| rows.row(i).iter().all(|x| x.is_finite()))
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// An element type that matmuls compute in: f32 or bf16. Fused operations save tensors for the backward in it.
pub trait GemmElement: Element + Rounded + 'static {
    /// The matmul precision that does not round the elements again.
    const PRECISION: Precision;

    /// The matrix without its type.
    fn any_matrix(matrix: Matrix<Self>) -> AnyMatrix;
}

impl GemmElement for f32 {
    const PRECISION: Precision = Precision::F32;

    fn any_matrix(matrix: Matrix<Self>) -> AnyMatrix {
        AnyMatrix::F32(matrix)
    }
}

impl GemmElement for bf16 {
    const PRECISION: Precision = Precision::Bf16;

    fn any_matrix(matrix: Matrix<Self>) -> AnyMatrix {
        AnyMatrix::Bf16(matrix)
    }
}

/// The threads a matmul runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread only; for use inside a parallel loop.
    One,
    /// All threads of rayon's pool.
    All,
}

/// The type to which the factors of a matmul are rounded. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32: no rounding.
    #[default]
    F32,
    /// bf16, with 8 bits of precision: twice as fast on CPUs with bf16 instructions.
    Bf16,
}

impl Precision {
    /// The precision of activations that are multiplied with weights of 16 bits or less: bf16 if the CPU has bf16
    /// instructions, else f32, because rounding would not be faster.
    pub fn for_bf16_weights() -> Self {
        if Self::Bf16.is_fast() { Self::Bf16 } else { Self::F32 }
    }

    /// Bytes of an element.
    pub fn size_in_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// True if this machine has instructions for it.
    pub fn is_fast(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::F32 || packed::is_available();
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::F32;
    }
}

/// Options of a matmul.
#[derive(Debug, Clone, Copy)]
pub struct GemmOptions {
    pub precision: Precision,
    pub threads: Threads,
}

impl GemmOptions {
    /// f32 on the calling thread.
    #[cfg(test)]
    pub const SINGLE_THREAD: Self = Self { precision: Precision::F32, threads: Threads::One };

    /// On all threads.
    pub const fn all_threads(precision: Precision) -> Self {
        Self { precision, threads: Threads::All }
    }
}

/// `a · b`, row-major.
pub fn matmul<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, options: GemmOptions) -> Vec<f32> {
    assert!(fits(a.rows, b.cols, b.cols, isize::MAX as usize), "the result of a matmul exceeds the address space");
    let len = a.rows * b.cols;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    if a.cols == 0 {
        out.resize(len, 0.);
        return out;
    }
    // SAFETY: `with_capacity` reserved `len` elements, that is contiguous rows of `b.cols`. `run` reads none of them
    // (`accumulate` is false) and writes all of them (`a.cols` is not 0). If it panics, the length is still 0.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, OutputView { data: out.as_mut_ptr(), stride: b.cols, accumulate: false, scale: 1. }, options);
        out.set_len(len);
    }
    out
}

/// `out = a · b · scale`, or `out += a · b · scale` if `add`. `out` has rows of `b.cols` elements, `stride` elements
/// apart.
#[inline]
pub fn matmul_into<A: Element, B: Element>(
    a: Matrix<A>,
    b: Matrix<B>,
    out: &mut [f32],
    stride: usize,
    add: bool,
    scale: f32,
    options: GemmOptions,
) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    assert!(stride >= b.cols && fits(a.rows, b.cols, stride, out.len()), "the output of a matmul is too small");
    if a.cols == 0 {
        if !add {
            out.chunks_mut(stride).take(a.rows).for_each(|row| row[..b.cols].fill(0.));
        }
        return;
    }
    // SAFETY: the assertion above ensures that every row of the result is inside `out` and that rows do not overlap.
    // `out` is borrowed exclusively until `run` returns, and its elements are initialised.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, OutputView { data: out.as_mut_ptr(), stride, accumulate: add, scale }, options);
    }
}

/// The output of a matmul.
#[derive(Debug, Clone, Copy)]
struct OutputView {
    /// Valid for writes of every row of the result, and for reads too if `accumulate`; not used by anyone else during
    /// the matmul.
    data: *mut f32,
    /// Elements from one row to the next.
    stride: usize,
    /// Adds the result to the output instead of overwriting it.
    accumulate: bool,
    /// The result is multiplied by this first.
    scale: f32,
}

/// # Safety
/// `out` is valid as described at [`OutputView`] for `a.rows` rows of `b.cols` elements.
#[allow(unsafe_code)]
unsafe fn run<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, out: OutputView, options: GemmOptions) {
    assert_eq!(a.cols, b.rows, "the inner dimensions of a matmul differ");
    #[cfg(target_arch = "x86_64")]
    if packed::is_available() {
        // SAFETY: the instructions are available, checked above. The caller guarantees `out`.
        return unsafe {
            match options.precision {
                Precision::F32 => packed::matmul::<false, A, B>(a, b, out, options.threads),
                Precision::Bf16 => packed::matmul::<true, A, B>(a, b, out, options.threads),
            }
        };
    }
    // SAFETY: the caller guarantees `out`.
    unsafe { fallback::matmul(a, b, out, options) }
}

#[cfg(test)]
mod tests;
