//! What changes a result is refused, what does not is a warning or ignored (the table in `docs/checkpoints.md`).

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llm_model::families::from_json;
use llm_model::gguf::{GgufFile, Metadata};
use llm_model::{Head, Model, WeightDtype, write_safetensors};
use serde_json::{Value, json};

/// The `config.json` of a tiny model of each family with the defaults of transformers (`golden/make_tiny.py`).
fn tiny() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tiny_of(family: &str) -> Value {
    tiny().into_iter().find(|json| json["model_type"] == family).unwrap()
}

/// Saves a random model with this configuration, its `config.json` unchanged.
fn folder(json: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = from_json(json, "tiny").unwrap().config;
    Model::init(config, Head::LanguageModel, 1).unwrap().save(dir.path()).unwrap();
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    dir
}

#[test]
fn tiny_models_of_all_families_are_read_and_written_as_gguf_unless_gguf_cannot_express_them() {
    let mut refused = Vec::new();
    for json in tiny() {
        let family = json["model_type"].as_str().unwrap();
        let dir = folder(&json);
        let model = Model::open(dir.path()).unwrap();
        let ids = from_json(&json, "tiny").unwrap().warnings;
        let foreign = ["bos_token_id", "eos_token_id", "pad_token_id"].map(|key| json[key].as_u64() >= Some(64));
        assert_eq!(ids.len(), foreign.iter().filter(|foreign| **foreign).count(), "{family}: {ids:?}");
        let path = dir.path().join("model.gguf");
        match model.save_gguf(&path, Some(WeightDtype::F32), Metadata::new()) {
            Ok(()) => assert_eq!(Model::open(&path).unwrap().config().vocab_size, 64, "{family}"),
            Err(error) => refused.push((family.to_owned(), error.to_string())),
        }
    }
    // A window of 4096 in a context of 131072; weights of the selected experts that do not add up to 1.
    let names: Vec<&str> = refused.iter().map(|(family, _)| family.as_str()).collect();
    assert_eq!(names, ["mistral", "qwen3_moe"], "{refused:?}");
    assert!(refused[0].1.contains("\"sliding_window\" is 4096"), "{refused:?}");
    assert!(refused[1].1.contains("\"experts\""), "{refused:?}");
}

enum Outcome {
    Refused,
    Warned,
    Quiet,
}
use Outcome::{Quiet, Refused, Warned};

#[test]
fn a_value_of_a_config_is_refused_only_if_it_changes_a_result() {
    for (family, key, value, outcome) in [
        ("llama", "pad_token_id", Value::Null, Quiet),
        ("llama", "pad_token_id", json!(-1), Quiet),
        ("llama", "eos_token_id", json!(-1), Quiet),
        ("llama", "attention_dropout", json!(0.1), Quiet),
        ("llama", "use_cache", json!(false), Quiet),
        ("llama", "pretraining_tp", json!(2), Quiet),
        ("gpt_neox", "is_decoder", json!(true), Quiet),
        ("gpt2", "reorder_and_upcast_attn", json!(true), Quiet),
        ("llama", "bos_token_id", json!(64), Warned),
        ("llama", "eos_token_id", json!([128_001, 128_008]), Warned),
        ("llama", "pad_token_id", json!(128_004), Warned),
        ("mixtral", "router_jitter_noise", json!(0.1), Warned),
        ("llama", "eos_token_id", json!("</s>"), Refused),
        ("llama", "pad_token_id", json!(0.5), Refused),
        ("llama", "hidden_act", json!("relu"), Refused),
        ("llama", "quantization_config", json!({"quant_method": "gptq"}), Refused),
        ("llama", "architectures", json!(["LlamaModel"]), Refused),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), Refused),
        ("gemma2", "use_bidirectional_attention", json!(true), Refused),
    ] {
        let mut json = tiny_of(family);
        for token in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            json[token] = Value::Null;
        }
        json[key] = value.clone();
        match (from_json(&json, "config.json"), outcome) {
            (Ok(read), Quiet) => assert!(read.warnings.is_empty(), "{family} {key}: {:?}", read.warnings),
            (Ok(read), Warned) => {
                let [warning] = &read.warnings[..] else { panic!("{family} {key}: {:?}", read.warnings) };
                assert!(warning.contains(&format!("\"{key}\"")), "{warning}");
                // The file is saved as it was.
                assert_eq!(read.raw_config[key], value);
            }
            (Err(error), Refused) => assert!(error.to_string().contains(key), "{key}: {error}"),
            (read, _) => panic!("{family} {key}: {read:?}"),
        }
    }
}

