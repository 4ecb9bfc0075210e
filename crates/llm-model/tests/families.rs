//! Each family's checkpoints as transformers wrote them, against what transformers says of them
//! (`golden/make_families.py`), and how each family trains.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, IndexOp, Tensor};
use llm_model::families::FAMILIES;
use llm_model::{Batch, KvCache, Model, read_safetensors};
use serde_json::{Value, json};

/// Absolute, in f32.
const TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families")
}

/// Every golden checkpoint with what transformers says of it.
fn checkpoints() -> Vec<(String, PathBuf, BTreeMap<String, Tensor>)> {
    let mut folders: Vec<PathBuf> = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let of = |path: PathBuf| {
        let expected = read_safetensors(&path.join("expected.safetensors")).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), path, expected)
    };
    folders.into_iter().map(of).collect()
}

fn rows(ids: &Tensor) -> Vec<Vec<u32>> {
    ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

fn far(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

#[track_caller]
fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    let far = far(ours, theirs);
    assert!(far <= TOLERANCE, "{what}: {far} apart");
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_family_has_a_golden_checkpoint() {
    let here: Vec<Value> =
        checkpoints().iter().map(|(_, path, _)| json(&path.join("config.json"))["model_type"].clone()).collect();
    for family in FAMILIES {
        assert!(here.contains(&Value::from(family.name())), "{family:?}");
    }
}

#[test]
fn logits_of_a_batch_with_left_padding_are_those_of_transformers() {
    for (name, path, expected) in checkpoints() {
        let model = Model::load(&path).unwrap();
        let batch = Batch::new(&rows(&expected["padded_ids"])).unwrap().with_padding(&[0, 3]).unwrap();
        let (hidden, routing) = model.hidden_and_routing(&batch).unwrap();
        let logits = model.output(&hidden).unwrap();
        for (row, padding) in [(0, 0), (1, 3)] {
            // What stands at padding is nobody's business.
            let seen = |x: &Tensor| x.i((row, padding..)).unwrap();
            assert_near(&format!("{name}, row {row}"), &seen(&logits), &seen(&expected["padded_logits"]));
        }
        // The load-balancing loss leaves the padding out.
        assert_eq!(routing.is_some(), expected.contains_key("aux_loss"), "{name}");
        if let Some(routing) = routing {
            let theirs = expected["aux_loss"].to_vec1::<f32>().unwrap()[0];
            assert!((routing.load_balancing_loss - f64::from(theirs)).abs() < 1e-5, "{name}: not {theirs}");
            let taken: usize = routing.tokens_per_expert[0].iter().sum();
            assert_eq!(taken, 21 * model.config().experts.as_ref().unwrap().num_experts_per_tok, "{name}");
        }
    }
}

#[test]
fn logits_of_200_tokens_are_those_of_transformers_with_and_without_a_cache() {
    for (name, path, expected) in checkpoints() {
        let model = Model::load(&path).unwrap();
        let ids = rows(&expected["long_ids"]).swap_remove(0);
        let whole = model.forward(&Batch::new(std::slice::from_ref(&ids)).unwrap()).unwrap();
        assert_near(&name, &whole, &expected["long_logits"]);

        let mut cache = KvCache::new(model.config(), 1, 200).unwrap();
        let first = Batch::new(&[ids[..150].to_vec()]).unwrap();
        let mut logits = vec![model.output(&model.hidden(&first, Some(&mut cache)).unwrap()).unwrap()];
        for (i, &id) in ids.iter().enumerate().skip(150) {
            let batch = Batch::step(&[id], i, &[0]).unwrap();
            logits.push(model.output(&model.hidden(&batch, Some(&mut cache)).unwrap()).unwrap());
        }
        let theirs = expected.get("cached_logits").unwrap_or(&expected["long_logits"]);
        assert_near(&format!("{name} with a cache"), &Tensor::cat(&logits, 1).unwrap(), theirs);
    }
}

/// What is saved stays in cargo's temporary folder, where `golden/check_families.py` lets transformers load it.
#[test]
fn a_saved_checkpoint_differs_in_no_key_and_no_tensor() {
    for (name, path, _) in checkpoints() {
        let saved = Path::new(env!("CARGO_TARGET_TMPDIR")).join("families").join(&name);
        let model = Model::load(&path).unwrap();
        model.save(&saved).unwrap();
        let fresh = Model::new(model.config().clone(), model.head(), model.params().clone()).unwrap();
        let fresh_path = saved.with_file_name(format!("{name}-fresh"));
        fresh.save(&fresh_path).unwrap();
        assert_eq!(Model::load(&fresh_path).unwrap().config(), model.config(), "{name}");
        assert_eq!(json(&saved.join("config.json")), json(&path.join("config.json")), "{name}");
        let tensors = |path: &Path| read_safetensors(&path.join("model.safetensors")).unwrap();
        let (ours, theirs) = (tensors(&saved), tensors(&path));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, values) in &ours {
            assert_eq!(far(values, &theirs[tensor]), 0., "{name}: {tensor}");
        }
    }
}

/// Each of these settings, changed in its golden checkpoint, must show in the logits: the tests above see it.
#[test]
fn every_awkward_setting_shows() {
    let plain = json!({"rope_type": "default", "rope_theta": 10_000.0});
    let full = json!(["full_attention", "full_attention", "full_attention"]);
    let changes = [
        ("llama", "rope_parameters", plain.clone()),
        ("llama", "hidden_act", json!("silu")),
        ("llama_linear", "rope_parameters", plain.clone()),
        ("llama_dynamic", "rope_parameters", plain.clone()),
        ("llama_yarn", "rope_parameters", plain.clone()),
        ("mistral", "sliding_window", Value::Null),
        ("mixtral", "num_experts_per_tok", json!(1)),
        ("mixtral", "sliding_window", Value::Null),
        ("qwen2", "layer_types", full.clone()),
        ("qwen3", "layer_types", full.clone()),
        ("qwen3_moe", "norm_topk_prob", json!(true)),
        ("smollm3", "no_rope_layers", json!([1, 1, 1])),
        ("smollm3", "layer_types", full.clone()),
        ("phi3", "sliding_window", Value::Null),
        ("phi3", "rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.75})),
        ("gemma2", "attn_logit_softcapping", Value::Null),
        ("gemma2", "final_logit_softcapping", Value::Null),
        ("gemma2", "query_pre_attn_scalar", json!(10)),
        ("gemma2", "layer_types", full.clone()),
        ("gemma3_text", "layer_types", full),
        ("gemma3_text", "rope_parameters", json!({"full_attention": plain})),
        ("gpt2", "activation_function", json!("silu")),
        ("gpt2_untied", "scale_attn_weights", json!(true)),
        ("gpt2_untied", "activation_function", json!("gelu_new")),
        ("gpt_neox", "use_parallel_residual", json!(false)),
        ("gpt_neox", "rope_parameters", json!({"rope_theta": 5000.0, "partial_rotary_factor": 0.5})),
        ("gpt_neox_sequential", "use_parallel_residual", json!(true)),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, key, value) in changes {
        let path = golden().join(name);
        let mut config = json(&path.join("config.json"));
        config[key] = value;
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(path.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let expected = read_safetensors(&path.join("expected.safetensors")).unwrap();
        let batch = Batch::new(&rows(&expected["long_ids"])).unwrap();
        let logits = Model::load(dir.path()).unwrap().forward(&batch).unwrap();
        let far = far(&logits, &expected["long_logits"]);
        assert!(far > 10. * TOLERANCE, "{name}: \"{key}\" moves the logits by {far} only");
    }
}
