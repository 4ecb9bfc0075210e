//! Products whose rows are given on while they are in the cache, to become numbers that are rounded once.

use std::mem::MaybeUninit;

use half::bf16;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::packed;
use super::{Element, How, Matrix, Precision, Threads, fits, product};
use crate::uninit::{Places, written};

/// What a product in f32 or in bf16 is given by the operations of this crate: f32, or halves that are rounded once.
pub trait Rounded: Element {
    /// The precision in which nothing is rounded again.
    const PRECISION: Precision;

    /// Writes the nearest numbers.
    fn round(numbers: &[f32], to: &mut [MaybeUninit<Self>]);

    /// The numbers in f32.
    fn widen_all(numbers: &[Self], to: &mut [f32]);
}

impl Rounded for f32 {
    const PRECISION: Precision = Precision::F32;

    fn round(numbers: &[f32], to: &mut [MaybeUninit<Self>]) {
        to.write_copy_of_slice(numbers);
    }

    fn widen_all(numbers: &[Self], to: &mut [f32]) {
        to.copy_from_slice(numbers);
    }
}

impl Rounded for bf16 {
    const PRECISION: Precision = Precision::Bf16;

    fn round(numbers: &[f32], to: &mut [MaybeUninit<Self>]) {
        halve_all(numbers, to);
    }

    fn widen_all(numbers: &[Self], to: &mut [f32]) {
        widen_halves(numbers, to);
    }
}

#[pulp::with_simd(halve_all = crate::unit::arch())]
#[inline(always)]
fn halve_all_simd<'a, S: pulp::Simd>(_simd: S, numbers: &'a [f32], to: &'a mut [MaybeUninit<bf16>]) {
    assert_eq!(numbers.len(), to.len(), "as many numbers as places");
    for (to, x) in to.iter_mut().zip(numbers) {
        to.write(bf16::from_bits(x.halve()));
    }
}

#[pulp::with_simd(widen_halves = crate::unit::arch())]
#[inline(always)]
fn widen_halves_simd<'a, S: pulp::Simd>(_simd: S, numbers: &'a [bf16], to: &'a mut [f32]) {
    assert_eq!(numbers.len(), to.len(), "as many numbers as places");
    for (to, x) in to.iter_mut().zip(numbers) {
        *to = x.widen();
    }
}

/// Rows of a product that are mapped at a time where the path has no blocks of its own.
const MAPPED: usize = 64;

/// `width` numbers for each row of `a · b`, rounded: `map` is given a row's number and the row, and makes them. The product
/// itself never stands in memory whole.
///
/// `piece` of them stay together: the first pieces of all rows come first, then the second ones, `(width / piece, rows, piece)`.
pub fn mapped_product<A: Element, B: Element, T: Rounded>(
    a: Matrix<A>,
    b: Matrix<B>,
    [width, piece]: [usize; 2],
    map: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<T> {
    assert!(width.is_multiple_of(piece.max(1)), "a row is made of whole pieces");
    assert_eq!(a.cols, b.rows, "the inner sizes of a product differ");
    assert!(a.cols > 0 && b.cols > 0 && fits(a.rows, width, width, isize::MAX as usize), "a product of nothing");
    let make = |places: Places<T>, first: usize, rows: &[f32]| {
        let mut made = vec![0f32; width];
        for (i, row) in rows.chunks_exact(b.cols).enumerate() {
            map(first + i, row, &mut made);
            for (place, piece) in made.chunks_exact(piece.max(1)).enumerate() {
                // SAFETY: each row of the product is given to one task, which alone writes the pieces made of it.
                #[allow(unsafe_code)]
                unsafe {
                    places.write((place * a.rows + first + i) * piece.len(), piece);
                }
            }
        }
    };
    let by_rows = |places: Places<T>| {
        #[cfg(target_arch = "x86_64")]
        if packed::is_available() {
            // SAFETY: the instructions are there, as was just asked.
            #[allow(unsafe_code)]
            return unsafe {
                match T::PRECISION {
                    Precision::F32 => packed::product_by_rows::<false, A, B>(a, b, |i, rows| make(places, i, rows)),
                    Precision::Bf16 => packed::product_by_rows::<true, A, B>(a, b, |i, rows| make(places, i, rows)),
                }
            };
        }
        let how = How { precision: T::PRECISION, threads: Threads::One };
        (0..a.rows.div_ceil(MAPPED)).into_par_iter().with_max_len(1).for_each(|i| {
            make(places, i * MAPPED, &product(a.rows_from(i * MAPPED, MAPPED), b, how));
        });
    };
    // SAFETY: both paths give every row of the product to `make`, which writes all numbers of the row.
    #[allow(unsafe_code)]
    unsafe {
        written(a.rows * width, |to| by_rows(Places::new(to)))
    }
}
