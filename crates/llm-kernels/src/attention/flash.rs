//! What attention computes, on plain slices: blocks of queries times blocks of keys, head by head.

use std::ops::Range;

use candle_core::Layout;
use rayon::prelude::*;

use super::{AttentionMask, AttentionParams, Dims, decode, row_by_row};
use crate::matmul::{Element, Matrix, Right, Rounded};
use crate::rotary::RotaryTable;
use crate::simd::{exp, max, sum2, tanh};
use crate::uninit::Places;

/// A block of queries and a block of keys: their scores stay in the first two levels of the cache.
const QUERIES: usize = 48;
const KEYS: usize = 512;

/// A tensor `(b, t, h, d)` whose last dimension is dense, read head by head.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T = f32> {
    data: &'a [T],
    stride: [usize; 3],
    d: usize,
}

impl<'a, T: Copy> Heads<'a, T> {
    /// Sequences, tokens and heads begin `stride` apart.
    pub fn new(data: &'a [T], stride: [usize; 3], d: usize) -> Self {
        Self { data, stride, d }
    }

    pub fn of(data: &'a [T], layout: &Layout, d: usize) -> Self {
        let stride = layout.stride();
        Self::new(&data[layout.start_offset()..], [stride[0], stride[1], stride[2]], d)
    }

    pub fn row(&self, b: usize, t: usize, h: usize) -> &'a [T] {
        let start = b * self.stride[0] + t * self.stride[1] + h * self.stride[2];
        &self.data[start..start + self.d]
    }

    /// Rows `rows` of head `h` of sequence `b`: `(rows, d)`.
    pub fn block(&self, b: usize, rows: Range<usize>, h: usize) -> Matrix<'a, T> {
        let start = b * self.stride[0] + rows.start * self.stride[1] + h * self.stride[2];
        Matrix::with_stride(&self.data[start..], rows.len(), self.d, self.stride[1])
    }
}

/// A tensor `(b, t, h, d)` whose last dimension is dense, written head by head.
pub(crate) struct HeadsMut<'a, T> {
    places: Places<'a, T>,
    stride: [usize; 3],
    first: usize,
    d: usize,
}

impl<'a, T: Rounded> HeadsMut<'a, T> {
    /// Sequences, tokens and heads begin `stride` apart; the heads are those from `first` on.
    pub fn new(places: Places<'a, T>, stride: [usize; 3], first: usize, d: usize) -> Self {
        Self { places, stride, first, d }
    }

    /// Writes `rows` `(n, d)` as those from `t` on of head `h` of sequence `b`.
    ///
    /// # Safety
    /// Nobody writes one of these rows at the same time.
    #[allow(unsafe_code)]
    pub unsafe fn write(&self, b: usize, t: usize, h: usize, rows: &[f32]) {
        for (i, row) in rows.chunks_exact(self.d.max(1)).enumerate() {
            let start = b * self.stride[0] + (t + i) * self.stride[1] + (self.first + h) * self.stride[2];
            // SAFETY: the caller says that nobody else writes this row.
            unsafe { self.places.write(start, row) };
        }
    }
}

/// An attention: its sizes, what is made of scores, and who sees whom.
pub(crate) struct Core {
    pub shape: Dims,
    pub scores: AttentionParams,
    pub visible: AttentionMask,
}

/// Some queries of one sequence with the range of keys that each sees.
struct Queries {
    rows: Range<usize>,
    seen: Vec<(usize, usize)>,
}

impl Queries {
    /// The blocks of keys that any of the queries sees.
    fn key_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let seen = || self.seen.iter().filter(|(start, end)| start < end);
        let start = seen().map(|r| r.0).min().unwrap_or(0) / Right::<f32>::STEP * Right::<f32>::STEP;
        let end = seen().map(|r| r.1).max().unwrap_or(0);
        (start..end).step_by(KEYS).map(move |at| at..(at + KEYS).min(end))
    }

    /// The columns of a block of keys that query `row` sees.
    fn columns(&self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let (start, end) = self.seen[row];
        let from = start.clamp(keys.start, keys.end) - keys.start;
        from..(end.clamp(keys.start, keys.end) - keys.start).max(from)
    }
}

