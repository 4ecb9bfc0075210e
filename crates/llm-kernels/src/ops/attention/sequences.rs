//! The sequences of a ragged batch.

use std::ops::Range;
use std::sync::Arc;

/// Sequences with their own numbers of queries and keys, for [`super::attention`]. The queries of all sequences are
/// concatenated; those of a sequence are the last of its keys. A sequence can have no query.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// The first query of each sequence, and the number of queries: b + 1 values.
    cu_seqlens: Arc<[u32]>,
    /// The number of keys of each sequence, b values.
    key_lens: Arc<[u32]>,
}

impl Sequences {
    /// The sequences with these numbers of cached keys and of queries; the keys of the queries are added to the cached ones.
    pub fn new(lens: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let (mut cu_seqlens, mut key_lens) = (vec![0], Vec::new());
        for (past, queries) in lens {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + queries as u32);
            key_lens.push((past + queries) as u32);
        }
        Self { cu_seqlens: cu_seqlens.into(), key_lens: key_lens.into() }
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.key_lens.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.key_lens.is_empty()
    }

    /// The queries of sequence `b` among all queries; with `b` the number of sequences, the empty range at the end.
    pub fn queries(&self, b: usize) -> Range<usize> {
        let end = self.cu_seqlens.get(b + 1).unwrap_or(&self.cu_seqlens[b]);
        self.cu_seqlens[b] as usize..*end as usize
    }

    /// The number of keys of sequence `b`.
    pub fn keys(&self, b: usize) -> usize {
        self.key_lens[b] as usize
    }

    /// The number of keys of sequence `b` before its first query.
    pub fn past(&self, b: usize) -> usize {
        self.keys(b) - self.queries(b).len()
    }

    /// The largest number of keys of a sequence.
    pub fn max_keys(&self) -> usize {
        self.key_lens.iter().max().map_or(0, |&keys| keys as usize)
    }

    pub(super) fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// The largest number of queries of a sequence.
    pub(super) fn longest(&self) -> usize {
        (0..self.len()).map(|b| self.queries(b).len()).max().unwrap_or(0)
    }

    /// Whether there are `n` queries and `b` sequences of at most `s` keys.
    pub(super) fn fits(&self, n: usize, b: usize, s: usize) -> bool {
        self.cu_seqlens.last() == Some(&(n as u32)) && self.len() == b && self.max_keys() <= s
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{IndexOp, Result, Tensor};

    use crate::testing::{assert_matches_reference_within, random};
    use crate::{AttentionMask, AttentionParams, Sequences, attention};

    /// Cached keys and queries of each sequence: prefill, decoding, no query, a chunk, and one longer than a block.
    const LENS: [(usize, usize); 6] = [(0, 5), (700, 1), (3, 0), (4, 60), (0, 1), (2, 3)];

    fn mask(window: Option<usize>) -> AttentionMask {
        let ends = LENS.iter().flat_map(|&(past, queries)| past + 1..=past + queries);
        let starts = |window: usize| ends.map(|end| end.saturating_sub(window) as u32).collect();
        let window_starts = window.map(starts);
        AttentionMask { window_starts, sequences: Some(Sequences::new(LENS)), ..AttentionMask::default() }
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_ragged_batch_gives_each_sequence_the_bits_that_it_gets_alone() -> Result<()> {
        let (q, k, v) =
            (random(&[1, 70, 4, 8], 1, 1.)?, random(&[6, 2, 720, 8], 2, 1.)?, random(&[6, 2, 720, 8], 3, 1.)?);
        let [k, v] = [k, v].map(|cache| cache.transpose(1, 2)); // as in a cache
        let (k, v) = (k?, v?);
        for (window, soft_cap) in [(None, None), (Some(7), None), (None, Some(2.)), (Some(300), None)] {
            let params = AttentionParams { soft_cap, ..AttentionParams::for_head_dim(8) };
            let mask = mask(window);
            let together = attention(&q, &k, &v, params, &mask)?;
            let sequences = mask.sequences.as_ref().unwrap();
            for (b, &(past, t)) in LENS.iter().enumerate().filter(|(_, (_, t))| *t > 0) {
                let queries = sequences.queries(b);
                let starts = mask.window_starts.as_ref();
                let alone = starts.map_or_else(AttentionMask::default, |starts| {
                    AttentionMask::from_window_starts(&starts[queries.clone()])
                });
                let [k, v] = [&k, &v].map(|x| x.i((b..b + 1, ..past + t)));
                let alone = attention(&q.narrow(1, queries.start, t)?, &k?, &v?, params, &alone)?;
                assert_eq!(
                    flat(&together.narrow(1, queries.start, t)?),
                    flat(&alone),
                    "sequence {b}, window {window:?}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn ragged_attention_equals_the_f64_reference() -> Result<()> {
        let (q, k, v) =
            (random(&[1, 70, 4, 8], 1, 1.)?, random(&[6, 720, 2, 8], 2, 1.)?, random(&[6, 720, 2, 8], 3, 1.)?);
        for window in [None, Some(7)] {
            let (params, mask) = (AttentionParams::for_head_dim(8), mask(window));
            assert_matches_reference_within(&[&q, &k, &v], 3e-5, 1e-6, |x| {
                attention(&x[0], &x[1], &x[2], params, &mask)
            })?;
        }
        Ok(())
    }

    #[test]
    fn sequences_that_do_not_match_the_tensors_are_errors() -> Result<()> {
        let run = |n: usize, b: usize, s: usize, lens: &[(usize, usize)]| {
            let (q, k) = (random(&[1, n, 2, 4], 1, 1.)?, random(&[b, s, 2, 4], 2, 1.)?);
            let sequences = Some(Sequences::new(lens.iter().copied()));
            let mask = AttentionMask { sequences, ..AttentionMask::default() };
            attention(&q, &k, &k, AttentionParams::for_head_dim(4), &mask)
        };
        assert!(run(3, 2, 5, &[(4, 1), (0, 2)]).is_ok());
        assert_eq!(run(0, 2, 5, &[(4, 0), (0, 0)])?.dims(), [1, 0, 2, 4]);
        assert!(run(4, 2, 5, &[(4, 1), (0, 2)]).is_err(), "four queries for three");
        assert!(run(3, 3, 5, &[(4, 1), (0, 2)]).is_err(), "keys of three sequences for two");
        assert!(run(3, 2, 4, &[(4, 1), (0, 2)]).is_err(), "five keys of four");
        Ok(())
    }
}
