//! Compares adapters written by PEFT with the outputs of PEFT (`golden/make_lora.py`), and tests the training of adapters.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod modules;
mod refusals;
mod stack;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, IndexOp, Tensor, Var};
use llm_kernels::{AdamWStep, BlockFormat, adamw_step};
use llm_model::{
    Batch, Head, LoraConfig, Model, ModelConfig, Params, TokenIndices, Weight, WeightDtype, read_safetensors,
    write_safetensors,
};

const CASES: [&str; 4] = ["plain", "rslora", "tokens", "dora"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn max_difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

fn number(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The tiny Llama with all golden adapters.
fn with_adapters() -> Model {
    let mut model = Model::load(golden("tied")).unwrap();
    for case in CASES {
        model.load_adapter(case, &golden("lora").join(case)).unwrap();
    }
    model
}

fn expected(case: &str) -> (Vec<Vec<u32>>, BTreeMap<String, Tensor>) {
    let expected = read_safetensors(&golden("lora").join(case).join("expected.safetensors")).unwrap();
    (expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap(), expected)
}

/// The mean cross-entropy of each next token.
fn loss(model: &Model, ids: &[Vec<u32>]) -> Tensor {
    let t = ids[0].len();
    let hidden = model.hidden(&Batch::new(ids).unwrap(), None).unwrap();
    let labels: Vec<i64> = ids.iter().flat_map(|row| row[1..].iter().map(|&id| i64::from(id))).collect();
    model.cross_entropy(&hidden.i((.., ..t - 1)).unwrap().flatten(0, 1).unwrap(), &labels).unwrap()
}

fn all_linear_layers() -> Vec<String> {
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec()
}

fn kinds() -> [LoraConfig; 4] {
    let plain = LoraConfig { r: 4, lora_alpha: 6., target_modules: all_linear_layers(), ..LoraConfig::default() };
    let tokens = Some(TokenIndices::Embedding(vec![29, 8, 7]));
    [
        plain.clone(),
        LoraConfig { use_rslora: true, ..plain.clone() },
        LoraConfig { trainable_token_indices: tokens, ..plain.clone() },
        LoraConfig { use_dora: true, target_modules: ["o_proj", "gate_proj"].map(str::to_owned).to_vec(), ..plain },
    ]
}

fn small() -> Model {
    let config = ModelConfig {
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        initializer_range: 0.2,
        ..ModelConfig::default()
    };
    Model::init(config, Head::LanguageModel, 5).unwrap().frozen().unwrap()
}

const TEXT: [[u32; 7]; 2] = [[3, 17, 8, 8, 29, 5, 11], [30, 2, 7, 31, 4, 4, 9]];

fn text() -> Vec<Vec<u32>> {
    TEXT.map(|row| row.to_vec()).to_vec()
}

/// Trains with AdamW on the text; returns the loss without adapter and after training.
fn train(model: &Model, ids: &[Vec<u32>], steps: u64) -> [f64; 2] {
    let vars = model.params().vars();
    let zeros = |var: &Var| Tensor::zeros((2, var.elem_count()), DType::F32, var.device()).unwrap();
    let moments: BTreeMap<&String, Tensor> = vars.iter().map(|(name, var)| (name, zeros(var))).collect();
    for step in 1..=steps {
        let grads = loss(model, ids).backward().unwrap();
        let settings = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.,
            step,
            gradient_scale: 1.,
        };
        for (name, var) in &vars {
            adamw_step(var, grads.get(var).unwrap(), &moments[name], &settings).unwrap();
        }
    }
    let mut base = model.clone();
    base.use_adapter(None).unwrap();
    [number(&loss(&base, ids)), number(&loss(model, ids))]
}

#[test]
fn logits_losses_and_gradients_match_peft() {
    let mut model = with_adapters();
    for case in CASES {
        let (ids, expected) = expected(case);
        let batch = Batch::new(&ids).unwrap();
        model.use_adapter(Some(case)).unwrap();
        let gap = max_difference(&model.forward(&batch).unwrap(), &expected["logits"]);
        assert!(gap <= 1e-4, "{case}: {gap}");

        let training = model.trainable().unwrap();
        let loss = loss(&training, &ids);
        assert!((number(&loss) - number(&expected["loss"])).abs() < 1e-5, "{case}");
        let grads = loss.backward().unwrap();
        for (name, var) in &training.params().vars() {
            let theirs = &expected[&format!("grad.base_model.model.{name}")];
            let gap = max_difference(grads.get(var).unwrap(), theirs);
            assert!(gap <= 1e-5, "{case}, {name}: {gap}");
        }
        let adapted = expected.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(training.params().vars().len(), adapted, "{case}: only the adapter is trainable");
        // The gradient of a norm is computed together with that of its input.
        for (name, tensor) in training.params().tensors().iter().filter(|(_, tensor)| tensor.rank() == 2) {
            assert!(grads.get(tensor).is_none(), "{case}: the frozen {name} has a gradient");
        }
    }
}

#[test]
fn switching_adapters_changes_and_restores_the_outputs() {
    let mut model = with_adapters();
    let base = Model::load(golden("tied")).unwrap();
    let batch = Batch::new(&text()).unwrap();
    let without = bits(&base.forward(&batch).unwrap());
    let mut outputs = Vec::new();
    for case in CASES.into_iter().chain(CASES) {
        model.use_adapter(Some(case)).unwrap();
        assert_eq!(model.active_adapters(), [case]);
        outputs.push(bits(&model.forward(&batch).unwrap()));
    }
    assert_eq!(outputs[..4], outputs[4..]);
    assert!(outputs[0] != outputs[1] && outputs[1] != outputs[2] && outputs.iter().all(|output| *output != without));
    model.use_adapter(None).unwrap();
    assert_eq!(bits(&model.forward(&batch).unwrap()), without);
    let message = model.use_adapter(Some("other")).unwrap_err().to_string();
    assert!(message.contains("other") && message.contains("rslora"), "{message}");
}

#[test]
fn merging_keeps_the_outputs_and_unmerging_restores_the_bits() {
    let mut model = with_adapters();
    let batch = Batch::new(&text()).unwrap();
    for case in CASES {
        model.use_adapter(Some(case)).unwrap();
        let (before, merged) = (model.forward(&batch).unwrap(), model.merged().unwrap());
        let gap = max_difference(&merged.forward(&batch).unwrap(), &before);
        assert!(gap <= 1e-5, "{case}: {gap}");
        let dir = tempfile::tempdir().unwrap();
        merged.save(dir.path()).unwrap();
        assert_eq!(
            bits(&Model::load(dir.path()).unwrap().forward(&batch).unwrap()),
            bits(&merged.forward(&batch).unwrap())
        );

        let unmerged = merged.unmerged().unwrap();
        assert_eq!(unmerged.active_adapters(), [case]);
        assert_eq!(bits(&unmerged.forward(&batch).unwrap()), bits(&before), "{case}");
        for (name, tensor) in &Model::load(golden("tied")).unwrap().params().tensors() {
            assert_eq!(bits(tensor), bits(&unmerged.params().tensors()[name]), "{case}: {name}");
        }
        assert!(merged.clone().use_adapter(None).is_err() && unmerged.unmerged().is_err());
        assert!(model.save(dir.path()).unwrap_err().to_string().contains("merge"), "{case}");
    }
}

#[test]
fn a_new_adapter_does_not_change_the_model_and_depends_on_the_seed() {
    let base = small();
    let batch = Batch::new(&text()).unwrap();
    for config in kinds() {
        let [one, same, other] = [1, 1, 2].map(|seed| base.with_lora(&config, seed).unwrap());
        let gap = max_difference(&one.forward(&batch).unwrap(), &base.forward(&batch).unwrap());
        assert!(gap <= 1e-6, "{config:?}: {gap}");
        let a = |model: &Model| bits(&model.params().vars()["model.layers.1.self_attn.o_proj.lora_A.weight"]);
        assert!(a(&one) == a(&same) && a(&one) != a(&other));
        let bound = (1f32 / 32.).sqrt();
        let numbers: Vec<f32> = a(&one).into_iter().map(f32::from_bits).collect();
        let far = numbers.iter().fold(0f32, |far, x| far.max(x.abs()));
        assert!(far <= bound && far > 0.9 * bound, "{far} of {bound}");
    }
}

/// The same model in f64, with an adapter moved away from its initial values.
fn in_f64(config: &LoraConfig) -> Model {
    let base = small();
    let wide = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_dtype(DType::F64).unwrap());
    let params = Params::new(base.params().tensors().iter().map(wide).collect());
    let model = Model::new(base.config().clone(), Head::LanguageModel, params).unwrap().with_lora(config, 3).unwrap();
    for (i, var) in model.params().vars().values().enumerate() {
        let wave: Vec<f64> = (0..var.elem_count()).map(|j| 0.2 * ((7 * i + 3 * j) as f64).sin()).collect();
        let wave = Tensor::from_vec(wave, var.shape(), var.device()).unwrap();
        var.set(&(var.as_tensor() + wave).unwrap()).unwrap();
    }
    model
}

