//! Llama 1 to 3: `model_type = "llama"`. The decoder uses its tensor names.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    let defaults = Defaults { grouped: false, max_position_embeddings: Some(2048), ..Defaults::default() };
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        mlp_bias: keys.flag("mlp_bias", false)?,
        ..keys.base(&defaults)?
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    json["mlp_bias"] = json!(config.mlp_bias);
    json
}
