//! The queries of one key/value head with the pages of one sequence.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::SPAN;
use super::element::PageElement;
use super::pages::{KvPages, value_width};
use crate::cpu::prefetch::prefetch;
use crate::cpu::simd::exp;
use crate::ops::attention::cpu::online_softmax_update;

const PAGE: usize = KvPages::PAGE;
/// Rows, that is queries of a head, for which a key is read once; their sums are in registers.
const TILE: usize = 6;

/// The pages of one key/value head of one sequence.
#[derive(Clone, Copy)]
pub struct PagedHead<'a, T> {
    pub keys: &'a [T],
    pub values: &'a [T],
    /// The pages of the sequence.
    pub table: &'a [u32],
    /// The head, and the number of heads.
    pub head: (usize, usize),
    pub head_dim: usize,
}

impl<'a, T: PageElement> PagedHead<'a, T> {
    fn part(&self, slab: &'a [T], page: usize, numbers: usize) -> &'a [T] {
        let ((head, heads), size) = (self.head, numbers / T::NUMBERS);
        &slab[(self.table[page] as usize * heads + head) * size..][..size]
    }

    /// The keys `(d, PAGE)` of page `page` of the sequence.
    fn keys(&self, page: usize) -> &'a [T] {
        self.part(self.keys, page, self.head_dim * PAGE)
    }

    /// The values `(PAGE, width)` of page `page` of the sequence.
    fn values(&self, page: usize) -> &'a [T] {
        self.part(self.values, page, PAGE * value_width(self.head_dim))
    }
}

/// The result of some rows over some spans of keys.
#[derive(Clone)]
pub struct Partial {
    /// The sum of `exp(score - largest score) · value`, `(rows, width)`.
    pub sums: Vec<f32>,
    /// The largest score, and the sum of `exp(score - largest score)`, which is 0 if there was no key.
    pub softmax: Vec<(f32, f32)>,
}

impl Partial {
    /// The result over no keys.
    pub fn empty(rows: usize, head_dim: usize) -> Self {
        let sums = vec![0.; rows * value_width(head_dim)];
        Self { sums, softmax: vec![(f32::NEG_INFINITY, 0.); rows] }
    }

    /// Adds the result over the next spans.
    pub fn merge(&mut self, next: &Self) {
        let width = self.sums.len() / self.softmax.len().max(1);
        let rows = self.sums.chunks_exact_mut(width).zip(&mut self.softmax);
        for ((sums, softmax), (next, next_softmax)) in rows.zip(next.sums.chunks_exact(width).zip(&next.softmax)) {
            merge_row(sums, softmax, next, *next_softmax);
        }
    }
}

#[inline(always)]
fn merge_row(sums: &mut [f32], softmax: &mut (f32, f32), next: &[f32], next_softmax: (f32, f32)) {
    if next_softmax.1 == 0. {
        return;
    }
    if softmax.1 == 0. {
        sums.copy_from_slice(next);
        *softmax = next_softmax;
        return;
    }
    let top = softmax.0.max(next_softmax.0);
    let (old, new) = (exp(softmax.0 - top), exp(next_softmax.0 - top));
    for (sum, next) in sums.iter_mut().zip(next) {
        *sum = *sum * old + next * new;
    }
    *softmax = (top, softmax.1 * old + next_softmax.1 * new);
}

/// The rows in the order that [`Attend`] reads: tiles of [`TILE`] rows, `(d, rows of the tile)`, times `scale`.
pub fn packed_queries<'a>(rows: impl Iterator<Item = &'a [f32]>, head_dim: usize, scale: f32) -> Vec<f32> {
    let rows: Vec<&[f32]> = rows.collect();
    let mut packed = Vec::with_capacity(rows.len() * head_dim);
    for tile in rows.chunks(TILE) {
        (0..head_dim).for_each(|c| packed.extend(tile.iter().map(|row| row[c] * scale)));
    }
    packed
}

/// Attention of some rows over spans of the keys of one head; dispatched by `pulp`.
pub struct Attend<'a, T> {
    pub kv: PagedHead<'a, T>,
    /// [`packed_queries`].
    pub queries: &'a [f32],
    /// The positions of the keys that each row attends to.
    pub visible: &'a [Range<usize>],
    pub spans: Range<usize>,
    pub soft_cap: f32,
}

impl<T: PageElement> WithSimd for Attend<'_, T> {
    type Output = Partial;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Partial {
        let (d, width) = (self.kv.head_dim, value_width(self.kv.head_dim));
        let mut total = Partial::empty(self.visible.len(), d);
        for span in self.spans.clone() {
            for (tile, visible) in self.visible.chunks(TILE).enumerate() {
                let (first, rows) = (tile * TILE, visible.len());
                let queries = &self.queries[first * d..][..rows * d];
                let sums = &mut total.sums[first * width..][..rows * width];
                let softmax = &mut total.softmax[first..][..rows];
                match rows {
                    1 => self.tile::<S, 1>(simd, span, queries, visible, sums, softmax),
                    2 => self.tile::<S, 2>(simd, span, queries, visible, sums, softmax),
                    3 => self.tile::<S, 3>(simd, span, queries, visible, sums, softmax),
                    4 => self.tile::<S, 4>(simd, span, queries, visible, sums, softmax),
                    5 => self.tile::<S, 5>(simd, span, queries, visible, sums, softmax),
                    _ => self.tile::<S, TILE>(simd, span, queries, visible, sums, softmax),
                }
            }
        }
        total
    }
}

