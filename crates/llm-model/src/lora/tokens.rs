//! The tokens with trainable rows: PEFT's `trainable_token_indices`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::formats::families;
use crate::{Error, Head, ModelConfig, Result};

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
            let module = families::location(config, Head::LanguageModel, name).0;
            module.rsplit('.').next().unwrap_or(&module).to_owned()
        };
        Self::Modules([EMBEDDING, OUTPUT].map(|name| (last(name), ids.clone())).into())
    }

    /// Whether a row of `id` is trained.
    pub fn contains(&self, id: u32) -> bool {
        match self {
            Self::Embedding(ids) => ids.contains(&id),
            Self::Modules(modules) => modules.values().any(|ids| ids.contains(&id)),
        }
    }

    /// The trainable rows of each matrix, validated; errors name `origin`.
    pub(crate) fn targets(&self, config: &ModelConfig, origin: &str) -> Result<Vec<TokenTarget>> {
        let wrong = |message: String| Err(Error::config(origin, format!("\"trainable_token_indices\" {message}")));
        let target = |name: &str, ids: &[u32]| TokenTarget {
            name: name.to_owned(),
            module: families::location(config, Head::LanguageModel, name).0,
            ids: ids.to_vec(),
        };
        let mut targets = Vec::new();
        match self {
            Self::Embedding(ids) => targets.push(target(EMBEDDING, ids)),
            Self::Modules(modules) => {
                for (module, ids) in modules {
                    let names = |name: &&str| {
                        let whole = families::location(config, Head::LanguageModel, name).0;
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
#[derive(Debug, Clone)]
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
