//! Causal grouped-query attention without a `(t, s)` matrix per head in memory (Vaswani et al. 2017, arXiv 1706.03762;
//! grouped heads: Ainslie et al. 2023, arXiv 2305.13245).
//!
//! Letters: b batch, t queries, s keys, h query heads, g key/value heads, d head size. The queries are the *last* `t`
//! of the `s` positions. So the same call serves a whole sequence (`t == s`) and a step with a KV cache (`t < s`). In a
//! ragged batch each sequence has its own numbers of queries and keys ([`Sequences`]).

mod cpu;
mod paged;
mod reference;
mod sequences;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

pub use cpu::saved_bytes;
pub(crate) use cpu::{FlashAttention, GroupWriters, Heads};
pub use paged::{KvPages, PagedKv, paged_attention};
pub use reference::attention_weights;
pub use sequences::Sequences;

use crate::Precision;

/// The keys that a query attends to, in addition to the causal mask.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// For each query `(b, t)` in row-major order, the first key of its sequence that it attends to; `None`: all keys from
    /// the first on.
    ///
    /// This covers left padding, packed documents and sliding windows. A query whose window starts after its own
    /// position attends to no key; its result is zero.
    pub window_starts: Option<Arc<[u32]>>,
    /// For each sequence of the batch, a half-open range of keys within the `s` keys that no query attends to;
    /// `(0, 0)`: none.
    ///
    /// For evaluation, to measure which tokens a prediction depends on. If set, attention runs the reference
    /// implementation, which holds all weights `(b, h, t, s)` in memory. The result of a query with no key left is
    /// zero.
    pub masked_keys: Option<Arc<[(u32, u32)]>>,
    /// The sequences of a ragged batch; `None`: `b` sequences of `t` queries and `s` keys.
    pub sequences: Option<Sequences>,
}

impl AttentionMask {
    /// The mask in which each query `(b, t)`, in row-major order, attends to the keys from its own window start on.
    pub fn from_window_starts(window_starts: impl Into<Arc<[u32]>>) -> Self {
        Self { window_starts: Some(window_starts.into()), ..Self::default() }
    }

    /// The half-open range of keys that query `i` of sequence `b` attends to, with `t` queries and `s` keys.
    fn range(&self, b: usize, i: usize, t: usize, s: usize) -> (usize, usize) {
        let end = s - t + i + 1;
        let start = self.window_starts.as_ref().map_or(0, |starts| starts[self.first_query(b, t) + i] as usize);
        (start.min(end), end)
    }

    /// The index among all queries of the first query of sequence `b`.
    fn first_query(&self, b: usize, t: usize) -> usize {
        self.sequences.as_ref().map_or(b * t, |sequences| sequences.queries(b).start)
    }

    /// The mask of sequence `b` of a ragged batch alone.
    fn alone(&self, b: usize, sequences: &Sequences) -> Self {
        Self {
            window_starts: self.window_starts.as_ref().map(|starts| starts[sequences.queries(b)].into()),
            masked_keys: self.masked_keys.as_ref().map(|masked| [masked[b]].into()),
            sequences: None,
        }
    }

    /// True if key `j` is masked for all queries of sequence `b`.
    fn is_masked(&self, b: usize, j: usize) -> bool {
        let hidden = self.masked_keys.as_ref().map_or((0, 0), |hidden| hidden[b]);
        (hidden.0 as usize..hidden.1 as usize).contains(&j)
    }
}

/// Parameters of the attention scores `q · kᵀ`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// The scores are multiplied by this, usually `1 / sqrt(d)`.
    pub scale: f64,
    /// The scaled scores are then limited to `-cap..cap`: `cap · tanh(score / cap)` (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f64>,
    /// The precision of the matmuls. A single query (decoding) always runs in f32.
    pub precision: Precision,
}

impl AttentionParams {
    /// Scale `1 / sqrt(head_dim)`, no soft cap, f32.
    pub fn for_head_dim(head_dim: usize) -> Self {
        Self { scale: (head_dim as f64).powf(-0.5), soft_cap: None, precision: Precision::F32 }
    }

    /// The soft cap, or 0 if there is none.
    fn soft_cap(&self) -> f32 {
        self.soft_cap.map_or(0., |cap| cap as f32)
    }
}

