//! What a `config.json` leaves unsaid is what transformers takes (`golden/make_defaults.py`), or is refused: a wrong default
//! would change results in silence.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeSet;
use std::path::Path;

use llm_model::families::{FAMILIES, from_json};
use llm_model::{Error, ModelConfig};
use serde_json::{Map, Value};

struct Case {
    /// What a file says.
    said: Map<String, Value>,
    /// What transformers makes of it, every key spelled out.
    meant: Map<String, Value>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/defaults.json");
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let part = |case: &Value, key: &str| case[key].as_object().unwrap().clone();
    all.iter().map(|case| Case { said: part(case, "said"), meant: part(case, "meant") }).collect()
}

/// Ids of tokens are never a family's: a text would end at a token that the tokenizer means otherwise.
fn read(map: &Map<String, Value>) -> Result<ModelConfig, Error> {
    let config = from_json(&Value::Object(map.clone()), "config.json")?.config;
    Ok(ModelConfig { bos_token_id: None, eos_token_id: None, pad_token_id: None, ..config })
}

#[test]
fn every_key_that_is_left_out_means_what_transformers_takes() {
    let mut left_out = BTreeSet::new();
    for Case { said, meant } in cases() {
        let family = said["model_type"].as_str().unwrap();
        let expected = read(&meant).unwrap();
        for key in meant.keys().filter(|&key| !said.contains_key(key)) {
            let mut map = meant.clone();
            map.remove(key);
            // What was said in the words of older files stands in those of newer ones too.
            map.extend(said.clone());
            match read(&map) {
                Ok(config) => assert_eq!(config, expected, "{said:?} without \"{key}\""),
                Err(error) => assert!(error.to_string().contains(&format!("\"{key}\" is missing")), "{key}: {error}"),
            }
            left_out.insert((family.to_owned(), key.clone()));
        }
    }
    for family in FAMILIES {
        assert!(left_out.iter().any(|(name, _)| *name == family.name()), "{family:?}");
    }
}

/// All at once: what one key says may hang on another that is missing too.
#[test]
fn a_file_that_says_nothing_but_sizes_is_what_transformers_takes() {
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
    for Case { said, meant } in cases() {
        let mut map = meant.clone();
        map.retain(|key, _| SIZES.contains(&key.as_str()));
        map.extend(said.clone());
        assert_eq!(read(&map).unwrap(), read(&meant).unwrap(), "{said:?}");
    }
}

/// What we do not look at changes nothing in evaluation.
#[test]
fn no_key_of_transformers_is_overlooked() {
    const ASIDE: [&str; 14] = [
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "pretraining_tp",          // how an older transformers split products
        "output_router_logits",    // whether the loss is computed, not what it is
        "reorder_and_upcast_attn", // f32 within half precision
        "summary_type",            // of a class with two heads
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ];
    // Said by `layer_types` and by `rope_parameters` too.
    const TWICE: [&str; 5] =
        ["_sliding_window_pattern", "sliding_window_pattern", "rope_theta", "rotary_pct", "partial_rotary_factor"];
    for Case { said, meant } in cases() {
        let extra = from_json(&Value::Object(meant), "config.json").unwrap().extra;
        let known = |key: &&String| ASIDE.contains(&key.as_str()) || TWICE.contains(&key.as_str());
        assert_eq!(extra.keys().find(|key| !known(key)), None, "{said:?}");
    }
}
