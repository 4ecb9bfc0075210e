//! A key missing in `config.json` has the default of transformers (`golden/make_defaults.py`) or is an error: a wrong default
//! would change results silently.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::path::Path;

use llm_model::ModelType;
use llm_model::families::from_json;
use llm_model::{Error, ModelConfig};
use serde_json::{Map, Value};

struct Case {
    /// The keys of a file.
    given: Map<String, Value>,
    /// All keys with the values that transformers resolves from `given`.
    resolved: Map<String, Value>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/defaults.json");
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let part = |case: &Value, key: &str| case[key].as_object().unwrap().clone();
    all.iter().map(|case| Case { given: part(case, "said"), resolved: part(case, "meant") }).collect()
}

/// Token ids have no defaults here: a wrong end-of-sequence token would end texts at the wrong place.
fn read(map: &Map<String, Value>) -> Result<ModelConfig, Error> {
    let config = from_json(&Value::Object(map.clone()), "config.json")?.config;
    Ok(ModelConfig { bos_token_id: None, eos_token_id: None, pad_token_id: None, ..config })
}

#[test]
fn each_missing_key_has_the_default_of_transformers() {
    let mut left_out = BTreeSet::new();
    for Case { given, resolved } in cases() {
        let family = given["model_type"].as_str().unwrap();
        let expected = read(&resolved).unwrap();
        for key in resolved.keys().filter(|&key| !given.contains_key(key)) {
            let mut map = resolved.clone();
            map.remove(key);
            // `given` may use old keys that `resolved` contains under new names.
            map.extend(given.clone());
            match read(&map) {
                Ok(config) => assert_eq!(config, expected, "{given:?} without \"{key}\""),
                Err(error) => assert!(error.to_string().contains(&format!("\"{key}\" is missing")), "{key}: {error}"),
            }
            left_out.insert((family.to_owned(), key.clone()));
        }
    }
    for family in ModelType::ALL {
        assert!(left_out.iter().any(|(name, _)| *name == family.name()), "{family:?}");
    }
}

/// All keys at once: a default can depend on another missing key.
#[test]
fn a_file_with_only_sizes_has_the_defaults_of_transformers() {
    const SIZES: [&str; 15] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "num_experts_per_tok",
        "num_local_experts",
        "moe_intermediate_size",
        "n_embd",
        "n_layer",
        "n_head",
        "n_positions",
        "model_type",
    ];
    for Case { given, resolved } in cases() {
        let mut map = resolved.clone();
        map.retain(|key, _| SIZES.contains(&key.as_str()));
        map.extend(given.clone());
        assert_eq!(read(&map).unwrap(), read(&resolved).unwrap(), "{given:?}");
    }
}

/// The keys we ignore do not change inference.
#[test]
fn every_key_of_transformers_is_read_or_known_to_be_irrelevant() {
    const IRRELEVANT: [&str; 15] = [
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "pretraining_tp",          // how old versions of transformers split matmuls
        "output_router_logits",    // whether the loss is returned
        "reorder_and_upcast_attn", // f32 attention in half precision
        "is_decoder",              // a causal model attends as a decoder in any case
        "summary_type",            // for a class with two heads
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ];
    // Redundant with `layer_types` and `rope_parameters`.
    const REDUNDANT: [&str; 5] =
        ["_sliding_window_pattern", "sliding_window_pattern", "rope_theta", "rotary_pct", "partial_rotary_factor"];
    for Case { given, resolved } in cases() {
        let extra = from_json(&Value::Object(resolved), "config.json").unwrap().extra;
        let known = |key: &&String| IRRELEVANT.contains(&key.as_str()) || REDUNDANT.contains(&key.as_str());
        assert_eq!(extra.keys().find(|key| !known(key)), None, "{given:?}");
    }
}
