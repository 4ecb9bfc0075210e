//! Training of a mixture of experts: router losses and router metrics.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::Path;

use common::{quietly, write_pairs};
use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_model::{ExpertsConfig, Model, ModelConfig, ModelType};
use llm_tokenizer::TrainConfig;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, PrepareInputs, PretrainInputs, PretrainRecipe,
    RewardInputs, RewardRecipe, distill, finetune, prepare, pretrain, reward, train_tokenizer,
};
use serde_json::Value;

fn lines(run: &Path, key: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap().get(key).cloned()).collect()
}

fn numbers(run: &Path, key: &str) -> Vec<f64> {
    lines(run, key).iter().map(|value| value.as_f64().unwrap()).collect()
}

/// The tokens of each expert in each step, summed over layers.
fn tokens(run: &Path) -> Vec<Vec<u64>> {
    lines(run, "tokens_per_expert").into_iter().map(|value| serde_json::from_value(value).unwrap()).collect()
}

fn recipe(aux: f64, z: f64) -> PretrainRecipe {
    PretrainRecipe {
        steps: 60,
        batch_size: 4,
        gradient_accumulation_steps: 2,
        activation_checkpointing: true,
        seq_len: 16,
        eval_every: 60,
        optimizer: OptimizerConfig { learning_rate: 1e-2, ..OptimizerConfig::default() },
        model: ModelConfig {
            model_type: ModelType::Mixtral,
            hidden_size: 32,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            experts: Some(ExpertsConfig {
                num_experts: 8,
                moe_intermediate_size: 32,
                router_aux_loss_coef: aux,
                router_z_loss_coef: z,
                ..ExpertsConfig::default()
            }),
            ..ModelConfig::default()
        },
        ..PretrainRecipe::default()
    }
}

