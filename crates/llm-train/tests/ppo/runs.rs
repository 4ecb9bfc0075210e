//! Complete runs of the recipe.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use llm_model::{Model, ModelConfig, Params};
use llm_tokenizer::{ChatMessage, Tokenizer};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoInputs, PpoRecipe, ppo};
use llm_train::run::RunOptions;
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

/// Prompt and reply of each sample that a run wrote after `done` updates.
fn samples(run: &Path, done: u64) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(run.join(format!("samples/step-{done}.txt"))).unwrap();
    let line = |line: &str| -> (String, String) {
        let line: Value = serde_json::from_str(line).unwrap();
        ["prompt", "response"].map(|key| line[key].as_str().unwrap().to_owned()).into()
    };
    text.lines().map(line).collect()
}

/// Writes a prompt file.
fn write_prompts(path: &Path, prompts: &[&str]) {
    let lines: Vec<String> = prompts.iter().map(|prompt| format!("{}\n", json!({ "prompt": prompt }))).collect();
    std::fs::write(path, lines.concat()).unwrap();
}

/// Three prompts, eight episodes per update.
#[test]
fn m8_a_run_is_reproducible_and_resumable() {
    a_run_is_reproducible_and_resumable(false);
}

#[test]
fn m8_a_run_with_a_value_head_on_the_policy_is_reproducible_and_resumable() {
    a_run_is_reproducible_and_resumable(true);
}

