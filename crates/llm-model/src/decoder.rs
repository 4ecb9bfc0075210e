//! The decoder: embedding, blocks of attention and MLP, final norm.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size, e: experts.

mod attention;
mod block;
mod context;
mod mlp;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::Module;
use llm_kernels::{RecomputedGradients, Sequences};

use crate::embedding::Embedding;
use crate::inspect::Inspection;
use crate::lora::{EMBEDDING, TokenRows};
use crate::norm::Norm;
use crate::rotary::RotaryEmbedding;
use crate::{Batch, Error, ModelConfig, PagedRows, Params, Result};
use block::Block;
use context::{ForwardContext, TokenContext, dropout_of};
pub(crate) use mlp::Mlp;

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub embed_tokens: Embedding, // (vocab, hidden)
    pub embed_rows: Option<TokenRows>,
    embed_scale: Option<f64>,
    embed_positions: Option<Embedding>, // (max_position_embeddings, hidden)
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
    /// The residual stream `(b, t, hidden)` after each layer that is kept, by layer.
    pub kept: BTreeMap<usize, Tensor>,
}

impl Decoder {
    pub fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let w = params.root().pp("model");
        let block = |i| Block::new(config, &w.pp("layers").pp(i), i);
        let layers = (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?;
        let positions = config.learned_positions.then(|| Embedding::new(&w.pp("embed_positions")));
        Ok(Self {
            embed_tokens: Embedding::new(&w.pp("embed_tokens"))?,
            embed_rows: TokenRows::new(params, EMBEDDING)?,
            embed_scale: config.scale_embeddings.then(|| (config.hidden_size as f64).sqrt()),
            embed_positions: positions.transpose()?,
            layers,
            norm: Norm::new(config, &w.pp("norm"))?,
            rotary: RotaryEmbedding::new(config),
            sliding_window: config.sliding_window,
            max_position_embeddings: config.max_position_embeddings,
            recomputed: None,
        })
    }

    /// Runs the decoder on a batch. With a cache, the batch continues the cached tokens: its rows with their pages, and the
    /// sequences that they are with the batch. An inspection reads and changes the heads of each block.
    pub fn forward(
        &self,
        batch: &Batch,
        cache: Option<(PagedRows, Sequences)>,
        inspection: Option<Inspection>,
    ) -> Result<DecoderOutput> {
        self.forward_keeping(batch, cache, inspection, &[])
    }

    /// [`Self::forward`] that also returns the residual stream after these layers, counted from 0.
    pub fn forward_keeping(
        &self,
        batch: &Batch,
        cache: Option<(PagedRows, Sequences)>,
        inspection: Option<Inspection>,
        keep: &[usize],
    ) -> Result<DecoderOutput> {
        let (cache, sequences) = cache.unzip();
        let is_cached = cache.is_some();
        let tokens = TokenContext::new(batch, sequences, &self.rotary, self.sliding_window)?;
        let mut x = self.embed(batch)?; // (b, t, hidden)
        let shape = x.shape().clone();
        if is_cached {
            x = x.reshape((1, (), shape.dims()[2]))?; // (1, n, hidden)
        }
        let mut context = ForwardContext { tokens, cache, inspection };
        let (mut router_logits, mut kept) = (Vec::new(), BTreeMap::new());
        for (index, layer) in self.layers.iter().enumerate() {
            let _span = tracing::trace_span!("layer", index).entered();
            let logits;
            (x, logits) = match &self.recomputed {
                Some(gradients) if context.is_pure() => layer.checkpointed(&x, &context, gradients)?,
                _ => layer.forward(&x, &mut context)?,
            };
            router_logits.extend(logits);
            if keep.contains(&index) {
                kept.insert(index, x.clone());
            }
        }
        let hidden = self.norm.forward(&x)?;
        let hidden = if is_cached { hidden.reshape(shape)? } else { hidden };
        Ok(DecoderOutput { hidden, router_logits, kept })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let (b, t) = batch.input_ids.dims2()?;
        let ids = batch.input_ids.flatten_all()?;
        let mut x = self.embed_tokens.forward(&ids)?; // (b·t, hidden)
        if let Some(rows) = &self.embed_rows {
            x = rows.embed(&ids, x)?;
        }
        if let Some(scale) = self.embed_scale {
            x = (x * scale)?;
        }
        if let Some(noise) = &batch.embedding_noise {
            let noise = noise.to_device(x.device())?.to_dtype(x.dtype())?;
            x = (x + noise)?;
        }
        if let Some(positions) = &self.embed_positions {
            let max = self.max_position_embeddings;
            if let Some(position) = batch.positions.iter().find(|&&position| position as usize >= max) {
                return Err(Error::Input(format!(
                    "position {position} is outside the {max} learned positions of the model; shorten the input"
                )));
            }
            let ids = Tensor::from_slice(&batch.positions, batch.positions.len(), &Device::Cpu)?;
            x = (x + positions.forward(&ids)?)?;
        }
        if let Some(dropout) = batch.residual_dropout {
            x = llm_kernels::dropout(&x, dropout_of(dropout, "embedding", 0))?;
        }
        Ok(x.reshape((b, t, ()))?)
    }
}
