//! Best-of-n and expert iteration as runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use llm_data::read_jsonl;
use llm_train::Error;
use llm_train::recipes::{
    BestOfNInputs, BestOfNRecipe, ExpertIterationInputs, ExpertIterationRecipe, best_of_n, expert_iteration,
};
use llm_train::run::{Event, RunOptions};
use serde_json::{Value, json};

use super::common::{contents, fresh_model, quietly};

/// Writes a random model and prompts.
fn inputs(dir: &Path, prompts: usize) -> (PathBuf, PathBuf) {
    let (model, data) = (dir.join("model"), dir.join("prompts.jsonl"));
    fresh_model(&model, &"The sun and the rain. Say it again.".repeat(20), 16, 0.3);
    let lines: Vec<String> = (0..prompts).map(|i| format!("{}\n", json!({ "prompt": format!("Say {i}.") }))).collect();
    std::fs::write(&data, lines.concat()).unwrap();
    (model, data)
}

/// Five replies of at most eight tokens; the reward is 1 for a reply with an "a".
fn recipe() -> BestOfNRecipe {
    let set = [
        ("n", "5"),
        ("batch_size", "4"),
        ("max_new_tokens", "8"),
        ("missing_eos", "none"),
        ("rewards", "[{ kind = \"regex\", pattern = \"a\" }]"),
    ];
    llm_train::read_recipe("best-of-n", &set.map(|(key, value)| (key.to_owned(), value.to_owned()))).unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    read_jsonl(path).unwrap().into_iter().map(|(_, value)| value).collect()
}

#[test]
fn the_best_of_five_replies_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = inputs(dir.path(), 12);
    let inputs = BestOfNInputs { model, data, reward: Vec::new(), adapter: None };
    let path = |name: &str| dir.path().join(name);
    let table = quietly(|options| best_of_n(&recipe(), &inputs, path("one"), options)).unwrap();
    let (best, replies) = (rows(&path("one/best.jsonl")), rows(&path("one/replies.jsonl")));
    assert_eq!((best.len(), replies.len()), (12, 12));
    let (mut of_best, mut of_all) = (0., 0.);
    for (best, line) in best.iter().zip(&replies) {
        let rewards: Vec<f64> = line["rewards"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(rewards.len(), 5);
        let top = rewards.iter().copied().fold(0., f64::max);
        let first = rewards.iter().position(|x| *x == top).unwrap();
        assert_eq!(best["messages"][1]["content"], line["replies"][first]);
        assert_eq!(best["messages"][0], line["prompt"][0]);
        of_best += top / 12.;
        of_all += rewards.iter().sum::<f64>() / 60.;
    }
    assert!(of_best > of_all + 0.2, "rewards must differ: {of_best}, {of_all}");
    assert!(
        table.contains(&format!("| 1 | {of_all:.4} | 0.000 |")) && table.contains(&format!("| 5 | {of_best:.4} |")),
        "{table}"
    );

    // Stopped after its first batch and resumed, it ends in the same bytes. A finished run is not repeated.
    let stop = AtomicBool::new(false);
    let mut observer = |event: Event| {
        stop.fetch_or(matches!(event, Event::Progress { .. }), SeqCst);
    };
    let options = RunOptions { observer: &mut observer, stop: &stop, ..RunOptions::default() };
    let error = best_of_n(&recipe(), &inputs, path("two"), options).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert_eq!(rows(&path("two/replies.jsonl")).len(), 4);
    let resumed = || RunOptions { resume: true, ..RunOptions::default() };
    assert_eq!(best_of_n(&recipe(), &inputs, path("two"), resumed()).unwrap(), table);
    assert!(contents(&path("one")) == contents(&path("two")));
    assert_eq!(best_of_n(&recipe(), &inputs, path("two"), resumed()).unwrap(), table);

    // Other batches give other replies to the same prompts only by their seeds; another seed gives other replies.
    let other = BestOfNRecipe { seed: 7, ..recipe() };
    quietly(|options| best_of_n(&other, &inputs, path("three"), options)).unwrap();
    assert_ne!(rows(&path("three/replies.jsonl")), replies);
}

#[test]
fn expert_iteration_raises_the_reward_of_its_replies() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = inputs(dir.path(), 48);
    let inputs = ExpertIterationInputs { model, data, reward: Vec::new() };
    let mut recipe = ExpertIterationRecipe { iterations: 3, best_of_n: recipe(), ..ExpertIterationRecipe::default() };
    (recipe.finetune.epochs, recipe.finetune.batch_size) = (12, 4);
    (recipe.finetune.optimizer.learning_rate, recipe.finetune.optimizer.warmup_steps) = (1e-2, 0);
    let run = |out: &Path, resume: bool| {
        expert_iteration(&recipe, &inputs, out, RunOptions { resume, ..RunOptions::default() }).unwrap()
    };
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let report = run(&one, false);
    // The mean reward of one reply, in each iteration.
    let means: Vec<f64> =
        report.lines().filter_map(|line| line.strip_prefix("| 1 | ")?.split(' ').next()?.parse().ok()).collect();
    assert!(means.len() == 3 && means[2] > means[0] + 0.2, "{report}");
    assert!(one.join("iteration-3/model/model.safetensors").is_file());

    // Without the last iteration, as if it had been killed, it is resumed to the same bytes.
    run(&two, false);
    std::fs::remove_dir_all(two.join("iteration-3")).unwrap();
    std::fs::remove_dir_all(two.join("iteration-2/model")).unwrap();
    for file in ["trainer_state.json", "report.md"] {
        std::fs::remove_file(two.join(file)).unwrap();
    }
    assert_eq!(run(&two, true), report);
    // The recipes of the iterations contain the paths of their inputs.
    let results = |dir: &Path| {
        let is_recipe = |path: &Path| path.ends_with("recipe.toml") || path.ends_with(".recipe.toml");
        contents(dir).into_iter().filter(|(path, _)| !is_recipe(path)).collect::<Vec<_>>()
    };
    assert!(results(&one) == results(&two));
}
