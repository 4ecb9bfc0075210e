//! Causal grouped-query attention without a `(t, t)` matrix per head in memory (Vaswani et al. 2017, arXiv
//! 1706.03762; grouped heads: Ainslie et al. 2023, arXiv 2305.13245).
//!
//! Letters: b batch, t queries, s keys, h query heads, g key/value heads, d head size. Queries are the *last* `t` of
//! the `s` positions, so that the same call serves a whole sequence (`t == s`) and a step with a cache (`t < s`).

mod single;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::matmul::{How, Matrix, Precision, Threads, product_into};
use crate::simd::{exp, max, sum2, tanh, zeros};

/// Which keys a query may look at, besides being causal.
#[derive(Debug, Clone, Default)]
pub struct Visible {
    /// For each query `(b, t)` in order, the first key that it sees; `None`: all from the start.
    ///
    /// Left padding, packed documents and sliding windows are all of this kind. A query whose first key lies behind
    /// its own position sees nothing, and its result is zero.
    pub first_key: Option<Arc<[u32]>>,
}

impl Visible {
    /// The half-open range of keys that query `i` of sequence `b` sees, with `t` queries and `s` keys.
    fn range(&self, b: usize, i: usize, t: usize, s: usize) -> (usize, usize) {
        let end = s - t + i + 1;
        let start = self.first_key.as_ref().map_or(0, |first| first[b * t + i] as usize);
        (start.min(end), end)
    }
}

/// What is made of the product of a query and a key before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// It is multiplied by this, `1 / sqrt(d)` as a rule.
    pub scale: f64,
    /// Then it is held between `-cap` and `cap`: `cap · tanh(score / cap)` (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f64>,
    /// What queries, keys, values and weights are rounded to as they are multiplied; beside a single query nothing is.
    pub precision: Precision,
}

impl Scores {
    /// `1 / sqrt(head_dim)`, no cap, in f32.
    pub fn of_head(head_dim: usize) -> Self {
        Self { scale: (head_dim as f64).powf(-0.5), soft_cap: None, precision: Precision::F32 }
    }

    fn how(&self) -> How {
        How { precision: self.precision, threads: Threads::One }
    }

    /// The cap, or 0.
    fn soft_cap(&self) -> f32 {
        self.soft_cap.map_or(0., |cap| cap as f32)
    }
}

/// `softmax(q · kᵀ · scale) · v` over the visible keys.
///
/// `q` is `(b, t, h, d)`, `k` and `v` are `(b, s, g, d)` with `h` a multiple of `g`; the result is `(b, t, h, d)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores, visible: &Visible) -> Result<Tensor> {
    let shape = Dims::of(q, k, v, visible)?;
    let rows = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    if crate::is_fused(q) && crate::is_fused(k) && crate::is_fused(v) {
        let op = Attention { shape, scores, visible: visible.clone(), log_sums: OnceLock::new() };
        rows(q)?.apply_op3(&rows(k)?, &rows(v)?, op)
    } else {
        let weights = attention_weights(q, k, scores, visible)?; // (b, h, t, s)
        let v = repeat_heads(v, shape.h / shape.g)?; // (b, h, s, d)
        weights.matmul(&v)?.transpose(1, 2)?.contiguous()
    }
}

