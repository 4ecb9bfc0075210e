//! The weights of an adapter.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::config::LoraConfig;
use crate::Result;
use crate::weight::Weight;

/// An adapter: configuration and weights.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub config: LoraConfig,
    /// Trainable or dense weights by name: the decoder's name of the matrix and the suffix of PEFT, such as
    /// `model.layers.0.self_attn.q_proj.lora_A.weight` or `model.embed_tokens.token_adapter.trainable_tokens_delta`.
    pub weights: BTreeMap<String, Weight>,
}

impl Adapter {
    /// Applies `f` to each weight.
    pub fn map(&self, f: impl Fn(&Weight) -> candle_core::Result<Weight>) -> Result<Self> {
        let weights = self.weights.iter().map(|(name, weight)| Ok((name.clone(), f(weight)?)));
        Ok(Self { config: self.config.clone(), weights: weights.collect::<Result<_>>()? })
    }

    /// The tensor `name`, if the adapter has it.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(name)?.tensor()
    }
}
