//! The end tokens and sampling defaults of model files.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::Path;

use llm_files::gguf::{GgufFile, Metadata, Value as GgufValue};
use llm_model::{GenerationConfig, Head, Model, ModelConfig};
use serde_json::{Value, json};

/// A model that ends at token 5.
fn model() -> Model {
    let config = ModelConfig {
        vocab_size: 40,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        eos_token_id: Some(5),
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Saves [`model`], changes its files and loads it.
fn with_files(config_eos: &Value, generation: &Value) -> Result<Model, llm_model::Error> {
    let dir = tempfile::tempdir().unwrap();
    model().save(dir.path()).unwrap();
    let path = dir.path().join("config.json");
    let mut config = json_of(&path);
    config["eos_token_id"] = config_eos.clone();
    std::fs::write(path, config.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    Model::load(dir.path())
}

#[test]
fn all_end_tokens_of_both_files_are_read() {
    let ends = |config: Value, generation: Value| {
        with_files(&config, &json!({"eos_token_id": generation})).unwrap().eos_token_ids()
    };
    assert_eq!(ends(json!(5), json!(5)), [5]);
    assert_eq!(ends(json!([5, 7]), Value::Null), [5, 7]);
    assert_eq!(ends(json!(5), json!([7, 5, 9])), [5, 7, 9]);
    assert_eq!(ends(Value::Null, json!(7)), [7]);
    // A token that the model does not have is never generated.
    assert_eq!(ends(json!(5), json!([-1, 40, 6])), [5, 6]);
}

#[test]
fn sampling_defaults_are_read_and_unsupported_keys_are_listed() {
    let read = with_files(
        &json!(5),
        &json!({
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 64, "stop_strings": ["END"], "do_sample": true,
            "repetition_penalty": 1.1, "min_p": 0.0, "num_beams": 1, "use_cache": true, "transformers_version": "5",
            "no_repeat_ngram_size": null, "wobble": 3,
        }),
    );
    let model = read.unwrap();
    let generation = model.generation();
    assert_eq!((generation.temperature, generation.top_k, generation.top_p), (Some(0.6), Some(20), Some(0.95)));
    assert_eq!((generation.max_new_tokens, generation.do_sample), (Some(64), Some(true)));
    assert_eq!(
        (&generation.stop_strings, &generation.unsupported),
        (&vec!["END".to_owned()], &vec!["repetition_penalty".to_owned(), "wobble".to_owned()])
    );
}

#[test]
fn do_sample_decides_as_in_transformers() {
    let sampling = |json: Value| with_files(&json!(5), &json).unwrap().generation().sampling();
    assert_eq!(sampling(json!({"do_sample": false, "temperature": 0.6, "top_k": 4})), (Some(0.), None, None));
    assert_eq!(sampling(json!({"do_sample": true, "top_p": 0.9})), (Some(1.), Some(50), Some(0.9)));
    assert_eq!(sampling(json!({"temperature": 0.6})), (Some(0.6), None, None));
    assert_eq!(sampling(json!({})), (None, None, None));
}

#[test]
fn values_that_would_change_the_text_are_refused_by_file_and_key() {
    for (key, value) in [
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!(1.5)),
        ("eos_token_id", json!([5, "</s>"])),
        ("eos_token_id", json!([[5]])),
        ("temperature", json!(-0.5)),
        ("temperature", json!("hot")),
        ("top_k", json!(-1)),
        ("top_k", json!(2.5)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("do_sample", json!("yes")),
        ("max_new_tokens", json!(-3)),
        ("stop_strings", json!([1])),
    ] {
        let message = with_files(&json!(5), &json!({key: value})).unwrap_err().to_string();
        let names = message.contains("generation_config.json: ") && message.contains(&format!("\"{key}\" is {value}"));
        assert!(names && message.contains("must be"), "{message}");
    }
    for broken in [json!([]), json!("text"), Value::Null] {
        let message = with_files(&json!(5), &broken).unwrap_err().to_string();
        assert!(message.contains("generation_config.json: the file is not a JSON object"), "{message}");
    }
}

#[test]
fn saving_keeps_the_file_and_names_the_end_of_turn_first() {
    let dir = tempfile::tempdir().unwrap();
    let generation = json!({"eos_token_id": [5, 6], "temperature": 0.6, "repetition_penalty": 1.1, "wobble": [3]});
    let mut model = with_files(&json!(5), &generation).unwrap();
    let eos = |name: &str| json_of(&dir.path().join(name))["eos_token_id"].clone();
    model.save(dir.path()).unwrap();
    assert_eq!((eos("config.json"), eos("generation_config.json")), (json!(5), json!([5, 6])));
    model.set_end_of_turn(9);
    assert_eq!(model.eos_token_ids(), [9, 5, 6]);
    model.trainable().unwrap().save(dir.path()).unwrap();
    assert_eq!((eos("config.json"), eos("generation_config.json")), (json!([9, 5, 6]), json!([9, 5, 6])));
    let saved = json_of(&dir.path().join("generation_config.json"));
    for key in ["temperature", "repetition_penalty", "wobble"] {
        assert_eq!(saved[key], generation[key], "{key}");
    }
    assert_eq!(Model::load(dir.path()).unwrap().eos_token_ids(), [9, 5, 6]);
    // A score head has no generation_config.json; its config.json lists the end tokens too.
    let score = tempfile::tempdir().unwrap();
    model.with_head(Head::Sequence, 1).unwrap().save(score.path()).unwrap();
    assert_eq!(json_of(&score.path().join("config.json"))["eos_token_id"], json!([9, 5, 6]));
}

#[test]
fn gguf_files_keep_end_tokens_and_sampling_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let mut generation = GenerationConfig::default();
    generation.temperature = Some(0.6);
    generation.top_p = Some(0.95);
    let mut model = model().with_generation(generation);
    model.set_end_of_turn(9);
    model.set_end_of_turn(11);
    let path = dir.path().join("m.gguf");
    model.save_gguf(&path, None, Metadata::new()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    for (key, id) in [("eos", 11), ("eot", 9), ("eom", 5)] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert_eq!(file.metadata().get(&key), Some(&GgufValue::Unsigned(id)), "{key}");
    }
    let read = Model::open(&path).unwrap();
    assert_eq!(read.eos_token_ids(), [11, 9, 5]);
    assert_eq!(read.generation().sampling(), (Some(0.6), None, Some(0.95)));
    // A folder written from the file has them too.
    read.frozen_as(llm_model::WeightDtype::F32).unwrap().save(dir.path()).unwrap();
    let saved = json_of(&dir.path().join("generation_config.json"));
    assert_eq!((&saved["eos_token_id"], &saved["temperature"]), (&json!([11, 9, 5]), &json!(0.6)));
}