/// The weights of [`attention`] themselves, `(b, h, t, s)`, for those who want to look at them; rows sum to one.
pub fn attention_weights(q: &Tensor, k: &Tensor, scores: Scores, visible: &Visible) -> Result<Tensor> {
    let Dims { b, t, s, h, g, .. } = Dims::of(q, k, k, visible)?;
    let q = q.transpose(1, 2)?.contiguous()?; // (b, h, t, d)
    let k = repeat_heads(k, h / g)?; // (b, h, s, d)
    let Scores { scale, soft_cap, .. } = scores;
    let scores = (q.matmul(&k.t()?)? * scale)?; // (b, h, t, s)
    let scores = match soft_cap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let mut mask = Vec::with_capacity(b * t * s);
    for (row, i) in (0..b).flat_map(|row| (0..t).map(move |i| (row, i))) {
        let (start, end) = visible.range(row, i, t, s);
        mask.extend((0..s).map(|j| u8::from(start <= j && j < end)));
    }
    let mask = Tensor::from_vec(mask, (b, 1, t, s), q.device())?.broadcast_as((b, h, t, s))?;
    let low = Tensor::full(-1e30f32, (b, h, t, s), q.device())?.to_dtype(q.dtype())?;
    let scores = mask.where_cond(&scores, &low)?;
    let weights = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let weights = (weights * mask.to_dtype(q.dtype())?)?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    // A row that sees nothing has sum 0: divide by 1 there, and it stays zero.
    let sum = sum.eq(0.)?.where_cond(&sum.ones_like()?, &sum)?;
    weights.broadcast_div(&sum)
}

/// `(b, s, g, d)` to `(b, g * times, s, d)`: each key/value head serves `times` query heads that stand together.
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, s, g, d) = x.dims4()?;
    x.transpose(1, 2)?.unsqueeze(2)?.broadcast_as((b, g, times, s, d))?.contiguous()?.reshape((b, g * times, s, d))
}

#[derive(Debug, Clone, Copy)]
struct Dims {
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    g: usize,
    d: usize,
}

impl Dims {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor, visible: &Visible) -> Result<Self> {
        let ((b, t, h, d), (bk, s, g, dk)) = (q.dims4()?, k.dims4()?);
        let fits = bk == b && dk == d && k.dims() == v.dims() && t <= s && g > 0 && h % g == 0;
        if !fits {
            bail!("attention: q {:?}, k {:?} and v {:?} do not fit together", q.dims(), k.dims(), v.dims());
        }
        if visible.first_key.as_ref().is_some_and(|first| first.len() != b * t) {
            bail!("attention: first_key must have one entry for each of the {b} x {t} queries");
        }
        Ok(Self { b, t, s, h, g, d })
    }
}

/// A block of queries and a block of keys: their scores stay in the first two levels of the cache.
const QUERIES: usize = 96;
const KEYS: usize = 256;

struct Attention {
    shape: Dims,
    scores: Scores,
    visible: Visible,
    /// The logarithm of each softmax's denominator `(b, h, t)`, from which the backward makes the weights again.
    log_sums: OnceLock<Vec<f32>>,
}

/// A tensor `(b, t, h, d)` whose last dimension is dense, read head by head.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f32],
    stride: [usize; 3],
    d: usize,
}

impl<'a> Heads<'a> {
    fn new(data: &'a [f32], layout: &Layout, d: usize) -> Self {
        let stride = layout.stride();
        Self { data: &data[layout.start_offset()..], stride: [stride[0], stride[1], stride[2]], d }
    }

    fn row(&self, b: usize, t: usize, h: usize) -> &'a [f32] {
        let start = b * self.stride[0] + t * self.stride[1] + h * self.stride[2];
        &self.data[start..start + self.d]
    }

    /// Rows `rows` of head `h` of sequence `b`: `(rows, d)`.
    fn block(&self, b: usize, rows: Range<usize>, h: usize) -> Matrix<'a> {
        let start = b * self.stride[0] + rows.start * self.stride[1] + h * self.stride[2];
        Matrix::with_stride(&self.data[start..], rows.len(), self.d, self.stride[1])
    }
}

