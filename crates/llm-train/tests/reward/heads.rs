//! Ties, whole orders and several heads: what is trained, logged, saved, and read again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use llm_data::ChatMessage;
use llm_model::{Head, LoraConfig};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{RankingLoss, RewardInputs, RewardModel, RewardRecipe, reward};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::common::{contents, fresh_model, quietly};
use super::scores::metrics;

pub(super) const TEXT: &str = "Say 1. sun rain tree stone bird moon 2 3 4 5 6 7 8 9 0 ";

pub(super) fn inputs(dir: &Path, validation: Option<&str>) -> RewardInputs {
    RewardInputs {
        model: dir.join("model"),
        data: vec![dir.join("train.jsonl")],
        validation: validation.map(|name| dir.join(name)),
        adapter: None,
    }
}

/// A recipe whose learning rate is too small to change a weight, so that the saved model gives the scores of the logged step.
pub(super) fn still() -> RewardRecipe {
    let optimizer = OptimizerConfig { learning_rate: 1e-30, ..RewardRecipe::default().optimizer };
    RewardRecipe {
        batch_size: 8,
        eval_batches: 0,
        center_rewards_coefficient: 0.2,
        optimizer,
        ..RewardRecipe::default()
    }
}

pub(super) fn learning(epochs: u64) -> RewardRecipe {
    let optimizer = OptimizerConfig {
        learning_rate: 5e-3,
        warmup_steps: 10,
        weight_decay: 0.,
        ..RewardRecipe::default().optimizer
    };
    RewardRecipe { epochs, optimizer, ..RewardRecipe::default() }
}

pub(super) fn train(recipe: &RewardRecipe, inputs: &RewardInputs, out: &Path) -> RewardModel {
    quietly(|options| reward(recipe, inputs, out, options)).unwrap();
    RewardModel::load(out).unwrap()
}

fn heads(weights: &[(&str, f64)]) -> BTreeMap<String, f64> {
    weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
}

/// Rankings with ties, partial orders and orders by quality.
const ROWS: [&str; 5] = [
    r#"{"prompt": "Say 1.", "answers": ["sun", "rain tree", "stone"], "ranks": [1, 2, 2]}"#,
    r#"{"prompt": "Say 2.", "answers": ["sun tree", "rain", "moon"], "ranks": [2, 1, null], "grades": {"safety": [1, 3, 2]}}"#,
    r#"{"prompt": "Say 3.", "answers": ["bird", "bird rain"], "heads": {"accuracy": [1, 0], "safety": [[0, 1]]}}"#,
    r#"{"prompt": "Say 4.", "chosen": "moon", "rejected": "sun stone", "grades": {"accuracy": [2, 5], "style": [1, 2]}}"#,
    r#"{"prompt": "Say 5.", "answers": ["tree", "tree rain", "sun", "moon"], "order": [[3, 0], [1, 2]]}"#,
];

/// The row of each answer: prompt and answer as messages.
fn row(model: &RewardModel, number: usize, answer: &str) -> Vec<u32> {
    let messages = [ChatMessage::user(format!("Say {number}.")), ChatMessage::assistant(answer)];
    model.tokenizer.encode_answered(&messages).unwrap()
}

