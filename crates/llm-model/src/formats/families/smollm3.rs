//! `SmolLM3`: `model_type = "smollm3"`. By default every fourth layer has no rotary embedding (`NoPE`).

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json, layer_types_json};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, LayerType};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification", "SmolLM3ForTokenClassification"),
    read,
    write,
);

fn read(keys: &Keys) -> Result<ModelConfig> {
    let defaults = Defaults { tie_word_embeddings: true, rope_theta: 2e6, ..Defaults::default() };
    let config = keys.base(&defaults)?;
    let layers = config.num_hidden_layers;
    // Despite its name, "no_rope_layers" is 1 for layers with rotary embedding and 0 for layers without.
    let interval = keys.count("no_rope_layer_interval")?.unwrap_or(4);
    let has_rope = match keys.counts("no_rope_layers")? {
        Some(list) if list.len() < layers => {
            return keys.wrong(format!("\"no_rope_layers\" has {} entries for {layers} layers", list.len()));
        }
        Some(list) => list.iter().map(|&flag| flag != 0).collect(),
        None if interval == 0 => return keys.wrong("\"no_rope_layer_interval\" is 0; it must be at least 1"),
        None => (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect::<Vec<_>>(),
    };
    let use_window = keys.flag("use_sliding_window", false)?;
    let sliding_window = keys.count("sliding_window")?.filter(|_| use_window);
    let default = |layer: usize| if has_rope[layer] { LayerType::FullAttention } else { LayerType::SlidingAttention };
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        mlp_bias: keys.flag("mlp_bias", false)?,
        layers_without_rope: (0..layers).filter(|&layer| !has_rope[layer]).collect(),
        layer_types: keys.layer_types(layers, sliding_window, default)?,
        sliding_window,
        ..config
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    let has_rope = |layer| usize::from(!config.layers_without_rope.contains(&layer));
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    json["mlp_bias"] = json!(config.mlp_bias);
    json["no_rope_layers"] = json!((0..config.num_hidden_layers).map(has_rope).collect::<Vec<_>>());
    json["use_sliding_window"] = json!(config.sliding_window.is_some());
    json["sliding_window"] = json!(config.sliding_window);
    json["layer_types"] = layer_types_json(config);
    json
}
