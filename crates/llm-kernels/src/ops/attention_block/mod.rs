//! Attention block: the attention sub-layer of a decoder, from its norm to the residual connection.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size.

mod cpu;
mod qk_norm;
mod reference;

use candle_core::{Result, Tensor};

pub use cpu::saved_bytes;

use super::attention::{AttentionMask, AttentionParams, PagedKv};
use super::norm::Norm;
use super::projection::Projection;
use super::rotary::RotaryTable;

/// Norms of queries and keys, in this order.
#[derive(Debug, Clone)]
pub enum QkNorm {
    /// Over each head: weights `(d,)`.
    Head(Norm, Norm),
    /// Over all heads of a token: weights `(h·d,)` and `(g·d,)`.
    Whole(Norm, Norm),
}

/// The weights and inputs of [`attention_block`].
#[derive(Debug, Clone)]
pub struct AttentionBlock<'a> {
    /// The norm before the projections.
    pub norm: Option<Norm>,
    /// Query projection, `(h·d, hidden)`.
    pub q: Projection<'a>,
    /// Key projection, `(g·d, hidden)`.
    pub k: Projection<'a>,
    /// Value projection, `(g·d, hidden)`.
    pub v: Projection<'a>,
    /// Output projection, `(hidden, h·d)`.
    pub o: Projection<'a>,
    /// Norms of queries and keys, before the rotary embedding.
    pub qk_norm: Option<QkNorm>,
    /// The norm after the output projection.
    pub output_norm: Option<Norm>,
    /// d.
    pub head_dim: usize,
    /// The rotary embedding of the tokens.
    pub rotary: Option<&'a RotaryTable>,
    /// The parameters of attention.
    pub params: AttentionParams,
    /// The attention mask.
    pub mask: &'a AttentionMask,
    /// The pages with the keys and values of earlier tokens, to which those of `x` are appended. The mask then has the
    /// sequences.
    pub cache: Option<PagedKv<'a>>,
}

impl<'a> AttentionBlock<'a> {
    /// The block with the projections `q`, `k`, `v` and `o`, and without the optional parts.
    pub fn new(
        [q, k, v, o]: [Projection<'a>; 4],
        head_dim: usize,
        params: AttentionParams,
        mask: &'a AttentionMask,
    ) -> Self {
        let (norm, qk_norm, output_norm) = (None, None, None);
        Self { norm, q, k, v, o, qk_norm, output_norm, head_dim, rotary: None, params, mask, cache: None }
    }
}

/// The heads of an attention block, for a [`HeadHook`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionHeads<'a> {
    /// Rotated queries, `(b, t, h, d)`.
    pub q: &'a Tensor,
    /// Rotated keys, `(b, s, g, d)`.
    pub k: &'a Tensor,
    /// Values, `(b, s, g, d)`.
    pub v: &'a Tensor,
    /// The outputs of the heads, `(b, t, h, d)`.
    pub y: &'a Tensor,
    /// The parameters of attention.
    pub params: AttentionParams,
    /// The attention mask.
    pub mask: &'a AttentionMask,
}

/// Reads the heads of an attention block and returns the outputs `(b, t, h, d)` with which the block goes on: those it got, or
/// others in an ablation.
pub type HeadHook<'a> = dyn FnMut(&AttentionHeads) -> Result<Tensor> + 'a;

/// `x + o(attention(rope(q(y)), rope(k(y)), v(y)))` with `y = norm(x)`; the optional norms are applied where
/// [`AttentionBlock`] says.
///
/// `x` and the result are `(b, t, hidden)`. A block with a `hook` runs as single operations. In training, a block with an `RMSNorm` before it, with or without biases, `LoRA` adapters, `RMSNorm`s of queries and
/// keys and the rotary embedding, is one fused operation, whose backward runs once; with `DoRA` or another optional part the
/// parts run one by one, with the same result.
pub fn attention_block(x: &Tensor, block: &AttentionBlock, hook: Option<&mut HeadHook>) -> Result<Tensor> {
    match cpu::Inputs::of(x, block).filter(|_| hook.is_none()) {
        Some(inputs) => cpu::fused(x, inputs, block),
        None => reference::attention_block(x, block, hook),
    }
}

#[cfg(test)]
mod tests;
