//! The configuration of an adapter, and the layers that it names.

use serde::{Deserialize, Serialize};

use super::tokens::{TokenIndices, TokenTarget};
use crate::formats::families;
use crate::{Error, Head, ModelConfig, Result, TensorSpec};

/// The configuration of an adapter, with the names and defaults of PEFT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank, at least 1: rows of `A`, columns of `B`.
    pub r: usize,
    /// The scale: `s = lora_alpha / r`.
    pub lora_alpha: f64,
    /// The linear layers to adapt, by the name in transformers or its last parts (`q_proj`, `layers.1.mlp.up_proj`).
    pub target_modules: Vec<String>,
    /// rsLoRA: `s = lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// DoRA: each row of `W + s·BA` is rescaled to a trained magnitude.
    pub use_dora: bool,
    /// Tokens with trainable rows in the embedding and the output layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
        Self { r: 8, lora_alpha: 8., target_modules, use_rslora: false, use_dora: false, trainable_token_indices: None }
    }
}

/// A linear layer to adapt.
pub(crate) struct Target {
    /// The name in the decoder.
    pub name: String,
    /// The name in transformers.
    pub module: String,
    /// Output features (rows).
    pub out: usize,
    /// Input features (columns).
    pub width: usize,
}

impl Target {
    /// The tensors of its adapter: name suffix (here and in PEFT) and shape.
    pub fn shapes(&self, config: &LoraConfig) -> Vec<(&'static str, Vec<usize>)> {
        let mut shapes = vec![(A, vec![config.r, self.width]), (B, vec![self.out, config.r])];
        shapes.extend(config.use_dora.then(|| (MAGNITUDE, vec![self.out])));
        shapes
    }
}

/// Suffix of the tensor `A`, here and in PEFT.
pub(super) const A: &str = "lora_A.weight";
/// Suffix of the tensor `B`.
pub(super) const B: &str = "lora_B.weight";
/// Suffix of the magnitudes of `DoRA`.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";

impl LoraConfig {
    /// `s`.
    pub(super) fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    /// The trainable token rows of a model that this configuration names; errors name `origin`.
    pub(crate) fn token_targets(&self, model: &ModelConfig, origin: &str) -> Result<Vec<TokenTarget>> {
        self.trainable_token_indices.as_ref().map_or(Ok(Vec::new()), |indices| indices.targets(model, origin))
    }

    /// The linear layers of a model that this configuration names; errors name `origin`.
    pub(crate) fn targets(&self, model: &ModelConfig, head: Head, origin: &str) -> Result<Vec<Target>> {
        let wrong = |message: String| Err(Error::config(origin, message));
        if head != Head::LanguageModel {
            return wrong("adapters need a language model; this model has a score head".to_owned());
        }
        if self.r == 0 {
            return wrong("\"r\" is 0; it must be at least 1".to_owned());
        }
        if !self.lora_alpha.is_finite() {
            return wrong(format!("\"lora_alpha\" is {}; it must be a finite number", self.lora_alpha));
        }
        let family = model.model_type.name();
        let (mut adaptable, mut others) = (Vec::new(), Vec::new());
        for TensorSpec { name, shape, role, .. } in model.tensor_specs(head) {
            let (Some(name), &[out, width]) = (name.strip_suffix(".weight"), shape.as_slice()) else { continue };
            let (module, unfused) = families::module_of(model, head, name);
            let target = Target { name: name.to_owned(), module, out, width };
            if unfused && role.is_adaptable() { adaptable.push(target) } else { others.push(target) }
        }
        for wanted in &self.target_modules {
            let matches = |target: &Target| is_named(&target.module, wanted);
            if others.iter().any(matches) {
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\"; adapters of a \"{family}\" do not support embeddings, heads, \
                     routers, experts, or matrices that its files store transposed or fused; valid targets: {}",
                    last_parts(&adaptable)
                ));
            }
            if !adaptable.iter().any(matches) {
                let known = last_parts(&adaptable);
                return wrong(format!(
                    "\"target_modules\" names \"{wanted}\", which is not a module of \"{family}\"; valid targets: {known}"
                ));
            }
        }
        adaptable.retain(|target| self.target_modules.iter().any(|wanted| is_named(&target.module, wanted)));
        if adaptable.is_empty() {
            return wrong("\"target_modules\" is empty; name at least one linear layer".to_owned());
        }
        Ok(adaptable)
    }
}

fn is_named(module: &str, wanted: &str) -> bool {
    module.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The distinct last parts of the module names.
fn last_parts(targets: &[Target]) -> String {
    let mut names: Vec<&str> = targets.iter().filter_map(|target| target.module.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
