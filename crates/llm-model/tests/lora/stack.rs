//! An adapter on an adapter, and dropout.

use std::path::PathBuf;

use candle_core::{DType, Tensor, Var};
use llm_model::{Batch, LoraConfig, Model, TokenIndices, read_safetensors, write_safetensors};

use super::{bits, golden, max_difference, text, train};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ids_of(base: &str) -> Vec<Vec<u32>> {
    let tensors = read_safetensors(golden(base).join("expected.safetensors")).unwrap();
    let ids = tensors.get("input_ids").cloned().unwrap_or_else(|| tensors["long_ids"].narrow(1, 0, 24).unwrap());
    ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

fn logits(model: &Model, ids: &[Vec<u32>]) -> Tensor {
    model.forward(&Batch::new(ids).unwrap()).unwrap().detach()
}

/// Base model, first and second adapter.
fn stacks() -> Vec<(&'static str, &'static str, LoraConfig, LoraConfig)> {
    let plain = LoraConfig { r: 2, lora_alpha: 3., ..LoraConfig::default() };
    let rows = |ids: &[u32]| Some(TokenIndices::Embedding(ids.to_vec()));
    vec![
        (
            "sum_rows",
            "tied",
            LoraConfig { trainable_token_indices: rows(&[7, 3]), ..plain.clone() },
            LoraConfig {
                r: 3,
                use_rslora: true,
                target_modules: names(&["all-linear"]),
                trainable_token_indices: rows(&[11, 3]),
                ..LoraConfig::default()
            },
        ),
        (
            "sum_saved",
            "untied",
            LoraConfig { modules_to_save: names(&["lm_head", "embed_tokens"]), ..plain.clone() },
            LoraConfig { modules_to_save: names(&["lm_head"]), target_modules: names(&["up_proj"]), ..plain.clone() },
        ),
        (
            "sum_embedding",
            "untied",
            LoraConfig { target_modules: names(&["embed_tokens", "q_proj"]), ..plain.clone() },
            LoraConfig { target_modules: names(&["embed_tokens", "lm_head"]), r: 1, ..plain.clone() },
        ),
        (
            "sum_fused",
            "families/gpt_neox",
            LoraConfig { target_modules: names(&["query_key_value"]), ..plain.clone() },
            LoraConfig { target_modules: names(&["all-linear"]), r: 3, ..plain.clone() },
        ),
        (
            "sum_experts",
            "families/mixtral",
            LoraConfig {
                target_parameters: names(&["mlp.experts.gate_up_proj"]),
                target_modules: names(&["q_proj"]),
                ..plain.clone()
            },
            LoraConfig { target_modules: names(&["all-linear"]), r: 1, ..plain },
        ),
    ]
}

/// The saved sums stay in cargo's temporary folder, where `golden/check_lora.py` loads them with PEFT.
#[test]
fn two_adapters_are_saved_as_their_sum_or_apart_and_merge_to_the_same_model() {
    for (name, base, lower, upper) in stacks() {
        let (ids, base_model) = (ids_of(base), Model::load(golden(base)).unwrap());
        let first = base_model.with_lora(&lower, 1).unwrap();
        train(&first, &ids, 10);
        let stack = first.with_lora(&upper, 2).unwrap();
        // Layers that had no adapter before run other operations now, which round differently.
        let gap = max_difference(&logits(&stack, &ids), &logits(&first, &ids));
        assert!(gap <= 1e-4, "{name}: the second one changes nothing yet: {gap}");
        let frozen = bits(&logits(&first, &ids));
        train(&stack, &ids, 10);
        let trained = logits(&stack, &ids);
        assert!(bits(&logits(&first, &ids)) == frozen, "{name}: the first one is frozen");
        let largest = trained.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let tolerance = 1e-5 * largest;
        assert!(max_difference(&trained, &logits(&first, &ids)) > 100. * tolerance, "{name}: nothing was trained");

        let merged = logits(&stack.merged().unwrap(), &ids);
        assert!(max_difference(&merged, &trained) <= tolerance, "{name}: merged");
        let sum = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lora_modules").join(name);
        stack.save_adapter(&sum, base).unwrap();
        let expected =
            [("input_ids", Tensor::new(ids.clone(), trained.device()).unwrap()), ("logits", trained.clone())];
        let expected = expected.map(|(name, t)| {
            (name.to_owned(), if t.dtype() == DType::U32 { t.to_dtype(DType::I64).unwrap() } else { t })
        });
        write_safetensors(sum.join("expected.safetensors"), &expected.into()).unwrap();
        let mut loaded = Model::load(golden(base)).unwrap();
        loaded.load_adapter("sum", &sum).unwrap();
        loaded.use_adapter(Some("sum")).unwrap();
        assert!(max_difference(&logits(&loaded, &ids), &trained) <= tolerance, "{name}: the sum");

        let dir = tempfile::tempdir().unwrap();
        first.save_adapter(dir.path().join("first"), base).unwrap();
        stack.save_upper_adapter(dir.path().join("second"), base).unwrap();
        let mut apart = Model::load(golden(base)).unwrap();
        for adapter in ["first", "second"] {
            apart.load_adapter(adapter, dir.path().join(adapter)).unwrap();
        }
        apart.use_adapters(&["first", "second"]).unwrap();
        // A frozen adapter is computed by other operations than one that is trained.
        assert!(max_difference(&logits(&apart, &ids), &trained) <= tolerance, "{name}: apart");
    }
}

#[test]
fn adapters_that_have_no_sum_are_refused() {
    let base = Model::load(golden("untied")).unwrap();
    let dora = LoraConfig { use_dora: true, ..LoraConfig::default() };
    let head = LoraConfig { target_modules: names(&["lm_head"]), ..LoraConfig::default() };
    let saved = LoraConfig { modules_to_save: names(&["lm_head"]), ..LoraConfig::default() };
    for (lower, upper, part) in [
        (dora.clone(), LoraConfig::default(), "use_dora"),
        (LoraConfig::default(), dora, "use_dora"),
        (head, saved, "lm_head"),
    ] {
        let message = base.with_lora(&lower, 1).unwrap().with_lora(&upper, 2).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("merge the first adapter"), "{message}");
    }
}

