//! Attention by blocks of queries and keys with an online softmax, head by head (`FlashAttention`, Dao et al. 2022,
//! arXiv 2205.14135).

use std::ops::Range;

use rayon::prelude::*;

use super::call::FlashAttention;
use super::heads::{GroupWriters, Heads, rotate_rows_back};
use super::softmax::{online_softmax_update, softmax_backward};
use super::{decode, row_by_row};
use crate::cpu::gemm::{Element, GemmElement, Matrix, PackedB};
use crate::cpu::simd::sum2;
use crate::cpu::uninit::{HeadWriter, write_heads};
use crate::ops::attention::Dims;
use crate::ops::rotary::RotaryTable;

/// Queries and keys per block; the scores of a block stay in the L1 and L2 caches.
const QUERIES: usize = 48;
const KEYS: usize = 512;

/// A block of queries of one sequence, with the range of keys that each attends to.
struct Queries {
    rows: Range<usize>,
    visible_keys: Vec<(usize, usize)>,
}

impl Queries {
    /// The blocks of keys that at least one of the queries attends to.
    fn key_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let visible_keys = || self.visible_keys.iter().filter(|(start, end)| start < end);
        let start = visible_keys().map(|r| r.0).min().unwrap_or(0) / PackedB::<f32>::ALIGN * PackedB::<f32>::ALIGN;
        let end = visible_keys().map(|r| r.1).max().unwrap_or(0);
        (start..end).step_by(KEYS).map(move |at| at..(at + KEYS).min(end))
    }

    /// The columns of a block of keys that query `row` attends to.
    fn columns(&self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let (start, end) = self.visible_keys[row];
        let from = start.clamp(keys.start, keys.end) - keys.start;
        from..(end.clamp(keys.start, keys.end) - keys.start).max(from)
    }
}

impl FlashAttention {
    /// Attention of all sequences and query heads: the result `(n, h, d)` of n queries, and the log-sum-exp of the scores,
    /// `(h, t)` of each sequence. `head(b, h, writer)` writes the result of a head of a sequence and returns its
    /// log-sum-exp `(t,)`, as [`Self::forward_head`] does.
    pub fn forward(
        &self,
        head: impl Fn(usize, usize, &mut HeadWriter<f32>) -> Vec<f32> + Sync,
    ) -> (Vec<f32>, Vec<f32>) {
        let Dims { h, d, .. } = self.dims;
        let mut lse = Vec::new();
        let out = write_heads(&self.query_lens(), h, d, |heads| {
            let tasks = heads.into_par_iter().enumerate().with_max_len(1);
            lse = tasks.map(|(i, mut out)| head(i / h, i % h, &mut out)).collect::<Vec<_>>().concat();
        });
        (out, lse)
    }

    /// The gradients of `q`, `k` and `v` `(b, t or s, heads, d)` from the result and its gradient. With `rotation`,
    /// the gradients of `q` and `k` are those before the rotary embedding.
    pub fn backward<T: GemmElement, G: GemmElement>(
        &self,
        inputs: [Heads<T>; 3],
        out: Heads,
        grad: Heads<T>,
        lse: &[f32],
        gradients: Vec<GroupWriters<G>>,
        rotation: Option<&RotaryTable>,
    ) {
        let g = self.dims.g;
        // One task per sequence and key/value head, so that only one task adds to the gradients of a head.
        gradients.into_par_iter().enumerate().with_max_len(1).for_each(|(i, mut to)| {
            self.backward_group((inputs, out, grad), lse, (i / g, i % g), &mut to, rotation);
        });
    }

    /// Attention of the single query of sequence `b` for some query heads of a key/value head, over one span of keys.
    pub fn decode_span(
        &self,
        [q, k, v]: [Heads; 3],
        b: usize,
        heads: Range<usize>,
        span: usize,
    ) -> decode::PartialAttention {
        let (Dims { h, g, .. }, (t, s)) = (self.dims, self.lens(b));
        let group = heads.start / (h / g);
        let (start, end) = self.mask.range(b, 0, t, s);
        let (start, end) = (start.max(span * decode::SPAN), end.min((span + 1) * decode::SPAN));
        let keys = if start < end { start..end } else { 0..0 };
        let rows: Vec<&[f32]> = heads.map(|head| q.row(b, 0, head)).collect();
        decode::decode(&rows, k.block(b, keys.clone(), group), v.block(b, keys, group), &self.params)
    }

