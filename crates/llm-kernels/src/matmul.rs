//! Products of matrices on plain slices, behind checked bounds: sums in f32 of numbers in f32 or rounded to bf16.
//!
//! On AVX-512 with bf16 they are made by [`packed`], elsewhere by the `gemm` crate ([`general`]); [`few_rows`] is the
//! product of decoding.
//!
//! candle's own product reads the machine's core count from the system on every call and clears its result first; a
//! model of a few million parameters spends more time there than in the product.

mod epilogue;
mod fallback;
mod few_rows;
mod finite;
#[cfg(target_arch = "x86_64")]
mod packed;
mod packed_b;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

pub use epilogue::{Rounded, mapped_product};
pub use few_rows::{FEW_ROWS, few_rows, rows_of_a_part};
pub use packed_b::Right;

/// A view of `rows x cols` numbers in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// `rows` rows of `cols` numbers, one behind the other.
    #[inline]
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` numbers that begin `row_stride` apart.
    #[inline]
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(rows, cols, row_stride, data.len()), "a matrix reaches beyond its memory");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Rows.
    #[inline]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Columns.
    #[inline]
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Row `i` of a view that is not transposed.
    #[inline]
    pub fn row(self, i: usize) -> &'a [T] {
        assert_eq!(self.col_stride, 1, "a transposed view has no rows that lie together");
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// The transposed view.
    #[inline]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// At most `rows` rows from `start` on.
    #[inline]
    fn rows_from(self, start: usize, rows: usize) -> Self {
        let data = self.data.get(start.saturating_mul(self.row_stride)..).unwrap_or_default();
        Self { data, rows: rows.min(self.rows.saturating_sub(start)), ..self }
    }

    /// At most `cols` columns from `start` on.
    #[inline]
    fn cols_from(self, start: usize, cols: usize) -> Self {
        self.t().rows_from(start, cols).t()
    }
}

/// Whether `rows` rows of `cols` numbers that begin `stride` apart lie within `len` numbers; a size that overflows does not.
fn fits(rows: usize, cols: usize, stride: usize, len: usize) -> bool {
    let last = || (rows - 1).checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || last().is_some_and(|needed| needed <= len)
}

/// A number of a weight as it lies in memory.
pub trait Element: Copy + Default + Send + Sync {
    /// The number in f32.
    fn widen(self) -> f32;

    /// The bits of the nearest number in bf16, the even one of two.
    fn halve(self) -> u16;

    /// The product of each row of `w` with each row of `x`, both of `k` numbers: `(rows of w, rows of x)`.
    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]);

    /// Whether every number is finite, and stays so where it is rounded to bf16.
    fn stay_finite(rows: Matrix<Self>) -> bool;

    /// The numbers themselves, if they are f32.
    fn f32s(data: &[Self]) -> Option<&[f32]>;

    /// The bits of the numbers, if they are bf16.
    fn halves(_: &[Self]) -> Option<&[u16]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn halve(self) -> u16 {
        let bits = self.to_bits();
        let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        if self.is_nan() { 0x7fc0 } else { nearest }
    }

    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]) {
        few_rows::dots_f32(x, w, k, out);
    }

    fn stay_finite(rows: Matrix<Self>) -> bool {
        finite::f32s(rows)
    }

    fn f32s(data: &[Self]) -> Option<&[f32]> {
        Some(data)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn halve(self) -> u16 {
        self.to_bits()
    }

    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = crate::unit::avx2().filter(|_| x.len() == k) {
            return simd.vectorize(crate::avx2::HalfDots { simd, x, w, y: out });
        }
        few_rows::dots_bf16(x, w, k, out);
    }

    fn stay_finite(rows: Matrix<Self>) -> bool {
        finite::bf16s(rows)
    }

    fn f32s(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn halves(data: &[Self]) -> Option<&[u16]> {
        Some(data.reinterpret_cast())
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn halve(self) -> u16 {
        self.to_f32().halve()
    }

    fn dots(x: &[f32], w: &[Self], k: usize, out: &mut [f32]) {
        few_rows::dots_f16(x, w, k, out);
    }

    fn stay_finite(rows: Matrix<Self>) -> bool {
        (0..rows.rows).all(|i| rows.row(i).iter().all(|x| x.is_finite()))
    }

    fn f32s(_: &[Self]) -> Option<&[f32]> {
        None
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

/// What the numbers of a product are rounded to before they are multiplied; sums are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32: not at all.
    #[default]
    F32,
    /// bf16, with eight bits of mantissa: twice as fast where the machine has instructions for it.
    Bf16,
}

impl Precision {
    /// What activations are rounded to beside numbers of bf16 or fewer bits: where nothing is won by rounding, nothing is rounded.
    pub fn for_bf16_weights() -> Self {
        if Self::Bf16.is_fast() { Self::Bf16 } else { Self::F32 }
    }

    /// Whether this machine has instructions for it.
    pub fn is_fast(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::F32 || packed::is_available();
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::F32;
    }
}

/// The FLOP/s of all threads' own multiplications on numbers in the first-level cache, by which products are judged; none
/// where the machine has no instructions that this crate names itself.
pub fn peak_flops(precision: Precision) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if packed::is_available() {
        let rates = rayon::broadcast(|_| match precision {
            Precision::F32 => packed::peak::<false>(),
            Precision::Bf16 => packed::peak::<true>(),
        });
        return Some(rates.iter().sum());
    }
    let _ = precision;
    None
}

/// How a product is made.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub precision: Precision,
    pub threads: Threads,
}

impl How {
    /// In f32 on the thread that asks.
    #[cfg(test)]
    pub const ONE: Self = Self { precision: Precision::F32, threads: Threads::One };

    /// On all threads.
    pub const fn all(precision: Precision) -> Self {
        Self { precision, threads: Threads::All }
    }
}

/// `a · b`, row by row.
pub fn product<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, how: How) -> Vec<f32> {
    assert!(fits(a.rows, b.cols, b.cols, isize::MAX as usize), "a product is larger than memory");
    let len = a.rows * b.cols;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    if a.cols == 0 {
        out.resize(len, 0.);
        return out;
    }
    // SAFETY: `with_capacity` gave room for `len` numbers, rows of `b.cols` one behind the other; `run` reads none of
    // them, as nothing is added, and writes each of them, as `a.cols` is not 0. If it panics, the length is still 0.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, Out { data: out.as_mut_ptr(), stride: b.cols, add: false, scale: 1. }, how);
        out.set_len(len);
    }
    out
}

/// `out = a · b · scale`, or `out += a · b · scale`; `out` holds rows of `b.cols` numbers that begin `stride` apart.
#[inline]
pub fn product_into<A: Element, B: Element>(
    a: Matrix<A>,
    b: Matrix<B>,
    out: &mut [f32],
    stride: usize,
    add: bool,
    scale: f32,
    how: How,
) {
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    assert!(stride >= b.cols && fits(a.rows, b.cols, stride, out.len()), "a product needs more room");
    if a.cols == 0 {
        if !add {
            out.chunks_mut(stride).take(a.rows).for_each(|row| row[..b.cols].fill(0.));
        }
        return;
    }
    // SAFETY: the assertion above says that every row of the result lies within `out` and none within another; nobody else
    // borrows `out` until `run` returns, and its numbers may be read.
    #[allow(unsafe_code)]
    unsafe {
        run(a, b, Out { data: out.as_mut_ptr(), stride, add, scale }, how);
    }
}

/// Where a product is written.
#[derive(Debug, Clone, Copy)]
struct Out {
    /// Valid for writes of every row of the result, and for reads too if `add`; nobody else uses it meanwhile.
    data: *mut f32,
    /// How far apart rows begin.
    stride: usize,
    /// Whether the product is added to what is there.
    add: bool,
    /// What the product is multiplied with first.
    scale: f32,
}

/// # Safety
/// `out` is what [`Out`] says, for `a.rows` rows of `b.cols` numbers.
#[allow(unsafe_code)]
unsafe fn run<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, out: Out, how: How) {
    assert_eq!(a.cols, b.rows, "the inner sizes of a product differ");
    #[cfg(target_arch = "x86_64")]
    if packed::is_available() {
        // SAFETY: the instructions are there, as was just asked; the caller answers for `out`.
        return unsafe {
            match how.precision {
                Precision::F32 => packed::product::<false, A, B>(a, b, out, how.threads),
                Precision::Bf16 => packed::product::<true, A, B>(a, b, out, how.threads),
            }
        };
    }
    // SAFETY: the caller answers for `out`.
    unsafe { fallback::product(a, b, out, how) }
}

#[cfg(test)]
mod tests;
