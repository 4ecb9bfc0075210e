//! The forward context: what a forward pass needs besides the weights and the token ids.

use candle_core::Tensor;
use llm_kernels::{AttentionMask, RotaryTable};

use super::block::RopeKind;
use crate::rotary::RotaryTables;
use crate::{Batch, KvCache};

/// The inputs that all blocks share, and the outputs asked for. It is made once per forward pass.
///
/// All rows use the active adapter of the model: an adapter is part of a linear layer ([`crate::linear::Linear`]), which
/// computes all rows of a batch in one matmul. An adapter of each row needs layers with several adapters.
#[derive(Debug)]
pub(super) struct ForwardContext<'a> {
    pub tokens: TokenContext,
    /// The keys and values of earlier tokens, to which each block appends those of the batch.
    pub cache: Option<&'a KvCache>,
    /// The attention weights `(b, h, t, s)` of each block; none: they are not asked for.
    pub attentions: Option<Vec<Tensor>>,
}

impl ForwardContext<'_> {
    /// Whether a block only maps `x` to its output, so that it can run again in the backward.
    pub fn is_pure(&self) -> bool {
        self.cache.is_none() && self.attentions.is_none()
    }
}

/// Positions and masks of the tokens of a batch.
#[derive(Debug, Clone)]
pub(super) struct TokenContext {
    rotary: RotaryTables,
    mask: AttentionMask,
    sliding_mask: Option<AttentionMask>,
}

impl TokenContext {
    /// The context of a batch whose rows continue `past` cached tokens.
    pub fn new(batch: &Batch, rotary: RotaryTables, past: usize, sliding_window: Option<usize>) -> Self {
        let (tokens, t) = (batch.positions.len(), batch.input_ids.dims().last().copied().unwrap_or(1));
        let sliding_mask = sliding_window.map(|window| sliding_window_mask(&batch.mask, tokens, t, past, window));
        Self { rotary, mask: batch.mask.clone(), sliding_mask }
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
}

/// `mask` restricted to the last `window` keys of each of `tokens` queries; rows have `t` queries after `past` cached keys.
fn sliding_window_mask(mask: &AttentionMask, tokens: usize, t: usize, past: usize, window: usize) -> AttentionMask {
    let start = |token: usize| {
        let start = mask.window_starts.as_ref().map_or(0, |starts| starts[token]);
        start.max((past + token % t + 1).saturating_sub(window) as u32)
    };
    let window_starts = (0..tokens).map(start).collect();
    AttentionMask { window_starts: Some(window_starts), masked_keys: mask.masked_keys.clone() }
}
