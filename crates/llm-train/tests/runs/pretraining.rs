//! The options of pre-training: optimizers, schedules, dropout, z-loss, averaged weights, the best model; the same after a kill.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use llm_model::Model;
use llm_train::optim::{OptimizerConfig, OptimizerKind, Schedule};
use llm_train::recipes::{PretrainInputs, PretrainRecipe, pretrain};
use llm_train::run::{Event, Outcome, RunOptions};
use llm_train::{Error, Result};
use serde_json::Value;

use super::common::contents;
use super::{FIXTURE, Knobs, quiet};

fn recipe() -> PretrainRecipe {
    PretrainRecipe {
        steps: 8,
        batch_size: 4,
        seq_len: 8,
        eval_every: 2,
        eval_batches: 4,
        save_every: 3,
        optimizer: Knobs { learning_rate: 1e-2, ..Knobs::default() }.optimizer(),
        model: Knobs::default().shape(),
        ..PretrainRecipe::default()
    }
}

fn run(recipe: &PretrainRecipe, out: &Path, options: RunOptions) -> Result<Outcome> {
    let inputs =
        PretrainInputs { model: None, tokenizer: FIXTURE.path("model.tokenizer"), data: vec![FIXTURE.path("shards")] };
    pretrain(recipe, &inputs, out, options)
}

/// (step, value) of a metric.
fn logged(run: &Path, name: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line[name].as_f64()?))).collect()
}

/// Runs to the end, stopped after each step in turn.
fn run_torn(recipe: &PretrainRecipe, out: &Path) {
    loop {
        let stop = AtomicBool::new(false);
        let mut watch = |event: Event| {
            if let Event::Progress { .. } = event {
                stop.store(true, SeqCst);
            }
        };
        let options =
            RunOptions { resume: out.exists(), device: candle_core::Device::Cpu, observer: &mut watch, stop: &stop };
        match run(recipe, out, options) {
            Err(Error::Interrupted { .. }) => {}
            done => break drop(done.unwrap()),
        }
    }
}

#[test]
fn each_option_changes_the_training_and_resumes_in_the_same_bytes() {
    let plain = recipe();
    let optimizer = |kind, schedule| OptimizerConfig { kind, schedule, ..recipe().optimizer };
    let (adamw, cosine) = (OptimizerKind::AdamW, Schedule::Cosine);
    let variants = [
        ("plain", plain.clone()),
        ("muon", PretrainRecipe { optimizer: optimizer(OptimizerKind::Muon, cosine), ..plain.clone() }),
        ("wsd", PretrainRecipe { optimizer: optimizer(adamw, Schedule::Wsd), ..plain.clone() }),
        ("dropout", PretrainRecipe { dropout: 0.2, gradient_accumulation_steps: 2, ..plain.clone() }),
        ("z-loss", PretrainRecipe { z_loss_coef: 0.1, ..plain.clone() }),
        ("average", PretrainRecipe { ema_decay: 0.9, keep_best: true, ..plain.clone() }),
        (
            "all",
            PretrainRecipe {
                dropout: 0.1,
                z_loss_coef: 1e-4,
                ema_decay: 0.9,
                activation_checkpointing: true,
                optimizer: optimizer(OptimizerKind::Muon, Schedule::Wsd),
                ..plain
            },
        ),
    ];
    let mut results: Vec<Vec<u8>> = Vec::new();
    for (name, recipe) in variants {
        let dir = tempfile::tempdir().unwrap();
        let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
        run(&recipe, &whole, quiet()).unwrap();
        run_torn(&recipe, &torn);
        let (expected, found) = (contents(&whole), contents(&torn));
        assert!(expected.keys().eq(found.keys()), "{name}: {:?} {:?}", expected.keys(), found.keys());
        let different: Vec<_> = expected.keys().filter(|file| expected[*file] != found[*file]).collect();
        assert!(different.is_empty(), "{name}: {different:?}");
        let weights = fs::read(whole.join("model.safetensors")).unwrap();
        assert!(!results.contains(&weights), "{name} changes nothing");
        results.push(weights);
        assert_eq!(logged(&whole, "z_loss").len(), if recipe.z_loss_coef > 0. { 8 } else { 0 }, "{name}");
    }
}