#[test]
fn router_losses_balance_the_experts_in_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let inputs = text_inputs(dir.path());
    for (name, aux, z) in [("balanced", 0.05, 0.), ("free", 0., 0.), ("small", 0., 0.1)] {
        quietly(|options| pretrain(&recipe(aux, z), &inputs, &path(name), options)).unwrap();
        let loss = numbers(&path(name), "loss");
        assert!(loss[59] < 0.5 * loss[0], "{name}: {} after {}", loss[59], loss[0]);
        // Two layers, two micro-batches of 4 x 16 tokens, two experts for each: none is dropped.
        assert!(tokens(&path(name)).iter().all(|experts| experts.iter().sum::<u64>() == 2 * 2 * 4 * 16 * 2), "{name}");
    }
    let mean = |name: &str, key: &str| numbers(&path(name), key)[40..].iter().sum::<f64>() / 20.;
    let (balanced, free) = (mean("balanced", "load_balancing_loss"), mean("free", "load_balancing_loss"));
    assert!(balanced < free && balanced < 2.2, "2 if balanced: {balanced}, {free} without the loss");
    assert!(mean("balanced", "busiest_expert_share") < mean("free", "busiest_expert_share"));
    assert!(mean("small", "router_z_loss") < 0.8 * mean("free", "router_z_loss"));

    // The result is a Mixtral model, which can be fine-tuned.
    let model = Model::load(path("balanced")).unwrap();
    assert_eq!(model.config().model_type, ModelType::Mixtral);
    let words = ["cat", "dog", "mat", "door"];
    let of = |word: &&str| {
        Conversation::from(vec![ChatMessage::user(format!("Say {word}.")), ChatMessage::assistant(*word)])
    };
    write_jsonl(&path("chat.jsonl"), &words.repeat(10).iter().map(of).collect::<Vec<_>>()).unwrap();
    let optimizer = OptimizerConfig { warmup_steps: 0, ..FinetuneRecipe::default().optimizer };
    let tuning = FinetuneRecipe { epochs: 3, batch_size: 8, optimizer, ..FinetuneRecipe::default() };
    let inputs = FinetuneInputs {
        adapter: None,
        model: path("balanced"),
        data: vec![path("chat.jsonl")],
        validation: None,
        text: None,
    };
    quietly(|options| finetune(&tuning, &inputs, &path("tuned"), options)).unwrap();
    // Compare whole epochs: batches of different lengths have different losses.
    let loss = numbers(&path("tuned"), "loss");
    let epochs: Vec<f64> = loss.chunks(loss.len() / 3).map(|epoch| epoch.iter().sum()).collect();
    assert!(epochs.len() == 3 && epochs.is_sorted_by(|before, after| before > after), "{epochs:?}");
    let eval_loss = numbers(&path("tuned"), "eval_loss");
    assert!(eval_loss[eval_loss.len() - 1] < eval_loss[0], "{eval_loss:?}");
    assert_eq!(tokens(&path("tuned")).len(), loss.len());

    // Reward model and distillation add router losses too.
    let pair = |i: usize| (words[i % 4].to_owned(), words[(i + 1) % 4].to_owned());
    write_pairs(&path("pairs.jsonl"), &(0..16).map(pair).collect::<Vec<_>>());
    let opposite = |i: usize| (words[(i + 2) % 4].to_owned(), words[i % 4].to_owned());
    write_pairs(&path("other-pairs.jsonl"), &(0..4).map(opposite).collect::<Vec<_>>());
    let scored = |coefficient: f64, out: &str| {
        with_balance(&path("tuned"), coefficient);
        let recipe = RewardRecipe { epochs: 1, batch_size: 4, ..RewardRecipe::default() };
        let (model, data, validation) = (path("tuned"), path("pairs.jsonl"), path("other-pairs.jsonl"));
        let inputs = RewardInputs { adapter: None, model, data: vec![data], validation: Some(validation) };
        quietly(|options| reward(&recipe, &inputs, &path(out), options)).unwrap();
        (numbers(&path(out), "load_balancing_loss"), numbers(&path(out), "grad_norm"))
    };
    let (logged, strong) = scored(50., "scored");
    assert_eq!(logged.len(), 4);
    assert!(strong[0] > 3. * scored(0., "scored-free").1[0], "the coefficient must reach the gradient");

    let student = |coefficient: f64, out: &str| {
        let mut student = recipe_of_student();
        student.experts.as_mut().unwrap().router_aux_loss_coef = coefficient;
        let recipe = DistillRecipe { epochs: 1, batch_size: 8, student, ..DistillRecipe::default() };
        let inputs =
            DistillInputs { teacher: path("tuned"), data: vec![path("chat.jsonl")], ..DistillInputs::default() };
        quietly(|options| distill(&recipe, &inputs, &path(out), options)).unwrap();
        (numbers(&path(out), "load_balancing_loss"), numbers(&path(out), "grad_norm"))
    };
    let (logged, strong) = student(50., "student");
    assert_eq!(logged.len(), strong.len());
    assert!(strong[0] > 3. * student(0., "student-free").1[0], "the coefficient must reach the gradient");
}

/// A tokenizer and the shards of a short text in `dir`.
fn text_inputs(dir: &Path) -> PretrainInputs {
    let text = [dir.join("text.txt")];
    let sentences = "One two three four five six seven eight nine ten.\nA cat and a dog sat on the mat by the door.\n";
    std::fs::write(&text[0], sentences.repeat(100)).unwrap();
    let (tokenizer, data) = (dir.join("tokenizer"), dir.join("shards"));
    train_tokenizer(&TrainConfig { vocab_size: 300, min_frequency: 1 }, &text, &tokenizer, false).unwrap();
    let (train, validation) = (text.to_vec(), Vec::new());
    let inputs = PrepareInputs {
        tokenizer: tokenizer.clone(),
        train,
        validation,
        validation_share: 0.1,
        ..PrepareInputs::default()
    };
    quietly(|options| prepare(&inputs, &data, options)).unwrap();
    PretrainInputs { model: None, tokenizer, data: vec![data] }
}

/// Sets the coefficient of the load-balancing loss in a model's folder.
fn with_balance(dir: &Path, coefficient: f64) {
    let file = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    config["router_aux_loss_coef"] = coefficient.into();
    std::fs::write(file, config.to_string()).unwrap();
}

fn recipe_of_student() -> ModelConfig {
    ModelConfig { hidden_size: 16, num_hidden_layers: 1, ..recipe(0., 0.).model }
}
