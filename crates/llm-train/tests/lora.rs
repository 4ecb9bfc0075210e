//! Fine-tuning with a LoRA adapter.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::path::Path;

use common::{fresh_model, quietly};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_engine::{Sampling, TextModel, TextOptions};
use llm_model::{BlockFormat, LoraConfig, Model, ModelConfig, TokenIndices, WeightDtype};
use llm_tokenizer::{Tokenizer, TrainConfig};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{
    FinetuneInputs, FinetuneRecipe, LifecycleRecipe, PrepareInputs, PretrainInputs, PretrainRecipe, finetune,
    lifecycle, prepare, pretrain, train_tokenizer,
};
use llm_train::run::RunOptions;
use serde_json::Value;

/// Questions about the colours of four things, with each of these prefixes.
fn conversations(before: &[&str]) -> Vec<Conversation> {
    let colours = [("apple", "red"), ("leaf", "green"), ("sky", "blue"), ("snow", "white")];
    let of = |before: &str, (thing, colour): (&str, &str)| {
        Conversation::from(vec![ChatMessage::user(format!("{before} {thing}")), ChatMessage::assistant(colour)])
    };
    before.iter().flat_map(|before| colours.map(|pair| of(before, pair))).collect()
}

fn recipe(base_dtype: WeightDtype, use_dora: bool) -> FinetuneRecipe {
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

/// Changes a finished run into one that was interrupted after its first kept checkpoint.
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
    let validation = dir.path().join("validation.jsonl");
    write_jsonl(&validation, &conversations(&["see a", "is this the"])).unwrap();
    let inputs = FinetuneInputs {
        adapter: None,
        model: base.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
        text: None,
    };
    for (name, base_dtype, use_dora) in [
        ("plain", WeightDtype::F32, false),
        ("dora", WeightDtype::Bf16, true),
        ("quantised", WeightDtype::Quantized(BlockFormat::Q8_0), false),
    ] {
        let (recipe, out) = (recipe(base_dtype, use_dora), dir.path().join(name));
        quietly(|options| finetune(&recipe, &inputs, &out, options)).unwrap();
        let losses = eval_losses(&out);
        assert!(losses[losses.len() - 1] < 0.5 * losses[0], "{name}: {losses:?}");
        assert!(!out.join("model.safetensors").exists() && out.join("tokenizer.json").exists());
        assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), weights);

        let whole = fs::read(out.join("adapter_model.safetensors")).unwrap();
        interrupt(&out);
        finetune(&recipe, &inputs, &out, RunOptions { resume: true, ..RunOptions::default() }).unwrap();
        assert!(fs::read(out.join("adapter_model.safetensors")).unwrap() == whole, "{name}: other bytes");
        assert_eq!(eval_losses(&out), losses, "{name}");
    }
}

#[test]
fn trained_weights_must_be_f32() {
    let nowhere = Path::new("nowhere");
    let inputs = FinetuneInputs {
        adapter: None,
        model: nowhere.into(),
        data: vec![nowhere.into()],
        validation: None,
        text: None,
    };
    let recipe = FinetuneRecipe { lora: None, ..recipe(WeightDtype::Quantized(BlockFormat::Q4_0), false) };
    let message = quietly(|options| finetune(&recipe, &inputs, nowhere, options)).unwrap_err().to_string();
    assert!(message.contains("base_dtype") && message.contains("[lora]"), "{message}");
}

#[test]
fn the_pipeline_rejects_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = LifecycleRecipe { finetune: recipe(WeightDtype::F32, false), ..LifecycleRecipe::default() };
    let message = quietly(|options| lifecycle(&recipe, &dir.path().join("run"), options)).unwrap_err().to_string();
    assert!(message.contains("finetune.lora") && !dir.path().join("run").exists(), "{message}");
}

