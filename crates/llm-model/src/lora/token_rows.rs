//! Trainable rows of the embedding and the output layer for single tokens: PEFT's `trainable_token_indices`.
//!
//! A base model was not trained on the special tokens of a chat template. Their embedding rows are nearly equal, and LoRA
//! on the other matrices cannot make them different.

use candle_core::Tensor;
use llm_kernels::{Precision, linear_residual, linear_with_precision, replace_rows};

use super::adapter::Adapter;
use super::tokens::TokenTarget;
use crate::weight::Weight;
use crate::{ModelConfig, Params, Result};

/// The trained rows of an adapter for one matrix.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    ids: Vec<u32>,
    rows: Tensor,     // (k, hidden): the trained rows
    original: Tensor, // (k, hidden): the rows of the base matrix
    one_hot: Tensor,  // (vocab, k)
}

impl TokenRows {
    /// The rows that the active adapter has for the matrix `name` (without `.weight`), if any.
    pub fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Option<Self>> {
        let Some(adapter) = params.adapter() else { return Ok(None) };
        let targets = adapter.config.token_targets(config, "adapter configuration")?;
        let rows = adapter.tensor(&TokenTarget::tensor(name));
        let (Some(target), Some(rows)) = (targets.into_iter().find(|target| target.name == name), rows) else {
            return Ok(None);
        };
        let matrix = params.get(&format!("{name}.weight"))?;
        let original = rows_of(matrix, &target.ids)?.to_dtype(rows.dtype())?;
        let (vocab, k) = (matrix.dims()[0], target.ids.len());
        let mut one_hot = vec![0f32; vocab * k];
        for (i, &id) in target.ids.iter().enumerate() {
            one_hot[id as usize * k + i] = 1.;
        }
        let one_hot = Tensor::from_vec(one_hot, (vocab, k), rows.device())?.to_dtype(rows.dtype())?;
        Ok(Some(Self { ids: target.ids, rows: rows.clone(), original, one_hot }))
    }

    /// Replaces the embeddings of adapted tokens: `x` `(n, hidden)` are the base embeddings of `ids` `(n,)`.
    pub fn embed(&self, ids: &Tensor, x: Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let slot = |id: &u32| self.ids.iter().position(|own| own == id);
        let ids = ids.to_vec1::<u32>()?;
        if !ids.iter().any(|id| slot(id).is_some()) {
            return Ok(x);
        }
        let indices = ids.iter().enumerate().map(|(i, id)| slot(id).map_or(i, |slot| n + slot) as u32);
        let indices = Tensor::from_vec(indices.collect::<Vec<_>>(), n, x.device())?;
        Ok(Tensor::cat(&[&x, &self.rows.to_dtype(x.dtype())?], 0)?.index_select(&indices, 0)?)
    }

    /// Corrects the logits of adapted tokens: `y` `(…, vocab)` are the base logits of `hidden` `(…, hidden)`.
    pub fn logits(&self, hidden: &Tensor, y: &Tensor) -> Result<Tensor> {
        let change = linear_with_precision(hidden, &(&self.rows - &self.original)?, Precision::F32)?; // (…, k)
        Ok(linear_residual(&change, &self.one_hot, y, Precision::F32)?)
    }

    /// The matrix `(vocab, hidden)` with the trained rows inserted; only the rows get a gradient.
    pub fn insert_into(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(replace_rows(weight, &self.ids, &self.rows.to_dtype(weight.dtype())?)?)
    }
}

/// The rows `ids` of a matrix, `(ids, hidden)`.
pub(crate) fn rows_of(matrix: &Weight, ids: &[u32]) -> Result<Tensor> {
    Ok(matrix.gather_rows(&Tensor::from_slice(ids, ids.len(), &candle_core::Device::Cpu)?)?.detach())
}

impl Adapter {
    /// The matrix `name` with the trained rows of this adapter, bit for bit; none if the adapter has no rows for it.
    pub(crate) fn merged_rows(&self, config: &ModelConfig, params: &Params, name: &str) -> Result<Option<Tensor>> {
        let targets = self.config.token_targets(config, "adapter configuration")?;
        let Some(target) = targets.iter().find(|target| target.name == name) else { return Ok(None) };
        let weight = params.get(&format!("{name}.weight"))?.to_dense()?.detach();
        let rows = self.weights[&TokenTarget::tensor(name)].to_dense()?.detach().to_dtype(weight.dtype())?;
        Ok(Some(replace_rows(&weight, &target.ids, &rows)?))
    }
}
