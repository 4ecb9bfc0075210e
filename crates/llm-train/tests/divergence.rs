//! A run with a loss that is not finite stops with an error and keeps its last good checkpoint.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::quietly;
use llm_model::{Model, ModelConfig};
use llm_tokenizer::TrainConfig;
use llm_train::Error;
use llm_train::optim::{OptimizerConfig, Schedule};
use llm_train::recipes::{PrepareInputs, PretrainInputs, PretrainRecipe, prepare, pretrain, train_tokenizer};
use llm_train::run::RunOptions;

#[test]
fn a_diverging_run_stops_and_keeps_its_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = [path("text.txt")];
    std::fs::write(&text[0], "One two three four five six seven eight nine ten.\n".repeat(200)).unwrap();
    let (tokenizer, shards, run) = (path("tokenizer"), path("shards"), path("run"));
    train_tokenizer(&TrainConfig { vocab_size: 300, min_frequency: 1 }, &text, &tokenizer, false).unwrap();
    let inputs = PrepareInputs {
        tokenizer: tokenizer.clone(),
        train: text.to_vec(),
        validation: Vec::new(),
        validation_share: 0.1,
    };
    quietly(|options| prepare(&inputs, &shards, options)).unwrap();

    // The learning rate rises by a million per step; loss and gradients of the first steps are still finite in f32.
    let recipe = PretrainRecipe {
        steps: 40,
        batch_size: 2,
        seq_len: 16,
        save_every: 1,
        optimizer: OptimizerConfig {
            learning_rate: 4e7,
            warmup_steps: 40,
            schedule: Schedule::Constant,
            weight_decay: 0.,
            ..OptimizerConfig::default()
        },
        model: ModelConfig {
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        },
        ..PretrainRecipe::default()
    };
    let inputs = PretrainInputs { tokenizer: tokenizer.clone(), data: shards.clone() };
    let error = quietly(|options| pretrain(&recipe, &inputs, &run, options)).unwrap_err();
    let Error::Diverged { step, kept, .. } = &error else { panic!("{error}") };
    assert!(*step > 2, "{error}");
    assert!(error.to_string().contains("learning_rate"), "{error}");
    // The loss of this step comes from the weights of the previous step, whose checkpoint is removed.
    assert_eq!(*kept, run.join(format!("checkpoints/step-{}", step - 2)).display().to_string());
    assert!(!run.join(format!("checkpoints/step-{}", step - 1)).exists());
    assert!(!run.join("trainer_state.json").exists(), "a run that diverged is not finished");
    for tensor in Model::load(kept).unwrap().params().tensors().values() {
        assert!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }

    // It resumes from there with a lower learning rate, which is recorded.
    let optimizer = OptimizerConfig { learning_rate: 1e-3, ..recipe.optimizer.clone() };
    let lower = PretrainRecipe { optimizer, steps: step + 2, ..recipe };
    let outcome = pretrain(&lower, &inputs, &run, RunOptions { resume: true, ..RunOptions::default() });
    assert_eq!(outcome.unwrap().steps, step + 2);
    assert!(std::fs::read_to_string(run.join("recipe.toml")).unwrap().contains("optimizer.learning_rate"));
}
