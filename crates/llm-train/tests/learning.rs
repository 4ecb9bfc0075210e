//! A tiny run of the whole pipeline: the metrics of each stage are above thresholds that a stage without learning misses.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::quietly;
use llm_train::read_recipe;
use llm_train::recipes::{LifecycleRecipe, lifecycle};
use serde_json::Value;

/// Models of 150 thousand parameters, trained for about half a minute in total.
const TINY: [(&str, &str); 39] = [
    ("world.corpus_bytes", "1500000"),
    ("questions.tasks", "1200"),
    ("questions.crowd", "1500"),
    ("questions.dialogues", "20"),
    ("questions.echoes", "20"),
    ("questions.rankings", "400"),
    ("questions.prompts", "200"),
    ("questions.lessons", "60"),
    ("questions.held_out", "60"),
    ("questions.probes", "60"),
    ("tokenizer.vocab_size", "1200"),
    ("pretrain.steps", "1600"),
    ("pretrain.seq_len", "64"),
    ("pretrain.eval_batches", "4"),
    ("pretrain.model.hidden_size", "64"),
    ("pretrain.model.intermediate_size", "128"),
    ("pretrain.model.num_hidden_layers", "2"),
    ("pretrain.model.num_attention_heads", "4"),
    ("pretrain.model.num_key_value_heads", "2"),
    ("pretrain.optimizer.learning_rate", "4e-3"),
    ("finetune.epochs", "6"),
    ("finetune.text_batch_size", "2"),
    ("finetune.seq_len", "64"),
    ("finetune.optimizer.learning_rate", "3e-3"),
    ("reward.epochs", "3"),
    ("reward.optimizer.learning_rate", "1e-3"),
    ("ppo.updates", "24"),
    ("ppo.episodes", "32"),
    ("ppo.kl_coef", "0.1"),
    ("ppo.optimizer.learning_rate", "5e-4"),
    ("distill.text_steps", "400"),
    ("distill.epochs", "2"),
    ("distill.seq_len", "64"),
    ("distill.eval_every", "0"),
    ("distill.student.hidden_size", "32"),
    ("distill.student.intermediate_size", "64"),
    ("distill.student.num_hidden_layers", "2"),
    ("distill.student.num_attention_heads", "2"),
    ("distill.student.num_key_value_heads", "1"),
];

/// A metric of the report: its value, and its references by name.
fn metric(evaluation: &Value, name: &str) -> (f64, impl Fn(&str) -> f64 + use<>) {
    let metrics = evaluation["metrics"].as_array().unwrap();
    let metric = metrics.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no metric {name:?}")).clone();
    let value = metric["value"].as_f64().unwrap();
    let reference = move |name: &str| {
        let pair = metric["references"].as_array().unwrap().iter().find(|pair| pair[0] == name);
        pair.unwrap_or_else(|| panic!("no reference {name:?}"))[1].as_f64().unwrap()
    };
    (value, reference)
}

/// Measured: reward 81.7 % where the rule has 69.9 %, utility 0.31 to 0.48. Models of this size do not learn the probes.
#[test]
fn every_stage_of_a_tiny_pipeline_learns() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pipeline");
    let overrides: Vec<(String, String)> = TINY.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let recipe: LifecycleRecipe = read_recipe("lifecycle", &overrides).unwrap();
    quietly(|options| lifecycle(&recipe, &out, options)).unwrap();
    let text = std::fs::read_to_string(out.join("evaluation.json")).unwrap();
    let evaluation: Value = serde_json::from_str(&text).unwrap();

    let (loss, reference) = metric(&evaluation, "validation loss, nats per token");
    assert!(loss < 1.6 && reference("untrained") > 6.5, "pre-training: {loss}");
    assert!(reference("fine-tuned") < 2., "rehearsal keeps plain text: {}", reference("fine-tuned"));
    let (_, reference) = metric(&evaluation, "task accuracy after fine-tuning, held-out facts");
    let answers = eval_losses(&out.join("instruct"));
    assert!(answers[answers.len() - 1] < 0.5 * answers[0], "fine-tuning: {answers:?}");
    let cloze = reference("base model, as text completion");
    assert!(cloze > 0.12 && cloze > reference("nearest training prompt"), "facts of the text: {cloze}");
    let (reward, reference) = metric(&evaluation, "— training themes, held-out questions");
    assert!(reward > reference("rule: caution and plain words") + 0.02, "reward model: {reward}");
    assert!(
        reward < reference("noise ceiling of the annotator") + 0.04,
        "above the noise ceiling means leaked data: {reward}"
    );
    let (after, reference) = metric(&evaluation, "— true utility, training themes");
    assert!(after > reference("before PPO") + 0.08, "PPO: {} to {after}", reference("before PPO"));
    let (score, reference) = metric(&evaluation, "— reward model score");
    assert!(score > reference("before PPO") + 0.2, "PPO raises what it optimises: {score}");
    // Without the deciding word the answer cannot be known: exactly half of the probes are right.
    for name in ["pronoun reference", "long-range dependency", "subject-verb agreement", "word sense", "negation"] {
        let (_, reference) = metric(&evaluation, &format!("probe accuracy: {name}"));
        assert_eq!(reference("deciding word deleted"), 0.5, "{name}");
        assert!(reference("best n-gram model, n = 1 to 5") < 0.6, "{name}");
    }
    let lessons = eval_losses(&out.join("student"));
    assert!(lessons[lessons.len() - 1] < 5.6, "distillation; an untrained student has ln(1200) = 7.1: {lessons:?}");
}

/// The validation losses of a stage, from its first evaluation on.
fn eval_losses(stage: &std::path::Path) -> Vec<f64> {
    let text = std::fs::read_to_string(stage.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line["eval_loss"].as_f64()).collect()
}
