//! Invalid adapters are rejected with the name of the problem.

use std::fs;

use llm_model::{LoraConfig, Model, read_safetensors, write_safetensors};
use serde_json::{Value, json};

use super::golden;

#[test]
fn unsupported_settings_are_rejected_by_key() {
    let source = golden("lora/plain");
    let dir = tempfile::tempdir().unwrap();
    let read = || Model::load(golden("tied")).unwrap().load_adapter("x", dir.path()).unwrap_err().to_string();
    let config: Value = serde_json::from_slice(&fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    fs::copy(source.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("r", json!(-1)),
        ("r", json!(0)),
        ("lora_alpha", json!("much")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!([])),
        ("target_modules", json!(["c_attn"])),
        ("target_modules", json!(["q_proj", "embed_tokens"])),
        ("lora_dropout", json!(1)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 2})),
        ("layers_to_transform", json!([1])),
        ("use_tomorrows_idea", json!(true)),
        ("use_dora", json!("yes")),
        ("trainable_token_indices", json!([3, 3])),
        ("trainable_token_indices", json!([99_999])),
        ("trainable_token_indices", json!([-1])),
        ("trainable_token_indices", json!({"q_proj": [1]})),
        ("trainable_token_indices", json!({"embed_tokens": [1], "lm_head": [2]})),
    ] {
        let mut bad = config.clone();
        bad[key] = value;
        fs::write(dir.path().join("adapter_config.json"), bad.to_string()).unwrap();
        let message = read();
        assert!(
            message.contains("adapter_config.json: ") && message.contains(&format!("\"{key}\"")),
            "{key}: {message}"
        );
    }
    let mut dropped = config.clone();
    dropped["lora_dropout"] = json!(0.1); // applies to training only
    fs::write(dir.path().join("adapter_config.json"), dropped.to_string()).unwrap();
    Model::load(golden("tied")).unwrap().load_adapter("x", dir.path()).unwrap();
    let mut bad = config.clone();
    bad.as_object_mut().unwrap().remove("r");
    fs::write(dir.path().join("adapter_config.json"), bad.to_string()).unwrap();
    assert!(read().contains("\"r\" is missing"));
}

#[test]
fn tensors_that_are_missing_extra_or_misshapen_are_listed() {
    let source = golden("lora/dora");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(source.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    let mut tensors = read_safetensors(&source.join("adapter_model.safetensors")).unwrap();
    let part = |part: &str| format!("base_model.model.model.layers.1.self_attn.{part}");
    let gone = part("q_proj.lora_magnitude_vector");
    let magnitude = tensors.remove(&gone).unwrap();
    tensors.insert(part("k_proj.lora_A.weight"), magnitude.clone());
    tensors.insert(part("v_proj.lora_B.weight"), magnitude);
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors).unwrap();
    let mut model = Model::load(golden("tied")).unwrap();
    let message = model.load_adapter("x", dir.path()).unwrap_err().to_string();
    for (name, what) in [
        (gone, "missing"),
        (part("k_proj.lora_A.weight"), "not part of an adapted module"),
        (part("v_proj.lora_B.weight"), "shape"),
    ] {
        assert!(message.contains(&name) && message.contains(what), "{message}");
    }
}

#[test]
fn fused_or_transposed_matrices_are_rejected() {
    for (family, target, known) in [
        ("gpt2", "c_attn", "none"),
        ("phi3", "qkv_proj", "down_proj, o_proj"),
        ("gpt_neox", "query_key_value", "dense, dense_4h_to_h, dense_h_to_4h"),
        ("mixtral", "w1", "k_proj, o_proj, q_proj, v_proj"),
        ("llama", "lm_head", "q_proj"),
    ] {
        let model = Model::load(golden("families").join(family)).unwrap();
        let config = LoraConfig { target_modules: vec![target.to_owned()], ..LoraConfig::default() };
        let message = model.with_lora(&config, 1).unwrap_err().to_string();
        assert!(message.contains(target) && message.contains(known), "{family}: {message}");
    }
    // A projection that is not fused is adapted under the name of the family.
    let config = LoraConfig { target_modules: vec!["dense".to_owned()], ..LoraConfig::default() };
    let model = Model::load(golden("families/gpt_neox")).unwrap().with_lora(&config, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path(), "neox").unwrap();
    let saved = read_safetensors(&dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(saved.contains_key("base_model.model.gpt_neox.layers.0.attention.dense.lora_A.weight"), "{saved:?}");
}
