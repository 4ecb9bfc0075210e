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
        ..PrepareInputs::default()
    };
    quietly(|options| prepare(&inputs, &shards, options)).unwrap();

    let recipe = PretrainRecipe {
        steps: 3,
        batch_size: 2,
        seq_len: 16,
        save_every: 1,
        optimizer: OptimizerConfig {
            learning_rate: 1e-3,
            warmup_steps: 0,
            schedule: Schedule::Constant,
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
    let inputs = PretrainInputs { model: None, tokenizer: tokenizer.clone(), data: vec![shards.clone()] };
    let resume =
        |recipe: &PretrainRecipe| pretrain(recipe, &inputs, &run, RunOptions { resume: true, ..RunOptions::default() });
    quietly(|options| pretrain(&recipe, &inputs, &run, options)).unwrap();

    // One step changes every weight by about the learning rate. Weights of 1e12, and their squares, are finite in f32; scores of
    // attention, products of four weights and more, are not.
    let high = OptimizerConfig { learning_rate: 1e12, ..recipe.optimizer.clone() };
    let error = resume(&PretrainRecipe { steps: 40, optimizer: high, ..recipe.clone() }).unwrap_err();
    let Error::Diverged { step, kept, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, 5, "{error}");
    assert!(error.to_string().contains("learning_rate"), "{error}");
    // The loss of this step comes from the weights of the previous step, whose checkpoint is removed.
    assert_eq!(*kept, run.join(format!("checkpoints/step-{}", step - 2)).display().to_string());
    assert!(!run.join(format!("checkpoints/step-{}", step - 1)).exists());
    assert!(!run.join("trainer_state.json").exists(), "a run that diverged is not finished");
    for tensor in Model::load(kept).unwrap().params().tensors().values() {
        assert!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }

    // It resumes from there with a lower learning rate, which is recorded.
    let outcome = resume(&PretrainRecipe { steps: step + 2, ..recipe });
    assert_eq!(outcome.unwrap().steps, step + 2);
    assert!(std::fs::read_to_string(run.join("recipe.toml")).unwrap().contains("optimizer.learning_rate"));
}
