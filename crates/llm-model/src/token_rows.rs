//! Trainable rows of the embedding and the output layer for single tokens: PEFT's `trainable_token_indices`.
//!
//! A base model was not trained on the special tokens of a chat template. Their embedding rows are nearly equal, and LoRA
//! on the other matrices cannot make them different.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, WithDType};
use llm_kernels::{Precision, linear_residual, linear_with_precision};
use serde::{Deserialize, Serialize};

use crate::formats::families;
use crate::lora::Adapter;
use crate::weight::Weight;
use crate::{Error, Head, ModelConfig, Params, Result};

/// The tokens with trainable rows, in the format of PEFT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Rows of the embedding, which is also the output layer in a tied model.
    Embedding(Vec<u32>),
    /// Rows of each of the named modules (`embed_tokens`, `lm_head`).
    Modules(BTreeMap<String, Vec<u32>>),
}

impl TokenIndices {
    /// The rows `ids` of the embedding and of the output layer of a model with this configuration.
    pub fn of_both(config: &ModelConfig, ids: Vec<u32>) -> Self {
        if config.tie_word_embeddings {
            return Self::Embedding(ids);
        }
        let last = |name: &str| {
            let module = families::module_of(config, Head::LanguageModel, name).0;
            module.rsplit('.').next().unwrap_or(&module).to_owned()
        };
        Self::Modules([EMBEDDING, OUTPUT].map(|name| (last(name), ids.clone())).into())
    }

    /// The trainable rows of each matrix, validated; errors name `origin`.
    pub(crate) fn targets(&self, config: &ModelConfig, origin: &str) -> Result<Vec<TokenTarget>> {
        let wrong = |message: String| Err(Error::config(origin, format!("\"trainable_token_indices\" {message}")));
        let target = |name: &str, ids: &[u32]| TokenTarget {
            name: name.to_owned(),
            module: families::module_of(config, Head::LanguageModel, name).0,
            ids: ids.to_vec(),
        };
        let mut targets = Vec::new();
        match self {
            Self::Embedding(ids) => targets.push(target(EMBEDDING, ids)),
            Self::Modules(modules) => {
                for (module, ids) in modules {
                    let names = |name: &&str| {
                        let whole = families::module_of(config, Head::LanguageModel, name).0;
                        whole == *module || whole.ends_with(&format!(".{module}"))
                    };
                    let Some(name) = [EMBEDDING, OUTPUT].into_iter().find(names) else {
                        return wrong(format!(
                            "names \"{module}\"; only the embedding and the output layer can have trainable rows"
                        ));
                    };
                    targets.push(target(name, ids));
                }
            }
        }
        if config.tie_word_embeddings && targets.iter().any(|target| target.name == OUTPUT) {
            if targets.len() < 2 || targets[0].ids != targets[1].ids {
                return wrong(
                    "must be equal for the embedding and the output layer, because this model ties them".to_owned(),
                );
            }
            targets.retain(|target| target.name == EMBEDDING);
        }
        for ids in targets.iter().map(|target| &target.ids) {
            if ids.iter().collect::<BTreeSet<_>>().len() != ids.len() {
                return wrong(format!("contains a duplicate token: {ids:?}"));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
                return wrong(format!(
                    "contains token {id}; it must be less than \"vocab_size\" {}",
                    config.vocab_size
                ));
            }
        }
        targets.retain(|target| !target.ids.is_empty());
        Ok(targets)
    }
}

/// The decoder's names of the two matrices that have one row per token.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";
pub(crate) const OUTPUT: &str = "lm_head";

/// Suffix of the tensor with the trained rows, here and in PEFT.
const SUFFIX: &str = "token_adapter.trainable_tokens_delta";

/// The trainable rows of one matrix.
pub(crate) struct TokenTarget {
    /// The decoder's name of the matrix.
    pub name: String,
    /// The name in transformers.
    pub module: String,
    /// The token ids.
    pub ids: Vec<u32>,
}

impl TokenTarget {
    /// The name of the tensor of rows `(ids, hidden)` of a matrix, given the decoder's or transformers' name of the matrix.
    pub fn tensor(module: &str) -> String {
        format!("{module}.{SUFFIX}")
    }
}

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
        replace_rows(&weight.detach(), &self.ids, &self.rows)
    }
}

/// The frozen matrix `weight` `(vocab, hidden)` with the rows `ids` replaced by `rows` `(ids, hidden)`; `rows` gets a gradient.
fn replace_rows(weight: &Tensor, ids: &[u32], rows: &Tensor) -> Result<Tensor> {
    let rows = rows.to_dtype(weight.dtype())?.contiguous()?;
    if weight.device().is_cpu() {
        return Ok(rows.apply_op1(ReplaceRows { weight: weight.clone(), ids: ids.to_vec() })?);
    }
    composed_replace_rows(weight, ids, &rows)
}

