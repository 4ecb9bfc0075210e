//! Fine-tuning by an adapter: it learns, it alone is written, and an interrupted run ends in the same bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::path::Path;

use common::{fresh_model, quietly};
use llm_data::{Conversation, Message, write_jsonl};
use llm_model::LoraConfig;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{BaseDtype, FinetuneInputs, FinetuneRecipe, LifecycleRecipe, finetune, lifecycle};
use llm_train::run::{NEVER, RunOptions};
use serde_json::Value;

/// Things and their colours, each asked for with the same words before it.
fn conversations(before: &[&str]) -> Vec<Conversation> {
    let colours = [("apple", "red"), ("leaf", "green"), ("sky", "blue"), ("snow", "white")];
    let of = |before: &str, (thing, colour): (&str, &str)| Conversation {
        messages: vec![Message::user(format!("{before} {thing}")), Message::assistant(colour)],
    };
    before.iter().flat_map(|before| colours.map(|pair| of(before, pair))).collect()
}

fn recipe(base_dtype: BaseDtype, use_dora: bool) -> FinetuneRecipe {
    let target_modules =
        ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
    FinetuneRecipe {
        epochs: 8,
        batch_size: 4,
        activation_checkpointing: true,
        save_every: 6,
        base_dtype,
        optimizer: OptimizerConfig { learning_rate: 1e-2, warmup_steps: 2, ..OptimizerConfig::default() },
        lora: Some(LoraConfig { r: 4, lora_alpha: 16., target_modules, use_dora, ..LoraConfig::default() }),
        ..FinetuneRecipe::default()
    }
}

fn eval_losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["eval_loss"].as_f64();
    text.lines().filter_map(of).collect()
}

/// Makes of a finished run one that was interrupted behind its first checkpoint that is kept.
fn interrupt(run: &Path) {
    let mut steps: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    steps.sort_by_key(|path| path.file_name().unwrap().to_string_lossy()["step-".len()..].parse::<u64>().unwrap());
    assert_eq!(steps.len(), 2);
    fs::remove_dir_all(&steps[1]).unwrap();
    for file in ["trainer_state.json", "adapter_model.safetensors", "adapter_config.json"] {
        fs::remove_file(run.join(file)).unwrap();
    }
}

#[test]
fn an_adapter_learns_and_an_interrupted_run_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (base, data) = (dir.path().join("base"), dir.path().join("data.jsonl"));
    fresh_model(&base, "the apple is red the leaf is green the sky is blue the snow is white", 32, 0.1);
    let weights = fs::read(base.join("model.safetensors")).unwrap();
    write_jsonl(&data, &conversations(&["the", "a", "see the", "is the", "this", "red or white: the"])).unwrap();
    let held_out = dir.path().join("held_out.jsonl");
    write_jsonl(&held_out, &conversations(&["see a", "is this the"])).unwrap();
    let inputs = FinetuneInputs { model: &base, data: &data, held_out: Some(&held_out) };
    for (name, base_dtype, use_dora) in
        [("plain", BaseDtype::F32, false), ("dora", BaseDtype::Bf16, true), ("quantised", BaseDtype::Q8_0, false)]
    {
        let (recipe, out) = (recipe(base_dtype, use_dora), dir.path().join(name));
        quietly(|options| finetune(&recipe, inputs, &out, options)).unwrap();
        let losses = eval_losses(&out);
        assert!(losses[losses.len() - 1] < 0.5 * losses[0], "{name}: {losses:?}");
        assert!(!out.join("model.safetensors").exists() && out.join("tokenizer.json").exists());
        assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), weights);

        let whole = fs::read(out.join("adapter_model.safetensors")).unwrap();
        interrupt(&out);
        finetune(&recipe, inputs, &out, RunOptions { resume: true, observer: &mut |_| (), stop: &NEVER }).unwrap();
        assert!(fs::read(out.join("adapter_model.safetensors")).unwrap() == whole, "{name}: other bytes");
        assert_eq!(eval_losses(&out), losses, "{name}");
    }
}

#[test]
fn weights_that_train_are_held_in_f32() {
    let nowhere = Path::new("nowhere");
    let inputs = FinetuneInputs { model: nowhere, data: nowhere, held_out: None };
    let recipe = FinetuneRecipe { lora: None, ..recipe(BaseDtype::Q4_0, false) };
    let message = quietly(|options| finetune(&recipe, inputs, nowhere, options)).unwrap_err().to_string();
    assert!(message.contains("base_dtype") && message.contains("[lora]"), "{message}");
}

#[test]
fn a_whole_life_is_not_lived_on_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let life = LifecycleRecipe { finetune: recipe(BaseDtype::F32, false), ..LifecycleRecipe::default() };
    let message = quietly(|options| lifecycle(&life, &dir.path().join("run"), options)).unwrap_err().to_string();
    assert!(message.contains("finetune.lora") && !dir.path().join("run").exists(), "{message}");
}