#[test]
fn g8_losses_with_ties_orders_and_heads_equal_those_computed_from_the_scores() {
    let dir = tempfile::tempdir().unwrap();
    fresh_model(&dir.path().join("model"), &TEXT.repeat(20), 16, 0.3);
    std::fs::write(dir.path().join("train.jsonl"), ROWS.join("\n")).unwrap();
    std::fs::write(dir.path().join("test.jsonl"), ROWS[1].replace("Say 2", "Say 9")).unwrap();
    let (inputs, weights) = (inputs(dir.path(), Some("test.jsonl")), heads(&[("safety", -0.5), ("accuracy", 2.)]));
    let softplus = |x: f64| x.exp().ln_1p();
    let log_sum = |scores: &[f64]| scores.iter().map(|s| s.exp()).sum::<f64>().ln();
    for (loss, ties) in [(RankingLoss::KWay, true), (RankingLoss::KWay, false), (RankingLoss::PlackettLuce, true)] {
        let out = dir.path().join(format!("{loss:?}-{ties}"));
        let recipe = RewardRecipe { loss, ties, heads: weights.clone(), ..still() };
        let model = train(&recipe, &inputs, &out);
        assert_eq!(model.model.head(), Head::Scores(2));
        // Column 0 is the reward, then the heads by name: accuracy, safety.
        let columns = |number: usize, answers: &[&str]| {
            let rows: Vec<_> = answers.iter().map(|answer| row(&model, number, answer)).collect();
            let scores = model.head_scores(&rows).unwrap();
            let reward: Vec<f64> = scores.iter().map(|heads| 2. * heads[0] - 0.5 * heads[1]).collect();
            let scaled = model.scores(&rows).unwrap();
            let near = |(a, b): (&f64, &f64)| (a - (b * model.scale.std + model.scale.mean)).abs() < 1e-4;
            assert!(reward.iter().zip(&scaled).all(near), "{reward:?} and {scaled:?}");
            [reward, scores.iter().map(|h| h[0]).collect(), scores.iter().map(|h| h[1]).collect()]
        };
        let (a, b, c) = (
            columns(1, &["sun", "rain tree", "stone"]),
            columns(2, &["sun tree", "rain", "moon"]),
            columns(3, &["bird", "bird rain"]),
        );
        let (d, e) = (columns(4, &["moon", "sun stone"]), columns(5, &["tree", "tree rain", "sun", "moon"]));
        // (scores, groups), without those that compare nothing.
        let orders: Vec<(&[f64], Vec<Vec<usize>>)> = vec![
            (&a[0], vec![vec![0], vec![1, 2]]),
            (&b[0], vec![vec![1], vec![0]]),
            (&b[2], vec![vec![1], vec![2], vec![0]]),
            (&c[1], vec![vec![1], vec![0]]),
            (&c[2], vec![vec![0, 1]]),
            (&d[0], vec![vec![0], vec![1]]),
            (&d[1], vec![vec![1], vec![0]]),
            (&e[0], vec![vec![3, 0], vec![1, 2]]),
        ];
        let mut losses = Vec::new();
        for (scores, groups) in &orders {
            let (mut all, mut pairs) = (Vec::new(), Vec::new());
            for (at, group) in groups.iter().enumerate() {
                for (i, &first) in group.iter().enumerate() {
                    for &worse in groups[at + 1..].iter().flatten() {
                        pairs.push((scores[first] + scores[worse]).powi(2));
                        all.push(
                            softplus(scores[worse] - scores[first]) + 0.2 * (scores[first] + scores[worse]).powi(2),
                        );
                    }
                    for &other in group[i + 1..].iter().filter(|_| ties) {
                        let d = scores[first] - scores[other];
                        let tie = f64::midpoint(softplus(d), softplus(-d));
                        all.push(tie + 0.2 * (scores[first] + scores[other]).powi(2));
                    }
                }
            }
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let whole = |groups: &[Vec<usize>]| {
                let of = |at: usize| {
                    let rest: Vec<f64> = groups[at..].iter().flatten().map(|&i| scores[i]).collect();
                    groups[at].iter().map(|&i| log_sum(&rest) - scores[i]).sum::<f64>()
                };
                (0..groups.len()).map(of).sum::<f64>() + 0.2 * pairs.iter().sum::<f64>() / all.len() as f64
            };
            match loss {
                _ if all.is_empty() => {}
                RankingLoss::KWay => losses.push(mean),
                RankingLoss::PlackettLuce => losses.push(whole(groups)),
            }
        }
        assert_eq!(losses.len(), if ties { 8 } else { 7 }, "the order of only a tie is left out without ties");
        let expected = losses.iter().sum::<f64>() / losses.len() as f64;
        let lines = metrics(&out);
        let found = lines[0]["loss"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{loss:?}, {ties}: {found} is not {expected}");
        let last = lines.last().unwrap();
        assert!(last["eval_accuracy/safety"].is_number() && last.get("eval_accuracy/accuracy").is_none(), "{last}");
        assert!(last["eval_calibration_error"].is_number() && last["eval_longer_labelled"].is_number(), "{last}");
        let samples = std::fs::read_to_string(out.join("samples/step-1.txt")).unwrap();
        assert!(samples.starts_with("Calibration") && samples.lines().count() == 7, "{samples}");
    }
}

#[test]
fn a_margin_with_the_loss_of_whole_orders_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fresh_model(&dir.path().join("model"), &TEXT.repeat(20), 16, 0.3);
    let row = |i: usize| format!(r#"{{"prompt": "Say {i}.", "chosen": "sun", "rejected": "rain", "margin": {i}}}"#);
    std::fs::write(dir.path().join("train.jsonl"), (0..4).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let recipe = RewardRecipe { loss: RankingLoss::PlackettLuce, ..still() };
    let out = dir.path().join("out");
    let error = quietly(|options| reward(&recipe, &inputs(dir.path(), None), &out, options)).unwrap_err().to_string();
    assert!(error.contains("train.jsonl: row 2: \"margin\" does not apply to loss = \"plackett_luce\""), "{error}");
    assert!(!out.exists());
}

/// Rankings of three answers, graded by two qualities: the number of "sun", and of words that are not "rain".
fn graded(count: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let words = ["sun", "rain", "tree", "stone"];
    let mut lines = Vec::new();
    while lines.len() < count {
        let answers: Vec<Vec<&str>> =
            (0..3).map(|_| (0..rng.random_range(2..6)).map(|_| words[rng.random_range(0..4)]).collect()).collect();
        let grade = |of: fn(&[&str]) -> usize| answers.iter().map(|a| of(a)).collect::<Vec<usize>>();
        let accuracy = grade(|a| a.iter().filter(|word| **word == "sun").count());
        let safety = grade(|a| 9 - a.iter().filter(|word| **word == "rain").count());
        let texts: Vec<String> = answers.iter().map(|answer| answer.join(" ")).collect();
        let number = seed as usize * 100_000 + lines.len();
        lines.push(
            serde_json::json!({"prompt": format!("Say {number}."), "answers": texts, "grades": {"accuracy": accuracy, "safety": safety}})
                .to_string(),
        );
    }
    lines.join("\n")
}

/// The scores of each head by transformers: one list for each row of ids.
fn scores_of_transformers(folder: &Path, rows: &[Vec<u32>]) -> Option<Vec<Vec<f64>>> {
    let Some(python) = std::env::var_os("LLM_TRAIN_PYTHON") else {
        eprintln!("skipped: set LLM_TRAIN_PYTHON to a Python with the packages transformers and peft");
        return None;
    };
    let script = "import json, sys, torch\n\
        from transformers import AutoModelForSequenceClassification as Auto\n\
        rows, folder = json.loads(sys.argv[2]), sys.argv[1]\n\
        model = Auto.from_pretrained(folder, dtype=torch.float32).eval()\n\
        print(json.dumps([model(torch.tensor([row])).logits[0].tolist() for row in rows]))\n\
        print(json.dumps(model.config.id2label))";
    let output =
        Command::new(python).args(["-c", script]).arg(folder).arg(serde_json::to_string(rows).unwrap()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(serde_json::from_str(text.lines().next().unwrap()).unwrap())
}

fn assert_same(found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let far = found.concat().iter().zip(expected.concat()).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
    assert!(far <= tolerance && found.concat().len() == expected.concat().len(), "{far}: {found:?}, {expected:?}");
}

#[test]
fn heads_learn_their_own_quality_and_transformers_gives_the_same_scores() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 32, 0.05);
    std::fs::write(path("train.jsonl"), graded(800, 1)).unwrap();
    std::fs::write(path("test.jsonl"), graded(200, 2)).unwrap();
    let before = contents(&path("model"));
    let weights = heads(&[("accuracy", 1.), ("safety", 0.5)]);
    let recipe = RewardRecipe { heads: weights, ..learning(3) };
    let model = train(&recipe, &inputs(dir.path(), Some("test.jsonl")), &path("out"));
    let last = metrics(&path("out")).into_iter().rfind(|line| line.get("eval_accuracy").is_some()).unwrap();
    for name in ["eval_accuracy/accuracy", "eval_accuracy/safety"] {
        assert!(last[name].as_f64().unwrap() > 0.9, "{name}: {last}");
    }
    let [low, high] = ["eval_accuracy_low", "eval_accuracy_high"].map(|name| last[name].as_f64().unwrap());
    let accuracy = last["eval_accuracy"].as_f64().unwrap();
    assert!(low < 1. && low <= accuracy && accuracy <= high && high - low < 0.1, "{low}, {accuracy}, {high}");
    // The heads differ: suns matter to one of them only, rain to the other.
    let rows = ["sun sun tree", "tree stone tree", "rain rain tree"].map(|answer| row(&model, 1, answer));
    let scores = model.head_scores(&rows).unwrap();
    let [suns, rains] = [0, 1].map(|head| (scores[0][head] - scores[1][head], scores[1][head] - scores[2][head]));
    assert!(suns.0 > 2. * suns.1.abs() && rains.1 > 2. * rains.0.abs(), "{scores:?}");

    // M6: the model that it started from is unchanged.
    assert_eq!(contents(&path("model")), before);
    let critic = model.critic().unwrap();
    assert_eq!(critic.head(), Head::Token);
    let value = llm_train::rollout::reply_values(&critic, &[(&rows[0], &[4])], 0).unwrap().to_vec1::<f32>().unwrap()[0];
    let score = model.scores(&rows[..1]).unwrap()[0];
    assert!((f64::from(value) - score).abs() < 1e-4 * score.abs().max(1.), "{value} is not {score}");

    let config: Value = serde_json::from_slice(&std::fs::read(path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"], serde_json::json!({"0": "accuracy", "1": "safety"}));
    if let Some(theirs) = scores_of_transformers(&path("out"), &rows) {
        assert_same(&theirs, &scores, 1e-5);
    }
}

/// In another process: prints the raw scores of the model in the folder that the environment names.
#[test]
#[ignore = "started by another test"]
fn prints_scores() {
    let folder = PathBuf::from(std::env::var_os("REWARD_FOLDER").unwrap());
    let model = RewardModel::load(&folder).unwrap();
    let rows = ["sun rain", "tree"].map(|answer| row(&model, 1, answer));
    println!("\nscores: {}", serde_json::to_string(&model.head_scores(&rows).unwrap()).unwrap());
}

#[test]
fn an_adapter_gives_the_same_scores_in_a_new_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &TEXT.repeat(20), 16, 0.3);
    std::fs::write(path("train.jsonl"), graded(40, 1)).unwrap();
    let lora = LoraConfig { r: 2, lora_alpha: 4., ..LoraConfig::default() };
    let pair = |i: usize| format!(r#"{{"prompt": "Say {i}.", "chosen": "sun tree", "rejected": "rain"}}"#);
    let pairs = (0..40).map(pair).collect::<Vec<_>>().join("\n");
    let two = heads(&[("accuracy", 1.), ("safety", 0.5)]);
    for (name, data, weights) in [("one", pairs, heads(&[])), ("two", graded(40, 1), two)] {
        std::fs::write(path("train.jsonl"), data).unwrap();
        let recipe = RewardRecipe { heads: weights, lora: Some(lora.clone()), ..learning(1) };
        let model = train(&recipe, &inputs(dir.path(), None), &path(name));
        assert!(path(name).join("adapter_model.safetensors").is_file() && !path(name).join("config.json").exists());
        let rows = ["sun rain", "tree"].map(|answer| row(&model, 1, answer));
        let ours = model.head_scores(&rows).unwrap();
        assert_eq!(ours[0].len(), if name == "one" { 1 } else { 2 });
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "heads::prints_scores", "--nocapture"])
            .env("REWARD_FOLDER", path(name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("scores: ")).unwrap_or_else(|| panic!("{text}"));
        assert_same(&serde_json::from_str::<Vec<Vec<f64>>>(line).unwrap(), &ours, 1e-6);
    }
}