impl Core {
    /// The results for `q` `(b, t, h, d)`, `k` and `v` `(b, s, g, d)` go to `out` `(b, t, h, d)`, the logarithms of the softmaxes'
    /// denominators `(b, h, t)` come back. Every row of the result is written.
    pub fn forward<T: Element>(&self, inputs: [Heads<T>; 3], out: HeadsMut<f32>) -> Vec<f32> {
        let Dims { b, h, .. } = self.shape;
        let tasks = (0..b * h).into_par_iter().with_max_len(1);
        let log_sums: Vec<_> = tasks.map(|i| self.forward_head(inputs, i / h, i % h, &out)).collect();
        log_sums.concat()
    }

    /// The gradients of `q`, `k` and `v` `(b, t or s, heads, d)` from the result and its gradient; those of `q` and `k` before
    /// they were turned, if they were. Every row of them is written.
    pub fn backward<T: Rounded, G: Rounded>(
        &self,
        inputs: [Heads<T>; 3],
        out: Heads,
        grad: Heads<T>,
        log_sums: &[f32],
        gradients: [HeadsMut<G>; 3],
        rotation: Option<&RotaryTable>,
    ) {
        let Dims { b, g, .. } = self.shape;
        let [dq, dk, dv] = gradients;
        // One task per sequence and key/value head: it alone sums the gradients of that head.
        (0..b * g).into_par_iter().with_max_len(1).for_each(|i| {
            self.backward_group((inputs, out, grad), log_sums, (i / g, i % g), [&dq, &dk, &dv], rotation);
        });
    }

    /// The results of the query heads of key/value head `group` for the one query of sequence `b`, by one span of keys.
    pub fn single(&self, [q, k, v]: [Heads; 3], b: usize, group: usize, span: usize) -> decode::Mixed {
        let Dims { t, s, h, g, .. } = self.shape;
        let (start, end) = self.visible.range(b, 0, t, s);
        let (start, end) = (start.max(span * decode::SPAN), end.min((span + 1) * decode::SPAN));
        let keys = if start < end { start..end } else { 0..0 };
        let rows: Vec<&[f32]> = (group * (h / g)..(group + 1) * (h / g)).map(|head| q.row(b, 0, head)).collect();
        decode::single(&rows, k.block(b, keys.clone(), group), v.block(b, keys, group), &self.scores)
    }

    /// The queries of sequence `b`, block by block.
    fn query_blocks(&self, b: usize) -> impl Iterator<Item = Queries> {
        let Dims { t, s, .. } = self.shape;
        (0..t).step_by(QUERIES).map(move |start| {
            let rows = start..(start + QUERIES).min(t);
            let seen = rows.clone().map(|i| self.visible.range(b, i, t, s)).collect();
            Queries { rows, seen }
        })
    }

