//! Causal grouped-query attention without a `(t, t)` matrix per head in memory (Vaswani et al. 2017, arXiv
//! 1706.03762; grouped heads: Ainslie et al. 2023, arXiv 2305.13245).
//!
//! Letters: b batch, t queries, s keys, h query heads, g key/value heads, d head size. Queries are the *last* `t` of
//! the `s` positions, so that the same call serves a whole sequence (`t == s`) and a step with a cache (`t < s`).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::norm::cpu;
use crate::simd::{axpy, exp_row, sum2};

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

/// `softmax(q · kᵀ · scale) · v` over the visible keys.
///
/// `q` is `(b, t, h, d)`, `k` and `v` are `(b, s, g, d)` with `h` a multiple of `g`; the result is `(b, t, h, d)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, visible: &Visible) -> Result<Tensor> {
    let shape = Dims::of(q, k, v, visible)?;
    let rows = |x: &Tensor| if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() };
    if crate::is_fused(q) && crate::is_fused(k) && crate::is_fused(v) {
        let op = Attention { shape, scale: scale as f32, visible: visible.clone() };
        rows(q)?.apply_op3(&rows(k)?, &rows(v)?, op)
    } else {
        let weights = attention_weights(q, k, scale, visible)?; // (b, h, t, s)
        let v = repeat_heads(v, shape.h / shape.g)?; // (b, h, s, d)
        weights.matmul(&v)?.transpose(1, 2)?.contiguous()
    }
}

/// The weights of [`attention`] themselves, `(b, h, t, s)`, for those who want to look at them; rows sum to one.
pub fn attention_weights(q: &Tensor, k: &Tensor, scale: f64, visible: &Visible) -> Result<Tensor> {
    let Dims { b, t, s, h, g, .. } = Dims::of(q, k, k, visible)?;
    let q = q.transpose(1, 2)?.contiguous()?; // (b, h, t, d)
    let k = repeat_heads(k, h / g)?; // (b, h, s, d)
    let scores = (q.matmul(&k.t()?)? * scale)?; // (b, h, t, s)
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

struct Attention {
    shape: Dims,
    scale: f32,
    visible: Visible,
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

    #[inline(always)]
    fn row(&self, b: usize, t: usize, h: usize) -> &'a [f32] {
        let start = b * self.stride[0] + t * self.stride[1] + h * self.stride[2];
        &self.data[start..start + self.d]
    }

    /// Head `h` of sequence `b` as `(d, s)`, so that scores are built from long rows.
    #[inline(always)]
    fn transposed(&self, b: usize, h: usize, s: usize) -> Vec<f32> {
        let mut out = vec![0f32; self.d * s];
        for j in 0..s {
            for (c, &x) in self.row(b, j, h).iter().enumerate() {
                out[c * s + j] = x;
            }
        }
        out
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
        let Dims { b, t, h, d, .. } = self.shape;
        let q = Heads::new(f32s(qs)?, ql, d);
        let k = Heads::new(f32s(ks)?, kl, d);
        let v = Heads::new(f32s(vs)?, vl, d);
        // One task per sequence and head; each gives its (t, d), and all are laid out side by side afterwards.
        let heads: Vec<Vec<f32>> = (0..b * h).into_par_iter().map(|i| forward(self, q, k, v, i / h, i % h)).collect();
        let mut out = vec![0f32; b * t * h * d];
        for (i, head) in heads.iter().enumerate() {
            for (j, row) in head.chunks_exact(d.max(1)).enumerate() {
                let start = ((i / h * t + j) * h + i % h) * d;
                out[start..start + d].copy_from_slice(row);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((b, t, h, d))))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Dims { b, t, s, h, g, d } = self.shape;
        let (q, k, v, grad) = (q.contiguous()?, k.contiguous()?, v.contiguous()?, grad.contiguous()?);
        let (qs, ks, vs, gs) =
            (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout(), grad.storage_and_layout());
        let dense = |data: &'_ [f32], t: usize, h: usize| -> [usize; 3] {
            debug_assert!(data.len() >= b * t * h * d);
            [t * h * d, h * d, d]
        };
        let (qd, kd, vd, gd) = (cpu(&qs.0, qs.1)?, cpu(&ks.0, ks.1)?, cpu(&vs.0, vs.1)?, cpu(&gs.0, gs.1)?);
        let (q_heads, k_heads, v_heads, g_heads) = (
            Heads { data: qd, stride: dense(qd, t, h), d },
            Heads { data: kd, stride: dense(kd, s, g), d },
            Heads { data: vd, stride: dense(vd, s, g), d },
            Heads { data: gd, stride: dense(gd, t, h), d },
        );
        // One task per sequence and key/value head: it alone sums the gradients of that head.
        let parts: Vec<Gradients> = (0..b * g)
            .into_par_iter()
            .map(|i| backward(self, [q_heads, k_heads, v_heads, g_heads], i / g, i % g))
            .collect();
        let (mut dq, mut dk, mut dv) =
            (vec![0f32; b * t * h * d], vec![0f32; b * s * g * d], vec![0f32; b * s * g * d]);
        for (i, part) in parts.iter().enumerate() {
            let (row, group) = (i / g, i % g);
            for j in 0..s {
                let start = ((row * s + j) * g + group) * d;
                dk[start..start + d].copy_from_slice(&part.dk[j * d..(j + 1) * d]);
                dv[start..start + d].copy_from_slice(&part.dv[j * d..(j + 1) * d]);
            }
            let width = h / g * d; // the heads of a group stand together
            for j in 0..t {
                let start = (row * t + j) * h * d + group * width;
                dq[start..start + width].copy_from_slice(&part.dq[j * width..(j + 1) * width]);
            }
        }
        Ok((
            Some(Tensor::from_vec(dq, (b, t, h, d), q.device())?),
            Some(Tensor::from_vec(dk, (b, s, g, d), q.device())?),
            Some(Tensor::from_vec(dv, (b, s, g, d), q.device())?),
        ))
    }
}

