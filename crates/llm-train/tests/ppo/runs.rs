//! Complete runs of the recipe.

use std::path::Path;

use llm_train::recipes::{PpoInputs, PpoRecipe, ppo};
use llm_train::run::{NEVER, RunOptions};
use serde_json::{Value, json};

use super::common::quietly;
use super::{recipe, reward_folder};

/// The lines of `metrics.jsonl` without the time.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("elapsed_s");
        line
    };
    text.lines().map(line).collect()
}

/// Three prompts, eight episodes per update.
#[test]
fn m8_a_run_is_reproducible_and_resumable() {
    let dir = tempfile::tempdir().unwrap();
    let (reward, model, data) =
        (reward_folder(dir.path(), -7., 0.01), dir.path().join("model"), dir.path().join("p.jsonl"));
    let prompts = ["Say it.", "Say it again.", "The sun?"].map(|p| format!("{}\n", json!({ "prompt": p })));
    std::fs::write(&data, prompts.concat()).unwrap();
    let recipe = PpoRecipe {
        updates: 5,
        episodes: 8,
        num_ppo_epochs: 2,
        num_mini_batches: 3,
        max_new_tokens: 6,
        kl_target_per_sequence: Some(0.1),
        kl_horizon: 20.,
        save_every: 2,
        ..recipe()
    };
    let inputs = PpoInputs { model: &model, reward: &reward, data: &data };
    let path = |name: &str| dir.path().join(name);
    quietly(|options| ppo(&recipe, inputs, &path("one"), options)).unwrap();
    quietly(|options| ppo(&recipe, inputs, &path("two"), options)).unwrap();
    let lines = metrics(&path("one"));
    assert_eq!(lines, metrics(&path("two")));
    // Scores are rescaled: with the statistics in the folder they would be several hundred.
    let first = lines[0]["objective/scores"].as_f64().unwrap();
    assert!(first.abs() < 1.5, "the reference's replies have mean 0 and deviation 1, the first eight {first}");
    let episodes: Vec<f64> = lines.iter().map(|line| line["episode"].as_f64().unwrap()).collect();
    assert_eq!(episodes, [8., 16., 24., 32., 40.]);
    assert!(lines[0]["objective/kl_coef"] != lines[4]["objective/kl_coef"], "the KL coefficient must change");

    // Make the second run look as if it was killed after its fourth update.
    for file in ["trainer_state.json", "model.safetensors", "config.json"] {
        std::fs::remove_file(path("two").join(file)).unwrap();
    }
    std::fs::remove_dir_all(path("two").join("checkpoints/step-5")).unwrap();
    ppo(&recipe, inputs, &path("two"), RunOptions { resume: true, observer: &mut |_| (), stop: &NEVER }).unwrap();
    assert_eq!(lines, metrics(&path("two")));
    let model = |run: &str| std::fs::read(path(run).join("model.safetensors")).unwrap();
    assert_eq!(model("one"), model("two"));
}