fn f32s(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(data),
        _ => bail!("attention: the fused path is for f32"),
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qs: &CpuStorage,
        ql: &Layout,
        ks: &CpuStorage,
        kl: &Layout,
        vs: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Dims { b, t, s, h, g, d } = self.shape;
        let q = Heads::new(f32s(qs)?, ql, d);
        let k = Heads::new(f32s(ks)?, kl, d);
        let v = Heads::new(f32s(vs)?, vl, d);
        if t == 1 {
            // One task per sequence, key/value head and span of keys.
            let spans = s.div_ceil(single::SPAN);
            let task = |i| self.single([q, k, v], i / spans / g, i / spans % g, i % spans);
            let parts: Vec<_> = (0..b * g * spans).into_par_iter().map(task).collect();
            let (out, log_sums): (Vec<_>, Vec<_>) = parts.chunks(spans).map(single::merged).unzip();
            return self.keep(log_sums, CpuStorage::F32(out.concat()));
        }
        // One task per sequence and head; each gives its (t, d), and all are laid out side by side afterwards.
        let (heads, log_sums): (Vec<_>, Vec<_>) =
            (0..b * h).into_par_iter().map(|i| self.forward([q, k, v], i / h, i % h)).unzip();
        self.keep(log_sums, CpuStorage::F32(side_by_side(&heads, t, h, d)))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Dims { b, t, s, h, g, d } = self.shape;
        let grad = grad.contiguous()?;
        let ((qs, ql), (ks, kl), (vs, vl)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let ((os, ol), (gs, gl)) = (out.storage_and_layout(), grad.storage_and_layout());
        let tensors = [(&qs, ql), (&ks, kl), (&vs, vl), (&os, ol), (&gs, gl)];
        let mut heads = Vec::with_capacity(tensors.len());
        for (storage, layout) in tensors {
            let Storage::Cpu(storage) = &**storage else { bail!("attention: a gradient left the CPU's memory") };
            heads.push(Heads::new(f32s(storage)?, layout, d));
        }
        let Some(log_sums) = self.log_sums.get() else { bail!("attention: its backward came before its forward") };
        // One task per sequence and key/value head: it alone sums the gradients of that head.
        let parts: Vec<Gradients> =
            (0..b * g).into_par_iter().map(|i| self.backward(&heads, log_sums, i / g, i % g)).collect();
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            dq.extend(part.dq);
            dk.push(part.dk);
            dv.push(part.dv);
        }
        let tensor = |heads: &[Vec<f32>], t: usize, h: usize| {
            Tensor::from_vec(side_by_side(heads, t, h, d), (b, t, h, d), &Device::Cpu).map(Some)
        };
        Ok((tensor(&dq, t, h)?, tensor(&dk, s, g)?, tensor(&dv, s, g)?))
    }
}

/// Lays `b · h` heads of `(t, d)` out as `(b, t, h, d)`.
fn side_by_side(heads: &[Vec<f32>], t: usize, h: usize, d: usize) -> Vec<f32> {
    let mut out = zeros(heads.len() * t * d);
    if !out.is_empty() {
        out.par_chunks_mut(h * d).enumerate().with_min_len(16).for_each(|(row, out)| {
            let (b, i) = (row / t, row % t);
            for (head, out) in heads[b * h..].iter().zip(out.chunks_exact_mut(d)) {
                out.copy_from_slice(&head[i * d..(i + 1) * d]);
            }
        });
    }
    out
}

/// What one key/value head gives back: `dq` `(t, d)` for each of its query heads, `dk` and `dv` `(s, d)`.
struct Gradients {
    dq: Vec<Vec<f32>>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Some queries of one sequence with the range of keys that each sees.
struct Queries {
    rows: Range<usize>,
    seen: Vec<(usize, usize)>,
}

impl Queries {
    /// The blocks of keys that any of the queries sees.
    fn key_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let start = self.seen.iter().filter(|(start, end)| start < end).map(|r| r.0).min().unwrap_or(0);
        let end = self.seen.iter().filter(|(start, end)| start < end).map(|r| r.1).max().unwrap_or(0);
        (start..end).step_by(KEYS).map(move |at| at..(at + KEYS).min(end))
    }

    /// The columns of a block of keys that query `row` sees.
    fn columns(&self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let (start, end) = self.seen[row];
        let from = start.clamp(keys.start, keys.end) - keys.start;
        from..(end.clamp(keys.start, keys.end) - keys.start).max(from)
    }
}

impl Attention {
    /// The queries of sequence `b`, block by block.
    fn query_blocks(&self, b: usize) -> impl Iterator<Item = Queries> {
        let Dims { t, s, .. } = self.shape;
        (0..t).step_by(QUERIES).map(move |start| {
            let rows = start..(start + QUERIES).min(t);
            let seen = rows.clone().map(|i| self.visible.range(b, i, t, s)).collect();
            Queries { rows, seen }
        })
    }

