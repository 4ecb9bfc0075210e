//! Conversion between the metadata of a GGUF file and the decoder configuration.

use llm_files::gguf::{Metadata, Value};
use serde_json::{Value as Json, json};

use super::architecture::{Architecture, REQUIRED};
use crate::config::MAX_LAYERS;
use crate::rotary::RotaryEmbedding;
use crate::{ModelConfig, RopeScaling};

/// Token ids: GGUF stores them with the tokenizer, `config.json` with the model.
const TOKENS: [(&str, &str); 3] = [
    ("tokenizer.ggml.bos_token_id", "bos_token_id"),
    ("tokenizer.ggml.eos_token_id", "eos_token_id"),
    ("tokenizer.ggml.padding_token_id", "pad_token_id"),
];

/// Keys of rotary embeddings, without the prefix `{architecture}.`.
const ROTARY: [&str; 4] =
    ["rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"];

/// Keys that are ignored, without the prefix `{architecture}.`: they do not change a result.
const UNUSED: [&str; 3] = ["tensor_data_layout", "rope.scaling.finetuned", "pooling_type"];

/// The tensor with the divisor of each rotary frequency.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The decoder configuration from the metadata of a file; the error is a message that names the key.
pub(super) fn read(
    metadata: &Metadata,
    architecture: &Architecture,
    tied: bool,
) -> std::result::Result<ModelConfig, String> {
    let mut json = architecture.base();
    let full = |key: &str| format!("{}.{key}", architecture.name);
    let get = |key: &str| metadata.get(&full(key));
    json["num_key_value_heads"] = Json::Null;
    for (key, pointer) in architecture.keys() {
        let value = match get(key) {
            Some(Value::Unsigned(n)) => json!(n),
            Some(Value::Float(x)) if x.is_finite() => json!(x),
            Some(Value::Bool(yes)) => json!(yes),
            Some(other) => return Err(format!("\"{}\" is {other:?}; expected a number", full(key))),
            None if REQUIRED.contains(&(key, pointer)) => return Err(format!("\"{}\" is missing", full(key))),
            None => continue,
        };
        let Some(slot) = json.pointer_mut(pointer) else { return Err(format!("\"{}\" is not supported", full(key))) };
        if key == "attention.value_length" && *slot != value {
            return Err(format!("\"{}\" is {value}; it must equal the size of queries and keys, {slot}", full(key)));
        }
        *slot = value;
    }
    if json["num_key_value_heads"].is_null() {
        json["num_key_value_heads"] = json["num_attention_heads"].clone();
    }
    json["rope_scaling"] = match (get(ROTARY[1]), get(ROTARY[2]), get(ROTARY[3])) {
        (None, None, _) => json!({"rope_type": "default"}),
        (Some(Value::Text(kind)), ..) if kind == "none" => json!({"rope_type": "default"}),
        (Some(Value::Text(kind)), Some(Value::Float(factor)), _) if kind == "linear" => {
            json!({"rope_type": "linear", "factor": factor})
        }
        (Some(Value::Text(kind)), Some(Value::Float(factor)), Some(Value::Unsigned(original))) if kind == "yarn" => {
            json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original})
        }
        (kind, ..) => return Err(format!("\"{}\" is {kind:?}; supported: none, linear, yarn", full(ROTARY[1]))),
    };
    for (theirs, ours) in TOKENS {
        if let Some(Value::Unsigned(id)) = metadata.get(theirs) {
            json[ours] = json!(id);
        }
    }
    json["tie_word_embeddings"] = json!(tied);
    let known =
        |key: &str| architecture.keys().any(|(name, _)| name == key) || ROTARY.contains(&key) || UNUSED.contains(&key);
    let own = |key: &&String| key.strip_prefix(&full("")).is_some_and(|key| !known(key));
    if let Some(key) = metadata.keys().find(own) {
        return Err(format!("\"{key}\" is {:?}; models with this key are not supported", metadata[key]));
    }
    let mut config: ModelConfig = serde_json::from_value(json).map_err(|e| e.to_string())?;
    if config.head_dim == 0 {
        config.head_dim = config.hidden_size / config.num_attention_heads.max(1);
    }
    match get(ROTARY[0]) {
        None => {}
        Some(Value::Unsigned(rotary_dim)) if config.head_dim > 0 => {
            config.partial_rotary_factor = *rotary_dim as f64 / config.head_dim as f64;
        }
        Some(other) => return Err(format!("\"{}\" is {other:?}; expected a number", full(ROTARY[0]))),
    }
    // Checked before anything is allocated per layer.
    if config.num_hidden_layers > MAX_LAYERS {
        let (key, layers) = (full("block_count"), config.num_hidden_layers);
        return Err(format!("\"{key}\" is {layers}; it must be at most {MAX_LAYERS}"));
    }
    (architecture.complete)(&mut config);
    Ok(config)
}

