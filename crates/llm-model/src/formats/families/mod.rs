//! One module per model family: it maps the family's `config.json` and tensor names to the decoder and back.
//!
//! Each module defines a `Family`. This module selects it by `model_type`. When it writes a `config.json`, it checks that
//! reading it gives the same configuration, so no setting is lost silently.

mod gemma2;
mod gemma3_text;
mod gpt2;
mod gpt_neox;
mod keys;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod tensor_map;

use serde_json::{Map, Value, json};

use crate::config::MAX_LAYERS;
use crate::head::Head;
use crate::{Error, ModelConfig, ModelType, Result};
use keys::Keys;
pub(crate) use tensor_map::{Rows, TensorMap};
use tensor_map::{identity, rename};

/// The definition of a family.
pub(super) fn family(model_type: ModelType) -> &'static Family {
    match model_type {
        ModelType::Llama => &llama::FAMILY,
        ModelType::Mistral => &mistral::FAMILY,
        ModelType::Mixtral => &mixtral::FAMILY,
        ModelType::Qwen2 => &qwen2::FAMILY,
        ModelType::Qwen3 => &qwen3::FAMILY,
        ModelType::Qwen3Moe => &qwen3_moe::FAMILY,
        ModelType::SmolLm3 => &smollm3::FAMILY,
        ModelType::Olmo2 => &olmo2::FAMILY,
        ModelType::Phi3 => &phi3::FAMILY,
        ModelType::Gemma2 => &gemma2::FAMILY,
        ModelType::Gemma3Text => &gemma3_text::FAMILY,
        ModelType::Gpt2 => &gpt2::FAMILY,
        ModelType::GptNeox => &gpt_neox::FAMILY,
    }
}

/// How a family is read and written.
pub(super) struct Family {
    /// The classes in transformers: causal LM, sequence classification, token classification.
    classes: [Option<&'static str>; 3],
    /// Reads the keys of a `config.json`.
    read: fn(&Keys) -> Result<ModelConfig>,
    /// The family-specific keys of a `config.json`; [`to_json`] adds the keys that all families share.
    write: fn(&ModelConfig) -> Value,
    /// The prefix of the decoder's tensors in the files.
    pub(super) prefix: &'static str,
    /// The name of the token classification head in the files.
    token_head: &'static str,
    /// Maps the decoder's name of a tensor to its location in the files.
    tensor_map: fn(&ModelConfig, &str) -> TensorMap,
}

impl Family {
    /// A family that uses the decoder's tensor names (those of Llama), as most do.
    const fn new(
        classes: [Option<&'static str>; 3],
        read: fn(&Keys) -> Result<ModelConfig>,
        write: fn(&ModelConfig) -> Value,
    ) -> Self {
        Self { classes, read, write, prefix: "model.", token_head: "score", tensor_map: identity }
    }
}

/// The classes of a family with all three heads.
const fn classes(lm: &'static str, sequence: &'static str, token: &'static str) -> [Option<&'static str>; 3] {
    [Some(lm), Some(sequence), Some(token)]
}

impl Family {
    fn class(&self, head: Head) -> Option<&'static str> {
        self.classes[match head {
            Head::LanguageModel => 0,
            Head::Sequence | Head::Scores(_) => 1,
            Head::Token => 2,
        }]
    }