    /// The right side of products with a part of it.
    fn right<'a, T: Element>(&self, matrix: Matrix<'a, T>) -> Right<'a, T> {
        Right::new(matrix, self.scores.precision)
    }

    /// Writes the results of one query head, and gives the logarithms of its softmaxes' denominators `(t,)`.
    ///
    /// Keys come block by block; what was summed before is scaled down when a block brings a larger score (Dao et al.
    /// 2022, arXiv 2205.14135).
    fn forward_head<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        b: usize,
        head: usize,
        to: &HeadsMut<f32>,
    ) -> Vec<f32> {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let group = head / (h / g);
        if ![k, v].iter().all(|x| row_by_row::is_plain(x.block(b, 0..s, group))) {
            return self.forward_head_exactly([q, k, v], b, head, to);
        }
        let (keys_t, values) = (self.right(k.block(b, 0..s, group).t()), self.right(v.block(b, 0..s, group)));
        let mut log_sums = vec![0f32; t];
        let mut out = vec![0f32; t.min(QUERIES) * d];
        let mut weights = vec![0f32; t.min(QUERIES) * s.min(KEYS)];
        for queries in self.query_blocks(b) {
            let out = &mut out[..queries.rows.len() * d];
            out.fill(0.);
            let mut softmaxes = vec![(f32::NEG_INFINITY, 0f32); queries.rows.len()]; // largest score, sum
            let q = q.block(b, queries.rows.clone(), head);
            for keys in queries.key_blocks() {
                let width = keys.len();
                let weights = &mut weights[..queries.rows.len() * width];
                keys_t.product_into(q, [0, keys.start], weights, [width, width], false, self.scores.scale as f32);
                for (i, row) in weights.chunks_exact_mut(width).enumerate() {
                    let columns = queries.columns(i, &keys);
                    let shrunk = weigh(row, columns, self.scores.soft_cap(), &mut softmaxes[i]);
                    if shrunk != 1. {
                        out[i * d..(i + 1) * d].iter_mut().for_each(|x| *x *= shrunk);
                    }
                }
                let weights = Matrix::new(weights, queries.rows.len(), width);
                values.product_into(weights, [keys.start, 0], out, [d, d], true, 1.);
            }
            let rows = out.chunks_exact_mut(d).zip(&mut log_sums[queries.rows.clone()]);
            for ((out, log_sum), (top, sum)) in rows.zip(softmaxes) {
                if sum > 0. {
                    out.iter_mut().for_each(|x| *x /= sum);
                    *log_sum = top + sum.ln();
                }
            }
            // SAFETY: this task alone writes this head of this sequence.
            #[allow(unsafe_code)]
            unsafe {
                to.write(b, queries.rows.start, head, out);
            }
        }
        log_sums
    }

    // With P = softmax(S), S = q·kᵀ·scale, O = P·v:
    //   dv = Pᵀ·dO,  dP = dO·vᵀ,  dS = P ∘ (dP - Σ_c dO_c O_c),  dq = dS·k·scale,  dk = dSᵀ·q·scale.
    fn backward_group<T: Rounded, G: Rounded>(
        &self,
        (inputs, out, grad): ([Heads<T>; 3], Heads, Heads<T>),
        log_sums: &[f32],
        (b, group): (usize, usize),
        [to_q, to_k, to_v]: [&HeadsMut<G>; 3],
        rotation: Option<&RotaryTable>,
    ) {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let scale = self.scores.scale as f32;
        let [q, k, v] = inputs;
        let (k, v) = (k.block(b, 0..s, group), v.block(b, 0..s, group));
        let of_heads = |x: Heads<'_, T>, head| row_by_row::is_plain(x.block(b, 0..t, head));
        let mut heads = group * (h / g)..(group + 1) * (h / g);
        let plain = [k, v].map(row_by_row::is_plain) == [true; 2] && heads.all(|i| of_heads(q, i) && of_heads(grad, i));
        if !plain {
            return self.backward_group_exactly(
                (inputs, out, grad),
                log_sums,
                (b, group),
                [to_q, to_k, to_v],
                rotation,
            );
        }
        let (keys_t, values_t, keys_right) = (self.right(k.t()), self.right(v.t()), self.right(k));
        let (mut dk, mut dv) = (vec![0f32; s * d], vec![0f32; s * d]);
        let (mut dq, mut row) = (vec![0f32; t.min(QUERIES) * d], vec![0f32; d]);
        let size = t.min(QUERIES) * s.min(KEYS);
        let (mut p, mut ds) = (vec![0f32; size], vec![0f32; size]);
        for head in group * (h / g)..(group + 1) * (h / g) {
            let log_sums = &log_sums[(b * h + head) * t..][..t];
            let (q_right, grad_right) = (self.right(q.block(b, 0..t, head)), self.right(grad.block(b, 0..t, head)));
            for queries in self.query_blocks(b) {
                let rows = queries.rows.clone();
                let dots = rows.clone().map(|i| {
                    T::widen_all(grad.row(b, i, head), &mut row);
                    dot(out.row(b, i, head), &row)
                });
                let dots: Vec<f32> = dots.collect();
                let (q_rows, grad_rows) = (q.block(b, rows.clone(), head), grad.block(b, rows.clone(), head));
                let dq = &mut dq[..rows.len() * d];
                dq.fill(0.);
                for keys in queries.key_blocks() {
                    let width = keys.len();
                    let (p, ds) = (&mut p[..rows.len() * width], &mut ds[..rows.len() * width]);
                    keys_t.product_into(q_rows, [0, keys.start], p, [width, width], false, scale);
                    values_t.product_into(grad_rows, [0, keys.start], ds, [width, width], false, 1.);
                    for (i, (p, ds)) in p.chunks_exact_mut(width).zip(ds.chunks_exact_mut(width)).enumerate() {
                        let log_sum = log_sums[rows.start + i];
                        differentiate(p, ds, queries.columns(i, &keys), self.scores.soft_cap(), log_sum, dots[i]);
                    }
                    let (p, ds) = (Matrix::new(p, rows.len(), width), Matrix::new(ds, rows.len(), width));
                    let of_keys = keys.start * d..keys.end * d;
                    grad_right.product_into(p.t(), [rows.start, 0], &mut dv[of_keys.clone()], [d, d], true, 1.);
                    q_right.product_into(ds.t(), [rows.start, 0], &mut dk[of_keys], [d, d], true, scale);
                    keys_right.product_into(ds, [keys.start, 0], dq, [d, d], true, scale);
                }
                // SAFETY: this task alone writes this head of this sequence.
                #[allow(unsafe_code)]
                unsafe {
                    to_q.write(b, rows.start, head, turned_back(rotation, b * t + rows.start, d, dq));
                }
            }
        }
        // SAFETY: this task alone writes this group of this sequence.
        #[allow(unsafe_code)]
        unsafe {
            to_k.write(b, 0, group, turned_back(rotation, b * s, d, &mut dk));
            to_v.write(b, 0, group, &dv);
        }
    }
}