/// A base model that was trained on plain text, without chat template tokens.
fn pretrained(dir: &Path) {
    let path = |name: &str| dir.join(name);
    let text = "the apple is red. the leaf is green. the sky is blue. the snow is white.\n".repeat(120);
    fs::write(path("text.txt"), &text).unwrap();
    let train = [path("text.txt")];
    train_tokenizer(&TrainConfig { vocab_size: 300, min_frequency: 2 }, &train, &path("tokenizer"), false).unwrap();
    let inputs = PrepareInputs {
        tokenizer: path("tokenizer"),
        train: train.to_vec(),
        validation: Vec::new(),
        validation_share: 0.1,
        ..PrepareInputs::default()
    };
    quietly(|options| prepare(&inputs, &path("shards"), options)).unwrap();
    let model = ModelConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        ..ModelConfig::default()
    };
    let optimizer = OptimizerConfig { learning_rate: 1e-2, ..OptimizerConfig::default() };
    let recipe =
        PretrainRecipe { steps: 200, batch_size: 8, seq_len: 32, optimizer, model, ..PretrainRecipe::default() };
    let inputs = PretrainInputs { model: None, tokenizer: path("tokenizer"), data: vec![path("shards")] };
    quietly(|options| pretrain(&recipe, &inputs, &path("base"), options)).unwrap();
}

#[test]
fn an_adapter_trains_the_embeddings_of_new_chat_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    pretrained(dir.path());
    let (base, data) = (path("base"), path("data.jsonl"));
    // The base model's tokens begin with a space.
    let spaced = |before: &[&str]| {
        let mut conversations = conversations(before);
        for answer in conversations.iter_mut().map(|conversation| &mut conversation.messages[1]) {
            *answer = ChatMessage::assistant(format!(" {}", answer.text()));
        }
        conversations
    };
    let validation = path("validation.jsonl");
    write_jsonl(&data, &spaced(&["the", "the the", "the is the", "the apple is the"])).unwrap();
    write_jsonl(&validation, &spaced(&["the the is the"])).unwrap();
    let inputs = FinetuneInputs {
        adapter: None,
        model: base.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
        text: None,
    };
    let run = |name: &str, indices: Option<TokenIndices>| {
        let mut recipe = FinetuneRecipe { epochs: 30, ..recipe(WeightDtype::F32, false) };
        recipe.lora.as_mut().unwrap().trainable_token_indices = indices;
        quietly(|options| finetune(&recipe, &inputs, &path(name), options)).unwrap();
        let losses = eval_losses(&path(name));
        (recipe, losses[losses.len() - 1])
    };
    let (recipe, with) = run("with", None);
    let (_, without) = run("without", Some(TokenIndices::Embedding(Vec::new())));
    assert!(with < 0.5 * without, "{with} with the embeddings, {without} without");

    // The config lists the tokens, and an interrupted run ends in the same bytes.
    let file = |name: &str| fs::read(path("with").join(name)).unwrap();
    let config: Value = serde_json::from_slice(&file("adapter_config.json")).unwrap();
    assert_eq!(config["trainable_token_indices"], serde_json::json!([2, 3, 4, 5]), "all tokens of the template");
    // The files name the token that ended the turns, then the base's end of text.
    let generation: Value = serde_json::from_slice(&file("generation_config.json")).unwrap();
    let tokenizer = Tokenizer::load(path("with")).unwrap();
    let end = tokenizer.chat_format().unwrap().end_of_turn;
    assert_eq!(generation["eos_token_id"], serde_json::json!([end, 0]));
    assert_eq!(tokenizer.eos_id(), Some(end));
    let whole = file("adapter_model.safetensors");
    interrupt(&path("with"));
    finetune(&recipe, &inputs, &path("with"), RunOptions { resume: true, ..RunOptions::default() }).unwrap();
    assert!(file("adapter_model.safetensors") == whole, "other bytes");

    // The merged model ends its turns.
    let mut model = Model::load(&base).unwrap();
    model.load_adapter("chat", &path("with")).unwrap();
    model.use_adapter(Some("chat")).unwrap();
    let text_model = TextModel::with_tokenizer(model.merged().unwrap(), path("with")).unwrap();
    let ids = text_model.chat_ids(&[ChatMessage::new("user", "the leaf")]).unwrap();
    let options = TextOptions {
        max_new_tokens: 20,
        sampling: Sampling { temperature: 0., ..Sampling::default() },
        ..TextOptions::default()
    };
    let reply = text_model.complete(&ids, &options, |_| true).unwrap();
    assert!(reply.text == " green" && reply.tokens < 20, "{reply:?}");
}