    /// The location of the decoder's tensor `name` in the files.
    pub(super) fn map_tensor(&self, config: &ModelConfig, head: Head, name: &str) -> TensorMap {
        match name.strip_prefix("score.") {
            Some(kind) if head == Head::Token => rename(format!("{}.{kind}", self.token_head)),
            _ => (self.tensor_map)(config, name),
        }
    }
}

/// The location of the decoder's matrix `{name}.weight` in transformers: the module, whether it stores the matrix transposed, and
/// the rows of the matrix if it is fused with others.
pub(crate) fn location(config: &ModelConfig, head: Head, name: &str) -> (String, bool, Option<Rows>) {
    let map = family(config.model_type).map_tensor(config, head, &format!("{name}.weight"));
    let module = map.name.strip_suffix(".weight").unwrap_or(&map.name).to_owned();
    (module, map.transposed, map.rows)
}

/// A parsed `config.json`.
#[derive(Debug, Clone)]
pub struct ParsedConfig {
    /// The configuration of the decoder.
    pub config: ModelConfig,
    /// The head.
    pub head: Head,
    /// The recognised keys with their original values.
    pub raw_config: Map<String, Value>,
    /// The unrecognised keys.
    pub extra: Map<String, Value>,
    /// Values that are ignored because they do not change a result; each names its key.
    pub warnings: Vec<String>,
}

/// Keys of all families that do not describe the decoder.
const FILE_KEYS: [&str; 7] =
    ["architectures", "model_type", "torch_dtype", "dtype", "id2label", "label2id", "num_labels"];

/// Reads a `config.json` of any family; errors name `origin`.
///
/// An unsupported key or value that would change the result is an error that names it.
pub fn from_json(json: &Value, origin: &str) -> Result<ParsedConfig> {
    let Some(map) = json.as_object() else {
        return Err(Error::config(origin, "the file is not a JSON object"));
    };
    let name = map.get("model_type").unwrap_or(&Value::Null);
    let Ok(model_type) = serde_json::from_value::<ModelType>(name.clone()) else {
        let known = ModelType::ALL.map(ModelType::name).join(", ");
        return Err(Error::config(origin, format!("\"model_type\" is {name}; supported: {known}")));
    };
    let family = family(model_type);
    let heads = [Head::LanguageModel, Head::Sequence, Head::Token];
    let head = match map.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str) {
        None => Head::LanguageModel,
        Some(name) => match heads.into_iter().find(|&head| family.class(head) == Some(name)) {
            Some(head) => head,
            None => {
                let known: Vec<&str> = family.classes.into_iter().flatten().collect();
                let message = format!("\"architectures\" is [\"{name}\"]; supported: {}", known.join(", "));
                return Err(Error::config(origin, message));
            }
        },
    };
    for key in ["num_hidden_layers", "n_layer"] {
        // Checked before anything is allocated per layer.
        if let Some(count) = map.get(key).and_then(Value::as_u64).filter(|count| *count > MAX_LAYERS as u64) {
            return Err(Error::config(origin, format!("\"{key}\" is {count}; it must be at most {MAX_LAYERS}")));
        }
    }
    let keys = Keys::new(map, origin);
    if let Some(value) = keys.get("quantization_config") {
        return keys.wrong(format!("\"quantization_config\" is {value}; only f32, f16 and bf16 weights are supported"));
    }
    let mut config = ModelConfig { model_type, ..(family.read)(&keys)? };
    config.drop_unknown_tokens().into_iter().for_each(|warning| keys.warn(warning));
    let config = config.validated(origin)?;
    let head = match (head, labels(map)) {
        (Head::Sequence, Some(count @ 2..)) => Head::Scores(count),
        (head, _) => head,
    };
    let recognised = |key: &str| keys.knows(key) || FILE_KEYS.contains(&key);
    let (raw_config, extra) = map.clone().into_iter().partition(|(key, _)| recognised(key));
    Ok(ParsedConfig { config, head, raw_config, extra, warnings: keys.into_warnings() })
}

/// The number of labels of a classifier: that of `id2label`, else `num_labels`.
fn labels(map: &Map<String, Value>) -> Option<usize> {
    let named = map.get("id2label").and_then(Value::as_object).map(Map::len);
    named.or_else(|| map.get("num_labels")?.as_u64().map(|count| count as usize))
}

/// The `config.json` of a decoder with `head`, in the format of its family.
///
/// A setting that the family cannot express is an error that names it.
pub fn to_json(config: &ModelConfig, head: Head) -> Result<Value> {
    let family = family(config.model_type);
    let name = config.model_type.name();
    let origin = "model configuration";
    let Some(class) = family.class(head) else {
        return Err(Error::config(origin, format!("transformers has no class for {name} with head {head:?}")));
    };
    let mut json = json!({"architectures": [class], "model_type": name});
    let shared = json!({
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": "float32",
    });
    let count = match head {
        Head::LanguageModel => 0,
        Head::Sequence | Head::Token => 1,
        Head::Scores(count) => count,
    };
    let names: Map<String, Value> = (0..count).map(|id| (id.to_string(), json!(format!("LABEL_{id}")))).collect();
    let ids: Map<String, Value> = (0..count).map(|id| (format!("LABEL_{id}"), json!(id))).collect();
    let labels = if count == 0 { Value::Null } else { json!({"id2label": names, "label2id": ids}) };
    if let Value::Object(map) = &mut json {
        for part in [(family.write)(config), shared, labels] {
            map.extend(part.as_object().cloned().unwrap_or_default());
        }
    }
    let read = from_json(&json, origin)?.config;
    match difference(config, &read) {
        Some((key, ours, theirs)) => Err(Error::config(
            origin,
            format!("\"{key}\" is {ours}; a \"{name}\" supports {theirs} only; choose another \"model_type\""),
        )),
        None => Ok(json),
    }
}

