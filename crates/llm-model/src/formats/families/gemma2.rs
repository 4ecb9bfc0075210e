//! Gemma 2: `model_type = "gemma2"`. Soft caps, alternating sliding windows, scaled embeddings, norms before and after each
//! sub-layer.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json, layer_types_json};
use super::{Family, classes};
use crate::config::{Activation, AttentionBias, LayerType, NormKind, NormPlacement};
use crate::{ModelConfig, Result};

pub(super) const FAMILY: Family = Family::new(
    classes("Gemma2ForCausalLM", "Gemma2ForSequenceClassification", "Gemma2ForTokenClassification"),
    read,
    write,
);

/// Default window of transformers.
const WINDOW: usize = 4096;

fn read(keys: &Keys) -> Result<ModelConfig> {
    Ok(ModelConfig {
        attn_logit_softcapping: keys.float_or("attn_logit_softcapping", 50.)?,
        final_logit_softcapping: keys.float_or("final_logit_softcapping", 30.)?,
        ..read_with_pattern(keys, 2)?
    })
}

/// The keys that Gemma 2 and 3 share. Every `pattern`-th layer has full attention, the others have sliding windows.
pub(super) fn read_with_pattern(keys: &Keys, pattern: usize) -> Result<ModelConfig> {
    keys.only("use_bidirectional_attention", &json!(false))?;
    let defaults = Defaults { tie_word_embeddings: true, ..Defaults::default() };
    let config = keys.base(&defaults)?;
    let sliding_window = keys.count_or("sliding_window", WINDOW)?;
    let default = |layer: usize| match (layer + 1).is_multiple_of(pattern) {
        true => LayerType::FullAttention,
        false => LayerType::SlidingAttention,
    };
    // Early files also have "hidden_act" with a wrong value; "hidden_activation" is correct.
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_activation", Activation::GeluPytorchTanh)?,
        head_dim: keys.count("head_dim")?.unwrap_or(256),
        norm: NormKind::RmsPlusOne,
        norm_placement: NormPlacement::Sandwich,
        attention_bias: if keys.flag("attention_bias", false)? { AttentionBias::All } else { AttentionBias::None },
        layer_types: keys.layer_types(config.num_hidden_layers, sliding_window, default)?,
        sliding_window,
        query_pre_attn_scalar: Some(keys.float("query_pre_attn_scalar")?.unwrap_or(256.)),
        attn_logit_softcapping: keys.float("attn_logit_softcapping")?,
        final_logit_softcapping: keys.float("final_logit_softcapping")?,
        scale_embeddings: true,
        ..config
    })
}

/// The keys that [`read_with_pattern`] reads.
pub(super) fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    if let Value::Object(map) = &mut json {
        map.shift_remove("hidden_act");
    }
    json["hidden_activation"] = json!(config.hidden_act);
    json["attention_bias"] = json!(config.attention_bias != AttentionBias::None);
    // transformers builds the sliding-window mask even if "layer_types" has no sliding layer.
    json["sliding_window"] = json!(config.sliding_window.unwrap_or(WINDOW));
    json["layer_types"] = layer_types_json(config);
    let scalar = config.query_pre_attn_scalar.unwrap_or(config.head_dim as f64);
    json["query_pre_attn_scalar"] = if scalar.fract() == 0. { json!(scalar as u64) } else { json!(scalar) };
    json["attn_logit_softcapping"] = json!(config.attn_logit_softcapping);
    json["final_logit_softcapping"] = json!(config.final_logit_softcapping);
    json
}
