//! Trainable rows of the embedding and the output layer for single tokens: PEFT's `trainable_token_indices`.
//!
//! A base model was not trained on the special tokens of a chat template. Their embedding rows are nearly equal, and LoRA
//! on the other matrices cannot make them different.

use candle_core::Tensor;
use llm_kernels::{Precision, linear_residual, linear_with_precision, replace_rows};

use super::adapter::Adapter;
use super::tokens::{EMBEDDING, OUTPUT, TokenTarget};
use crate::weight::Weight;
use crate::{ModelConfig, Params, Result};

/// The trained rows of an adapter for one matrix.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    ids: Vec<u32>,
    rows: Vec<Tensor>, // (k, hidden) together: the trained rows; those of lower adapters first
    original: Tensor,  // (k, hidden): the rows of the base matrix
    one_hot: Tensor,   // (vocab, k)
}

impl TokenRows {
    /// The rows that the active adapters have for the matrix `name` (without `.weight`), if any. Of two rows of one token the
    /// upper adapter's counts.
    pub fn new(params: &Params, name: &str) -> Result<Option<Self>> {
        let (mut ids, mut rows): (Vec<u32>, Vec<Tensor>) = (Vec::new(), Vec::new());
        for adapter in params.adapters() {
            let Some((upper, upper_rows)) = rows_of_adapter(adapter, name) else { continue };
            let kept: Vec<u32> = (0..ids.len() as u32).filter(|&i| !upper.contains(&ids[i as usize])).collect();
            rows = if kept.is_empty() {
                Vec::new()
            } else {
                let indices = Tensor::from_slice(&kept, kept.len(), upper_rows.device())?;
                vec![Tensor::cat(&rows, 0)?.index_select(&indices, 0)?]
            };
            ids = kept.iter().map(|&i| ids[i as usize]).chain(upper.iter().copied()).collect();
            rows.push(upper_rows.clone());
        }
        let [first, ..] = rows.as_slice() else { return Ok(None) };
        let dtype = first.dtype();
        let matrix = params.get(&format!("{name}.weight"))?;
        let original = rows_of(matrix, &ids)?.to_dtype(dtype)?;
        let (vocab, k) = (matrix.dims()[0], ids.len());
        let mut one_hot = vec![0f32; vocab * k];
        for (i, &id) in ids.iter().enumerate() {
            one_hot[id as usize * k + i] = 1.;
        }
        let one_hot = Tensor::from_vec(one_hot, (vocab, k), first.device())?.to_dtype(dtype)?;
        Ok(Some(Self { ids, rows, original, one_hot }))
    }

    /// The trained rows `(k, hidden)`.
    fn rows(&self) -> Result<Tensor> {
        match self.rows.as_slice() {
            [rows] => Ok(rows.clone()),
            rows => Ok(Tensor::cat(rows, 0)?),
        }
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
        Ok(Tensor::cat(&[&x, &self.rows()?.to_dtype(x.dtype())?], 0)?.index_select(&indices, 0)?)
    }

    /// Corrects the logits of adapted tokens: `y` `(…, vocab)` are the base logits of `hidden` `(…, hidden)`.
    pub fn logits(&self, hidden: &Tensor, y: &Tensor) -> Result<Tensor> {
        let change = linear_with_precision(hidden, &(self.rows()? - &self.original)?, Precision::F32)?; // (…, k)
        Ok(linear_residual(&change, &self.one_hot, y, Precision::F32)?)
    }

    /// The matrix `(vocab, hidden)` with the trained rows inserted; only the rows get a gradient.
    pub fn insert_into(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(replace_rows(weight, &self.ids, &self.rows()?.to_dtype(weight.dtype())?)?)
    }
}

/// The ids and rows that an adapter has for a matrix.
fn rows_of_adapter<'a>(adapter: &'a Adapter, name: &str) -> Option<(&'a [u32], &'a Tensor)> {
    let target = adapter.layout.tokens.iter().find(|target| target.name == name)?;
    Some((&target.ids, adapter.tensor(&TokenTarget::tensor(&target.module))?))
}

/// The rows `ids` of a matrix, `(ids, hidden)`.
fn rows_of(matrix: &Weight, ids: &[u32]) -> Result<Tensor> {
    Ok(matrix.gather_rows(&Tensor::from_slice(ids, ids.len(), &candle_core::Device::Cpu)?)?.detach())
}

/// The rows `ids` of the matrix `name` (without `.weight`) with the trained rows of the active adapters, `(ids, hidden)`.
pub(crate) fn effective_rows((model, params): (&ModelConfig, &Params), name: &str, ids: &[u32]) -> Result<Tensor> {
    let name = if name == OUTPUT && model.tie_word_embeddings { EMBEDDING } else { name };
    let rows = rows_of(params.get(&format!("{name}.weight"))?, ids)?;
    match TokenRows::new(params, name)? {
        Some(trained) => {
            Ok(trained.embed(&Tensor::from_slice(ids, ids.len(), &candle_core::Device::Cpu)?, rows)?.detach())
        }
        None => Ok(rows),
    }
}

impl Adapter {
    /// `weight` `(vocab, hidden)`, the matrix `name`, with the trained rows of this adapter, bit for bit.
    pub(crate) fn with_rows(&self, name: &str, weight: &Tensor) -> Result<Tensor> {
        match rows_of_adapter(self, name) {
            Some((ids, rows)) => Ok(replace_rows(weight, ids, &rows.detach().to_dtype(weight.dtype())?)?),
            None => Ok(weight.clone()),
        }
    }
}
