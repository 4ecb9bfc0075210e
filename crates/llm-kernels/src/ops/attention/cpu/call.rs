//! The sizes, parameters and mask of an attention call, which all its implementations share.

use crate::ops::attention::{AttentionMask, AttentionParams, Dims, Sequences};

/// An attention call: sizes, parameters and mask.
pub(crate) struct FlashAttention {
    pub dims: Dims,
    pub params: AttentionParams,
    pub mask: AttentionMask,
}

impl FlashAttention {
    /// The number of queries of all sequences.
    pub fn queries(&self) -> usize {
        self.mask.first_query(self.dims.b, self.dims.t)
    }

    /// The number of queries of each sequence.
    pub fn query_lens(&self) -> Vec<usize> {
        (0..self.dims.b).map(|b| self.lens(b).0).collect()
    }

    /// The first query of each sequence of a ragged batch, and the number of queries.
    pub fn cu_seqlens(&self) -> Option<&[u32]> {
        self.mask.sequences.as_ref().map(Sequences::cu_seqlens)
    }

    /// The numbers of queries and keys of sequence `b`.
    pub fn lens(&self, b: usize) -> (usize, usize) {
        match &self.mask.sequences {
            None => (self.dims.t, self.dims.s),
            Some(sequences) => (sequences.queries(b).len(), sequences.keys(b)),
        }
    }
}
