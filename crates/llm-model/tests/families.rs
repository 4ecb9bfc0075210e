//! Compares the checkpoints of each family, written by transformers, with the outputs of transformers
//! (`golden/make_families.py`), and tests the training of each family.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor, Var};
use llm_kernels::{AdamWStep, DistillationOptions, Divergence, adamw_step};
use llm_model::{Batch, Head, KvCache, Model, ModelType, Params, Teacher, read_safetensors, write_safetensors};
use serde_json::{Value, json};

/// Absolute tolerance of the f32 logits.
const TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families")
}

/// All golden checkpoints: name, folder and the outputs of transformers.
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

fn max_difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

#[track_caller]
fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    let far = max_difference(ours, theirs);
    assert!(far <= TOLERANCE, "{what}: difference {far}");
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_family_has_a_golden_checkpoint() {
    let here: Vec<Value> =
        checkpoints().iter().map(|(_, path, _)| json(&path.join("config.json"))["model_type"].clone()).collect();
    for family in ModelType::ALL {
        assert!(here.contains(&Value::from(family.name())), "{family:?}");
    }
}

#[test]
fn logits_with_left_padding_match_transformers() {
    for (name, path, expected) in checkpoints() {
        let model = Model::load(&path).unwrap();
        let batch = Batch::new(&rows(&expected["padded_ids"])).unwrap().with_padding(&[0, 3]).unwrap();
        let (hidden, routing) = model.hidden_and_routing(&batch).unwrap();
        let logits = model.output(&hidden).unwrap();
        for (row, padding) in [(0, 0), (1, 3)] {
            // Ignore the outputs at padding.
            let valid = |x: &Tensor| x.i((row, padding..)).unwrap();
            assert_near(&format!("{name}, row {row}"), &valid(&logits), &valid(&expected["padded_logits"]));
        }
        // The load-balancing loss ignores padding.
        assert_eq!(routing.is_some(), expected.contains_key("aux_loss"), "{name}");
        if let Some(routing) = routing {
            let theirs = expected["aux_loss"].to_vec1::<f32>().unwrap()[0];
            assert!((routing.load_balancing_loss - f64::from(theirs)).abs() < 1e-5, "{name}: not {theirs}");
            let routed: usize = routing.tokens_per_expert[0].iter().sum();
            assert_eq!(routed, 21 * model.config().experts.as_ref().unwrap().num_experts_per_tok, "{name}");
        }
    }
}

#[test]
fn logits_of_200_tokens_match_transformers_with_and_without_cache() {
    for (name, path, expected) in checkpoints() {
        let model = Model::load(&path).unwrap();
        let ids = rows(&expected["long_ids"]).swap_remove(0);
        let whole = model.forward(&Batch::new(std::slice::from_ref(&ids)).unwrap()).unwrap();
        assert_near(&name, &whole, &expected["long_logits"]);

        let mut cache = KvCache::new(model.config(), 1, 200, &model.device()).unwrap();
        let first = Batch::new(&[ids[..150].to_vec()]).unwrap();
        let mut logits = vec![model.output(&model.hidden(&first, Some(&mut cache)).unwrap()).unwrap()];
        for (i, &id) in ids.iter().enumerate().skip(150) {
            let batch = Batch::ragged(&[[id]], &[i]).unwrap();
            logits.push(model.output(&model.hidden(&batch, Some(&mut cache)).unwrap()).unwrap());
        }
        let theirs = expected.get("cached_logits").unwrap_or(&expected["long_logits"]);
        assert_near(&format!("{name} with a cache"), &Tensor::cat(&logits, 1).unwrap(), theirs);
    }
}

/// The saved checkpoints stay in cargo's temporary folder, where `golden/check_families.py` loads them with transformers.
#[test]
fn a_saved_checkpoint_has_the_same_keys_and_tensors() {
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
            assert_eq!(max_difference(values, &theirs[tensor]), 0., "{name}: {tensor}");
        }
    }
}

#[test]
fn reward_and_value_models_of_every_family_survive_saving() {
    let batch = Batch::new(&[vec![3, 17, 42, 8, 29]]).unwrap();
    for (name, path, _) in checkpoints() {
        let model = Model::load(&path).unwrap();
        for (head, suffix) in [(Head::Sequence, "reward"), (Head::Token, "value")] {
            let scorer = match model.with_head(head, 7) {
                Ok(scorer) => scorer,
                Err(error) => {
                    // transformers has no such class.
                    assert!(name == "olmo2" || name == "gemma3_text", "{name}: {error}");
                    assert!(error.to_string().contains("transformers has no"), "{error}");
                    continue;
                }
            };
            let saved = Path::new(env!("CARGO_TARGET_TMPDIR")).join("families").join(format!("{name}-{suffix}"));
            scorer.save(&saved).unwrap();
            let loaded = Model::load(&saved).unwrap();
            assert_eq!((loaded.head(), loaded.config()), (head, scorer.config()), "{name}");
            assert_eq!(
                max_difference(&loaded.forward(&batch).unwrap(), &scorer.forward(&batch).unwrap()),
                0.,
                "{name}"
            );
        }
    }
}

