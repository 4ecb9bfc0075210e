//! What a run does with its evaluations: answers to prompts, the best checkpoint, an early end; the same after a kill.

use std::fs;
use std::path::Path;

use llm_data::{ChatMessage, Conversation, write_jsonl};
use llm_train::recipes::{FinetuneInputs, FinetuneRecipe, finetune};
use llm_train::run::{Best, Event, Outcome, RunOptions};
use llm_train::{Error, Result};
use serde_json::Value;

use super::common::contents;
use super::{FIXTURE, Knobs, options, quiet};

/// Two training rows that a model learns by heart, and validation rows with other answers to the same prompts: the validation loss
/// rises.
fn write_data(dir: &Path) {
    let chat =
        |say: &str, answer: &str| Conversation::from(vec![ChatMessage::user(say), ChatMessage::assistant(answer)]);
    write_jsonl(&dir.join("train.jsonl"), &[chat("Say one.", "two and three."), chat("Say four.", "five.")]).unwrap();
    write_jsonl(&dir.join("validation.jsonl"), &[chat("Say one.", "six."), chat("Say four.", "five and two.")])
        .unwrap();
}

fn recipe() -> FinetuneRecipe {
    FinetuneRecipe {
        epochs: 24,
        batch_size: 2,
        eval_every: 2,
        save_every: 5,
        eval_prompts: 2,
        eval_max_new_tokens: 12,
        optimizer: Knobs { learning_rate: 0.03, ..Knobs::default() }.optimizer(),
        ..FinetuneRecipe::default()
    }
}

fn run(recipe: &FinetuneRecipe, data: &Path, out: &Path, options: RunOptions) -> Result<Outcome> {
    let inputs = FinetuneInputs {
        adapter: None,
        model: FIXTURE.path("model"),
        data: vec![data.join("train.jsonl")],
        validation: Some(data.join("validation.jsonl")),
        text: None,
    };
    finetune(recipe, &inputs, out, options)
}

/// (step, value) of a metric.
fn logged(run: &Path, name: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line[name].as_f64()?))).collect()
}

#[test]
fn an_early_end_with_the_best_model_is_the_same_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let recipe = FinetuneRecipe { early_stop_patience: 3, keep_best: true, ..recipe() };
    let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
    let outcome = run(&recipe, dir.path(), &whole, quiet()).unwrap();
    let evaluations: Vec<(u64, f64)> = logged(&whole, "eval_loss").into_iter().filter(|(step, _)| *step > 0).collect();
    let best = evaluations.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a }).unwrap();
    let after = evaluations.iter().filter(|(step, _)| *step > best.0).count();
    assert!(outcome.steps < 24 && after == 3, "{evaluations:?}");
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    let kept = whole.join(format!("checkpoints/step-{}", best.0));
    assert!(weights(&whole) == weights(&kept), "the result is the model of step {}", best.0);
    assert!(weights(&whole) != weights(&whole.join(format!("checkpoints/step-{}", outcome.steps))));

    // Stopped after each step in turn.
    loop {
        let stop = std::sync::atomic::AtomicBool::new(false);
        let mut watch = |event: Event| {
            if let Event::Progress { .. } = event {
                stop.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        };
        let options =
            RunOptions { resume: torn.exists(), device: candle_core::Device::Cpu, observer: &mut watch, stop: &stop };
        match run(&recipe, dir.path(), &torn, options) {
            Err(Error::Interrupted { .. }) => {}
            done => break drop(done.unwrap()),
        }
    }
    assert!(contents(&whole) == contents(&torn));
    let again = run(&recipe, dir.path(), &whole, options(true)).unwrap();
    assert!(again.was_finished && again.steps == outcome.steps);
    // A damaged result is found in the checkpoint of the best evaluation.
    fs::remove_file(whole.join("model.safetensors")).unwrap();
    let message = run(&recipe, dir.path(), &whole, options(true)).unwrap_err().to_string();
    assert!(message.contains(&format!("step-{}/model.safetensors", best.0)), "{message}");
}

#[test]
fn answers_are_compared_and_shown_and_do_not_change_the_training() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    // The model learns its training rows, so it answers them; here they are the validation rows too, with one more.
    let text = fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
    let other = fs::read_to_string(dir.path().join("validation.jsonl")).unwrap();
    let rows = format!("{text}{}", other.lines().next().unwrap());
    fs::write(dir.path().join("validation.jsonl"), rows).unwrap();
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    let asked = FinetuneRecipe { eval_prompts: 3, best: Best::ExactMatch, ..recipe() };
    run(&asked, dir.path(), &with, quiet()).unwrap();
    let matches = logged(&with, "exact_match");
    assert_eq!(matches.first().map(|(_, share)| *share), Some(0.), "before the training");
    // "one" has two different answers, so at most two of three are right.
    assert!((matches.last().unwrap().1 - 2. / 3.).abs() < 1e-9, "{matches:?}");
    let sample = fs::read_to_string(with.join("samples/step-24.txt")).unwrap();
    assert!(sample.contains("--- expected\nfive.\n--- right\nfive.\n"), "{sample}");
    assert!(sample.contains("--- wrong\ntwo and three."), "{sample}");
    assert!(fs::read_to_string(with.join("report.html")).unwrap().contains("step-24.txt"));
    let unasked = FinetuneRecipe { eval_prompts: 0, ..recipe() };
    run(&unasked, dir.path(), &without, quiet()).unwrap();
    let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(&with) == weights(&without));
    let wrong = FinetuneRecipe { eval_prompts: 0, best: Best::ExactMatch, ..recipe() };
    let message = run(&wrong, dir.path(), &dir.path().join("never"), quiet()).unwrap_err().to_string();
    assert_eq!(message, "best is \"exact_match\"; eval_prompts must then be at least 1");
}

#[test]
fn noise_changes_the_training_and_not_the_evaluation_before_it() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let (noisy, plain) = (dir.path().join("noisy"), dir.path().join("plain"));
    let recipe = FinetuneRecipe { epochs: 2, ..recipe() };
    run(&FinetuneRecipe { neftune_noise_alpha: 5., ..recipe.clone() }, dir.path(), &noisy, quiet()).unwrap();
    run(&recipe, dir.path(), &plain, quiet()).unwrap();
    assert_eq!(logged(&noisy, "eval_loss")[0], logged(&plain, "eval_loss")[0]);
    assert_ne!(logged(&noisy, "loss")[0], logged(&plain, "loss")[0]);
}
