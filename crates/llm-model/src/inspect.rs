//! Inspection of attention: the weights and value norms of each head, and forward passes with heads ablated.
//!
//! b: batch, t: sequence, h: query heads, g: key/value heads, d: head size.

use candle_core::{Result, Tensor};
use llm_kernels::{AttentionHeads, attention, attention_weights};

use crate::linear::Linear;

/// The attention of one head.
#[derive(Debug)]
pub struct HeadAttention {
    /// The layer, from 0.
    pub layer: usize,
    /// The head in the layer, from 0.
    pub head: usize,
    /// Attention weights, `(b, t, t)`: query by key, each row sums to one.
    pub weights: Tensor,
    /// The norm `‖W_o · v_j‖` of what the head adds to the residual stream if its whole weight is on token j, `(b, t)`, f32;
    /// `W_o` are the columns of the output projection for this head. Times the weights it is the value-weighted attention of
    /// Kobayashi et al. 2020, arXiv 2004.10102. A norm after the output projection is not included.
    pub value_norms: Tensor,
}

/// A head to ablate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ablation {
    /// The layer, from 0.
    pub layer: usize,
    /// The head in the layer, from 0.
    pub head: usize,
    /// What the head does instead.
    pub kind: AblationKind,
}

/// What an ablated head does (Michel et al. 2019, arXiv 1905.10650).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AblationKind {
    /// Its output is zero.
    #[default]
    Zero,
    /// Its attention has the same weight on all tokens that the mask allows, so its output is the mean of their values.
    Mean,
}

/// A function for each head.
pub(crate) type OnHead<'a> = dyn FnMut(&HeadAttention) -> Result<()> + 'a;

/// What a forward pass does with the heads of each layer.
pub(crate) struct Inspection<'a> {
    pub ablations: &'a [Ablation],
    pub on_head: Option<&'a mut OnHead<'a>>,
}

impl Inspection<'_> {
    /// Calls `on_head` for the heads of a layer and returns their outputs after the ablations, `(b, t, h, d)`.
    pub fn layer(&mut self, layer: usize, heads: &AttentionHeads, o_proj: &Linear) -> Result<Tensor> {
        if let Some(on_head) = &mut self.on_head {
            for_each_head(layer, heads, o_proj, *on_head)?;
        }
        let ablated: Vec<Ablation> = self.ablations.iter().filter(|head| head.layer == layer).copied().collect();
        if ablated.is_empty() {
            return Ok(heads.y.clone());
        }
        let output = |head| {
            let y = heads.y.narrow(2, head, 1)?;
            match ablated.iter().find(|ablation| ablation.head == head).map(|ablation| ablation.kind) {
                None => Ok(y),
                Some(AblationKind::Zero) => y.zeros_like(),
                Some(AblationKind::Mean) => {
                    let (q, k, v) = one_head(heads, head)?;
                    // Queries of zero give the same score to all keys.
                    attention(&q.zeros_like()?, &k, &v, heads.params, heads.mask)
                }
            }
        };
        let outputs = (0..heads.q.dim(2)?).map(output).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&outputs, 2)
    }
}

fn for_each_head(layer: usize, heads: &AttentionHeads, o_proj: &Linear, on_head: &mut OnHead) -> Result<()> {
    let (b, t, h, d) = heads.q.dims4()?;
    let output = o_proj.matrix()?.detach().to_device(heads.v.device())?; // (hidden, h·d)
    for head in 0..h {
        let (q, k, v) = one_head(heads, head)?;
        let weights = attention_weights(&q, &k, heads.params, heads.mask)?.squeeze(1)?; // (b, t, t)
        let output = output.narrow(1, head * d, d)?.t()?.contiguous()?.to_dtype(v.dtype())?; // (d, hidden)
        let added = v.reshape((b * t, d))?.matmul(&output)?; // (b·t, hidden)
        let value_norms = added.sqr()?.sum(1)?.sqrt()?.reshape((b, t))?;
        on_head(&HeadAttention { layer, head, weights, value_norms })?;
    }
    Ok(())
}

/// The queries, keys and values of one query head, each `(b, t, 1, d)`.
fn one_head(heads: &AttentionHeads, head: usize) -> Result<(Tensor, Tensor, Tensor)> {
    let group = head / (heads.q.dim(2)? / heads.k.dim(2)?);
    let narrow = |x: &Tensor, head| x.narrow(2, head, 1)?.contiguous();
    Ok((narrow(heads.q, head)?, narrow(heads.k, group)?, narrow(heads.v, group)?))
}
