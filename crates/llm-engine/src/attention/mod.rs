//! Looking into attention: what a word looks at, the roll-out over the layers, scores of the heads, and what ablating them changes.
//!
//! t: tokens of the text.

mod ablation;
mod map;
mod rollout;
mod scores;
mod words;

use std::ops::Range;

use candle_core::{DType, Device};
use llm_model::{Batch, Model};

pub use ablation::{AblationEffect, HeadEffect, PredictionChange, TokenChange, ablation_effect, head_effects};
pub use map::{AttentionMap, Keep};
pub use scores::{HeadScores, repeated_tokens};
pub use words::{Word, Words};

use crate::{Error, Result};
use rollout::Rollout;

/// The longest text whose attention is computed, in tokens: the weights of one head are then 16 MiB.
pub const MAX_TOKENS: usize = 2048;

/// A layer is lazy if its heads have on average more than this weight on the first token: they look at nothing in particular
/// (attention sink, Xiao et al. 2023, arXiv 2309.17453).
pub const LAZY: f64 = 0.5;

/// The attention of all heads in a text.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The heads, by layer and head.
    pub heads: Vec<HeadInText>,
    /// The roll-out after each layer.
    pub rollout: Vec<RolloutInText>,
}

/// The attention of one head in a text.
#[derive(Debug, Clone)]
pub struct HeadInText {
    /// The layer, from 0.
    pub layer: usize,
    /// The head in the layer, from 0.
    pub head: usize,
    /// The weight on each token, `(t,)`: the mean over the queries that were asked for.
    pub weights: Vec<f32>,
    /// The value norms `‖W_o · v‖` of each token, `(t,)` ([`llm_model::HeadAttention::value_norms`]).
    pub value_norms: Vec<f32>,
    /// What kind of head it is.
    pub scores: HeadScores,
    /// All weights, compact, if they were asked for.
    pub map: Option<AttentionMap>,
}

/// The roll-out up to a layer (Abnar and Zuidema 2020, arXiv 2005.00928): the product of `(A + I) / 2` over the layers, where A is the
/// mean of the heads.
#[derive(Debug, Clone)]
pub struct RolloutInText {
    /// The weight on each token, `(t,)`: the mean over the queries that were asked for.
    pub weights: Vec<f32>,
    /// All weights, compact, if they were asked for.
    pub map: Option<AttentionMap>,
}

/// What is computed of the attention in a text.
#[derive(Debug, Clone, Default)]
pub struct AttentionOptions {
    /// The queries, a range of tokens: those of the word that looks. Empty: none, and all weights of [`HeadInText`] are 0.
    pub queries: Range<usize>,
    /// Leave the first token out of the head scores, as `exclude_bos` of `TransformerLens`.
    pub skip_first: bool,
    /// Keep the maps of all heads and of the roll-out in this number of bytes ([`Keep::within`]); none: keep no maps.
    pub map_bytes: Option<usize>,
}

impl Attention {
    /// Computes the attention of all heads in the text `ids`, one head in memory at a time.
    ///
    /// # Errors
    /// The text is empty, or longer than [`MAX_TOKENS`] or the context length; an id is not in the vocabulary.
    pub fn of(model: &Model, ids: &[u32], options: &AttentionOptions) -> Result<Self> {
        check_length(model, ids)?;
        let t = ids.len();
        let (layers, heads_of_layer) = (model.config().num_hidden_layers, model.config().num_attention_heads);
        let keep = options.map_bytes.map(|bytes| Keep::within(bytes, layers * (heads_of_layer + 1), t));
        let mean = |rows: &[f32]| mean_of_rows(rows, t, &options.queries);
        let map = |rows: &[f32]| keep.map(|keep| AttentionMap::new(rows, t, keep));
        let (mut heads, mut rollout, mut product) = (Vec::new(), Vec::new(), Rollout::new(t)?);
        model.inspect_heads(&Batch::new(&[ids.to_vec()])?, &[], &mut |head| {
            let weights = head.weights.squeeze(0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?; // (t, t)
            let rows: Vec<f32> = weights.flatten_all()?.to_vec1()?;
            heads.push(HeadInText {
                layer: head.layer,
                head: head.head,
                weights: mean(&rows),
                value_norms: head.value_norms.squeeze(0)?.to_dtype(DType::F32)?.to_vec1()?,
                scores: HeadScores::of(&rows, ids, options.skip_first),
                map: map(&rows),
            });
            product.add_head(&weights)?;
            if head.head + 1 == heads_of_layer {
                let rows = product.end_layer()?;
                rollout.push(RolloutInText { weights: mean(&rows), map: map(&rows) });
            }
            Ok(())
        })?;
        Ok(Self { heads, rollout })
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.rollout.len()
    }

    /// The heads of a layer.
    pub fn layer(&self, layer: usize) -> &[HeadInText] {
        let heads = self.heads.len() / self.layers().max(1);
        &self.heads[layer * heads..(layer + 1) * heads]
    }

    /// The mean weight on the first token of the heads of a layer.
    pub fn first_token(&self, layer: usize) -> f64 {
        let heads = self.layer(layer);
        heads.iter().map(|head| head.scores.first_token).sum::<f64>() / heads.len().max(1) as f64
    }

    /// Whether the heads of a layer look at the first token for the most part: more than [`LAZY`].
    pub fn is_lazy(&self, layer: usize) -> bool {
        self.first_token(layer) > LAZY
    }
}

/// An error if the text is empty or too long.
fn check_length(model: &Model, ids: &[u32]) -> Result<()> {
    let limit = model.config().max_position_embeddings.min(MAX_TOKENS);
    match ids.len() {
        0 => Err(Error::EmptyPrompt),
        tokens if tokens > limit => Err(Error::TextTooLong { tokens, limit }),
        _ => Ok(()),
    }
}

/// The mean of some rows of a matrix with rows of length `t`.
fn mean_of_rows(rows: &[f32], t: usize, queries: &Range<usize>) -> Vec<f32> {
    let mut mean = vec![0.; t];
    for row in queries.clone().filter_map(|query| rows.get(query * t..(query + 1) * t)) {
        for (sum, weight) in mean.iter_mut().zip(row) {
            *sum += weight / queries.len() as f32;
        }
    }
    mean
}

#[cfg(test)]
mod tests;