/// Negative control: changing one of these settings in a golden checkpoint must change the logits.
#[test]
fn every_setting_affects_the_logits() {
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
        let far = max_difference(&logits, &expected["long_logits"]);
        assert!(far > 10. * TOLERANCE, "{name}: \"{key}\" changes the logits by {far} only");
    }
}

/// The training loss, with router losses, of 2 rows of 7 tokens; the second row has two tokens of left padding.
fn training_loss(model: &Model) -> Tensor {
    let ids = [vec![3, 17, 42, 8, 8, 29, 50], vec![2, 2, 11, 5, 31, 46, 9]];
    let batch = Batch::new(&ids).unwrap().with_padding(&[0, 2]).unwrap();
    let (hidden, routing) = model.hidden_and_routing(&batch).unwrap();
    let labels = [17, 42, 8, 8, 29, 50, 7, -100, -100, 5, 31, 46, 9, 20];
    let loss = model.cross_entropy(&hidden.flatten(0, 1).unwrap(), &labels).unwrap();
    match routing {
        Some(routing) => (loss + routing.loss).unwrap(),
        None => loss,
    }
}

/// The same model in `dtype`, with a z-loss if it has experts (the golden files have none).
fn in_dtype(model: &Model, dtype: DType) -> Model {
    let wide = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap());
    let params = Params::new(model.params().tensors().iter().map(wide).collect());
    let mut config = model.config().clone();
    if let Some(experts) = &mut config.experts {
        experts.router_z_loss_coef = 0.03;
    }
    Model::new(config, model.head(), params).unwrap()
}

/// A tensor of random -1 and 1 with the shape of `like`.
fn signs(like: &Tensor, seed: u64) -> Tensor {
    let mut state = seed * 2 + 1;
    let mut sign = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 0 { 1f64 } else { -1. }
    };
    let data: Vec<f64> = (0..like.elem_count()).map(|_| sign()).collect();
    Tensor::from_vec(data, like.shape(), like.device()).unwrap()
}

