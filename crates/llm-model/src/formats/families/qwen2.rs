//! Qwen2 and Qwen2.5: `model_type = "qwen2"`. Queries, keys and values have biases.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json, layer_types_json};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, LayerType};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2ForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    Ok(ModelConfig { attention_bias: AttentionBias::Qkv, ..read_windowed(keys)? })
}

/// The keys that Qwen2 and Qwen3 share. Layers from `max_window_layers` on can have a sliding window.
pub(super) fn read_windowed(keys: &Keys) -> Result<ModelConfig> {
    let config = keys.base(&Defaults::default())?;
    let use_window = keys.flag("use_sliding_window", false)?;
    let sliding_window = keys.count_or("sliding_window", 4096)?.filter(|_| use_window);
    let full = keys.count("max_window_layers")?.unwrap_or(28);
    let default = |layer| if layer >= full { LayerType::SlidingAttention } else { LayerType::FullAttention };
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        layer_types: keys.layer_types(config.num_hidden_layers, sliding_window, default)?,
        sliding_window,
        ..config
    })
}

/// The keys that [`read_windowed`] reads.
pub(super) fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    let full = (0..config.num_hidden_layers).find(|&layer| config.window_of(layer).is_some());
    json["use_sliding_window"] = json!(config.sliding_window.is_some());
    json["sliding_window"] = json!(config.sliding_window);
    json["max_window_layers"] = json!(full.unwrap_or(config.num_hidden_layers));
    json["layer_types"] = layer_types_json(config);
    json
}
