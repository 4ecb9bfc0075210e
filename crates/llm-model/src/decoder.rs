//! The decoder: embedding, blocks of attention and MLP, final norm.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size, e: experts.

mod attention;
mod block;
mod mlp;

use std::sync::Arc;

use candle_core::Tensor;
use llm_kernels::{AttentionMask, RecomputedGradients};

use crate::norm::Norm;
use crate::rotary::{RotaryEmbedding, RotaryTables};
use crate::token_rows::{EMBEDDING, TokenRows};
use crate::weight::Weight;
use crate::{Batch, Error, KvCache, ModelConfig, Params, Result};
use block::Block;
pub(crate) use mlp::Mlp;

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub embed_tokens: Weight, // (vocab, hidden)
    pub embed_rows: Option<TokenRows>,
    embed_scale: Option<f64>,
    embed_positions: Option<Weight>, // (max_position_embeddings, hidden)
    layers: Vec<Block>,
    norm: Norm,
    rotary: RotaryEmbedding,
    sliding_window: Option<usize>,
    max_position_embeddings: usize,
    /// With activation checkpointing: collects the gradients of the blocks, which are recomputed in the backward.
    pub recomputed: Option<RecomputedGradients>,
}

/// The output of the decoder.
pub(crate) struct DecoderOutput {
    /// Hidden states after the final norm, `(b, t, hidden)`.
    pub hidden: Tensor,
    /// Router logits `(b·t, e)` of each layer with experts.
    pub router_logits: Vec<Tensor>,
}

impl Decoder {
    pub fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let layers = (0..config.num_hidden_layers).map(|i| Block::new(config, params, i)).collect::<Result<_>>()?;
        let positions = config.learned_positions.then(|| params.get("model.embed_positions.weight"));
        Ok(Self {
            embed_tokens: params.get("model.embed_tokens.weight")?.clone(),
            embed_rows: TokenRows::new(config, params, EMBEDDING)?,
            embed_scale: config.scale_embeddings.then(|| (config.hidden_size as f64).sqrt()),
            embed_positions: positions.transpose()?.cloned(),
            layers,
            norm: Norm::new(config, params, "model.norm")?,
            rotary: RotaryEmbedding::new(config),
            sliding_window: config.sliding_window,
            max_position_embeddings: config.max_position_embeddings,
            recomputed: None,
        })
    }

    /// Runs the decoder on a batch. With `output_attentions`, the attention weights `(b, h, t, s)` of each block are
    /// appended to it.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        mut output_attentions: Option<&mut Vec<Tensor>>,
    ) -> Result<DecoderOutput> {
        let (_, t) = batch.input_ids.dims2()?;
        let mut x = self.embed(batch)?; // (b, t, hidden)
        let past_len = cache.as_deref().map_or(0, KvCache::len);
        let context = ForwardContext {
            rotary: self.rotary.tables(&batch.positions),
            sliding_mask: self
                .sliding_window
                .map(|window| sliding_window_mask(&batch.mask, batch.positions.len(), t, past_len, window)),
            mask: batch.mask.clone(),
        };
        let mut router_logits = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let logits;
            if let (Some(gradients), None, None) = (&self.recomputed, &cache, &output_attentions) {
                (x, logits) = layer.checkpointed(&x, &context, gradients)?;
            } else {
                let cache = cache.as_deref().map(|cache| (cache, i));
                (x, logits) = layer.forward(&x, &context, cache, output_attentions.as_deref_mut())?;
            }
            router_logits.extend(logits);
        }
        if let Some(cache) = &mut cache {
            cache.advance(t);
        }
        Ok(DecoderOutput { hidden: self.norm.apply(&x)?, router_logits })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let (b, t) = batch.input_ids.dims2()?;
        let ids = batch.input_ids.flatten_all()?;
        let mut x = self.embed_tokens.gather_rows(&ids)?; // (b·t, hidden)
        if let Some(rows) = &self.embed_rows {
            x = rows.embed(&ids, x)?;
        }
        if let Some(scale) = self.embed_scale {
            x = (x * scale)?;
        }
        if let Some(positions) = &self.embed_positions {
            let max = self.max_position_embeddings;
            if let Some(position) = batch.positions.iter().find(|&&position| position as usize >= max) {
                return Err(Error::Input(format!(
                    "position {position} is outside the {max} learned positions of the model; shorten the input"
                )));
            }
            let ids = Tensor::from_slice(&batch.positions, batch.positions.len(), x.device())?;
            x = (x + positions.gather_rows(&ids)?)?;
        }
        Ok(x.reshape((b, t, ()))?)
    }
}

/// Inputs of a forward pass that all blocks share.
#[derive(Debug, Clone)]
struct ForwardContext {
    rotary: RotaryTables,
    mask: AttentionMask,
    sliding_mask: Option<AttentionMask>,
}

/// `mask` restricted to the last `window` keys of each of `tokens` queries; rows have `t` queries after `past` cached keys.
fn sliding_window_mask(mask: &AttentionMask, tokens: usize, t: usize, past: usize, window: usize) -> AttentionMask {
    let start = |token: usize| {
        let start = mask.window_starts.as_ref().map_or(0, |starts| starts[token]);
        start.max((past + token % t + 1).saturating_sub(window) as u32)
    };
    let window_starts = (0..tokens).map(start).collect::<Arc<[u32]>>();
    AttentionMask { window_starts: Some(window_starts), masked_keys: mask.masked_keys.clone() }
}