#[test]
fn tokens_that_only_the_tokenizer_names_do_not_hinder_gguf() {
    let mut json = tiny_of("llama");
    json["eos_token_id"] = Value::Null;
    let dir = folder(&json);
    let model = Model::open(dir.path()).unwrap();
    let path = dir.path().join("model.gguf");
    let tokens = [("eos", 2), ("padding", 3)];
    let tokens =
        tokens.map(|(key, id)| (format!("tokenizer.ggml.{key}_token_id"), llm_model::gguf::Value::Unsigned(id)));
    model.save_gguf(&path, None, Metadata::from(tokens)).unwrap();
    let config = Model::open(&path).unwrap().config().clone();
    assert_eq!((config.bos_token_id, config.eos_token_id, config.pad_token_id), (Some(1), Some(2), Some(3)));
}

#[test]
fn a_window_as_long_as_the_context_is_not_written() {
    let mut json = tiny_of("mistral");
    for (window, fits) in [(99, false), (100, true), (4096, true)] {
        json["max_position_embeddings"] = json!(100);
        json["sliding_window"] = json!(window);
        let dir = folder(&json);
        let path = dir.path().join("model.gguf");
        let written = Model::open(dir.path()).unwrap().save_gguf(&path, None, Metadata::new());
        assert_eq!(written.is_ok(), fits, "{window}: {written:?}");
    }
}

#[test]
fn keys_and_tokens_of_a_gguf_file_that_change_no_result_are_ignored() {
    use llm_model::gguf::Value;
    let dir = folder(&tiny_of("qwen2"));
    let model = Model::open(dir.path()).unwrap();
    for (i, (key, value, reads)) in [
        ("qwen2.tensor_data_layout", Value::Text("Meta AI original pth".to_owned()), true),
        ("qwen2.rope.scaling.finetuned", Value::Bool(false), true),
        ("qwen2.pooling_type", Value::Unsigned(0), true),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(151_645), true),
        ("general.name", Value::Text("tiny".to_owned()), true),
        ("qwen2.attention.causal", Value::Bool(false), false),
        ("qwen2.rope.scaling.attn_factor", Value::Float(2.), false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("{i}.gguf"));
        model.save_gguf(&path, None, Metadata::new()).unwrap();
        // The same file with one more key.
        let file = GgufFile::open(&path).unwrap();
        let mut metadata = file.metadata().clone();
        metadata.insert(key.to_owned(), value);
        let path = dir.path().join(format!("{i}-more.gguf"));
        let tensors = file.tensors().iter().map(|(name, tensor)| llm_files::gguf::PendingTensor {
            name: name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: Box::new(|| Ok::<_, llm_files::Error>(tensor.bytes.clone())),
        });
        llm_files::gguf::write(&path, &metadata, tensors.collect()).unwrap();
        match Model::open(&path) {
            Ok(read) => assert!(reads && read.config().eos_token_id.is_none(), "{key}"),
            Err(error) => assert!(!reads && error.to_string().contains(key), "{key}: {error}"),
        }
    }
}

#[test]
fn a_score_model_may_keep_the_output_layer() {
    let config = from_json(&tiny_of("llama"), "tiny").unwrap().config;
    let dir = tempfile::tempdir().unwrap();
    Model::init(config, Head::Sequence, 1).unwrap().save(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter().collect();
    for (name, reads) in [("lm_head.weight", true), ("model.layers.0.self_attn.q_norm.weight", false)] {
        tensors.insert(name.to_owned(), Tensor::zeros((64, 64), DType::F32, &Device::Cpu).unwrap());
        std::fs::remove_file(&path).unwrap();
        write_safetensors(&path, &tensors).unwrap();
        let read = Model::load(dir.path());
        assert_eq!(read.is_ok(), reads, "{name}");
    }
}
