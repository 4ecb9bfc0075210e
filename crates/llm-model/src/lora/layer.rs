//! The adapter of a linear layer.

use candle_core::Tensor;
use llm_kernels::LoraWeights;

use super::adapter::Adapter;
use super::config::{A, B, MAGNITUDE};
use crate::Result;
use crate::weight::Weight;

/// The adapter of one linear layer.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scale: f64,
    magnitude: Option<Tensor>, // (out,)
    /// The DoRA scale of a frozen adapter, cached because it needs a pass over the whole weight.
    dora_scale: Option<Tensor>, // (out,)
}

impl Lora {
    /// The adapter of the linear layer `name`, if `adapter` has one.
    pub fn new(adapter: &Adapter, name: &str, weight: &Weight) -> Result<Option<Self>> {
        let part = |part: &str| adapter.tensor(&format!("{name}.{part}")).cloned();
        let (Some(a), Some(b)) = (part(A), part(B)) else { return Ok(None) };
        let mut lora = Self { a, b, scale: adapter.config.scale(), magnitude: part(MAGNITUDE), dora_scale: None };
        if !lora.b.is_variable() {
            lora.dora_scale = lora.dora_scale(weight)?;
        }
        Ok(Some(lora))
    }

    /// The weights that are added to those of the layer.
    pub fn weights(&self, weight: &Weight) -> candle_core::Result<LoraWeights> {
        let dora_scale = if self.dora_scale.is_some() { self.dora_scale.clone() } else { self.dora_scale(weight)? };
        Ok(LoraWeights { a: self.a.clone(), b: self.b.clone(), scale: self.scale, dora_scale, dropout: None })
    }

    /// The merged matrix `(out, in)`.
    pub fn merged(&self, weight: &Weight) -> candle_core::Result<Tensor> {
        let sum = self.sum(weight)?;
        Ok(match self.dora_scale(weight)? {
            Some(scale) => sum.broadcast_mul(&scale.detach().unsqueeze(1)?)?,
            None => sum,
        })
    }

    /// `W + s·BA`, without gradient.
    fn sum(&self, weight: &Weight) -> candle_core::Result<Tensor> {
        let delta = (self.b.detach().matmul(&self.a.detach())? * self.scale)?;
        weight.to_dense()?.detach() + delta
    }

    /// `magnitude / ‖W + s·BA‖` per row; the norm is treated as a constant (DoRA, section 4.3). None without DoRA.
    fn dora_scale(&self, weight: &Weight) -> candle_core::Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        Ok(Some((magnitude / row_norms(&self.sum(weight)?)?)?))
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}

/// L2 norm of each row: `(out, in)` to `(out,)`.
pub(super) fn row_norms(weight: &Tensor) -> candle_core::Result<Tensor> {
    weight.sqr()?.sum(1)?.sqrt()
}
