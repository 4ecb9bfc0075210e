//! Creation of run folders, and errors before creation.

use std::fs;

use llm_model::LoraConfig;
use llm_train::Error;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoInputs, PpoRecipe, ppo};
use llm_train::run::is_finished;

use super::common::everything;
use super::{FIXTURE, Knobs, STAGES, Stage, options, quiet};

#[test]
fn a_finished_run_is_not_changed() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        // Changed data does not matter: a finished run does not read it.
        let source = if stage == Stage::Pretrain { None } else { Some(dir.path().join("data.jsonl")) };
        let name = match stage {
            Stage::Reward | Stage::Dpo | Stage::Kto => "pairs.jsonl",
            Stage::Ppo | Stage::Grpo => "prompts.jsonl",
            _ => "chats.jsonl",
        };
        if let Some(source) = &source {
            fs::copy(FIXTURE.path(name), source).unwrap();
        }
        let knobs = Knobs { length: 1, data: source.clone(), ..Knobs::default() };
        let first = stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap();
        assert!(!first.was_finished && is_finished(&out), "{stage:?}");
        let before = everything(&out);
        if let Some(source) = &source {
            fs::write(source, "no data any more").unwrap();
        }
        let again = stage.run(&FIXTURE, &knobs, &out, options(true)).unwrap();
        assert_eq!((again.was_finished, again.steps), (true, first.steps), "{stage:?}");
        let measured = if stage == Stage::Ppo { "objective/scores" } else { "loss" };
        assert!(
            again.metrics == first.metrics && first.metrics[measured].is_finite(),
            "{stage:?}: {:?}",
            first.metrics
        );
        assert!(everything(&out) == before, "{stage:?} changed a finished run");
        let message = stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap_err().to_string();
        assert!(message.contains("already exists"), "{message}");
    }
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    for stage in STAGES {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        for save_every in [1, 0] {
            let knobs = Knobs { length: 1, learning_rate: 1e30, save_every, batch_size: 64, ..Knobs::default() };
            let error = stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap_err();
            assert!(matches!(error, Error::Diverged { .. }), "{stage:?}: {error}");
            assert!(!error.is_callers_fault() && !is_finished(&out), "{stage:?}");
            assert!(!out.join("model.safetensors").exists() && !out.join("checkpoints/step-1").exists(), "{stage:?}");
            let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            assert!(!metrics.contains("null"), "{stage:?}: {metrics}");
            fs::remove_dir_all(&out).unwrap();
        }
        let knobs = Knobs { length: 1, learning_rate: f64::NAN, ..Knobs::default() };
        let error = stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("optimizer.learning_rate is NaN"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn a_model_with_weights_that_are_not_finite_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = FIXTURE.copied();
    let file = fixture.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    for stage in [Stage::Finetune, Stage::Reward, Stage::Ppo, Stage::Grpo, Stage::Dpo, Stage::Kto, Stage::Distill] {
        let error = stage.run(&fixture, &Knobs::default(), &dir.path().join("run"), quiet()).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("not finite"), "{stage:?}: {error}");
        assert!(!dir.path().join("run").exists());
    }
}

#[test]
fn a_failed_start_leaves_no_folder() {
    let lora = |r: usize, target: &str| {
        Some(LoraConfig { r, target_modules: vec![target.to_owned()], ..LoraConfig::default() })
    };
    for stage in STAGES {
        let mut bad = vec![
            ("length", Knobs { length: 0, ..Knobs::default() }),
            ("batch_size", Knobs { batch_size: 0, ..Knobs::default() }),
            ("seed", Knobs { seed: u64::MAX, ..Knobs::default() }),
            ("learning_rate", Knobs { learning_rate: -1., ..Knobs::default() }),
            ("missing", Knobs { data: Some("/nowhere/missing".into()), ..Knobs::default() }),
            ("hidden_size", Knobs { hidden_size: 7, ..Knobs::default() }),
            ("\"r\"", Knobs { lora: lora(0, "q_proj"), ..Knobs::default() }),
            ("nonsense", Knobs { lora: lora(4, "nonsense"), ..Knobs::default() }),
            ("batches", Knobs { batch_size: 1_000_000, ..Knobs::default() }),
        ];
        bad.retain(|(what, _)| match *what {
            "hidden_size" => matches!(stage, Stage::Pretrain | Stage::Distill),
            "\"r\"" | "nonsense" => matches!(stage, Stage::Finetune | Stage::Dpo | Stage::Kto),
            "batches" => stage == Stage::Pretrain,
            _ => true,
        });
        for (what, knobs) in bad {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("deep/run");
            let error = stage.run(&FIXTURE, &knobs, &out, quiet()).unwrap_err();
            assert!(error.is_callers_fault(), "{stage:?}, {what}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(!dir.path().join("deep").exists(), "{stage:?}, {what}: {error} left a folder");
        }
    }
}

#[test]
fn validation_data_equal_to_the_training_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, same) in [
        (Stage::Finetune, "other.jsonl"),
        (Stage::Distill, "other.jsonl"),
        (Stage::Reward, "other-pairs.jsonl"),
        (Stage::Dpo, "other-pairs.jsonl"),
        (Stage::Kto, "other-pairs.jsonl"),
    ] {
        let data = dir.path().join("copy.jsonl");
        fs::copy(FIXTURE.path(same), &data).unwrap();
        let knobs = Knobs { data: Some(data), ..Knobs::default() };
        let error = stage.run(&FIXTURE, &knobs, &dir.path().join("run"), quiet()).unwrap_err();
        assert!(error.to_string().contains("--validation"), "{error}");
        assert!(!dir.path().join("run").exists());
    }
}

#[test]
fn ppo_names_the_learning_rate_of_the_model_that_diverged() {
    let dir = tempfile::tempdir().unwrap();
    let (model, reward, data) = (FIXTURE.path("model"), FIXTURE.path("reward-model"), FIXTURE.path("prompts.jsonl"));
    let optimizer = |learning_rate| OptimizerConfig { learning_rate, warmup_steps: 0, ..OptimizerConfig::default() };
    for (policy, critic, named) in
        [(1e-3, 1e30, "lower value_optimizer.learning_rate"), (1e30, 1e-3, "lower optimizer.learning_rate")]
    {
        for save_every in [1, 0] {
            let recipe = PpoRecipe {
                updates: 3,
                episodes: 4,
                num_ppo_epochs: 1,
                max_new_tokens: 4,
                save_every,
                optimizer: optimizer(policy),
                value_optimizer: optimizer(critic),
                ..PpoRecipe::default()
            };
            let out = dir.path().join("run");
            let error = ppo(
                &recipe,
                &PpoInputs { adapter: None, model: model.clone(), reward: vec![reward.clone()], data: data.clone() },
                &out,
                quiet(),
            )
            .unwrap_err();
            assert!(matches!(error, Error::Diverged { step: 1, .. }), "{error}");
            assert!(error.to_string().ends_with(named), "{error}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
}
