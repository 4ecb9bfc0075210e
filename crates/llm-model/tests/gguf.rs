//! The golden checkpoint of each family is the same model after conversion to GGUF and back, or is rejected with the key
//! that GGUF cannot express.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::PathBuf;

use candle_core::{D, Tensor};
use llm_model::gguf::{GgufFile, Metadata};
use llm_model::{Batch, BlockFormat, Head, Model, ModelConfig, ModelType, RopeScaling, WeightDtype};

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}

fn logits(model: &Model) -> Tensor {
    let vocab = model.config().vocab_size as u32;
    model.forward(&Batch::new(&[(0..40).map(|i| i * 7 % vocab).collect()]).unwrap()).unwrap()
}

/// Writes and reads a GGUF file; checks that the logits are equal.
fn round_trip(model: &Model) -> Result<Model, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model.save_gguf(&path, Some(WeightDtype::F32), Metadata::new()).map_err(|e| e.to_string())?;
    let back = Model::from_gguf(&GgufFile::open(&path).unwrap()).unwrap();
    assert!(max_difference(&logits(&back), &logits(model)) < 1e-4, "{:?}", model.config());
    Ok(back)
}

#[test]
fn every_golden_checkpoint_survives_the_round_trip_or_is_rejected() {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "families"].iter().collect();
    let mut converted = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let model = Model::open(&path).unwrap();
        match round_trip(&model) {
            Ok(back) => {
                assert_eq!(back.params().iter().count(), model.params().iter().count());
                converted.push(model.config().model_type.name());
            }
            Err(message) => assert!(message.contains("cannot express"), "{}: {message}", path.display()),
        }
    }
    // The other checkpoints have unusual settings; the next test uses the settings of published models.
    converted.sort();
    assert_eq!(converted, ["gpt2", "gpt_neox", "llama"]);
}

#[test]
fn every_family_with_published_settings_survives_the_round_trip() {
    let small = |model_type: ModelType| {
        // The settings of the family, as in its `config.json`.
        let json = serde_json::json!({
            "model_type": model_type.name(), "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "n_embd": 32, "n_layer": 7, "n_head": 4, "n_positions": 64, "head_dim": 8, "query_pre_attn_scalar": 8,
            "sliding_window": 5, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "norm_topk_prob": true, "rms_norm_eps": 1e-5,
        });
        let mut json = json.as_object().unwrap().clone();
        if [ModelType::Mistral, ModelType::Mixtral].contains(&model_type) {
            json.insert("sliding_window".to_owned(), serde_json::Value::Null);
        }
        llm_model::families::from_json(&json.into(), "config.json").unwrap().config
    };
    for model_type in ModelType::ALL {
        let config = ModelConfig { initializer_range: 0.2, ..small(model_type) };
        let model = Model::init(config, Head::LanguageModel, 3).unwrap().frozen().unwrap();
        let back = round_trip(&model).unwrap();
        // llama.cpp reads Mistral as Llama.
        let read = if model_type == ModelType::Mistral { ModelType::Llama } else { model_type };
        assert_eq!(back.config().model_type, read);
    }
}

