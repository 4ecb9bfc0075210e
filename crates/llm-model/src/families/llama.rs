//! The Llama family: `model_type` "llama" as transformers reads and writes it. Its tensor names are the decoder's own.

use serde_json::{Map, Value, json};

use crate::{Error, Head, ModelConfig, Result};

const ARCHITECTURES: [(Head, &str); 3] = [
    (Head::LanguageModel, "LlamaForCausalLM"),
    (Head::Sequence, "LlamaForSequenceClassification"),
    (Head::Token, "LlamaForTokenClassification"),
];

/// Keys that this family reads or writes; others are kept for the next save.
const KNOWN: [&str; 27] = [
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "torch_dtype",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
];

/// Reads a Llama `config.json`: the decoder's shape, the head, and the keys that are none of the decoder's.
///
/// A key or value that would change the result and is not supported is an error that names it.
pub fn from_json(json: &Value, origin: &str) -> Result<(ModelConfig, Head, Map<String, Value>)> {
    let Some(map) = json.as_object() else {
        return Err(Error::config(origin, "the file does not hold a JSON object"));
    };
    let model_type = map.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if model_type != "llama" {
        return Err(Error::config(origin, format!("\"model_type\" is \"{model_type}\"; \"llama\" is supported")));
    }
    let name = map.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).unwrap_or("LlamaForCausalLM");
    let Some(&(head, _)) = ARCHITECTURES.iter().find(|(_, n)| *n == name) else {
        let names = ARCHITECTURES.map(|(_, n)| n).join(", ");
        return Err(Error::config(origin, format!("\"architectures\" is [\"{name}\"]; supported are {names}")));
    };
    refuse_unsupported(map, origin)?;
    let keys = Keys { map, origin };
    let defaults = ModelConfig::default();
    let heads = keys.required("num_attention_heads")?;
    let rope = map.get("rope_parameters").and_then(Value::as_object).unwrap_or(map);
    let config = ModelConfig {
        vocab_size: keys.required("vocab_size")?,
        hidden_size: keys.required("hidden_size")?,
        intermediate_size: keys.required("intermediate_size")?,
        num_hidden_layers: keys.required("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional("num_key_value_heads")?.unwrap_or(heads),
        head_dim: keys.optional("head_dim")?.unwrap_or(0),
        max_position_embeddings: keys.optional("max_position_embeddings")?.unwrap_or(2048),
        rms_norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: Keys { map: rope, origin }.float("rope_theta")?.unwrap_or(10_000.),
        tie_word_embeddings: map.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        initializer_range: keys.float("initializer_range")?.unwrap_or(defaults.initializer_range),
        bos_token_id: keys.token("bos_token_id")?,
        eos_token_id: keys.token("eos_token_id")?,
        pad_token_id: keys.token("pad_token_id")?,
    };
    let extra = map.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str()));
    let extra = extra.map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok((config.validated(origin)?, head, extra))
}

fn refuse_unsupported(map: &Map<String, Value>, origin: &str) -> Result<()> {
    let refuse = |key: &str, value: &Value, supported: &str| {
        Err(Error::config(origin, format!("\"{key}\" is {value}; this decoder supports {supported}")))
    };
    for key in ["attention_bias", "mlp_bias"] {
        if let Some(value) = map.get(key).filter(|v| v.as_bool() == Some(true)) {
            return refuse(key, value, "false");
        }
    }
    if let Some(value) = map.get("hidden_act").filter(|v| v.as_str() != Some("silu")) {
        return refuse("hidden_act", value, "\"silu\"");
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = map.get(key).filter(|v| !v.is_null()) else { continue };
        let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "default") || kind.is_none() && key == "rope_scaling" {
            return refuse(key, value, "the default rotary positions");
        }
    }
    Ok(())
}

struct Keys<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
}

impl Keys<'_> {
    fn optional(&self, key: &str) -> Result<Option<usize>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v < 1 << 32) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::config(self.origin, format!("\"{key}\" is {value}; a count was expected"))),
            },
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| Error::config(self.origin, format!("\"{key}\" is missing")))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(value) => Ok(Some(value)),
                None => Err(Error::config(self.origin, format!("\"{key}\" is {value}; a number was expected"))),
            },
        }
    }

    /// A token id; of a list (several ends of a turn) the first.
    fn token(&self, key: &str) -> Result<Option<u32>> {
        let first = self.map.get(key).map(|value| value.get(0).unwrap_or(value));
        match first {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(Error::config(self.origin, format!("\"{key}\" is {value}; a token id was expected"))),
            },
        }
    }
}

/// Writes the `config.json` of a Llama with `head`.
pub fn to_json(config: &ModelConfig, head: Head) -> Value {
    let architecture = ARCHITECTURES.iter().find(|(h, _)| *h == head).map(|(_, name)| *name);
    let mut json = json!({
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": "float32",
    });
    if head != Head::LanguageModel {
        json["id2label"] = json!({"0": "LABEL_0"});
        json["label2id"] = json!({"LABEL_0": 0});
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let config = ModelConfig { eos_token_id: Some(5), pad_token_id: Some(1), ..ModelConfig::default() };
        let config = config.validated("test").unwrap();
        for (head, _) in ARCHITECTURES {
            let (read, read_head, extra) = from_json(&to_json(&config, head), "config.json").unwrap();
            assert_eq!((&read, read_head), (&config, head));
            assert!(extra.is_empty());
        }
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        let good = to_json(&ModelConfig::default().validated("test").unwrap(), Head::LanguageModel);
        for (key, value) in [
            ("model_type", json!("gpt2")),
            ("architectures", json!(["LlamaForQuestionAnswering"])),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"rope_type": "yarn"})),
            ("vocab_size", json!(-1)),
            ("hidden_size", json!("wide")),
            ("num_hidden_layers", Value::Null),
            ("rms_norm_eps", json!("small")),
            ("eos_token_id", json!(99999999)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let message = from_json(&bad, "config.json").unwrap_err().to_string();
            assert!(message.starts_with("config.json: ") && message.contains(key), "{key}: {message}");
        }
    }

    #[test]
    fn keys_of_others_are_kept() {
        let mut json = to_json(&ModelConfig::default().validated("test").unwrap(), Head::Sequence);
        json["reward_mean"] = json!(0.25);
        assert_eq!(from_json(&json, "config.json").unwrap().2["reward_mean"], json!(0.25));
    }
}
