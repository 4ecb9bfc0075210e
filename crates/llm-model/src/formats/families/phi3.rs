//! Phi-3: `model_type = "phi3"`. The files fuse queries, keys and values, and gate and up.

use serde_json::{Value, json};

use super::keys::{Defaults, Keys, base_json};
use super::tensor_map::{Rows, TensorMap, rename};
use super::{Family, classes};
use crate::config::Activation;
use crate::{ModelConfig, Result, RopeScaling};

pub(super) const FAMILY: Family = Family {
    tensor_map,
    ..Family::new(
        classes("Phi3ForCausalLM", "Phi3ForSequenceClassification", "Phi3ForTokenClassification"),
        read,
        write,
    )
};

fn read(keys: &Keys) -> Result<ModelConfig> {
    let defaults = Defaults { grouped: false, partial_rotary: true, rms_norm_eps: 1e-5, ..Defaults::default() };
    let mut config = keys.base(&defaults)?;
    let scaling = keys.get("rope_scaling").or_else(|| keys.get("rope_parameters"));
    let in_scaling = |key: &str| scaling.and_then(|map| map.get(key)).is_some_and(|value| !value.is_null());
    if let (Some(part), false) = (keys.float("partial_rotary_factor")?, in_scaling("partial_rotary_factor")) {
        config.partial_rotary_factor = part;
    }
    let outer = keys.count("original_max_position_embeddings")?.unwrap_or(4096);
    match &mut config.rope_scaling {
        RopeScaling::Default => {}
        RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
            if in_scaling("original_max_position_embeddings") && *original != outer {
                return keys.wrong(format!(
                    "\"original_max_position_embeddings\" is {outer} (default 4096), but {original} in the rotary \
                     parameters; both must be equal"
                ));
            }
            *original = outer;
        }
        other => {
            let kind = json!(other)["rope_type"].clone();
            return keys.wrong(format!("\"rope_scaling\" has type {kind}; a \"phi3\" supports \"longrope\" only"));
        }
    }
    Ok(ModelConfig {
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        sliding_window: keys.count("sliding_window")?,
        ..config
    })
}

fn write(config: &ModelConfig) -> Value {
    let mut json = base_json(config);
    json["sliding_window"] = json!(config.sliding_window);
    json["partial_rotary_factor"] = json!(config.partial_rotary_factor);
    if let RopeScaling::LongRope { original_max_position_embeddings, .. } = config.rope_scaling {
        json["original_max_position_embeddings"] = json!(original_max_position_embeddings);
    }
    json
}

fn tensor_map(config: &ModelConfig, name: &str) -> TensorMap {
    let (q, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let inner = config.intermediate_size;
    for (part, fused, start, len, group_len) in [
        ("q_proj", "qkv_proj", 0, q, q + 2 * kv),
        ("k_proj", "qkv_proj", q, kv, q + 2 * kv),
        ("v_proj", "qkv_proj", q + kv, kv, q + 2 * kv),
        ("gate_proj", "gate_up_proj", 0, inner, 2 * inner),
        ("up_proj", "gate_up_proj", inner, inner, 2 * inner),
    ] {
        if name.ends_with(&format!("{part}.weight")) {
            let rows = Some(Rows { groups: 1, start, len, group_len });
            return TensorMap { rows, ..rename(name.replace(part, fused)) };
        }
    }
    rename(name)
}