fn number(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

/// Compares the gradient of each parameter in a random direction with the finite difference of the loss in f64, and the
/// fused f32 gradients with the f64 gradients.
#[test]
fn gradients_match_finite_differences() {
    const STEP: f64 = 1e-5;
    for (name, path, _) in checkpoints() {
        let golden = Model::load(&path).unwrap();
        let wide = in_dtype(&golden, DType::F64);
        let model = wide.trainable().unwrap();
        let gradients = training_loss(&model).backward().unwrap();
        let single = in_dtype(&golden, DType::F32).trainable().unwrap();
        let single_gradients = training_loss(&single).backward().unwrap();
        let mut learning = 0;
        for (seed, (tensor, var)) in model.params().vars().iter().enumerate() {
            let direction = signs(var, seed as u64);
            let moved = |by: f64| {
                let mut tensors = wide.params().tensors();
                let there = (&tensors[tensor] + (&direction * by).unwrap()).unwrap();
                tensors.insert(tensor.clone(), there);
                let model = Model::new(wide.config().clone(), wide.head(), Params::new(tensors)).unwrap();
                number(&training_loss(&model))
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2. * STEP);
            // An expert without tokens has no gradient.
            let ours = gradients.get(var).map_or(0., |g| number(&(g * &direction).unwrap().sum_all().unwrap()));
            assert!((ours - slope).abs() < 1e-6 + 1e-5 * slope.abs(), "{name}: {tensor}: {ours}, not {slope}");
            learning += usize::from(slope.abs() > 1e-4);

            let in_single = single_gradients.get(&single.params().vars()[tensor]);
            assert_eq!(in_single.is_some(), gradients.get(var).is_some(), "{name}: {tensor}");
            if let (Some(single), Some(wide)) = (in_single, gradients.get(var)) {
                let size = number(&wide.abs().unwrap().max_all().unwrap());
                let gap = (single.to_dtype(DType::F64).unwrap() - wide).unwrap().abs().unwrap().max_all().unwrap();
                let gap = number(&gap);
                assert!(gap < 2e-5 + 1e-4 * size, "{name}: {tensor}: {gap} apart at {size}");
            }
        }
        assert!(learning * 10 > model.params().vars().len() * 8, "{name}: {learning} parameters have a slope");
    }
}

#[test]
fn the_loss_falls_within_50_steps() {
    for (name, path, _) in checkpoints() {
        let mut config = Model::load(&path).unwrap().config().clone();
        config.initializer_range = 0.1;
        let model = Model::init(config, Head::LanguageModel, 3).unwrap();
        let zeros = |var: &Var| Tensor::zeros((2, var.elem_count()), DType::F32, var.device()).unwrap();
        let moments: BTreeMap<String, Tensor> =
            model.params().vars().into_iter().map(|(n, v)| (n, zeros(&v))).collect();
        let mut losses = Vec::new();
        for step in 1..=50 {
            let loss = training_loss(&model);
            losses.push(number(&loss));
            let gradients = loss.backward().unwrap();
            for (tensor, var) in &model.params().vars() {
                let Some(gradient) = gradients.get(var) else { continue };
                let step = AdamWStep {
                    learning_rate: 3e-3,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.,
                    step,
                    gradient_scale: 1.,
                };
                adamw_step(var, gradient, &moments[tensor], &step).unwrap();
            }
        }
        assert!(losses[49] < 0.5 * losses[0], "{name}: {} after {}", losses[49], losses[0]);
    }
}

#[test]
fn activation_checkpointing_keeps_all_gradients_bit_identical() {
    for (name, path, _) in checkpoints() {
        let gradients = |checkpointed: bool| {
            let mut model = in_dtype(&Model::load(&path).unwrap(), DType::F32).trainable().unwrap();
            if checkpointed {
                model.checkpoint_activations();
            }
            let gradients = training_loss(&model).backward().unwrap();
            let mut inside = model.take_recomputed_gradients();
            let of = |(name, var): (&String, &Var)| {
                let gradient = gradients.get(var).cloned().or_else(|| inside.remove(&var.id()))?;
                let bits = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                Some((name.clone(), bits.into_iter().map(f32::to_bits).collect::<Vec<_>>()))
            };
            model.params().vars().iter().filter_map(of).collect::<BTreeMap<_, _>>()
        };
        let (plain, checkpointed) = (gradients(false), gradients(true));
        assert_eq!(plain.keys().collect::<Vec<_>>(), checkpointed.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, bits) in plain {
            assert!(bits == checkpointed[&tensor], "{name}: {tensor}");
        }
    }
}

/// A soft cap far above the logits has no effect. Losses with a soft cap use another code path, with full logits.
#[test]
fn losses_with_a_large_soft_cap_match_those_without() {
    let golden = Model::load(golden().join("gemma2")).unwrap();
    let capped = |cap: Option<f64>| {
        let mut config = golden.config().clone();
        config.final_logit_softcapping = cap;
        Model::new(config, Head::LanguageModel, golden.params().clone()).unwrap().trainable().unwrap()
    };
    let labels = [17, -100, 8, 8, 29];
    let batch = Batch::new(&[vec![3, 17, 42, 8, 8]]).unwrap();
    let losses = |cap: Option<f64>| {
        let (student, teacher) = (capped(cap), capped(cap));
        let hidden = student.hidden(&batch, None).unwrap().flatten(0, 1).unwrap();
        let other = (&hidden * 0.7).unwrap().detach();
        let loss = student.cross_entropy(&hidden, &labels).unwrap();
        let vocab = student.config().vocab_size;
        let options = DistillationOptions { alpha: 0.3, temperature: 1.7, divergence: Divergence::Jsd(0.3), vocab };
        let distilled = student.distillation(&hidden, Teacher::Model(&teacher, &other), &labels, &options).unwrap();
        let gradient = distilled.loss.backward().unwrap();
        let gradient = gradient.get(&student.params().vars()["model.norm.weight"]).unwrap();
        let slope = number(&gradient.sum_all().unwrap());
        [number(&loss), number(&distilled.loss), distilled.divergence, distilled.cross_entropy, slope]
    };
    for (far, none) in losses(Some(1e3)).into_iter().zip(losses(None)) {
        assert!((far - none).abs() < 1e-3 * none.abs().max(1.), "{far}, not {none}");
    }
    assert!((losses(Some(2.))[0] - losses(None)[0]).abs() > 0.1, "a small cap must change the loss");
}

#[test]
fn a_checkpoint_saved_without_its_head_and_with_buffers_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for (name, prefix, buffer) in [
        ("gpt2", "transformer.", "h.0.attn.bias"),
        ("gpt_neox_sequential", "gpt_neox.", "layers.0.attention.rotary_emb.inv_freq"),
        ("llama_linear", "model.", "layers.1.self_attn.rotary_emb.inv_freq"),
    ] {
        let path = golden().join(name);
        let tensors = read_safetensors(&path.join("model.safetensors")).unwrap();
        let bare = |(name, tensor): (String, Tensor)| (name.strip_prefix(prefix).unwrap().to_owned(), tensor);
        let mut bare: BTreeMap<String, Tensor> = tensors.into_iter().map(bare).collect();
        bare.insert(buffer.to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        write_safetensors(&dir.path().join("model.safetensors"), &bare).unwrap();
        fs::copy(path.join("config.json"), dir.path().join("config.json")).unwrap();
        let (ours, whole) = (Model::load(dir.path()).unwrap(), Model::load(&path).unwrap());
        let batch = Batch::new(&[vec![3, 17, 42]]).unwrap();
        assert_eq!(max_difference(&ours.forward(&batch).unwrap(), &whole.forward(&batch).unwrap()), 0., "{name}");

        // The error names tensors as in the files.
        let gone = bare.keys().find(|tensor| tensor.contains("layers.1.") || tensor.contains("h.1.")).unwrap().clone();
        bare.remove(&gone);
        write_safetensors(&dir.path().join("model.safetensors"), &bare).unwrap();
        let message = Model::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("\"{prefix}{gone}\"")) && message.contains("missing"), "{message}");
    }
}