impl<T: PageElement> Attend<'_, T> {
    /// Adds one span to the results of a tile.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(
        &self,
        simd: S,
        span: usize,
        queries: &[f32],
        visible: &[Range<usize>],
        sums: &mut [f32],
        softmax: &mut [(f32, f32)],
    ) {
        let begin = span * SPAN;
        // The columns of the span that each row attends to.
        let columns: [Range<usize>; R] = std::array::from_fn(|r| {
            let [start, end] = [visible[r].start, visible[r].end].map(|at| at.clamp(begin, begin + SPAN) - begin);
            start..end.max(start)
        });
        let seen = || columns.iter().filter(|columns| !columns.is_empty());
        let (Some(low), Some(high)) = (seen().map(|c| c.start).min(), seen().map(|c| c.end).max()) else { return };
        let mut scores = [[0f32; SPAN]; R];
        let queries: &[[f32; R]] = queries.as_chunks().0;
        let pages = low / PAGE..high.div_ceil(PAGE);
        for page in pages.clone() {
            let index = begin / PAGE + page;
            let next =
                if page + 1 < pages.end { self.kv.keys(index + 1) } else { self.kv.values(begin / PAGE + pages.start) };
            page_scores(simd, queries, [self.kv.keys(index), next], &mut scores, page * PAGE);
        }
        let mut part = [(f32::NEG_INFINITY, 0f32); R];
        for r in 0..R {
            let row = &mut scores[r][columns[r].clone()];
            let all = 0..row.len();
            online_softmax_update(row, all, self.soft_cap, &mut part[r]);
        }
        let width = value_width(self.kv.head_dim);
        let mut part_sums = vec![0f32; R * width];
        let common = columns.iter().fold(0..SPAN, |all, c| all.start.max(c.start)..all.end.min(c.end));
        if common.start < common.end {
            self.rows_one_by_one(simd, begin, &scores, |r| columns[r].start..common.start, &mut part_sums);
            self.values::<S, R>(simd, begin, std::array::from_fn(|r| &scores[r]), common.clone(), true, &mut part_sums);
            self.rows_one_by_one(simd, begin, &scores, |r| common.end..columns[r].end, &mut part_sums);
        } else {
            self.rows_one_by_one(simd, begin, &scores, |r| columns[r].clone(), &mut part_sums);
        }
        let rows = sums.chunks_exact_mut(width).zip(softmax).zip(part_sums.chunks_exact(width).zip(part));
        for ((sums, softmax), (next, next_softmax)) in rows {
            merge_row(sums, softmax, next, next_softmax);
        }
    }

    /// [`Self::values`] of each row with columns of its own.
    #[inline(always)]
    fn rows_one_by_one<S: Simd, const R: usize>(
        &self,
        simd: S,
        begin: usize,
        weights: &[[f32; SPAN]; R],
        columns: impl Fn(usize) -> Range<usize>,
        sums: &mut [f32],
    ) {
        let width = value_width(self.kv.head_dim);
        for (r, sums) in sums.chunks_exact_mut(width).enumerate() {
            self.values::<S, 1>(simd, begin, [&weights[r]], columns(r), false, sums);
        }
    }

    /// `sums += Σ weights[column] · value[column]` for `R` rows, in the order of the columns of the span from `begin` on. With
    /// `ahead` the pages that are read next are prefetched.
    #[inline(always)]
    fn values<S: Simd, const R: usize>(
        &self,
        simd: S,
        begin: usize,
        weights: [&[f32; SPAN]; R],
        columns: Range<usize>,
        ahead: bool,
        sums: &mut [f32],
    ) {
        let width = value_width(self.kv.head_dim);
        let pairs = width / (2 * S::F32_LANES);
        let mut at = columns.start;
        while at < columns.end {
            let end = columns.end.min(at / PAGE * PAGE + PAGE);
            let index = (begin + at) / PAGE;
            let next = match ahead {
                false => &[],
                _ if end < columns.end => self.kv.values(index + 1),
                // The next span.
                _ if index + 1 < self.kv.table.len() => self.kv.keys(index + 1),
                _ => &[],
            };
            let values = [self.kv.values(index), next];
            let mut first = 0;
            while first < pairs {
                if wide::<S>() && first + 2 <= pairs {
                    page_values::<S, T, R, 2>(simd, weights, at..end, values, first, sums);
                    first += 2;
                } else {
                    page_values::<S, T, R, 1>(simd, weights, at..end, values, first, sums);
                    first += 1;
                }
            }
            at = end;
        }
    }
}