#[test]
fn loading_a_file_dequantises_it_so_that_it_can_be_trained() {
    let config = ModelConfig { vocab_size: 64, hidden_size: 96, num_hidden_layers: 1, ..ModelConfig::default() };
    let model = Model::init(config.validated("test").unwrap(), Head::LanguageModel, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model.save_gguf(&path, Some(WeightDtype::Quantized(BlockFormat::Q8_0)), Metadata::new()).unwrap();
    let (opened, loaded) = (Model::open(&path).unwrap(), Model::load(&path).unwrap());
    for (name, weight) in opened.params().iter() {
        let ours = loaded.params().get(name).unwrap().tensor().unwrap().clone();
        assert_eq!(max_difference(&ours, &weight.to_dense().unwrap()), 0., "{name}");
    }
}

#[test]
fn llama_3_scaling_is_recovered_from_its_divisors() {
    let scaled = |original: usize, high_freq_factor: f64| {
        let rope_scaling = RopeScaling::Llama3 {
            factor: 32.,
            low_freq_factor: 1.,
            high_freq_factor,
            original_max_position_embeddings: original,
        };
        let config = ModelConfig { rope_theta: 5e5, head_dim: 64, rope_scaling, ..ModelConfig::default() };
        Model::init(config, Head::LanguageModel, 3).unwrap().frozen().unwrap()
    };
    for original in [8192, 64] {
        let model = scaled(original, 4.);
        assert_eq!(round_trip(&model).unwrap().config().rope_scaling, model.config().rope_scaling);
    }
    let message = round_trip(&scaled(8192, 5.)).unwrap_err();
    assert!(message.contains("rope_scaling"), "{message}");
}

#[test]
fn settings_that_gguf_cannot_express_are_rejected_by_key() {
    let model_type = ModelType::Mistral;
    let config = ModelConfig { model_type, sliding_window: Some(4), ..ModelConfig::default() };
    let model = Model::init(config, Head::LanguageModel, 3).unwrap();
    let message = round_trip(&model).unwrap_err();
    assert!(message.contains("\"sliding_window\" is 4") && message.contains("llama"), "{message}");
    let reward = model.with_head(Head::Sequence, 1).unwrap();
    let kind = Some(WeightDtype::Quantized(BlockFormat::Q8_0));
    assert!(reward.save_gguf(&PathBuf::from("/no/m.gguf"), kind, Metadata::new()).is_err());
}

/// Writes a file with these keys and f32 tensors, all at offset 0.
fn write_raw(path: &std::path::Path, keys: &[(&str, u64)], tensors: &[(&str, &[u64])], data: usize) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64 + 1).to_le_bytes());
    bytes.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat());
    for (key, value) in keys {
        bytes.extend(
            [text(&format!("llama.{key}")), [&10u32.to_le_bytes()[..], &value.to_le_bytes()].concat()].concat(),
        );
    }
    for (name, shape) in tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().rev().flat_map(|n| n.to_le_bytes()));
        bytes.extend([0; 12]); // F32, at 0
    }
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn oversized_headers_are_rejected_before_allocation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("invalid.gguf");
    let valid = [
        ("embedding_length", 8),
        ("block_count", 1),
        ("feed_forward_length", 4),
        ("context_length", 8),
        ("attention.head_count", 2),
    ];
    let embedding: (&str, &[u64]) = ("token_embd.weight", &[8, 8]);
    let assert_rejected = |keys: &[(&str, u64)], tensor: (&str, &[u64]), expected: &str| {
        let mut all: Vec<(&str, u64)> = valid.to_vec();
        all.retain(|(key, _)| keys.iter().all(|(other, _)| key != other));
        all.extend(keys);
        write_raw(&path, &all, &[embedding, tensor], 256);
        let message = Model::open(&path).unwrap_err().to_string();
        assert!(message.contains("invalid.gguf") && message.contains(expected), "{message}");
    };
    let none: (&str, &[u64]) = ("blk.0.ffn_gate_exps.weight", &[1 << 40, 0, 1]);
    assert_rejected(&[("expert_count", 1 << 17), ("expert_used_count", 1)], none, "num_experts");
    assert_rejected(&[("expert_count", 1 << 50), ("expert_used_count", 1)], none, "num_experts");
    assert_rejected(&[("expert_count", 1 << 17), ("expert_used_count", 1)], ("a", &[u64::MAX, 0, 1]), "num_experts");
    let wide = [("attention.head_count", 1 << 40), ("attention.key_length", 1 << 40)];
    assert_rejected(&wide, ("a", &[1, 0]), "head_dim");
    assert_rejected(&[("embedding_length", 1 << 50)], ("a", &[1, 0]), "hidden_size");
    assert_rejected(&[("rope.dimension_count", 1 << 50)], ("a", &[1, 0]), "partial_rotary_factor");
    assert_rejected(&[], ("rope_freqs.weight", &[0]), "rope_freqs.weight");
}