    /// Keeps what the backward needs and gives the result.
    fn keep(&self, log_sums: Vec<Vec<f32>>, out: CpuStorage) -> Result<(CpuStorage, Shape)> {
        if self.log_sums.set(log_sums.concat()).is_err() {
            bail!("attention: an operation is used once");
        }
        let Dims { b, t, h, d, .. } = self.shape;
        Ok((out, Shape::from((b, t, h, d))))
    }

    /// The results of the query heads of key/value head `group` for the one query of sequence `b`, by one span of keys.
    fn single(&self, [q, k, v]: [Heads; 3], b: usize, group: usize, span: usize) -> single::Mixed {
        let Dims { t, s, h, g, .. } = self.shape;
        let (start, end) = self.visible.range(b, 0, t, s);
        let (start, end) = (start.max(span * single::SPAN), end.min((span + 1) * single::SPAN));
        let keys = if start < end { start..end } else { 0..0 };
        let rows: Vec<&[f32]> = (group * (h / g)..(group + 1) * (h / g)).map(|head| q.row(b, 0, head)).collect();
        single::single(&rows, k.block(b, keys.clone(), group), v.block(b, keys, group), &self.scores)
    }

    /// The result `(t, d)` of one query head and the logarithms of its softmaxes' denominators `(t,)`.
    ///
    /// Keys come block by block; what was summed before is scaled down when a block brings a larger score (Dao et al.
    /// 2022, arXiv 2205.14135).
    fn forward(&self, [q, k, v]: [Heads; 3], b: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let group = head / (h / g);
        let mut out = vec![0f32; t * d];
        let mut log_sums = vec![0f32; t];
        let mut weights = vec![0f32; t.min(QUERIES) * s.min(KEYS)];
        for queries in self.query_blocks(b) {
            let out = &mut out[queries.rows.start * d..queries.rows.end * d];
            let mut softmaxes = vec![(f32::NEG_INFINITY, 0f32); queries.rows.len()]; // largest score, sum
            for keys in queries.key_blocks() {
                let width = keys.len();
                let weights = &mut weights[..queries.rows.len() * width];
                let (q, k) = (q.block(b, queries.rows.clone(), head), k.block(b, keys.clone(), group));
                product_into(q, k.t(), weights, width, false, self.scores.scale as f32, self.scores.how());
                for (i, row) in weights.chunks_exact_mut(width).enumerate() {
                    let columns = queries.columns(i, &keys);
                    let shrunk = weigh(row, columns, self.scores.soft_cap(), &mut softmaxes[i]);
                    if shrunk != 1. {
                        out[i * d..(i + 1) * d].iter_mut().for_each(|x| *x *= shrunk);
                    }
                }
                let values = v.block(b, keys, group);
                let weights = Matrix::new(weights, queries.rows.len(), width);
                product_into(weights, values, out, d, true, 1., self.scores.how());
            }
            for ((out, log_sum), (top, sum)) in out.chunks_exact_mut(d).zip(&mut log_sums[queries.rows]).zip(softmaxes)
            {
                if sum > 0. {
                    out.iter_mut().for_each(|x| *x /= sum);
                    *log_sum = top + sum.ln();
                }
            }
        }
        (out, log_sums)
    }