/// Whether the sums of [`TILE`] rows and two pairs of vectors fit in registers.
#[inline(always)]
const fn wide<S: Simd>() -> bool {
    S::F32_LANES == 16
}

/// The scores of `R` rows with the keys of a page, to the columns of `scores` from `at` on. The second page is read next.
#[inline(always)]
fn page_scores<S: Simd, T: PageElement, const R: usize>(
    simd: S,
    queries: &[[f32; R]],
    keys: [&[T]; 2],
    scores: &mut [[f32; SPAN]; R],
    at: usize,
) {
    let pairs = PAGE / (2 * S::F32_LANES);
    if wide::<S>() {
        (0..pairs).step_by(2).for_each(|first| page_scores_of::<S, T, R, 2>(simd, queries, keys, first, scores, at));
    } else {
        (0..pairs).for_each(|first| page_scores_of::<S, T, R, 1>(simd, queries, keys, first, scores, at));
    }
}

/// [`page_scores`] of the keys of `P` pairs of vectors.
#[inline(always)]
fn page_scores_of<S: Simd, T: PageElement, const R: usize, const P: usize>(
    simd: S,
    queries: &[[f32; R]],
    [keys, next]: [&[T]; 2],
    first: usize,
    scores: &mut [[f32; SPAN]; R],
    at: usize,
) {
    let mut sums = [[[simd.splat_f32s(0.); 2]; P]; R];
    let width = PAGE / T::NUMBERS;
    for (c, (query, keys)) in queries.iter().zip(keys.chunks_exact(width)).enumerate() {
        prefetch_row(next, c, width, first);
        let mut vectors = [[simd.splat_f32s(0.); 2]; P];
        for (p, pair) in vectors.iter_mut().enumerate() {
            *pair = T::pair(simd, keys, first + p);
        }
        for r in 0..R {
            let x = simd.splat_f32s(query[r]);
            for p in 0..P {
                for i in 0..2 {
                    sums[r][p][i] = simd.mul_add_f32s(x, vectors[p][i], sums[r][p][i]);
                }
            }
        }
    }
    for r in 0..R {
        for (p, pair) in sums[r].iter().enumerate() {
            for (start, &sum) in T::starts(S::F32_LANES, first + p).into_iter().zip(pair) {
                *vector_mut::<S>(&mut scores[r][at + start..]) = sum;
            }
        }
    }
}

/// `sums += Σ weights[column] · value[column]` of `R` rows for columns of one page and the `P` pairs of vectors from `first` on. The second page
/// is read next.
#[inline(always)]
fn page_values<S: Simd, T: PageElement, const R: usize, const P: usize>(
    simd: S,
    weights: [&[f32; SPAN]; R],
    columns: Range<usize>,
    [values, next]: [&[T]; 2],
    first: usize,
    sums: &mut [f32],
) {
    let (width, row_width) = (sums.len() / R, values.len() / PAGE);
    let mut vectors = [[[simd.splat_f32s(0.); 2]; P]; R];
    for r in 0..R {
        for (p, pair) in vectors[r].iter_mut().enumerate() {
            for (start, vector) in T::starts(S::F32_LANES, first + p).into_iter().zip(pair) {
                *vector = *vector_mut::<S>(&mut sums[r * width + start..]);
            }
        }
    }
    for column in columns.start..columns.end.min(SPAN) {
        let row = &values[column % PAGE * row_width..][..row_width];
        prefetch_row(next, column % PAGE, row_width, first);
        let mut value = [[simd.splat_f32s(0.); 2]; P];
        for (p, pair) in value.iter_mut().enumerate() {
            *pair = T::pair(simd, row, first + p);
        }
        for r in 0..R {
            let weight = simd.splat_f32s(weights[r][column]);
            for p in 0..P {
                for i in 0..2 {
                    vectors[r][p][i] = simd.mul_add_f32s(weight, value[p][i], vectors[r][p][i]);
                }
            }
        }
    }
    for r in 0..R {
        for (p, pair) in vectors[r].iter().enumerate() {
            for (start, &vector) in T::starts(S::F32_LANES, first + p).into_iter().zip(pair) {
                *vector_mut::<S>(&mut sums[r * width + start..]) = vector;
            }
        }
    }
}

/// Prefetches row `row` of `width` elements of a page, in the first pass over the rows of another one.
#[inline(always)]
fn prefetch_row<T>(page: &[T], row: usize, width: usize, pass: usize) {
    if pass == 0
        && let Some(elements) = page.get(row * width..(row + 1) * width)
    {
        prefetch(elements);
    }
}

/// The first vector of a slice.
#[inline(always)]
fn vector_mut<S: Simd>(numbers: &mut [f32]) -> &mut S::f32s {
    &mut S::as_mut_simd_f32s(&mut numbers[..S::F32_LANES]).0[0]
}
