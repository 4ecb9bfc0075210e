//! Trainable rows of the embedding and the output layer for single tokens: PEFT's `trainable_token_indices`.
//!
//! A base model was not trained on the special tokens of a chat template. Their embedding rows are nearly equal, and LoRA
//! on the other matrices cannot make them different.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use llm_kernels::{Precision, linear_residual, linear_with_precision, replace_rows};
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
        Ok(replace_rows(weight, &self.ids, &self.rows.to_dtype(weight.dtype())?)?)
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
        let rows = self.weights[&TokenTarget::tensor(name)].to_dense()?.detach().to_dtype(weight.dtype())?;
        Ok(Some(replace_rows(&weight, &target.ids, &rows)?))
    }
}
