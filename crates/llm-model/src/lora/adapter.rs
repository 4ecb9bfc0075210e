//! The weights of an adapter.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::config::LoraConfig;
use super::layout::Layout;
use super::tokens::TokenTarget;
use crate::weight::Weight;
use crate::{Error, Result};

/// An adapter: configuration and weights.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    pub config: LoraConfig,
    pub layout: Arc<Layout>,
    /// Trainable or dense weights by their name in PEFT's files without prefix, such as
    /// `model.layers.0.self_attn.q_proj.lora_A.weight` or `model.embed_tokens.token_adapter.trainable_tokens_delta`.
    pub weights: BTreeMap<String, Weight>,
}

impl Adapter {
    /// Applies `f` to each weight.
    pub fn map(&self, f: impl Fn(&Weight) -> candle_core::Result<Weight>) -> Result<Self> {
        let weights = self.weights.iter().map(|(name, weight)| Ok((name.clone(), f(weight)?)));
        Ok(Self { weights: weights.collect::<Result<_>>()?, ..self.clone() })
    }

    /// The tensor `name`, if the adapter has it.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(name)?.tensor()
    }

    /// The trained copy of a tensor of the decoder, if the adapter has one.
    pub fn saved(&self, name: &str) -> Option<&Weight> {
        self.weights.get(self.layout.saved_key(name)?)
    }

    /// The names in the file, and shapes, of all weights.
    pub fn tensors(layout: &Layout, config: &LoraConfig, hidden_size: usize) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for target in &layout.targets {
            all.extend(target.tensors(config.use_dora).into_iter().map(|(part, shape)| (target.key(part), shape)));
        }
        for TokenTarget { module, ids, .. } in &layout.tokens {
            all.push((TokenTarget::tensor(module), vec![ids.len(), hidden_size]));
        }
        all.extend(layout.saved.iter().filter(|s| s.same_as.is_none()).map(|s| (s.key.clone(), s.shape.clone())));
        all
    }

    /// Whether this adapter can be on top of `lower`: their sum must be an adapter, too.
    pub fn check_above(&self, lower: &Self) -> Result<()> {
        let wrong = |message: String| Err(Error::Input(format!("{message}; merge the first adapter instead")));
        if self.config.use_dora || lower.config.use_dora {
            return wrong("an adapter on an adapter needs plain LoRA; one of them has \"use_dora\"".to_owned());
        }
        for (saving, other) in [(self, lower), (lower, self)] {
            let matrix = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
            for name in saving.layout.saved.iter().map(|saved| matrix(&saved.name)) {
                let rows = other.layout.tokens.iter().any(|target| target.name == name);
                if rows || other.layout.target(&name).is_some() {
                    return wrong(format!("one adapter has {name} in \"modules_to_save\", the other one adapts it"));
                }
            }
            for target in &saving.layout.tokens {
                if other.layout.target(&target.name).is_some() {
                    let name = &target.module;
                    return wrong(format!("one adapter has trainable rows of {name}, the other one adapts it"));
                }
            }
        }
        Ok(())
    }
}