#[test]
fn gradients_match_finite_differences_in_f64() {
    for config in kinds() {
        let model = in_f64(&config);
        let grads = loss(&model, &text()).backward().unwrap();
        let mut compared = 0;
        for (name, var) in &model.params().vars() {
            // DoRA treats the row norms as constants, so A and B have no finite-difference check; PEFT is their oracle.
            if config.use_dora && !name.ends_with("magnitude_vector") {
                continue;
            }
            let numbers = var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let gradient = grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for i in [0, numbers.len() / 2, numbers.len() - 1] {
                let at = |step: f64| {
                    let mut moved = numbers.clone();
                    moved[i] += step;
                    var.set(&Tensor::from_vec(moved, var.shape(), var.device()).unwrap()).unwrap();
                    number(&loss(&model, &text()))
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                at(0.);
                let gap = (slope - gradient[i]).abs();
                assert!(gap <= 1e-8 + 1e-6 * slope.abs(), "{name}[{i}]: {} and {slope}", gradient[i]);
                compared += 1;
            }
        }
        assert!(compared >= 12, "{config:?}");
    }
}

#[test]
fn activation_checkpointing_keeps_the_gradients_bit_identical() {
    for config in kinds() {
        let gradients = |checkpointed: bool| {
            let mut model = small().with_lora(&config, 1).unwrap();
            train(&model, &text(), 2);
            if checkpointed {
                model.checkpoint_activations();
            }
            let grads = loss(&model, &text()).backward().unwrap();
            let recomputed = model.take_recomputed_gradients();
            assert_eq!(!recomputed.is_empty(), checkpointed);
            let of = |var: &Var| bits(grads.get(var).or_else(|| recomputed.get(&var.id())).unwrap());
            model.params().vars().values().map(of).collect::<Vec<_>>()
        };
        assert_eq!(gradients(false), gradients(true), "{config:?}");
    }
}

#[test]
fn training_on_a_quantised_base_lowers_the_loss_and_keeps_the_base() {
    let formats =
        [WeightDtype::Bf16, WeightDtype::Quantized(BlockFormat::Q8_0), WeightDtype::Quantized(BlockFormat::Q4_0)];
    let batch = Batch::new(&text()).unwrap();
    for format in formats {
        for config in kinds() {
            let base = small().frozen_as(format).unwrap();
            let before = bits(&base.forward(&batch).unwrap());
            let model = base.with_lora(&config, 1).unwrap();
            let quantized =
                |model: &Model| model.params().iter().filter(|(_, w)| matches!(w, Weight::Quantized(_))).count();
            assert_eq!(quantized(&model), quantized(&base));
            let trains = |name: &String| name.contains("lora_") || name.ends_with(".trainable_tokens_delta");
            assert!(model.params().vars().keys().all(trains));
            let [first, last] = train(&model, &text(), 50);
            assert!(last < 0.5 * first, "{format:?} {config:?}: {first} to {last}");
            assert_eq!(bits(&base.forward(&batch).unwrap()), before);
            if config.use_dora {
                continue;
            }
            let scale = 6. / if config.use_rslora { 2. } else { 4. };
            let name = "model.layers.1.mlp.up_proj";
            let (vars, weight) = (model.params().vars(), format!("{name}.weight"));
            let change =
                vars[&format!("{name}.lora_B.weight")].matmul(&vars[&format!("{name}.lora_A.weight")]).unwrap();
            let dense = base.params().get(&weight).unwrap().to_dense().unwrap();
            let gap = max_difference(
                &model.merged().unwrap().params().tensors()[&weight],
                &(dense + change * scale).unwrap(),
            );
            assert!(gap <= 1e-6, "{format:?} {config:?}: {gap}");
        }
    }
}

/// The saved adapters stay in cargo's temporary folder, where `golden/check_lora.py` loads them with PEFT.
#[test]
fn a_saved_adapter_is_loaded_bit_for_bit() {
    for (case, config) in CASES.into_iter().zip(kinds()) {
        let base = Model::load(golden("tied")).unwrap();
        let model = base.with_lora(&config, 9).unwrap();
        let [first, last] = train(&model, &text(), 40);
        assert!(last < first, "{case}: {first} to {last}");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lora").join(case);
        model.save_adapter(&dir, "tied").unwrap();
        let ids = text();
        // Detached, so that it runs the operations of inference, as the model that is read below.
        let logits = model.detached().unwrap().forward(&Batch::new(&ids).unwrap()).unwrap();
        let ids_tensor = Tensor::new(&TEXT, logits.device()).unwrap().to_dtype(DType::I64).unwrap();
        let expected = BTreeMap::from([("input_ids".to_owned(), ids_tensor), ("logits".to_owned(), logits.detach())]);
        write_safetensors(&dir.join("expected.safetensors"), &expected).unwrap();

        let mut read = base.clone();
        read.load_adapter("trained", &dir).unwrap();
        read.use_adapter(Some("trained")).unwrap();
        assert!(max_difference(&read.forward(&Batch::new(&ids).unwrap()).unwrap(), &logits) <= 1e-6, "{case}");
        let (ours, again) = (model.params().vars(), read.trainable().unwrap());
        assert_eq!(ours.len(), again.params().vars().len());
        for (name, var) in &ours {
            assert_eq!(bits(var), bits(&again.params().vars()[name]), "{case}: {name}");
        }
    }
}
