//! Qwen3: `model_type = "qwen3"`. Queries and keys are normed per head.

use serde_json::{Value, json};

use super::keys::Keys;
use super::{Family, classes, qwen2};
use crate::config::{AttentionBias, QkNorm};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("Qwen3ForCausalLM", "Qwen3ForSequenceClassification", "Qwen3ForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    let config = qwen2::read_windowed(keys)?;
    Ok(ModelConfig {
        head_dim: keys.count("head_dim")?.unwrap_or(128),
        qk_norm: Some(QkNorm::Head),
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        ..config
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = qwen2::write(config);
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    json
}