    /// The blocks of queries of sequence `b`.
    fn query_blocks(&self, b: usize) -> impl Iterator<Item = Queries> {
        let (t, s) = self.lens(b);
        (0..t).step_by(QUERIES).map(move |start| {
            let rows = start..(start + QUERIES).min(t);
            let visible_keys = rows.clone().map(|i| self.mask.range(b, i, t, s)).collect();
            Queries { rows, visible_keys }
        })
    }

    /// Packs a matrix that is B in several matmuls.
    fn pack<'a, T: Element>(&self, matrix: Matrix<'a, T>) -> PackedB<'a, T> {
        PackedB::new(matrix, self.params.precision)
    }

    /// Attention of one query head: writes the results and returns the log-sum-exp of the scores `(t,)`.
    ///
    /// Keys are processed in blocks; the sum so far is scaled down when a block has a larger score.
    pub fn forward_head<T: Element>(
        &self,
        [q, k, v]: [Heads<T>; 3],
        b: usize,
        head: usize,
        to: &mut HeadWriter<f32>,
    ) -> Vec<f32> {
        let (Dims { h, g, d, .. }, (t, s)) = (self.dims, self.lens(b));
        if t == 0 {
            return Vec::new();
        }
        let group = head / (h / g);
        if ![k, v].iter().all(|x| row_by_row::all_finite(x.block(b, 0..s, group))) {
            return self.forward_head_row_by_row([q, k, v], b, head, to);
        }
        let (keys_t, values) = (self.pack(k.block(b, 0..s, group).t()), self.pack(v.block(b, 0..s, group)));
        let mut lse = vec![0f32; t];
        let mut out = vec![0f32; t.min(QUERIES) * d];
        let mut weights = vec![0f32; t.min(QUERIES) * s.min(KEYS)];
        for queries in self.query_blocks(b) {
            let out = &mut out[..queries.rows.len() * d];
            out.fill(0.);
            let mut softmaxes = vec![(f32::NEG_INFINITY, 0f32); queries.rows.len()]; // running maximum and sum
            let q = q.block(b, queries.rows.clone(), head);
            for keys in queries.key_blocks() {
                let width = keys.len();
                let weights = &mut weights[..queries.rows.len() * width];
                keys_t.matmul_into(q, [0, keys.start], weights, [width, width], false, self.params.scale as f32);
                for (i, row) in weights.chunks_exact_mut(width).enumerate() {
                    let columns = queries.columns(i, &keys);
                    let rescale = online_softmax_update(row, columns, self.params.soft_cap(), &mut softmaxes[i]);
                    if rescale != 1. {
                        out[i * d..(i + 1) * d].iter_mut().for_each(|x| *x *= rescale);
                    }
                }
                let weights = Matrix::new(weights, queries.rows.len(), width);
                values.matmul_into(weights, [keys.start, 0], out, [d, d], true, 1.);
            }
            let rows = out.chunks_exact_mut(d).zip(&mut lse[queries.rows.clone()]);
            for ((out, lse_i), (row_max, sum)) in rows.zip(softmaxes) {
                if sum > 0. {
                    out.iter_mut().for_each(|x| *x /= sum);
                    *lse_i = row_max + sum.ln();
                }
            }
            to.append(out);
        }
        lse
    }

    // With P = softmax(S), S = q·kᵀ·scale, O = P·v:
    //   dv = Pᵀ·dO,  dP = dO·vᵀ,  dS = P ∘ (dP - Σ_c dO_c O_c),  dq = dS·k·scale,  dk = dSᵀ·q·scale.
    fn backward_group<T: GemmElement, G: GemmElement>(
        &self,
        (inputs, out, grad): ([Heads<T>; 3], Heads, Heads<T>),
        lse: &[f32],
        (b, group): (usize, usize),
        to: &mut GroupWriters<G>,
        rotation: Option<&RotaryTable>,
    ) {
        let (Dims { s, h, g, d, .. }, (t, len)) = (self.dims, self.lens(b));
        let scale = self.params.scale as f32;
        let [q, k, v] = inputs;
        let (k, v) = (k.block(b, 0..len, group), v.block(b, 0..len, group));
        let head_is_finite = |x: Heads<'_, T>, head| row_by_row::all_finite(x.block(b, 0..t, head));
        let heads = if t == 0 { 0..0 } else { group * (h / g)..(group + 1) * (h / g) };
        let plain = [k, v].map(row_by_row::all_finite) == [true; 2]
            && heads.clone().all(|i| head_is_finite(q, i) && head_is_finite(grad, i));
        if !plain {
            return self.backward_group_row_by_row((inputs, out, grad), lse, (b, group), to, rotation);
        }
        let (keys_t, values_t, keys_packed) = (self.pack(k.t()), self.pack(v.t()), self.pack(k));
        let (mut dk, mut dv) = (vec![0f32; s * d], vec![0f32; s * d]); // zeros after the last key
        let (mut dq, mut row) = (vec![0f32; t.min(QUERIES) * d], vec![0f32; d]);
        let size = t.min(QUERIES) * len.min(KEYS);
        let (mut p, mut ds) = (vec![0f32; size], vec![0f32; size]);
        for (head, to_q) in heads.zip(&mut to.q) {
            let lse = &lse[self.mask.first_query(b, t) * h + head * t..][..t];
            let (q_packed, grad_packed) = (self.pack(q.block(b, 0..t, head)), self.pack(grad.block(b, 0..t, head)));
            for queries in self.query_blocks(b) {
                let rows = queries.rows.clone();
                let dots = rows.clone().map(|i| {
                    T::widen_slice(grad.row(b, i, head), &mut row);
                    dot(out.row(b, i, head), &row)
                });
                let dots: Vec<f32> = dots.collect();
                let (q_rows, grad_rows) = (q.block(b, rows.clone(), head), grad.block(b, rows.clone(), head));
                let dq = &mut dq[..rows.len() * d];
                dq.fill(0.);
                for keys in queries.key_blocks() {
                    let width = keys.len();
                    let (p, ds) = (&mut p[..rows.len() * width], &mut ds[..rows.len() * width]);
                    keys_t.matmul_into(q_rows, [0, keys.start], p, [width, width], false, scale);
                    values_t.matmul_into(grad_rows, [0, keys.start], ds, [width, width], false, 1.);
                    for (i, (p, ds)) in p.chunks_exact_mut(width).zip(ds.chunks_exact_mut(width)).enumerate() {
                        let lse_i = lse[rows.start + i];
                        softmax_backward(p, ds, queries.columns(i, &keys), self.params.soft_cap(), lse_i, dots[i]);
                    }
                    let (p, ds) = (Matrix::new(p, rows.len(), width), Matrix::new(ds, rows.len(), width));
                    let key_range = keys.start * d..keys.end * d;
                    grad_packed.matmul_into(p.t(), [rows.start, 0], &mut dv[key_range.clone()], [d, d], true, 1.);
                    q_packed.matmul_into(ds.t(), [rows.start, 0], &mut dk[key_range], [d, d], true, scale);
                    keys_packed.matmul_into(ds, [keys.start, 0], dq, [d, d], true, scale);
                }
                to_q.append(rotate_rows_back(rotation, b * t + rows.start, d, dq));
            }
        }
        to.k.append(rotate_rows_back(rotation, b * s, d, &mut dk));
        to.v.append(&dv);
    }
}

#[pulp::with_simd(dot = crate::cpu::unit::arch())]
#[inline(always)]
fn dot_simd<'a, S: pulp::Simd>(_simd: S, a: &'a [f32], b: &'a [f32]) -> f32 {
    sum2(a, b, |a, b| a * b)
}