/// The softmax row of query `i`, over the keys of its range, left in `row`.
#[inline(always)]
fn weights_row(q: &[f32], keys: &[f32], s: usize, (start, end): (usize, usize), scale: f32, row: &mut [f32]) {
    row.fill(0.);
    for (c, &x) in q.iter().enumerate() {
        axpy(x * scale, &keys[c * s + start..c * s + end], row);
    }
    let (_, sum) = exp_row(row);
    let inverse = 1. / sum;
    row.iter_mut().for_each(|p| *p *= inverse);
}

#[pulp::with_simd(forward = pulp::Arch::new())]
#[inline(always)]
fn forward_simd<'a, S: pulp::Simd>(
    _simd: S,
    op: &'a Attention,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    b: usize,
    head: usize,
) -> Vec<f32> {
    let Dims { t, s, h, g, d, .. } = op.shape;
    let group = head / (h / g);
    let mut out = vec![0f32; t * d];
    let mut scores = vec![0f32; s];
    // Turning the keys round pays only when several queries use them.
    let keys = if t > 1 { k.transposed(b, group, s) } else { Vec::new() };
    for i in 0..t {
        let (start, end) = op.visible.range(b, i, t, s);
        if start == end {
            continue;
        }
        let row = &mut scores[..end - start];
        let query = q.row(b, i, head);
        if t > 1 {
            weights_row(query, &keys, s, (start, end), op.scale, row);
        } else {
            for (p, j) in row.iter_mut().zip(start..end) {
                *p = sum2(query, k.row(b, j, group), |a, b| a * b) * op.scale;
            }
            let (_, sum) = exp_row(row);
            row.iter_mut().for_each(|p| *p /= sum);
        }
        let out = &mut out[i * d..(i + 1) * d];
        for (p, j) in row.iter().zip(start..end) {
            axpy(*p, v.row(b, j, group), out);
        }
    }
    out
}

/// What one key/value head gives back: `dq` `(t, h/g, d)`, `dk` and `dv` `(s, d)`.
struct Gradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

