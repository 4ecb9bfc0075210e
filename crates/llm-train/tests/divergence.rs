//! A run whose loss is not a number any more stops, says so, and keeps its last good checkpoint.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::quietly;
use llm_model::{Model, ModelConfig};
use llm_tokenizer::TrainConfig;
use llm_train::Error;
use llm_train::optim::{OptimizerConfig, Schedule};
use llm_train::recipes::{PrepareInputs, PretrainInputs, PretrainRecipe, prepare, pretrain, train_tokenizer};

#[test]
fn a_diverging_run_stops_and_keeps_its_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = [path("text.txt")];
    std::fs::write(&text[0], "One two three four five six seven eight nine ten.\n".repeat(200)).unwrap();
    let (tokenizer, shards, run) = (path("tokenizer"), path("shards"), path("run"));
    train_tokenizer(&TrainConfig { vocab_size: 300, min_frequency: 1 }, &text, &tokenizer, false).unwrap();
    let inputs = PrepareInputs { tokenizer: &tokenizer, train: &text, held_out: &[], held_out_share: 0.1 };
    quietly(|options| prepare(&inputs, &shards, options)).unwrap();

    // The rate rises by 1e17 with each step: after the first ones the squares of the weights still fit into f32, later they do not.
    let recipe = PretrainRecipe {
        steps: 40,
        batch_size: 2,
        seq_len: 16,
        save_every: 1,
        optimizer: OptimizerConfig {
            learning_rate: 4e18,
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
    let inputs = PretrainInputs { tokenizer: &tokenizer, data: &shards };
    let error = quietly(|options| pretrain(&recipe, inputs, &run, options)).unwrap_err();
    let Error::Diverged { step, kept, .. } = &error else { panic!("{error}") };
    assert!(*step > 1, "{error}");
    assert!(error.to_string().contains("learning_rate"), "{error}");
    assert_eq!(*kept, run.join(format!("checkpoints/step-{}", step - 1)).display().to_string());
    assert!(!run.join("trainer_state.json").exists(), "a run that diverged is not finished");
    for tensor in Model::load(kept.as_ref()).unwrap().params().tensors().values() {
        assert!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()));
    }
}
