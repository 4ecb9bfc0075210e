//! A decoder block: attention and MLP (or experts) with their norms and residual connections.

use candle_core::{D, Tensor};
use candle_nn::Module;
use llm_kernels::{RecomputedGradients, recompute};

use super::attention::Attention;
use super::context::ForwardContext;
use super::mlp::Mlp;
use crate::experts::Experts;
use crate::norm::Norm;
use crate::weight_path::WeightPath;
use crate::{ModelConfig, Result};

#[derive(Debug, Clone)]
pub(super) struct Block {
    attention: Attention,
    mlp_in: Option<Norm>,
    feed_forward: FeedForward,
    mlp_out: Option<Norm>,
    parallel_residual: bool,
    experts: usize,
    layer: usize,
}

#[derive(Debug, Clone)]
enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

fn apply_norm(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| Ok(norm.forward(x)?))
}

impl Block {
    pub(super) fn new(config: &ModelConfig, w: &WeightPath, layer: usize) -> Result<Self> {
        let names = config.norm_placement.names();
        let norm = |name: Option<&str>| name.map(|name| Norm::new(config, &w.pp(name))).transpose();
        let experts = config.experts_of(layer);
        Ok(Self {
            attention: Attention::new(config, w, layer)?,
            mlp_in: norm(names.mlp_in)?,
            feed_forward: match experts {
                Some(experts) => FeedForward::Experts(Experts::new(config, experts, &w.pp("mlp"))?),
                None => FeedForward::Dense(Mlp::new(config, &w.pp("mlp"))?),
            },
            mlp_out: norm(names.mlp_out)?,
            parallel_residual: config.parallel_residual,
            experts: experts.map_or(0, |experts| experts.num_experts),
            layer,
        })
    }

    /// The output `(b, t, hidden)`, and the router logits `(b·t, e)` of a layer with experts.
    pub(super) fn forward(&self, x: &Tensor, context: &mut ForwardContext) -> Result<(Tensor, Option<Tensor>)> {
        let attended = self.attention.forward(x, context)?;
        let attended = context.tokens.drop_residual(x, attended, "attention", self.layer)?;
        let input = if self.parallel_residual { x } else { &attended };
        let norms = [self.mlp_in.as_ref(), self.mlp_out.as_ref()];
        let (y, logits) = match &self.feed_forward {
            FeedForward::Dense(mlp) => (mlp.forward_residual(input, norms, &attended, context.tokens.dropout)?, None),
            FeedForward::Experts(experts) => {
                let (y, logits) = experts.forward(&apply_norm(norms[0], input)?, context.tokens.dropout)?;
                ((&attended + apply_norm(norms[1], &y)?)?, Some(logits))
            }
        };
        Ok((context.tokens.drop_residual(&attended, y, "mlp", self.layer)?, logits))
    }

    /// [`Self::forward`] with activation checkpointing: only `x` is saved for the backward. The router logits are
    /// concatenated to the output, because `recompute` supports one output.
    pub(super) fn checkpointed(
        &self,
        x: &Tensor,
        context: &ForwardContext,
        gradients: &RecomputedGradients,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (block, tokens) = (self.clone(), context.tokens.clone());
        let run = move |x: &Tensor| {
            let mut context = ForwardContext { tokens: tokens.clone(), cache: None, inspection: None };
            let (y, logits) = block.forward(x, &mut context).map_err(candle_core::Error::wrap)?;
            match logits {
                Some(logits) => {
                    let (b, t, _) = y.dims3()?;
                    Tensor::cat(&[y, logits.reshape((b, t, ()))?], D::Minus1)
                }
                None => Ok(y),
            }
        };
        let y = recompute(x, self.tensors(), gradients, run)?;
        if self.experts == 0 {
            return Ok((y, None));
        }
        let width = y.dim(D::Minus1)? - self.experts;
        let logits = y.narrow(D::Minus1, width, self.experts)?.flatten(0, 1)?;
        Ok((y.narrow(D::Minus1, 0, width)?.contiguous()?, Some(logits)))
    }

    /// The tensors that may be trainable.
    fn tensors(&self) -> Vec<Tensor> {
        let norms = [&self.mlp_in, &self.mlp_out];
        let mut tensors: Vec<Tensor> = norms.into_iter().flatten().flat_map(Norm::tensors).cloned().collect();
        tensors.extend(self.attention.tensors().cloned());
        match &self.feed_forward {
            FeedForward::Dense(mlp) => tensors.extend(mlp.tensors().cloned()),
            FeedForward::Experts(experts) => tensors.extend(experts.tensors().cloned()),
        }
        tensors
    }
}