// With P = softmax(S), S = q·kᵀ·scale, O = P·v:
//   dv = Pᵀ·dO,  dP = dO·vᵀ,  dS = P ∘ (dP - Σ_j P_j dP_j),  dq = dS·k·scale,  dk = dSᵀ·q·scale.
#[pulp::with_simd(backward = pulp::Arch::new())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    op: &'a Attention,
    tensors: [Heads<'a>; 4],
    b: usize,
    group: usize,
) -> Gradients {
    let Dims { t, s, h, g, d, .. } = op.shape;
    let [q, k, v, grad] = tensors;
    let heads = h / g;
    let (keys, values) = (k.transposed(b, group, s), v.transposed(b, group, s));
    let mut out = Gradients { dq: vec![0f32; t * heads * d], dk: vec![0f32; s * d], dv: vec![0f32; s * d] };
    let (mut p, mut dp) = (vec![0f32; s], vec![0f32; s]);
    for i in 0..t {
        let (start, end) = op.visible.range(b, i, t, s);
        if start == end {
            continue;
        }
        for n in 0..heads {
            let head = group * heads + n;
            let (query, upstream) = (q.row(b, i, head), grad.row(b, i, head));
            let (p, dp) = (&mut p[..end - start], &mut dp[..end - start]);
            weights_row(query, &keys, s, (start, end), op.scale, p);
            dp.fill(0.);
            for (c, &x) in upstream.iter().enumerate() {
                axpy(x, &values[c * s + start..c * s + end], dp);
            }
            let mean = sum2(p, dp, |a, b| a * b);
            let dq = &mut out.dq[(i * heads + n) * d..(i * heads + n + 1) * d];
            for (j, (&p, &dp)) in (start..end).zip(p.iter().zip(&*dp)) {
                let ds = p * (dp - mean) * op.scale;
                axpy(ds, k.row(b, j, group), dq);
                axpy(ds, query, &mut out.dk[j * d..(j + 1) * d]);
                axpy(p, upstream, &mut out.dv[j * d..(j + 1) * d]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, random};
    use proptest::prelude::*;

    type Sizes = (usize, usize, usize, usize, usize, usize);

    fn check((b, t, s, g, heads, d): Sizes, visible: &Visible, scale: f64) -> Result<()> {
        let q = random(&[b, t, g * heads, d], 1, scale)?;
        let (k, v) = (random(&[b, s, g, d], 2, scale)?, random(&[b, s, g, d], 3, 1.)?);
        assert_same_gradients(&[&q, &k, &v], 3e-5, |x| attention(&x[0], &x[1], &x[2], (d as f64).powf(-0.5), visible))
    }

    #[test]
    fn fused_attention_equals_the_naive_one_in_f64() -> Result<()> {
        let all = Visible::default();
        for (b, t, s, g, heads, d) in
            [(1, 1, 1, 1, 1, 1), (2, 7, 7, 2, 3, 5), (1, 33, 33, 1, 4, 32), (2, 1, 9, 2, 2, 8), (1, 4, 19, 3, 1, 16)]
        {
            check((b, t, s, g, heads, d), &all, 1.)?;
            check((b, t, s, g, heads, d), &all, 20.)?;
            check((b, t, s, g, heads, d), &all, 1e-3)?;
        }
        check((0, 3, 3, 1, 2, 4), &all, 1.)
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zero_and_no_gradient() -> Result<()> {
        // Two positions of left padding: the padding's own rows see nothing.
        let visible = Visible { first_key: Some([2u32; 5].into()) };
        check((1, 5, 5, 1, 2, 4), &visible, 1.)?;
        let x = random(&[1, 5, 2, 4], 1, 1.)?;
        let out = attention(&x, &x, &x, 1., &visible)?;
        assert_eq!(out.narrow(1, 0, 2)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn a_view_of_a_larger_cache_is_read_in_place() -> Result<()> {
        let q = random(&[2, 1, 4, 8], 1, 1.)?;
        let cache = random(&[2, 32, 2, 8], 2, 1.)?;
        let view = cache.narrow(1, 0, 11)?;
        let ours = attention(&q, &view, &view, 1., &Visible::default())?;
        let dense = view.contiguous()?;
        let theirs = attention(&q, &dense, &dense, 1., &Visible::default())?;
        assert_eq!(ours.flatten_all()?.to_vec1::<f32>()?, theirs.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn weights_sum_to_one_and_look_only_back() -> Result<()> {
        let x = random(&[1, 4, 2, 4], 1, 1.)?;
        let weights = attention_weights(&x, &x, 0.5, &Visible::default())?;
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
        assert!(attention(&q, &k, &k, 1., &all).is_err()); // 3 heads over 2
        assert!(attention(&q, &q, &q, 1., &Visible { first_key: Some([0u32; 3].into()) }).is_err());
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