    // With P = softmax(S), S = q·kᵀ·scale, O = P·v:
    //   dv = Pᵀ·dO,  dP = dO·vᵀ,  dS = P ∘ (dP - Σ_c dO_c O_c),  dq = dS·k·scale,  dk = dSᵀ·q·scale.
    fn backward(&self, tensors: &[Heads], log_sums: &[f32], b: usize, group: usize) -> Gradients {
        let Dims { t, s, h, g, d, .. } = self.shape;
        let &[q, k, v, out, grad] = tensors else { unreachable!("bwd gives five tensors") };
        let heads = h / g;
        let mut gradients =
            Gradients { dq: vec![vec![0f32; t * d]; heads], dk: vec![0f32; s * d], dv: vec![0f32; s * d] };
        let size = t.min(QUERIES) * s.min(KEYS);
        let (mut p, mut ds) = (vec![0f32; size], vec![0f32; size]);
        for (n, dq) in gradients.dq.iter_mut().enumerate() {
            let head = group * heads + n;
            let log_sums = &log_sums[(b * h + head) * t..][..t];
            for queries in self.query_blocks(b) {
                let rows = queries.rows.clone();
                let dots: Vec<f32> = rows.clone().map(|i| dot(out.row(b, i, head), grad.row(b, i, head))).collect();
                let (q_rows, grad_rows) = (q.block(b, rows.clone(), head), grad.block(b, rows.clone(), head));
                for keys in queries.key_blocks() {
                    let width = keys.len();
                    let (p, ds) = (&mut p[..rows.len() * width], &mut ds[..rows.len() * width]);
                    let (k_rows, v_rows) = (k.block(b, keys.clone(), group), v.block(b, keys.clone(), group));
                    product_into(q_rows, k_rows.t(), p, width, false, self.scores.scale as f32, self.scores.how());
                    product_into(grad_rows, v_rows.t(), ds, width, false, 1., self.scores.how());
                    for (i, (p, ds)) in p.chunks_exact_mut(width).zip(ds.chunks_exact_mut(width)).enumerate() {
                        let log_sum = log_sums[rows.start + i];
                        differentiate(p, ds, queries.columns(i, &keys), self.scores.soft_cap(), log_sum, dots[i]);
                    }
                    let (p, ds) = (Matrix::new(p, rows.len(), width), Matrix::new(ds, rows.len(), width));
                    let of_keys = keys.start * d..keys.end * d;
                    let scale = self.scores.scale as f32;
                    product_into(p.t(), grad_rows, &mut gradients.dv[of_keys.clone()], d, true, 1., self.scores.how());
                    product_into(ds.t(), q_rows, &mut gradients.dk[of_keys], d, true, scale, self.scores.how());
                    let dq = &mut dq[rows.start * d..rows.end * d];
                    product_into(ds, k_rows, dq, d, true, scale, self.scores.how());
                }
            }
        }
        gradients
    }
}

