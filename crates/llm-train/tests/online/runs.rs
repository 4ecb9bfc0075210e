//! Complete runs of the recipe.

use std::path::{Path, PathBuf};

use llm_model::{LoraConfig, Model};
use llm_train::loss::LossType;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{GrpoInputs, GrpoRecipe, grpo};
use llm_train::rewards::RewardTable;
use llm_train::run::RunOptions;
use llm_train::{Error, read_recipe};
use serde_json::{Value, json};

use super::common::{contents, fresh_model, quietly};
use super::with_loss;

/// A random model, questions with answers, and validation questions.
fn write_inputs(dir: &Path) -> GrpoInputs {
    fresh_model(&dir.join("model"), &"The sun and the rain. Say it again. 1 2 3 4".repeat(20), 16, 0.3);
    let row = |i: usize| format!("{}\n", json!({"question": format!("Say {i}."), "answer": format!("so #### {i}")}));
    std::fs::write(dir.join("train.jsonl"), (0..7).map(row).collect::<String>()).unwrap();
    std::fs::write(dir.join("test.jsonl"), (2..6).map(row).collect::<String>()).unwrap();
    GrpoInputs {
        model: dir.join("model"),
        reward: Vec::new(),
        data: dir.join("train.jsonl"),
        validation: Some(dir.join("test.jsonl")),
        adapter: None,
    }
}

fn rewards(tables: &str) -> Vec<RewardTable> {
    let recipe: GrpoRecipe = read_recipe("grpo", &[("rewards".to_owned(), tables.to_owned())]).unwrap();
    recipe.rewards
}

fn recipe(loss_type: LossType) -> GrpoRecipe {
    GrpoRecipe {
        updates: 4,
        prompts_per_update: 3,
        num_generations: 4,
        num_iterations: 2,
        num_mini_batches: 2,
        micro_batch_size: 5,
        max_new_tokens: 6,
        temperature: 1.,
        eval_every: 2,
        save_every: 2,
        rewards: rewards(r#"[{kind = "length", weight = 0.5}, {kind = "exact_answer"}]"#),
        optimizer: OptimizerConfig { learning_rate: 1e-3, ..GrpoRecipe::default().optimizer },
        ..with_loss(loss_type)
    }
}

fn lines(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn m8_a_run_is_reproducible_and_resumable() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = write_inputs(dir.path());
    let lora = Some(LoraConfig { r: 2, ..LoraConfig::default() });
    for (name, recipe) in [
        ("dapo", GrpoRecipe { beta: 0.1, ..recipe(LossType::Dapo) }),
        ("rloo", GrpoRecipe { beta: 0.1, ..recipe(LossType::Rloo) }),
        ("lora", GrpoRecipe { beta: 0.1, lora, ..recipe(LossType::DrGrpo) }),
    ] {
        let [one, two] = ["one", "two"].map(|run| dir.path().join(format!("{name}-{run}")));
        quietly(|options| grpo(&recipe, &inputs, &one, options)).unwrap();
        quietly(|options| grpo(&recipe, &inputs, &two, options)).unwrap();
        let expected = contents(&one);
        assert!(expected == contents(&two), "{name}");
        // Make the second run look as if it was killed after its third update.
        for file in ["trainer_state.json", "model.safetensors", "config.json", "adapter_model.safetensors"] {
            let _ = std::fs::remove_file(two.join(file));
        }
        std::fs::remove_dir_all(two.join("checkpoints/step-4")).unwrap();
        grpo(&recipe, &inputs, &two, RunOptions { resume: true, ..RunOptions::default() }).unwrap();
        let found = contents(&two);
        let different: Vec<&PathBuf> =
            expected.keys().filter(|file| found.get(*file) != Some(&expected[*file])).collect();
        assert!(different.is_empty() && expected.len() == found.len(), "{name}: {different:?}");
    }
}

#[test]
fn a_run_logs_rewards_by_source_evaluates_and_writes_samples() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = write_inputs(dir.path());
    let out = dir.path().join("run");
    quietly(|options| grpo(&recipe(LossType::Dapo), &inputs, &out, options)).unwrap();
    let all = lines(&out);
    let updates: Vec<&Value> = all.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(updates.len(), 4);
    for line in updates {
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
        let sum = 0.5 * number("rewards/length/mean") + number("rewards/exact_answer/mean");
        assert!((number("reward") - sum).abs() < 1e-9, "{line}");
        assert!((number("rewards/length/mean") - number("completions/mean_length")).abs() < 1e-9);
        for name in
            ["reward_std", "frac_reward_zero_std", "clip_ratio/low_mean", "entropy", "grad_norm", "learning_rate"]
        {
            number(name);
        }
        assert!(number("sampling/logprob_diff_max") < 1e-4 && line.get("kl").is_none(), "{line}");
    }
    let evaluations: Vec<&Value> = all.iter().filter(|line| line.get("eval_reward").is_some()).collect();
    assert_eq!(evaluations.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4]);
    for line in evaluations {
        let [mean, low, high] = ["", "_low", "_high"].map(|end| line[format!("eval_reward{end}")].as_f64().unwrap());
        assert!(low <= mean && mean <= high && line.get("eval_rewards/length/mean").is_some(), "{line}");
    }
    let read = |name: &str| std::fs::read_to_string(out.join("samples").join(name)).unwrap();
    assert_eq!(read("step-4.txt").lines().count(), 12);
    assert_eq!(read("validation-step-4.txt").lines().count(), 4);
    let sample: Value = serde_json::from_str(read("step-4.txt").lines().next().unwrap()).unwrap();
    assert!(
        ["prompt", "completion", "finished", "score", "reward", "advantage"]
            .iter()
            .all(|key| sample.get(key).is_some())
    );
    Model::load(&out).unwrap();
}

#[test]
fn a_recipe_that_cannot_learn_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = write_inputs(dir.path());
    let out = dir.path().join("run");
    let good = recipe(LossType::Dapo);
    for (recipe, part) in [
        (GrpoRecipe { num_generations: 1, ..good.clone() }, "num_generations is 1; it must be"),
        (GrpoRecipe { num_mini_batches: 13, ..good.clone() }, "num_mini_batches is 13; it must be"),
        (GrpoRecipe { temperature: 0., ..good.clone() }, "temperature"),
        (GrpoRecipe { rewards: Vec::new(), ..good.clone() }, "reward"),
    ] {
        let error: Error = quietly(|options| grpo(&recipe, &inputs, &out, options)).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(part), "{error}");
        assert!(!out.exists());
    }
}
