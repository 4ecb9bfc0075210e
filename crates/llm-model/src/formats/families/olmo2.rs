//! `OLMo` 2: `model_type = "olmo2"`. Norms after attention and MLP, and over all query heads and all key heads together.

use serde_json::{Value, json};

use super::Family;
use super::keys::{Defaults, Keys, base_json};
use crate::config::{Activation, AttentionBias, NormPlacement, QkNorm};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family =
    Family::new([Some("Olmo2ForCausalLM"), Some("Olmo2ForSequenceClassification"), None], read, write);

fn read(keys: &Keys) -> Result<ModelConfig> {
    let defaults = Defaults { grouped: false, rms_norm_eps: 1e-5, ..Defaults::default() };
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        norm_placement: NormPlacement::Post,
        qk_norm: Some(QkNorm::Whole),
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        ..keys.base(&defaults)?
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    json
}
