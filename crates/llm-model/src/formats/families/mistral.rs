//! Mistral: `model_type = "mistral"`. All layers have the same sliding window, if any.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json};
use super::{Family, classes};
use crate::config::Activation;
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("MistralForCausalLM", "MistralForSequenceClassification", "MistralForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    if let Some(types) = keys.get("layer_types") {
        return keys.wrong(format!("\"layer_types\" is {types}; a \"mistral\" does not support this key"));
    }
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        sliding_window: keys.count_or("sliding_window", 4096)?,
        ..keys.base(&Defaults::default())?
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    json["sliding_window"] = json!(config.sliding_window);
    json
}