/// The metrics are those of the average, and the training is that without it.
#[test]
fn averaged_weights_are_evaluated_and_saved_and_do_not_change_the_training() {
    let dir = tempfile::tempdir().unwrap();
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    run(&PretrainRecipe { ema_decay: 0.5, save_every: 1, ..recipe() }, &with, quiet()).unwrap();
    run(&PretrainRecipe { save_every: 1, ..recipe() }, &without, quiet()).unwrap();
    assert_eq!(logged(&with, "loss"), logged(&without, "loss"));
    assert_ne!(logged(&with, "eval_loss"), logged(&without, "eval_loss"));
    let weights = |path: &Path| llm_model::read_safetensors(path).unwrap();
    let numbers = |x: &candle_core::Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let trained = weights(&with.join("checkpoints/step-8/trainer/weights.safetensors"));
    // With a decay of 0.5 (and 2/11, 3/12, … in the first steps), from the weights after each step.
    let init = Model::init(
        Model::load(&with).unwrap().config().clone(),
        llm_model::Head::LanguageModel,
        PretrainRecipe::default().seed,
    );
    let mut average: Vec<f32> = numbers(&init.unwrap().params().tensors()["model.norm.weight"]);
    let steps: Vec<Vec<f32>> = (1..=8)
        .map(|steps| {
            let out = dir.path().join(format!("{steps}"));
            let optimizer = OptimizerConfig { schedule: Schedule::Constant, ..recipe().optimizer };
            run(&PretrainRecipe { steps, optimizer, ..recipe() }, &out, quiet()).unwrap();
            numbers(&weights(&out.join("model.safetensors"))["model.norm.weight"])
        })
        .collect();
    for (n, step) in (1u32..).zip(&steps) {
        let decay = 0.5f32.min((1 + n) as f32 / (10 + n) as f32);
        average.iter_mut().zip(step).for_each(|(average, x)| *average = decay * *average + (1. - decay) * x);
    }
    let constant = dir.path().join("constant");
    let optimizer = OptimizerConfig { schedule: Schedule::Constant, ..recipe().optimizer };
    run(&PretrainRecipe { ema_decay: 0.5, optimizer, ..recipe() }, &constant, quiet()).unwrap();
    let found = numbers(&weights(&constant.join("model.safetensors"))["model.norm.weight"]);
    assert!(found.iter().zip(&average).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}\n{average:?}");
    let last = weights(&without.join("checkpoints/step-8/model.safetensors"));
    assert_eq!(numbers(&trained["model.norm.weight"]), numbers(&last["model.norm.weight"]));
}

/// A checkpoint that cannot be written ends the run at a later step with the path, and leaves the checkpoint before it.
#[test]
fn an_error_of_the_thread_that_writes_checkpoints_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    let recipe = PretrainRecipe { steps: 9, ..recipe() };
    run(&recipe, &whole, quiet()).unwrap();
    let obstacle = broken.join("checkpoints/.step-6.partial");
    let mut progress = 0;
    let mut obstruct = |event: Event| {
        if let Event::Progress { done, .. } = event {
            progress = done / 32;
            if progress == 4 {
                fs::create_dir_all(broken.join("checkpoints")).unwrap();
                fs::write(&obstacle, "in the way").unwrap();
            }
        }
    };
    let error = run(&recipe, &broken, RunOptions { observer: &mut obstruct, ..quiet() }).unwrap_err();
    assert!(error.to_string().contains(".step-6.partial"), "{error}");
    assert!(progress >= 6 && !broken.join("model.safetensors").exists(), "{progress}");
    assert!(broken.join("checkpoints/step-3").exists() && !broken.join("checkpoints/step-6").exists());
    fs::remove_file(&obstacle).unwrap();
    run(&recipe, &broken, super::options(true)).unwrap();
    assert!(contents(&whole) == contents(&broken));
}

