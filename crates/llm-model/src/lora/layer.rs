//! The adapter of a linear layer and of an embedding.

use candle_core::{Result, Tensor};
use llm_kernels::{Dropout, LoraWeights, linear};

use super::adapter::Adapter;
use super::layout::{EMBEDDING_A, EMBEDDING_B, MAGNITUDE, TargetKind};
use super::modules::Part;
use crate::formats::families::Rows;
use crate::params::hash;
use crate::weight::Weight;

/// The adapter of one linear layer of the decoder: a part of the adapter of a module.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    a: Tensor, // (experts·r, in)
    b: Tensor, // (out of the module, r·experts)
    r: usize,
    experts: usize,
    part: Part,
    scale: f64,
    magnitude: Option<Tensor>, // (out of the module,)
    /// The DoRA scale of a frozen adapter, cached because it needs a pass over the whole weight.
    dora_scale: Option<Tensor>, // (out,)
    /// The probability of dropout, and a number that is different for each module.
    dropout: (f64, u64),
}

impl Lora {
    /// The adapter of the linear layer `name`, if `adapter` has one.
    pub fn new(adapter: &Adapter, name: &str, weight: &Weight) -> Result<Option<Self>> {
        let Some((target, part)) = adapter.layout.target(name) else { return Ok(None) };
        let tensor = |part: &str| adapter.tensor(&target.key(part)).cloned();
        let [a, b] = target.factors().map(tensor);
        let (Some(a), Some(b), false) = (a, b, target.kind == TargetKind::Embedding) else { return Ok(None) };
        let (frozen, part) = (!b.is_variable(), part.clone());
        // All parts of a module have the same mask, as in PEFT.
        let dropout = (if frozen { 0. } else { adapter.config.lora_dropout }, hash(&target.name));
        let (r, experts, scale, magnitude) = (target.r, target.experts(), target.scale, tensor(MAGNITUDE));
        let mut lora = Self { a, b, r, experts, part, scale, magnitude, dora_scale: None, dropout };
        if frozen {
            lora.dora_scale = lora.dora_scale(weight)?;
        }
        Ok(Some(lora))
    }

    /// `A` `(r, in)` and `B` `(out, r)` of this layer.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        let (a, b) = match self.part.expert {
            None => (self.a.clone(), self.b.clone()),
            Some(e) => {
                let b = self.b.reshape((self.b.dim(0)?, self.r, self.experts))?;
                (self.a.narrow(0, e * self.r, self.r)?, b.narrow(2, e, 1)?.squeeze(2)?.contiguous()?)
            }
        };
        Ok((a, rows_of_part(&b, self.part.rows)?))
    }

    /// The weights that are added to those of the layer; `dropout` is the seed of a forward pass with dropout.
    pub fn weights(&self, weight: &Weight, dropout: Option<u64>) -> Result<LoraWeights> {
        let dora_scale = if self.dora_scale.is_some() { self.dora_scale.clone() } else { self.dora_scale(weight)? };
        let (a, b) = self.factors()?;
        let (probability, salt) = self.dropout;
        let dropout = dropout.filter(|_| probability > 0.).map(|seed| Dropout { probability, seed: seed ^ salt });
        Ok(LoraWeights { a, b, scale: self.scale, dora_scale, dropout })
    }

    /// `w` `(out, in)`, the values of `weight`, with this adapter; the factors keep their gradient.
    pub fn applied(&self, w: &Tensor, weight: &Weight) -> Result<Tensor> {
        let (a, b) = self.factors()?;
        let sum = (w + (b.matmul(&a)? * self.scale)?)?;
        match self.dora_scale(weight)? {
            Some(scale) => sum.broadcast_mul(&scale.unsqueeze(1)?),
            None => Ok(sum),
        }
    }

    /// `magnitude / ‖W + s·BA‖` per row; the norm is treated as a constant (DoRA, section 4.3). None without DoRA.
    fn dora_scale(&self, weight: &Weight) -> Result<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        let (a, b) = self.factors()?;
        let delta = (b.detach().matmul(&a.detach())? * self.scale)?;
        let norms = row_norms(&(weight.to_dense()?.detach() + delta)?)?;
        Ok(Some((rows_of_part(magnitude, self.part.rows)? / norms)?))
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}

/// The rows of a part of a module: `(rows of the module, …)` to `(out, …)`.
pub(super) fn rows_of_part(all: &Tensor, rows: Option<Rows>) -> Result<Tensor> {
    let Some(Rows { groups, start, len, group_len }) = rows else { return Ok(all.clone()) };
    if groups == 1 {
        return all.narrow(0, start, len);
    }
    let mut shape = all.dims().to_vec();
    shape[0] = groups * len;
    let mut grouped = vec![groups, group_len];
    grouped.extend(&all.dims()[1..]);
    all.reshape(grouped)?.narrow(1, start, len)?.contiguous()?.reshape(shape)
}

/// L2 norm of each row: `(out, in)` to `(out,)`.
pub(super) fn row_norms(weight: &Tensor) -> Result<Tensor> {
    weight.sqr()?.sum(1)?.sqrt()
}

/// The adapter of an embedding.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingLora {
    a: Tensor, // (r, ids)
    b: Tensor, // (hidden, r)
    scale: f64,
}

impl EmbeddingLora {
    /// The adapter of the embedding `name`, if `adapter` has one.
    pub fn new(adapter: &Adapter, name: &str) -> Option<Self> {
        let (target, _) = adapter.layout.target(name)?;
        let tensor = |part| adapter.tensor(&target.key(part)).cloned();
        Some(Self { a: tensor(EMBEDDING_A)?, b: tensor(EMBEDDING_B)?, scale: target.scale })
    }

    /// The change of the rows `ids` `(n,)`: `(n, hidden)`.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let columns = self.a.index_select(&ids.to_device(self.a.device())?, 1)?; // (r, n)
        linear(&columns.t()?.contiguous()?, &self.b)? * self.scale
    }

    /// The whole matrix `w` `(ids, hidden)` with this adapter, without gradient.
    pub fn merged(&self, w: &Tensor) -> Result<Tensor> {
        w + (self.a.detach().t()?.matmul(&self.b.detach().t()?)? * self.scale)?
    }
}