/// The metadata of a decoder configuration.
pub(super) fn to_metadata(architecture: &Architecture, config: &ModelConfig) -> Metadata {
    let json = json!(config);
    let value = |value: &Json| match value {
        Json::Bool(yes) => Some(Value::Bool(*yes)),
        Json::Number(n) => n.as_u64().map(Value::Unsigned).or(n.as_f64().map(Value::Float)),
        _ => None,
    };
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture".to_owned(), Value::Text(architecture.name.to_owned()));
    metadata.insert("general.quantization_version".to_owned(), Value::Unsigned(2));
    let full = |key: &str| format!("{}.{key}", architecture.name);
    for (key, pointer) in architecture.keys() {
        // Models with learned positions have no rotary keys.
        let applies = !config.learned_positions || !key.starts_with("rope.");
        let value = json.pointer(pointer).and_then(value).filter(|_| applies);
        metadata.extend(value.map(|value| (full(key), value)));
    }
    if !config.learned_positions {
        metadata.insert(full(ROTARY[0]), Value::Unsigned(config.rotary_dim() as u64));
    }
    let (kind, factor, original) = match config.rope_scaling {
        RopeScaling::Linear { factor } => ("linear", factor, None),
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => ("yarn", factor, original),
        _ => ("none", 1., None),
    };
    if kind != "none" {
        metadata.insert(full(ROTARY[1]), Value::Text(kind.to_owned()));
        metadata.insert(full(ROTARY[2]), Value::Float(factor));
        metadata.extend(original.map(|original| (full(ROTARY[3]), Value::Unsigned(original as u64))));
    }
    metadata.extend(TOKENS.iter().filter_map(|(theirs, ours)| Some(((*theirs).to_owned(), value(&json[*ours])?))));
    metadata
}

/// Recovers Llama 3's `rope_scaling` from `rope_freqs.weight`: the configuration with that scaling, or none.
///
/// A file has only the divisors. All published Llama 3 models have `low_freq_factor` 1 and `high_freq_factor` 4.
pub(super) fn recover_llama3_scaling(config: &ModelConfig, divisors: &[f32]) -> Option<ModelConfig> {
    let factor = divisors.iter().copied().fold(1., f32::max);
    let candidates = (4..18).map(|power| RopeScaling::Llama3 {
        factor: factor.into(),
        low_freq_factor: 1.,
        high_freq_factor: 4.,
        original_max_position_embeddings: 1 << power,
    });
    let matches = |config: &ModelConfig| {
        let ours = RotaryEmbedding::frequency_divisors(config);
        ours.len() == divisors.len() && ours.iter().zip(divisors).all(|(a, b)| (a / b - 1.).abs() < 1e-4)
    };
    // Try 8192 first: all published models have it.
    let candidates = candidates.clone().skip(9).take(1).chain(candidates);
    candidates.map(|rope_scaling| ModelConfig { rope_scaling, ..config.clone() }).find(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelType;
    use crate::formats::gguf::architecture::ALL;

    fn gemma(config: &Json) -> (&'static Architecture, Metadata) {
        let config = crate::formats::families::from_json(config, "test").unwrap().config;
        let architecture = ALL.into_iter().find(|a| a.model_types.contains(&config.model_type)).unwrap();
        (architecture, to_metadata(architecture, &config))
    }

    fn small(model_type: ModelType, layers: usize) -> Json {
        json!({
            "model_type": model_type.name(), "vocab_size": 9, "hidden_size": 24, "intermediate_size": 8, "head_dim": 6,
            "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 9,
        })
    }

    #[test]
    fn gemma_2_has_the_default_caps_and_window_of_llama_cpp() {
        let (architecture, mut metadata) = gemma(&small(ModelType::Gemma2, 2));
        for key in ["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"] {
            assert!(metadata.remove(&format!("gemma2.{key}")).is_some(), "{key}");
        }
        let config = read(&metadata, architecture, true).unwrap();
        assert_eq!((config.attn_logit_softcapping, config.final_logit_softcapping), (Some(50.), Some(30.)));
        assert_eq!(config.sliding_window, Some(4096));
    }

    #[test]
    fn the_query_scale_of_gemma_27b_matches_llama_cpp() {
        for (model_type, layers) in [(ModelType::Gemma2, 46), (ModelType::Gemma3Text, 62)] {
            for (layers, scalar) in [(layers, 12.), (layers - 1, 6.)] {
                let (architecture, metadata) = gemma(&small(model_type, layers));
                let config = read(&metadata, architecture, true).unwrap();
                assert_eq!(config.query_pre_attn_scalar, Some(scalar), "{model_type:?} of {layers} layers");
            }
        }
    }
}