#[test]
fn dropout_depends_on_its_seed_and_is_off_without_one() {
    let config =
        |lora_dropout| LoraConfig { target_modules: names(&["all-linear"]), lora_dropout, ..LoraConfig::default() };
    let model = Model::load(golden("tied")).unwrap().with_lora(&config(0.3), 1).unwrap();
    train(&model, &text(), 10);
    let with = logits_with;
    let plain = bits(&logits(&model, &text()));
    assert!(with(&model, 1) == with(&model, 1));
    assert!(with(&model, 1) != with(&model, 2));
    assert!(with(&model, 1) != plain);
    // A frozen adapter, that of evaluation, has none.
    let frozen = model.frozen().unwrap();
    assert!(with(&frozen, 1) == bits(&logits(&frozen, &text())));
    let none = Model::load(golden("tied")).unwrap().with_lora(&config(0.), 1).unwrap();
    assert!(with(&none, 1) == bits(&logits(&none, &text())));
}

fn logits_with(model: &Model, seed: u64) -> Vec<u32> {
    bits(&model.forward(&Batch::new(&text()).unwrap().with_dropout(seed)).unwrap())
}

#[test]
fn recomputed_blocks_have_the_same_dropout() {
    let config = LoraConfig { target_modules: names(&["all-linear"]), lora_dropout: 0.3, ..LoraConfig::default() };
    let gradients = |checkpointed: bool| {
        let mut model = Model::load(golden("families/llama")).unwrap().with_lora(&config, 1).unwrap();
        let ids = ids_of("families/llama");
        train(&model, &ids, 2);
        if checkpointed {
            model.checkpoint_activations();
        }
        let hidden = model.hidden(&Batch::new(&ids).unwrap().with_dropout(9), None).unwrap();
        let grads = hidden.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let recomputed = model.take_recomputed_gradients();
        assert_eq!(!recomputed.is_empty(), checkpointed);
        let of = |var: &Var| bits(grads.get(var).or_else(|| recomputed.get(&var.id())).unwrap());
        model.params().vars().values().map(of).collect::<Vec<_>>()
    };
    assert!(gradients(false) == gradients(true));
}