/// The gradients of rows `(n, d)` before they were turned, from those behind it; the first is that of `token`.
pub(super) fn turned_back<'a>(
    rotation: Option<&RotaryTable>,
    token: usize,
    d: usize,
    rows: &'a mut [f32],
) -> &'a [f32] {
    if let Some(rotation) = rotation {
        let mut row = vec![0f32; d];
        for (i, gradient) in rows.chunks_exact_mut(d).enumerate() {
            rotation.turn_back(token + i, d, gradient, &mut row);
            gradient.copy_from_slice(&row);
        }
    }
    rows
}

/// Turns the scores of a block into weights relative to the largest score so far; outside `columns` they are zero.
/// Returns the factor by which what was summed before must shrink.
#[pulp::with_simd(weigh = crate::unit::arch())]
#[inline(always)]
pub(super) fn weigh_simd<'a, S: pulp::Simd>(
    _simd: S,
    row: &'a mut [f32],
    columns: Range<usize>,
    soft_cap: f32,
    softmax: &'a mut (f32, f32),
) -> f32 {
    row[..columns.start].fill(0.);
    row[columns.end..].fill(0.);
    let row = &mut row[columns];
    if row.is_empty() {
        return 1.;
    }
    if soft_cap > 0. {
        row.iter_mut().for_each(|x| *x = soft_cap * tanh(*x / soft_cap));
    }
    let (before, sum) = *softmax;
    let top = max(row).max(before);
    for x in &mut *row {
        *x = exp(*x - top);
    }
    let shrunk = if before == f32::NEG_INFINITY { 1. } else { exp(before - top) };
    *softmax = (top, sum * shrunk + sum2(row, row, |a, _| a));
    shrunk
}

/// Turns the raw scores `p` into the weights and the gradients `ds` of the weights into those of the raw scores.
#[pulp::with_simd(differentiate = crate::unit::arch())]
#[inline(always)]
fn differentiate_simd<'a, S: pulp::Simd>(
    _simd: S,
    p: &'a mut [f32],
    ds: &'a mut [f32],
    columns: Range<usize>,
    soft_cap: f32,
    log_sum: f32,
    mean: f32,
) {
    for row in [&mut *p, &mut *ds] {
        row[..columns.start].fill(0.);
        row[columns.end..].fill(0.);
    }
    for (p, ds) in p[columns.clone()].iter_mut().zip(&mut ds[columns]) {
        let mut slope = 1.;
        if soft_cap > 0. {
            let y = tanh(*p / soft_cap);
            slope = 1. - y * y;
            *p = soft_cap * y;
        }
        *p = exp(*p - log_sum);
        *ds = *p * (*ds - mean) * slope;
    }
}

#[pulp::with_simd(dot = crate::unit::arch())]
#[inline(always)]
fn dot_simd<'a, S: pulp::Simd>(_simd: S, a: &'a [f32], b: &'a [f32]) -> f32 {
    sum2(a, b, |a, b| a * b)
}