/// The first key with different values in two configurations, and both values.
fn difference(ours: &ModelConfig, theirs: &ModelConfig) -> Option<(String, Value, Value)> {
    let (ours, theirs) = (json!(ours), json!(theirs));
    let key = ours.as_object()?.keys().find(|key| ours[key.as_str()] != theirs[key.as_str()])?;
    Some((key.clone(), ours[key].clone(), theirs[key].clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        to_json(&ModelConfig::default().validated("test").unwrap(), Head::LanguageModel).unwrap()
    }

    #[test]
    fn a_written_config_is_read_back_equal() {
        let config = ModelConfig { eos_token_id: Some(5), pad_token_id: Some(1), ..ModelConfig::default() };
        let config = config.validated("test").unwrap();
        for head in [Head::LanguageModel, Head::Sequence, Head::Scores(3), Head::Token] {
            let read = from_json(&to_json(&config, head).unwrap(), "config.json").unwrap();
            assert_eq!((&read.config, read.head), (&config, head));
            assert!(read.extra.is_empty(), "{:?}", read.extra);
        }
    }

    #[test]
    fn unsupported_values_are_rejected_by_key() {
        for (key, value) in [
            ("model_type", json!("bert")),
            ("architectures", json!(["LlamaForQuestionAnswering"])),
            ("hidden_act", json!("quick_gelu")),
            ("attention_bias", json!("some")),
            ("rope_scaling", json!({"type": "unheard-of", "factor": 2.0})),
            ("rope_scaling", json!({"factor": 2.0})),
            ("rope_scaling", json!({"type": "linear"})),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0, "wobble": 3})),
            ("rope_parameters", json!({"rope_type": "yarn"})),
            ("partial_rotary_factor", json!(0.5)),
            ("quantization_config", json!({"quant_method": "gptq"})),
            ("vocab_size", json!(-1)),
            ("hidden_size", json!("wide")),
            ("num_hidden_layers", Value::Null),
            ("rms_norm_eps", json!("small")),
            ("eos_token_id", json!("</s>")),
        ] {
            let mut bad = llama();
            bad[key] = value;
            let message = from_json(&bad, "config.json").unwrap_err().to_string();
            assert!(message.starts_with("config.json: ") && message.contains(key), "{key}: {message}");
        }
    }

    #[test]
    fn unrecognised_keys_are_kept() {
        let mut json = llama();
        json["reward_mean"] = json!(0.25);
        assert_eq!(from_json(&json, "config.json").unwrap().extra["reward_mean"], json!(0.25));
    }

    #[test]
    fn rope_scaling_and_rope_parameters_are_both_read() {
        let theta = |change: Value| {
            let mut json = llama();
            let map = json.as_object_mut().unwrap();
            map.remove("rope_theta");
            map.remove("rope_parameters");
            map.extend(change.as_object().unwrap().clone());
            let config = from_json(&json, "config.json").unwrap().config;
            (config.rope_theta, config.rope_scaling)
        };
        let linear = crate::RopeScaling::Linear { factor: 2. };
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}});
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
        assert_eq!(theta(old), (5e5, linear.clone()));
        assert_eq!(theta(new), (5e5, linear));
        assert_eq!(theta(json!({})), (1e4, crate::RopeScaling::Default));
    }

    #[test]
    fn a_setting_the_family_cannot_express_is_rejected() {
        let experts = Some(crate::ExpertsConfig::default());
        let config = ModelConfig { experts, ..ModelConfig::default() }.validated("test").unwrap();
        let message = to_json(&config, Head::LanguageModel).unwrap_err().to_string();
        assert!(message.contains("\"experts\"") && message.contains("llama"), "{message}");
    }
}