fn a_run_is_reproducible_and_resumable(value_head_on_policy: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (reward, model, data) =
        (reward_folder(dir.path(), -7., 0.01), dir.path().join("model"), dir.path().join("p.jsonl"));
    write_prompts(&data, &["Say it.", "Say it again.", "The sun?"]);
    let recipe = PpoRecipe {
        updates: 5,
        episodes: 8,
        num_ppo_epochs: 2,
        num_mini_batches: 3,
        max_new_tokens: 6,
        kl_target_per_sequence: Some(0.1),
        kl_horizon: 20.,
        value_head_on_policy,
        save_every: 2,
        value_optimizer: OptimizerConfig { learning_rate: 3e-3, weight_decay: 0.1, beta2: 0.9, ..recipe().optimizer },
        ..recipe()
    };
    let inputs = PpoInputs { adapter: None, model: model.clone(), reward: vec![reward.clone()], data: data.clone() };
    let path = |name: &str| dir.path().join(name);
    quietly(|options| ppo(&recipe, &inputs, &path("one"), options)).unwrap();
    quietly(|options| ppo(&recipe, &inputs, &path("two"), options)).unwrap();
    let lines = metrics(&path("one"));
    assert_eq!(lines, metrics(&path("two")));
    // Scores are rescaled: with the statistics in the folder they would be several hundred.
    let first = lines[0]["objective/scores"].as_f64().unwrap();
    assert!(first.abs() < 1.5, "the reference's replies have mean 0 and deviation 1, the first eight {first}");
    let episodes: Vec<f64> = lines.iter().map(|line| line["episode"].as_f64().unwrap()).collect();
    assert_eq!(episodes, [8., 16., 24., 32., 40.]);
    for (update, line) in lines.iter().enumerate() {
        assert!((line["lr"].as_f64().unwrap() - 1e-3 * (1. - update as f64 / 5.)).abs() < 1e-12, "{line}");
    }
    for done in [2, 4, 5] {
        assert_eq!(samples(&path("one"), done).len(), 8);
    }
    let state = std::fs::read_to_string(path("one").join("checkpoints/step-5/trainer/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert!(
        state["reward_scales"][0]["std"].as_f64().is_some_and(|std| std != 1.),
        "the scale is measured on several different replies"
    );
    assert!(lines[0]["objective/kl_coef"] != lines[4]["objective/kl_coef"], "the KL coefficient must change");

    // Make the second run look as if it was killed after its fourth update.
    for file in ["trainer_state.json", "model.safetensors", "config.json"] {
        std::fs::remove_file(path("two").join(file)).unwrap();
    }
    std::fs::remove_dir_all(path("two").join("checkpoints/step-5")).unwrap();
    ppo(&recipe, &inputs, &path("two"), RunOptions { resume: true, ..RunOptions::default() }).unwrap();
    assert_eq!(lines, metrics(&path("two")));
    let model = |run: &str| std::fs::read(path(run).join("model.safetensors")).unwrap();
    assert_eq!(model("one"), model("two"));
}

/// Rules and a program instead of a reward model: the critic starts at 0, and the resumed run gives the same bytes.
#[test]
fn m6_m8_a_run_without_a_reward_model_is_reproducible_and_resumable() {
    let dir = tempfile::tempdir().unwrap();
    reward_folder(dir.path(), 0., 1.);
    let data = dir.path().join("p.jsonl");
    let rows =
        ["Say it.", "Say it again.", "The sun?"].map(|prompt| json!({"prompt": prompt, "answer": "7"}).to_string());
    std::fs::write(&data, rows.join("\n")).unwrap();
    let kinds = r#"
        [[rewards]]
        kind = "exact_answer"
        [[rewards]]
        kind = "length"
        weight = 0.25
        [[rewards]]
        kind = "command"
        name = "letters"
        command = ["sh", "-c", "while read -r line; do echo $((${#line} % 7)); done"]
    "#;
    std::fs::write(dir.path().join("recipe.toml"), kinds).unwrap();
    let read = llm_train::read_recipe::<PpoRecipe>(&dir.path().join("recipe.toml").display().to_string(), &[]).unwrap();
    let recipe =
        PpoRecipe { updates: 4, episodes: 8, max_new_tokens: 6, save_every: 2, rewards: read.rewards, ..recipe() };
    let inputs = PpoInputs { adapter: None, model: dir.path().join("model"), reward: vec![], data };
    let path = |name: &str| dir.path().join(name);
    quietly(|options| ppo(&recipe, &inputs, &path("one"), options)).unwrap();
    quietly(|options| ppo(&recipe, &inputs, &path("two"), options)).unwrap();
    let lines = metrics(&path("one"));
    assert_eq!(lines, metrics(&path("two")));
    let number = |name: &str| lines[0][name].as_f64().unwrap_or_else(|| panic!("{name} in {}", lines[0]));
    let sum =
        number("rewards/exact_answer/mean") + 0.25 * number("rewards/length/mean") + number("rewards/letters/mean");
    assert!((number("rollout/raw_scores") - sum).abs() < 1e-9 && number("rewards/letters/std") > 0.1);
    assert!((number("rewards/length/mean") - number("rollout/length")).abs() < 1e-9);
    assert!(number("val/explained_var").abs() < 1e-6, "all values are 0 at first");
    for file in ["trainer_state.json", "model.safetensors", "config.json"] {
        std::fs::remove_file(path("two").join(file)).unwrap();
    }
    std::fs::remove_dir_all(path("two").join("checkpoints/step-4")).unwrap();
    ppo(&recipe, &inputs, &path("two"), RunOptions { resume: true, ..RunOptions::default() }).unwrap();
    assert_eq!(lines, metrics(&path("two")));
    let model = |run: &str| std::fs::read(path(run).join("model.safetensors")).unwrap();
    assert_eq!(model("one"), model("two"));

    // Without any source there is nothing to learn.
    let nothing = PpoRecipe { rewards: vec![], ..recipe };
    let message = quietly(|options| ppo(&nothing, &inputs, &path("none"), options)).unwrap_err().to_string();
    assert!(
        message.starts_with("no reward: give the folder of a reward model with --reward") && !path("none").exists()
    );
}

/// Runs PPO on these prompts with the models that [`reward_folder`] wrote to `dir`; returns the run folder.
fn run(dir: &Path, name: &str, recipe: &PpoRecipe, prompts: &[&str]) -> llm_train::Result<PathBuf> {
    let (model, reward, data, out) =
        (dir.join("model"), dir.join("reward"), dir.join(format!("{name}.jsonl")), dir.join(name));
    write_prompts(&data, prompts);
    let inputs = PpoInputs { adapter: None, model: model.clone(), reward: vec![reward.clone()], data: data.clone() };
    quietly(|options| ppo(recipe, &inputs, &out, options))?;
    Ok(out)
}

#[test]
fn all_prompts_that_leave_room_for_a_reply_are_used() {
    let dir = tempfile::tempdir().unwrap();
    reward_folder(dir.path(), 0., 1.);
    let tokenizer = Tokenizer::load(dir.path().join("model")).unwrap();
    let model = Model::load(dir.path().join("model")).unwrap();
    let config = ModelConfig { max_position_embeddings: 24, ..model.config().clone() };
    let params = Params::new(model.params().tensors());
    Model::new(config, model.head(), params).unwrap().save(dir.path().join("model")).unwrap();
    let tokens = |prompt: &str| tokenizer.encode_chat(&[ChatMessage::new("user", prompt)], true).unwrap().len();
    let (short, long) = (["b", "c", "d"], "bc");
    assert!(short.iter().all(|prompt| tokens(prompt) + 1 == tokens(long)), "one token more");
    let drawn = |max_new_tokens: usize| {
        let recipe = PpoRecipe { updates: 2, episodes: 3, save_every: 1, max_new_tokens, ..recipe() };
        let out = run(dir.path(), &max_new_tokens.to_string(), &recipe, &[short[0], short[1], short[2], long])?;
        let prompts: BTreeSet<String> =
            [1, 2].into_iter().flat_map(|done| samples(&out, done)).map(|(prompt, _)| prompt).collect();
        Ok::<_, llm_train::Error>(prompts.into_iter().map(|prompt| prompt.trim().to_owned()).collect::<Vec<_>>())
    };
    // A short prompt with the header of the assistant's turn leaves exactly this many positions, the long one one less.
    let room = 24 - tokens("b");
    assert_eq!(drawn(room).unwrap().len(), 3);
    assert!(drawn(room + 1).unwrap_err().to_string().contains("no prompt leaves room"));
    assert_eq!(drawn(room - 1).unwrap().len(), 4, "the second update continues the order of the first");
}

/// At a low temperature this policy always ends its turn at once, at temperature 1 often not. Then all replies are equal, also
/// those that the reward scale is measured on, and their scaled score is 0.
#[test]
fn replies_stop_at_the_end_of_turn_token_at_the_recipe_temperature() {
    let dir = tempfile::tempdir().unwrap();
    reward_folder(dir.path(), 0., 1.);
    let path = dir.path().join("model");
    let (model, tokenizer) = (Model::load(&path).unwrap(), Tokenizer::load(&path).unwrap());
    let end = tokenizer.chat_format().unwrap().end_of_turn;
    let mut tensors = model.params().tensors();
    for (name, tensor) in &mut tensors {
        if name.contains("embed_tokens") {
            let (rows, width) = tensor.dims2().unwrap();
            let row = |id: usize| vec![if id == end as usize { 0.4f32 } else { 0.01 }; width];
            let all: Vec<f32> = (0..rows).flat_map(row).collect();
            *tensor = Tensor::from_vec(all, (rows, width), &Device::Cpu).unwrap();
        } else if name.contains("down_proj") || name.contains("o_proj") {
            *tensor = tensor.zeros_like().unwrap();
        }
    }
    let certain = Model::new(model.config().clone(), model.head(), Params::new(tensors)).unwrap();
    certain.save(&path).unwrap();
    let at = |temperature: f64| {
        let recipe = PpoRecipe { updates: 1, episodes: 16, max_new_tokens: 6, temperature, ..recipe() };
        let out = run(dir.path(), &format!("at-{temperature}"), &recipe, &["sun"]).unwrap();
        let line = metrics(&out).remove(0);
        ["rollout/length", "val/num_eos_tokens", "objective/scores"].map(|name| line[name].as_f64().unwrap())
    };
    let [length, ended, score] = at(0.25);
    assert!((length, ended) == (1., 16.) && score.abs() < 1e-5, "{length}, {ended}, {score}");
    let [length, ..] = at(1.);
    assert!(length > 1.2, "{length}");
}

#[test]
fn each_update_and_each_seed_samples_different_replies() {
    let dir = tempfile::tempdir().unwrap();
    reward_folder(dir.path(), 0., 1.);
    let still = OptimizerConfig { learning_rate: 1e-30, ..recipe().optimizer };
    let replies = |seed: u64| {
        let recipe = PpoRecipe {
            seed,
            updates: 2,
            episodes: 4,
            max_new_tokens: 6,
            save_every: 1,
            optimizer: still.clone(),
            ..recipe()
        };
        let out = run(dir.path(), &seed.to_string(), &recipe, &["sun"]).unwrap();
        [1, 2].map(|done| samples(&out, done))
    };
    let [[first, second], [other, _]] = [1, 2].map(replies);
    assert_ne!(first, second);
    assert_ne!(first, other);
}
