//! Adapters of embeddings, heads, fused, transposed and expert matrices, and whole modules, against the outputs of PEFT.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use llm_model::{Batch, Head, LoraConfig, Model, read_safetensors, write_safetensors};
use serde_json::Value;

use super::{golden, loss, max_difference, number, train};

/// Name, model with the active adapter, input ids, and what PEFT computed.
struct Case {
    name: String,
    base: String,
    model: Model,
    ids: Vec<Vec<u32>>,
    expected: BTreeMap<String, Tensor>,
}

fn cases() -> Vec<Case> {
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(golden("lora/modules")).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    let case = |dir: PathBuf| {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let config: Value = serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap();
        let base = config["base_model_name_or_path"].as_str().unwrap().to_owned();
        let mut model = Model::load(golden(&base)).unwrap();
        model.load_adapter(&name, &dir).unwrap_or_else(|error| panic!("{name}: {error}"));
        model.use_adapter(Some(&name)).unwrap();
        let expected = read_safetensors(dir.join("expected.safetensors")).unwrap();
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        Case { name, base, model, ids, expected }
    };
    let cases: Vec<Case> = dirs.into_iter().map(case).collect();
    assert_eq!(cases.len(), 16);
    cases
}

/// The logits, or the score at the last token `(b, 1)`.
fn outputs(model: &Model, ids: &[Vec<u32>]) -> Tensor {
    let all = model.forward(&Batch::new(ids).unwrap()).unwrap();
    match model.head() {
        Head::LanguageModel => all,
        Head::Sequence | Head::Scores(_) | Head::Token => {
            all.narrow(1, ids[0].len() - 1, 1).unwrap().squeeze(1).unwrap()
        }
    }
}

fn loss_of(model: &Model, ids: &[Vec<u32>]) -> Tensor {
    match model.head() {
        Head::LanguageModel => loss(model, ids),
        Head::Sequence | Head::Scores(_) | Head::Token => outputs(model, ids).sqr().unwrap().mean_all().unwrap(),
    }
}

/// Logits of these random models reach 10 and more, so 1e-5 is relative to the largest one.
fn gap(ours: &Tensor, theirs: &Tensor) -> f32 {
    let largest = theirs.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    max_difference(ours, theirs) / largest.max(1.)
}

#[test]
fn logits_losses_and_gradients_of_all_targets_match_peft() {
    for Case { name, model, ids, expected, .. } in cases() {
        let difference = gap(&outputs(&model, &ids), &expected["logits"]);
        assert!(difference <= 1e-5, "{name}: {difference}");
        for checkpointed in [false, true] {
            let mut training = model.trainable().unwrap();
            if checkpointed {
                training.checkpoint_activations();
            }
            let loss = loss_of(&training, &ids);
            assert!((number(&loss) - number(&expected["loss"])).abs() < 1e-5 * number(&loss).abs().max(1.), "{name}");
            let grads = loss.backward().unwrap();
            let recomputed = training.take_recomputed_gradients();
            let vars = training.params().vars();
            for (key, var) in &vars {
                let ours = grads.get(var).or_else(|| recomputed.get(&var.id())).unwrap();
                let difference = gap(ours, &expected[&format!("grad.base_model.model.{key}")]);
                assert!(difference <= 2e-5, "{name}, {key}: {difference}");
            }
            let adapted = expected.keys().filter(|name| name.starts_with("grad.")).count();
            assert_eq!(vars.len(), adapted, "{name}");
        }
    }
}

#[test]
fn merged_models_have_the_same_outputs_also_after_saving() {
    for Case { name, model, ids, expected, .. } in cases() {
        let dir = tempfile::tempdir().unwrap();
        model.merged().unwrap().save(dir.path()).unwrap();
        let loaded = Model::load(dir.path()).unwrap();
        let difference = gap(&outputs(&loaded, &ids), &expected["logits"]);
        assert!(difference <= 1e-5, "{name}: {difference}");
    }
}

/// The saved adapters stay in cargo's temporary folder, where `golden/check_lora.py` loads them with PEFT.
#[test]
fn new_adapters_of_all_targets_change_nothing_at_first_then_learn_and_are_loaded_again() {
    for Case { name, base, model, ids, .. } in cases() {
        let config = model.adapter_config().unwrap().clone();
        let base_model = Model::load(golden(&base)).unwrap();
        let new = base_model.with_lora(&config, 4).unwrap();
        assert!(gap(&outputs(&new, &ids), &outputs(&base_model, &ids)) <= 1e-6, "{name}");
        if base_model.head() == Head::LanguageModel {
            let [first, last] = train(&new, &ids, 10);
            assert!(last < first, "{name}: {first} to {last}");
        }
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lora_modules").join(&name);
        new.save_adapter(&dir, &base).unwrap();
        let logits = outputs(&new, &ids).detach();
        let ids_tensor = Tensor::new(ids.clone(), logits.device()).unwrap().to_dtype(DType::I64).unwrap();
        let expected = BTreeMap::from([("input_ids".to_owned(), ids_tensor), ("logits".to_owned(), logits.clone())]);
        write_safetensors(dir.join("expected.safetensors"), &expected).unwrap();
        let mut loaded = Model::load(golden(&base)).unwrap();
        loaded.load_adapter("trained", &dir).unwrap();
        loaded.use_adapter(Some("trained")).unwrap();
        assert!(gap(&outputs(&loaded, &ids), &logits) <= 1e-6, "{name}");
    }
}

#[test]
fn all_linear_names_every_linear_layer_but_the_head() {
    for (family, targets, parameters) in [
        ("llama", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj", 0),
        ("gpt2", "c_attn c_fc c_proj", 0),
        ("gpt_neox", "dense dense_4h_to_h dense_h_to_4h query_key_value", 0),
        ("phi3", "down_proj gate_up_proj o_proj qkv_proj", 0),
        ("mixtral", "k_proj o_proj q_proj v_proj", 3),
    ] {
        let config = LoraConfig { target_modules: vec!["all-linear".to_owned()], ..LoraConfig::default() };
        let model = Model::load(golden("families").join(family)).unwrap().with_lora(&config, 1).unwrap();
        let config = model.adapter_config().unwrap();
        assert_eq!(config.target_modules.join(" "), targets, "{family}");
        assert_eq!(config.target_parameters.len(), parameters, "{family}");
    }
}

#[test]
fn an_embedding_of_another_model_is_refused() {
    let mut model = Model::load(golden("untied")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let source = golden("lora/modules/embedding");
    fs::copy(source.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    let mut tensors = read_safetensors(source.join("adapter_model.safetensors")).unwrap();
    let name = "base_model.model.model.embed_tokens.base_layer.weight";
    let changed = (tensors[name].clone() * 1.5).unwrap();
    tensors.insert(name.to_owned(), changed);
    write_safetensors(dir.path().join("adapter_model.safetensors"), &tensors).unwrap();
    let message = model.load_adapter("x", dir.path()).unwrap_err().to_string();
    assert!(message.contains(name) && message.contains("the model that the adapter was trained on"), "{message}");
}
