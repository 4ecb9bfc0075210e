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
        ("lora_alpha", json!(0)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("alpha_pattern", json!({"q_proj": 0})),
        ("alpha_pattern", json!({"(q|k)_proj": 2})),
        ("target_modules", json!(".*_proj")),
        ("target_modules", json!(["norm"])),
        ("target_parameters", json!(["mlp.experts.down_proj"])),
        ("modules_to_save", json!(["c_attn"])),
        ("exclude_modules", json!(["q_proj"])),
        ("lora_bias", json!(true)),
        ("target_modules", json!([])),
        ("target_modules", json!(["c_attn"])),
        ("lora_dropout", json!(1)),
        ("bias", json!("all")),
        ("init_lora_weights", json!("pissa")),
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

/// The message for a new adapter of a golden model of a family.
fn refused(family: &str, config: LoraConfig) -> String {
    Model::load(golden("families").join(family)).unwrap().with_lora(&config, 1).unwrap_err().to_string()
}

#[test]
fn a_name_that_matches_nothing_is_rejected_with_the_modules_of_the_family() {
    for (family, target, known) in [
        ("gpt2", "q_proj", "c_attn, c_fc, c_proj, lm_head, wpe, wte"),
        ("phi3", "q_proj", "down_proj, embed_tokens, gate_up_proj, lm_head, o_proj, qkv_proj"),
        ("gpt_neox", "c_attn", "dense, dense_4h_to_h, dense_h_to_4h, embed_in, embed_out, query_key_value"),
        ("mixtral", "gate_proj", "embed_tokens, gate, k_proj, lm_head, o_proj, q_proj, v_proj, w1, w2, w3"),
    ] {
        let config = LoraConfig { target_modules: vec![target.to_owned()], ..LoraConfig::default() };
        let message = refused(family, config);
        assert!(message.contains(&format!("\"{target}\"")) && message.ends_with(known), "{family}: {message}");
    }
    let config = LoraConfig { target_parameters: vec!["experts.w1".to_owned()], ..LoraConfig::default() };
    let message = refused("mixtral", config);
    assert!(message.ends_with("mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate.weight"), "{message}");
}

#[test]
fn settings_that_do_not_fit_together_are_rejected() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let experts = names(&["mlp.experts.down_proj"]);
    for (family, config, parts) in [
        ("llama", LoraConfig { r: 0, ..LoraConfig::default() }, ["\"r\"", "at least 1"]),
        ("llama", LoraConfig { lora_alpha: 0., ..LoraConfig::default() }, ["\"lora_alpha\"", "other than 0"]),
        ("llama", LoraConfig { lora_dropout: 1., ..LoraConfig::default() }, ["\"lora_dropout\"", "less than 1"]),
        (
            "llama",
            LoraConfig { target_modules: names(&["embed_tokens"]), use_dora: true, ..LoraConfig::default() },
            ["\"use_dora\"", "embed_tokens"],
        ),
        (
            "llama",
            LoraConfig { target_modules: names(&["lm_head"]), lora_dropout: 0.1, ..LoraConfig::default() },
            ["\"lora_dropout\"", "lm_head"],
        ),
        (
            "llama",
            LoraConfig { modules_to_save: names(&["q_proj"]), ..LoraConfig::default() },
            ["\"modules_to_save\" and \"target_modules\"", "q_proj"],
        ),
        (
            "phi3",
            LoraConfig {
                target_modules: names(&["o_proj"]),
                modules_to_save: names(&["qkv_proj"]),
                ..LoraConfig::default()
            },
            ["\"modules_to_save\"", "fused or transposed"],
        ),
        (
            "mixtral",
            LoraConfig { target_parameters: experts.clone(), lora_dropout: 0.1, ..LoraConfig::default() },
            ["\"lora_dropout\"", "target_parameters"],
        ),
        (
            "mixtral",
            LoraConfig { target_modules: names(&["w2"]), target_parameters: experts, ..LoraConfig::default() },
            ["\"target_parameters\" and \"target_modules\"", "experts"],
        ),
    ] {
        let message = refused(family, config);
        assert!(parts.iter().all(|part| message.contains(part)), "{family}: {message}");
    }
}