/// `softmax(q · kᵀ · scale) · v` over the keys that the mask allows.
///
/// `q` is `(b, t, h, d)`, `k` and `v` are `(b, s, g, d)` with `h` a multiple of `g`; the result is `(b, t, h, d)`.
/// Masked keys and values never affect a result, even if they are infinite or NaN. It is an error if the shapes do not
/// match or the mask has the wrong size.
///
/// The queries of a ragged batch are concatenated, so that `q` and the result are `(1, n, h, d)`; `k` and `v` are
/// `(b, s, g, d)` with `s` at least the keys of the longest sequence. Each sequence gets the bits that it gets alone.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, params: AttentionParams, mask: &AttentionMask) -> Result<Tensor> {
    let dims = Dims::of(q, k, v, mask)?;
    if mask.masked_keys.is_none() && crate::is_fused(q) && crate::is_fused(k) && crate::is_fused(v) {
        cpu::attention([q, k, v], FlashAttention { dims, params, mask: mask.clone() })
    } else {
        reference::attention(q, k, v, params, mask)
    }
}

/// The sizes of an attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub b: usize,
    pub t: usize,
    pub s: usize,
    pub h: usize,
    pub g: usize,
    pub d: usize,
}

impl Dims {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor, mask: &AttentionMask) -> Result<Self> {
        let ((bq, n, h, d), (b, s, g, dk)) = (q.dims4()?, k.dims4()?);
        let (fits, t) = match &mask.sequences {
            None => (bq == b && n <= s, n),
            Some(sequences) => (bq == 1 && sequences.fits(n, b, s), sequences.longest()),
        };
        if !fits || dk != d || k.dims() != v.dims() {
            bail!("attention: q {:?}, k {:?} and v {:?} have mismatched shapes", q.dims(), k.dims(), v.dims());
        }
        Self { b, t, s, h, g, d }.checked(mask)
    }

    /// Checks that query heads can share the key/value heads and that the mask has the right size.
    pub fn checked(self, mask: &AttentionMask) -> Result<Self> {
        let Self { b, t, s, h, g, .. } = self;
        if g == 0 || h % g != 0 {
            bail!("attention: {h} query heads cannot share {g} key/value heads");
        }
        let n = mask.first_query(b, t);
        if mask.window_starts.as_ref().is_some_and(|first| first.len() != n) {
            bail!("attention: window_starts must have one entry for each of the {n} queries");
        }
        if let Some(hidden) = &mask.masked_keys
            && (hidden.len() != b || hidden.iter().any(|&(start, end)| start > end || end as usize > s))
        {
            bail!(
                "attention: masked_keys is {hidden:?}; it must have one range within 0..{s} for each of {b} sequences"
            );
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference_within, random};
    use proptest::prelude::*;

    type Sizes = (usize, usize, usize, usize, usize, usize);

    fn check((b, t, s, g, heads, d): Sizes, mask: &AttentionMask, scale: f64) -> Result<()> {
        let q = random(&[b, t, g * heads, d], 1, scale)?;
        let (k, v) = (random(&[b, s, g, d], 2, scale)?, random(&[b, s, g, d], 3, 1.)?);
        for soft_cap in [None, Some(1.5)] {
            let params = AttentionParams { soft_cap, ..AttentionParams::for_head_dim(d) };
            // The gradient of a query with one key is exactly 0; in f32 the difference of two equal sums remains.
            let run = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], params, mask);
            // The rounding error of a weight grows with its score `q · k`.
            let tolerance = 3e-5 + 3e-7 * scale * scale;
            assert_matches_reference_within(&[&q, &k, &v], tolerance, 1e-6 * scale, run)?;
        }
        Ok(())
    }

    const PLAIN: AttentionParams = AttentionParams { scale: 1., soft_cap: None, precision: Precision::F32 };

    #[test]
    fn fused_attention_equals_the_f64_reference() -> Result<()> {
        let all = AttentionMask::default();
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
        // Several blocks of queries and of keys.
        {
            check((b, t, s, g, heads, d), &all, 1.)?;
            check((b, t, s, g, heads, d), &all, 20.)?;
            check((b, t, s, g, heads, d), &all, 1e-3)?;
        }
        check((0, 3, 3, 1, 2, 4), &all, 1.)
    }

    #[test]
    fn bf16_attention_equals_the_f64_reference_up_to_rounding() -> Result<()> {
        let (q, k, v) =
            (random(&[2, 70, 4, 24], 1, 1.)?, random(&[2, 300, 2, 24], 2, 1.)?, random(&[2, 300, 2, 24], 3, 1.)?);
        let params = AttentionParams { precision: Precision::Bf16, ..AttentionParams::for_head_dim(24) };
        assert_matches_reference_within(&[&q, &k, &v], 1. / 64., 0., |x| {
            attention(&x[0], &x[1], &x[2], params, &AttentionMask::default())
        })
    }

    #[test]
    fn a_query_without_keys_gives_zero_and_no_gradient() -> Result<()> {
        check((1, 1, 2, 2, 1, 4), &AttentionMask::from_window_starts([2]), 1.)?;
        check((2, 1, 600, 1, 2, 8), &AttentionMask::from_window_starts([300, 600]), 1.)?; // some spans have no key
        // Two positions of left padding: the queries of the padding attend to no key.
        let mask = AttentionMask::from_window_starts([2; 5]);
        check((1, 5, 5, 1, 2, 4), &mask, 1.)?;
        let x = random(&[1, 5, 2, 4], 1, 1.)?;
        let out = attention(&x, &x, &x, PLAIN, &mask)?;
        assert_eq!(out.narrow(1, 0, 2)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn masked_keys_have_the_effect_of_absent_keys() -> Result<()> {
        let (q, k, v) = (random(&[2, 7, 4, 6], 1, 1.)?, random(&[2, 9, 2, 6], 2, 1.)?, random(&[2, 9, 2, 6], 3, 1.)?);
        let flat = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
        // There are two more keys than queries, so the first query keeps one key. The second sequence masks none.
        let mask = AttentionMask { masked_keys: Some([(1, 4), (0, 0)].into()), ..AttentionMask::default() };
        let ours = attention(&q, &k, &v, PLAIN, &mask)?;
        let plain = attention(&q, &k, &v, PLAIN, &AttentionMask::default())?;
        for (ours, plain) in flat(ours.get(1)?)?.into_iter().zip(flat(plain.get(1)?)?) {
            assert!((ours - plain).abs() < 1e-6);
        }
        // The last query of the first sequence, with the remaining keys only.
        let kept = |x: &Tensor| Tensor::cat(&[x.narrow(1, 0, 1)?, x.narrow(1, 4, 5)?], 1)?.narrow(0, 0, 1);
        let last = q.narrow(0, 0, 1)?.narrow(1, 6, 1)?;
        let expected = attention(&last, &kept(&k)?, &kept(&v)?, PLAIN, &AttentionMask::default())?;
        for (ours, expected) in flat(ours.narrow(0, 0, 1)?.narrow(1, 6, 1)?)?.into_iter().zip(flat(expected)?) {
            assert!((ours - expected).abs() < 1e-6);
        }
        // All keys of the first two queries are masked: the result is zero.
        let all = AttentionMask { masked_keys: Some([(0, 4), (0, 0)].into()), ..AttentionMask::default() };
        let none = attention(&q, &k, &v, PLAIN, &all)?.narrow(0, 0, 1)?.narrow(1, 0, 2)?;
        assert!(flat(none)?.iter().all(|&x| x == 0.));
        for wrong in [vec![(0, 0)], vec![(3, 2), (0, 0)], vec![(0, 0), (0, 10)]] {
            let mask = AttentionMask { masked_keys: Some(wrong.into()), ..AttentionMask::default() };
            assert!(attention(&q, &k, &v, PLAIN, &mask).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_view_of_a_larger_cache_is_read_in_place() -> Result<()> {
        let q = random(&[2, 1, 4, 8], 1, 1.)?;
        let cache = random(&[2, 32, 2, 8], 2, 1.)?;
        let view = cache.narrow(1, 0, 11)?;
        let ours = attention(&q, &view, &view, PLAIN, &AttentionMask::default())?;
        let dense = view.contiguous()?;
        let theirs = attention(&q, &dense, &dense, PLAIN, &AttentionMask::default())?;
        assert_eq!(ours.flatten_all()?.to_vec1::<f32>()?, theirs.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    #[test]
    fn weights_sum_to_one_and_are_causal() -> Result<()> {
        let x = random(&[1, 4, 2, 4], 1, 1.)?;
        let weights = attention_weights(&x, &x, PLAIN, &AttentionMask::default())?;
        for row in weights.sum(3)?.flatten_all()?.to_vec1::<f32>()? {
            assert!((row - 1.).abs() < 1e-6);
        }
        assert_eq!(weights.get(0)?.get(0)?.get(1)?.to_vec1::<f32>()?[2..], [0., 0.]);
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_errors() -> Result<()> {
        let all = AttentionMask::default();
        let (q, k) = (random(&[1, 2, 3, 4], 1, 1.)?, random(&[1, 2, 2, 4], 1, 1.)?);
        assert!(attention(&q, &k, &k, PLAIN, &all).is_err()); // 3 query heads, 2 key/value heads
        assert!(attention(&q, &q, &q, PLAIN, &AttentionMask::from_window_starts([0; 3])).is_err());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape_and_any_window_equal_the_reference(
            b in 1usize..3, t in 1usize..20, past in 0usize..9, g in 1usize..3, heads in 1usize..3, d in 1usize..20,
            seed in any::<u32>(),
        ) {
            let s = t + past;
            let first: Vec<u32> = (0..b * t).map(|i| (seed >> (i % 20)) % (s as u32 + 2)).collect();
            check((b, t, s, g, heads, d), &AttentionMask::from_window_starts(first), 2.).unwrap();
        }
    }
}