#[test]
fn dropout_is_for_training_only() {
    let dir = tempfile::tempdir().unwrap();
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    run(&PretrainRecipe { dropout: 0.5, ..recipe() }, &with, quiet()).unwrap();
    run(&recipe(), &without, quiet()).unwrap();
    assert_eq!(logged(&with, "eval_loss")[0], logged(&without, "eval_loss")[0], "before the training");
    assert_ne!(logged(&with, "loss")[0], logged(&without, "loss")[0]);
}

#[test]
fn the_best_model_is_kept_and_throughput_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // So high a learning rate that the loss rises again.
    let optimizer = OptimizerConfig { learning_rate: 0.3, schedule: Schedule::Constant, ..recipe().optimizer };
    run(&PretrainRecipe { keep_best: true, optimizer, steps: 12, ..recipe() }, &out, quiet()).unwrap();
    let evaluations: Vec<(u64, f64)> = logged(&out, "eval_loss").into_iter().filter(|(step, _)| *step > 0).collect();
    let best = evaluations.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a }).unwrap();
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&out.join(format!("checkpoints/step-{}", best.0))), "{evaluations:?}");
    let (speeds, shares) = (logged(&out, "tokens_per_second"), logged(&out, "peak_share"));
    assert_eq!((speeds.len(), shares.len()), (12, 12));
    assert!(shares.iter().all(|(_, share)| *share > 0. && *share < 1.5), "{shares:?}");
}

#[test]
fn a_run_goes_on_from_a_hugging_face_folder() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = |tokenizer: &str| PretrainInputs {
        model: Some(FIXTURE.path("model")),
        tokenizer: FIXTURE.path(tokenizer),
        data: vec![FIXTURE.path("shards")],
    };
    let recipe = PretrainRecipe { model: PretrainRecipe::default().model, ..recipe() };
    let (out, torn) = (dir.path().join("run"), dir.path().join("torn"));
    pretrain(&recipe, &inputs("model.tokenizer"), &out, quiet()).unwrap();
    let (start, end) = (Model::load(FIXTURE.path("model")).unwrap(), Model::load(&out).unwrap());
    assert_eq!(start.config().hidden_size, end.config().hidden_size);
    let weights = |model: &Model| model.params().get("model.norm.weight").unwrap().to_dense().unwrap();
    let moved = (weights(&start) - weights(&end)).unwrap().abs().unwrap().max(0).unwrap();
    let moved = moved.to_scalar::<f32>().unwrap();
    // Eight steps of at most about the learning rate: the training began at the weights of the folder.
    assert!(moved > 0. && moved < 0.2, "{moved}");
    let losses = logged(&out, "eval_loss");
    assert!(losses[losses.len() - 1].1 < losses[0].1, "{losses:?}");
    // The initial loss is that of the model.
    let text = llm_data::TokenDataset::open(FIXTURE.path("shards"), "held_out").unwrap();
    let token_bytes = llm_tokenizer::Tokenizer::load(FIXTURE.path("model")).unwrap().token_bytes();
    let windows = llm_eval::TextWindows {
        data: &text,
        token_bytes: &token_bytes,
        batch_size: recipe.batch_size,
        seq_len: recipe.seq_len,
        max_batches: recipe.eval_batches,
    };
    let expected = llm_eval::text_loss(&start, &windows).unwrap().loss;
    assert!((losses[0].1 - expected).abs() < 1e-4, "{} is not {expected}", losses[0].1);

    // Stopped and resumed.
    let stop = AtomicBool::new(false);
    let mut watch = |event: Event| stop.store(matches!(event, Event::Progress { done, .. } if done >= 96), SeqCst);
    let options = RunOptions { observer: &mut watch, stop: &stop, ..quiet() };
    let error = pretrain(&recipe, &inputs("model.tokenizer"), &torn, options).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    pretrain(&recipe, &inputs("model.tokenizer"), &torn, super::options(true)).unwrap();
    assert!(contents(&out) == contents(&torn));

    // The table [model] is for a new model.
    let other = PretrainRecipe { model: Knobs::default().shape(), ..recipe };
    let message = pretrain(&other, &inputs("model.tokenizer"), dir.path().join("no"), quiet()).unwrap_err().to_string();
    assert!(message.contains("leave out the table [model]"), "{message}");
}