/// [`replace_rows`] of candle's operations, for any device.
fn composed_replace_rows(weight: &Tensor, ids: &[u32], rows: &Tensor) -> Result<Tensor> {
    let vocab = weight.dim(0)?;
    let mut sources: Vec<u32> = (0..vocab as u32).collect();
    for (slot, &id) in ids.iter().enumerate() {
        sources[id as usize] = (vocab + slot) as u32;
    }
    let sources = Tensor::from_vec(sources, vocab, weight.device())?;
    Ok(Tensor::cat(&[weight, rows], 0)?.index_select(&sources, 0)?)
}

/// [`replace_rows`] on the CPU. candle's operations would compute a gradient for the whole matrix.
struct ReplaceRows {
    weight: Tensor, // (vocab, hidden)
    ids: Vec<u32>,
}

impl ReplaceRows {
    fn replace<T: WithDType>(&self, rows: &[T]) -> candle_core::Result<Vec<T>> {
        let hidden = self.weight.dim(1)?;
        let mut all = self.weight.flatten_all()?.to_vec1::<T>()?;
        for (row, &id) in rows.chunks_exact(hidden).zip(&self.ids) {
            all[id as usize * hidden..][..hidden].copy_from_slice(row);
        }
        Ok(all)
    }
}

impl CustomOp1 for ReplaceRows {
    fn name(&self) -> &'static str {
        "replace-rows"
    }

    fn cpu_fwd(&self, rows: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("replace-rows: the rows must be contiguous");
        };
        let filled = match rows {
            CpuStorage::F32(rows) => CpuStorage::F32(self.replace(&rows[start..end])?),
            CpuStorage::F64(rows) => CpuStorage::F64(self.replace(&rows[start..end])?),
            _ => candle_core::bail!("replace-rows: expected f32 or f64"),
        };
        Ok((filled, self.weight.shape().clone()))
    }

    fn bwd(&self, rows: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let ids = Tensor::from_slice(&self.ids, self.ids.len(), rows.device())?;
        Ok(Some(gradient.index_select(&ids, 0)?))
    }
}

/// The rows `ids` of a matrix, `(ids, hidden)`.
pub(crate) fn rows_of(matrix: &Weight, ids: &[u32]) -> Result<Tensor> {
    Ok(matrix.gather_rows(&Tensor::from_slice(ids, ids.len(), &candle_core::Device::Cpu)?)?.detach())
}

impl Adapter {
    /// The initial trainable rows by name: copies of the base rows, so a new adapter does not change the model.
    pub(crate) fn init_rows(
        targets: &[TokenTarget],
        params: &Params,
        dtype: DType,
    ) -> Result<BTreeMap<String, Weight>> {
        let init = |target: &TokenTarget| {
            let matrix = params.get(&format!("{}.weight", target.name))?;
            Ok((TokenTarget::tensor(&target.name), rows_of(matrix, &target.ids)?.to_dtype(dtype)?.into()))
        };
        targets.iter().map(init).collect()
    }

    /// The matrix `name` with the trained rows of this adapter, bit for bit; none if the adapter has no rows for it.
    pub(crate) fn merged_rows(&self, config: &ModelConfig, params: &Params, name: &str) -> Result<Option<Tensor>> {
        let targets = self.config.token_targets(config, "adapter configuration")?;
        let Some(target) = targets.iter().find(|target| target.name == name) else { return Ok(None) };
        let weight = params.get(&format!("{name}.weight"))?.to_dense()?.detach();
        let rows = self.weights[&TokenTarget::tensor(name)].to_dense()?.detach();
        Ok(Some(replace_rows(&weight, &target.ids, &rows)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn replaced_rows_and_their_gradient_are_the_same_on_every_device() {
        let weight = Tensor::arange(0f32, 15., &Device::Cpu).unwrap().reshape((5, 3)).unwrap();
        let rows = Var::new(&[[1f32, -2., 3.], [0.5, 0., -1.]], &Device::Cpu).unwrap();
        let run = |replace: fn(&Tensor, &[u32], &Tensor) -> Result<Tensor>| {
            let replaced = replace(&weight, &[4, 1], &rows).unwrap();
            let gradients = (&replaced * &weight).unwrap().sum_all().unwrap().backward().unwrap();
            (replaced.to_vec2::<f32>().unwrap(), gradients.get(&rows).unwrap().to_vec2::<f32>().unwrap())
        };
        let (fused, composed) = (run(replace_rows), run(composed_replace_rows));
        assert_eq!(fused, composed);
        assert_eq!((fused.0[4][1], fused.0[1][2], fused.0[0][2]), (-2., -1., 2.));
    }
}
