//! The forward context: what a forward pass needs besides the weights and the token ids.

use candle_core::Tensor;
use llm_kernels::{AttentionMask, Dropout, RotaryTable, Sequences};

use crate::inspect::Inspection;
use crate::params::hash;
use crate::rotary::{RotaryEmbedding, RotaryTables};
use crate::{Batch, PagedRows, Result};

/// The rotary embedding of a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum RopeKind {
    None,
    Global,
    /// With `rope_local_theta`.
    Local,
}

/// The inputs that all blocks share, and the outputs asked for. It is made once per forward pass.
///
/// All rows use the active adapters of the model: an adapter is part of a linear layer ([`crate::linear::Linear`]), which
/// computes all rows of a batch in one matmul. An adapter of each row needs layers with several adapters.
pub(super) struct ForwardContext<'a, 'i> {
    pub tokens: TokenContext,
    /// The pages of earlier tokens, to which each block appends the keys and values of the batch.
    pub cache: Option<PagedRows<'a>>,
    /// Reads and changes the heads of each block.
    pub inspection: Option<Inspection<'i>>,
}

impl ForwardContext<'_, '_> {
    /// Whether a block only maps `x` to its output, so that it can run again in the backward.
    pub fn is_pure(&self) -> bool {
        self.cache.is_none() && self.inspection.is_none()
    }
}

/// Positions, sequences and masks of the tokens of a batch.
#[derive(Debug, Clone)]
pub(super) struct TokenContext {
    rotary: RotaryTables,
    mask: AttentionMask,
    sliding_mask: Option<AttentionMask>,
    /// The seed of a forward pass with dropout.
    pub dropout: Option<u64>,
    /// As in [`Batch`].
    residual_dropout: Option<Dropout>,
}

impl TokenContext {
    /// The context of a batch. With a cache, `sequences` are the rows with their earlier tokens.
    pub fn new(
        batch: &Batch,
        sequences: Option<Sequences>,
        rotary: &RotaryEmbedding,
        sliding_window: Option<usize>,
    ) -> Result<Self> {
        let lens = batch.lens()?;
        let mut mask = AttentionMask { sequences, ..batch.mask.clone() };
        // The number of keys before the first token of each row.
        let past: Vec<usize> = match (&mask.sequences, &batch.row_lens) {
            (Some(sequences), _) => (0..lens.len()).map(|row| sequences.past(row)).collect(),
            (None, None) => vec![0; lens.len()],
            // Without a cache, the keys are those of all rows.
            (None, Some(_)) => lens.iter().scan(0, |next, &len| Some(std::mem::replace(next, *next + len))).collect(),
        };
        if mask.sequences.is_none() && batch.row_lens.is_some() {
            let starts = past.iter().zip(&lens).flat_map(|(&past, &len)| std::iter::repeat_n(past as u32, len));
            mask.window_starts = Some(starts.collect());
        }
        let ends = || past.iter().zip(&lens).flat_map(|(&past, &len)| past + 1..=past + len);
        // All rows of a padded batch have the scaling of the longest one, as in transformers.
        let rotary = rotary.tables(&batch.positions, if batch.row_lens.is_some() { &lens } else { &[] });
        let sliding_mask = sliding_window.map(|window| sliding_window_mask(&mask, ends(), window));
        let (dropout, residual_dropout) = (batch.dropout, batch.residual_dropout);
        Ok(Self { rotary, mask, sliding_mask, dropout, residual_dropout })
    }

    /// The rotary table of a block.
    pub fn rotary(&self, kind: RopeKind) -> Option<&RotaryTable> {
        match kind {
            RopeKind::None => None,
            RopeKind::Global => Some(&self.rotary.global),
            RopeKind::Local => self.rotary.local.as_ref(),
        }
    }

    /// The attention mask of a block, with or without the sliding window.
    pub fn mask(&self, sliding: bool) -> &AttentionMask {
        if sliding { self.sliding_mask.as_ref() } else { None }.unwrap_or(&self.mask)
    }

    /// The output `y` of a sub-layer, whose input or residual stream is `residual`, with dropout of what it added. `place` and `layer`
    /// select the mask.
    pub fn drop_residual(&self, residual: &Tensor, y: Tensor, place: &str, layer: usize) -> Result<Tensor> {
        match self.residual_dropout {
            None => Ok(y),
            Some(dropout) => Ok(llm_kernels::residual_dropout(residual, &y, dropout_of(dropout, place, layer))?),
        }
    }
}

/// The dropout of one place in the decoder: each has its own mask.
pub(super) fn dropout_of(dropout: Dropout, place: &str, layer: usize) -> Dropout {
    Dropout { seed: dropout.seed ^ hash(&format!("{place}.{layer}")), ..dropout }
}

/// `mask` restricted to the last `window` keys of each query; `ends` are the numbers of keys up to each query.
fn sliding_window_mask(mask: &AttentionMask, ends: impl Iterator<Item = usize>, window: usize) -> AttentionMask {
    let start = |(query, end): (usize, usize)| {
        let start = mask.window_starts.as_ref().map_or(0, |starts| starts[query]);
        start.max(end.saturating_sub(window) as u32)
    };
    AttentionMask { window_starts: Some(ends.enumerate().map(start).collect()), ..mask.clone() }
}
