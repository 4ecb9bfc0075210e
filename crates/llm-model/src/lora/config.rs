//! The configuration of an adapter.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::tokens::TokenIndices;
use crate::{Error, Result};

/// The configuration of an adapter, with the names and defaults of PEFT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank, at least 1: rows of `A`, columns of `B`.
    pub r: usize,
    /// The scale: `s = lora_alpha / r`.
    pub lora_alpha: f64,
    /// The linear layers and embeddings to adapt, by the name in transformers or its last parts (`q_proj`, `embed_tokens`,
    /// `layers.1.mlp.up_proj`). `"all-linear"`: all linear layers but the output layer and the score head.
    #[serde(deserialize_with = "names")]
    pub target_modules: Vec<String>,
    /// The parameters to adapt of models whose experts are not linear layers in transformers: `mlp.experts.gate_up_proj`,
    /// `mlp.experts.down_proj` and `mlp.gate.weight`, or the last parts of these names.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "names")]
    pub target_parameters: Vec<String>,
    /// The ranks of some modules, by the name of the module or its last parts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// The `lora_alpha` of some modules, by the name of the module or its last parts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The probability of dropout of the input of `A` in training, at least 0 and less than 1. Embeddings have no dropout.
    pub lora_dropout: f64,
    /// rsLoRA: `s = lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// DoRA: each row of `W + s·BA` is rescaled to a trained magnitude.
    pub use_dora: bool,
    /// Modules that are trained and saved as a whole, by the end of their name in transformers (`embed_tokens`, `lm_head`,
    /// `score`). A score head always is.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "names")]
    pub modules_to_save: Vec<String>,
    /// In a model that ties embedding and output layer: whether the trained embedding of `modules_to_save` is also the output
    /// layer. Otherwise the output layer keeps the weights of the model.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ensure_weight_tying: bool,
    /// Tokens with trainable rows in the embedding and the output layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.,
            target_modules: ["q_proj", "v_proj"].map(str::to_owned).to_vec(),
            target_parameters: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            lora_dropout: 0.,
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            trainable_token_indices: None,
        }
    }
}

/// The value of `target_modules` that means all linear layers but the head.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// A list of names, null for an empty one, or [`ALL_LINEAR`].
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        One(String),
    }
    match Option::<Names>::deserialize(deserializer)? {
        None => Ok(Vec::new()),
        Some(Names::List(names)) => Ok(names),
        Some(Names::One(name)) if name == ALL_LINEAR => Ok(vec![name]),
        Some(Names::One(_)) => Err(serde::de::Error::custom("expected a list of names or \"all-linear\"")),
    }
}

impl LoraConfig {
    /// Checks the numbers; errors name `origin`.
    pub(crate) fn check(&self, origin: &str) -> Result<()> {
        let wrong = |message: String| Err(Error::config(origin, message));
        let ranks = self.rank_pattern.iter().map(|(name, r)| (format!("\"rank_pattern\" of \"{name}\""), *r));
        for (key, r) in ranks.chain([("\"r\"".to_owned(), self.r)]) {
            if r == 0 {
                return wrong(format!("{key} is 0; it must be at least 1"));
            }
        }
        let alphas =
            self.alpha_pattern.iter().map(|(name, alpha)| (format!("\"alpha_pattern\" of \"{name}\""), *alpha));
        for (key, alpha) in alphas.chain([("\"lora_alpha\"".to_owned(), self.lora_alpha)]) {
            if !alpha.is_finite() || alpha == 0. {
                return wrong(format!("{key} is {alpha}; it must be a finite number other than 0"));
            }
        }
        let patterns = self.rank_pattern.keys().map(|name| ("rank_pattern", name));
        for (key, name) in patterns.chain(self.alpha_pattern.keys().map(|name| ("alpha_pattern", name))) {
            if name_of_pattern(name).contains(['\\', '*', '+', '?', '(', '[', '{', '|', '^', '$']) {
                return wrong(format!("\"{key}\" has the expression \"{name}\"; it must be a name of modules"));
            }
        }
        if !(0. ..1.).contains(&self.lora_dropout) {
            let dropout = self.lora_dropout;
            return wrong(format!("\"lora_dropout\" is {dropout}; it must be at least 0 and less than 1"));
        }
        Ok(())
    }

    /// The rank and the scale `s` of the adapter of a module; errors name `origin`.
    pub(super) fn rank_and_scale(&self, module: &str, origin: &str) -> Result<(usize, f64)> {
        let r = pattern(&self.rank_pattern, module, "rank_pattern", origin)?.unwrap_or(self.r);
        let alpha = pattern(&self.alpha_pattern, module, "alpha_pattern", origin)?.unwrap_or(self.lora_alpha);
        Ok((r, alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }))
    }
}

/// The value of the pattern that names the module. Two values for one module are an error.
fn pattern<T: Copy + PartialEq>(
    patterns: &BTreeMap<String, T>,
    module: &str,
    key: &str,
    origin: &str,
) -> Result<Option<T>> {
    let mut found: Option<(&str, T)> = None;
    for (name, &value) in patterns.iter().filter(|(name, _)| is_named(module, &name_of_pattern(name))) {
        if let Some((other, _)) = found.filter(|(_, other)| *other != value) {
            let message = format!("\"{key}\" has different values for \"{other}\" and \"{name}\", both for {module}");
            return Err(Error::config(origin, message));
        }
        found = Some((name, value));
    }
    Ok(found.map(|(_, value)| value))
}

/// The name in a pattern. PEFT reads patterns as regular expressions and writes some names as `.*\.gate_up_proj`.
fn name_of_pattern(pattern: &str) -> String {
    pattern.strip_prefix(".*\\.").unwrap_or(pattern).replace("\\.", ".")
}

/// Whether `wanted` is the name of the module or its last parts.
pub(super) fn is_named(module: &str, wanted: &str) -> bool {
    module.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