/// Turns the scores of a block into weights relative to the largest score so far; outside `columns` they are zero.
/// Returns the factor by which what was summed before must shrink.
#[pulp::with_simd(weigh = crate::unit::arch())]
#[inline(always)]
fn weigh_simd<'a, S: pulp::Simd>(
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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum2(a, b, |a, b| a * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients_within, random};
    use proptest::prelude::*;

    type Sizes = (usize, usize, usize, usize, usize, usize);

    fn check((b, t, s, g, heads, d): Sizes, visible: &Visible, scale: f64) -> Result<()> {
        let q = random(&[b, t, g * heads, d], 1, scale)?;
        let (k, v) = (random(&[b, s, g, d], 2, scale)?, random(&[b, s, g, d], 3, 1.)?);
        for soft_cap in [None, Some(1.5)] {
            let scores = Scores { soft_cap, ..Scores::of_head(d) };
            // A query that sees one key has no gradient: there the difference of two equal sums of f32 is left.
            let run = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], scores, visible);
            // A weight is off by the rounding of its score, which grows with `q · k`.
            let tolerance = 3e-5 + 3e-7 * scale * scale;
            assert_same_gradients_within(&[&q, &k, &v], tolerance, 1e-6 * scale, run)?;
        }
        Ok(())
    }

    const PLAIN: Scores = Scores { scale: 1., soft_cap: None, precision: Precision::F32 };

    #[test]
    fn fused_attention_equals_the_naive_one_in_f64() -> Result<()> {
        let all = Visible::default();
        for (b, t, s, g, heads, d) in [
            (1, 1, 1, 1, 1, 1),
            (2, 7, 7, 2, 3, 5),
            (1, 33, 33, 1, 4, 32),
            (2, 1, 9, 2, 2, 8),
            (1, 1, 300, 1, 3, 21),
            (1, 1, 600, 2, 5, 64),
            (1, 4, 19, 3, 1, 16),
            (1, 70, 300, 1, 2, 8),
        ]
        // several blocks of queries and of keys
        {
            check((b, t, s, g, heads, d), &all, 1.)?;
            check((b, t, s, g, heads, d), &all, 20.)?;
            check((b, t, s, g, heads, d), &all, 1e-3)?;
        }
        check((0, 3, 3, 1, 2, 4), &all, 1.)
    }

    #[test]
    fn in_bf16_it_is_the_naive_one_to_the_rounding_of_the_factors() -> Result<()> {
        let (q, k, v) =
            (random(&[2, 70, 4, 24], 1, 1.)?, random(&[2, 300, 2, 24], 2, 1.)?, random(&[2, 300, 2, 24], 3, 1.)?);
        let scores = Scores { precision: Precision::Bf16, ..Scores::of_head(24) };
        assert_same_gradients_within(&[&q, &k, &v], 1. / 64., 0., |x| {
            attention(&x[0], &x[1], &x[2], scores, &Visible::default())
        })
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zero_and_no_gradient() -> Result<()> {
        check((1, 1, 2, 2, 1, 4), &Visible { first_key: Some([2u32; 1].into()) }, 1.)?;
        check((2, 1, 600, 1, 2, 8), &Visible { first_key: Some([300u32, 600].into()) }, 1.)?; // the second of three spans
        // Two positions of left padding: the padding's own rows see nothing.
        let visible = Visible { first_key: Some([2u32; 5].into()) };
        check((1, 5, 5, 1, 2, 4), &visible, 1.)?;
        let x = random(&[1, 5, 2, 4], 1, 1.)?;
        let out = attention(&x, &x, &x, PLAIN, &visible)?;
        assert_eq!(out.narrow(1, 0, 2)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn a_view_of_a_larger_cache_is_read_in_place() -> Result<()> {
        let q = random(&[2, 1, 4, 8], 1, 1.)?;
        let cache = random(&[2, 32, 2, 8], 2, 1.)?;
        let view = cache.narrow(1, 0, 11)?;
        let ours = attention(&q, &view, &view, PLAIN, &Visible::default())?;
        let dense = view.contiguous()?;
        let theirs = attention(&q, &dense, &dense, PLAIN, &Visible::default())?;
        assert_eq!(ours.flatten_all()?.to_vec1::<f32>()?, theirs.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn weights_sum_to_one_and_look_only_back() -> Result<()> {
        let x = random(&[1, 4, 2, 4], 1, 1.)?;
        let weights = attention_weights(&x, &x, PLAIN, &Visible::default())?;
        for row in weights.sum(3)?.flatten_all()?.to_vec1::<f32>()? {
            assert!((row - 1.).abs() < 1e-6);
        }
        assert_eq!(weights.get(0)?.get(0)?.get(1)?.to_vec1::<f32>()?[2..], [0., 0.]);
        Ok(())
    }

    #[test]
    fn tensors_that_do_not_fit_are_errors() -> Result<()> {
        let all = Visible::default();
        let (q, k) = (random(&[1, 2, 3, 4], 1, 1.)?, random(&[1, 2, 2, 4], 1, 1.)?);
        assert!(attention(&q, &k, &k, PLAIN, &all).is_err()); // 3 heads over 2
        assert!(attention(&q, &q, &q, PLAIN, &Visible { first_key: Some([0u32; 3].into()) }).is_err());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape_and_any_first_key_agree_with_the_naive_path(
            b in 1usize..3, t in 1usize..20, past in 0usize..9, g in 1usize..3, heads in 1usize..3, d in 1usize..20,
            seed in any::<u32>(),
        ) {
            let s = t + past;
            let first: Vec<u32> = (0..b * t).map(|i| (seed >> (i % 20)) % (s as u32 + 2)).collect();
            check((b, t, s, g, heads, d), &Visible { first_key: Some(first.into()) }, 2.).unwrap();
        }
    }
}
