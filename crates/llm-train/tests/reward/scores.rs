//! Logged metrics and the scale of the scores, recomputed from the score of each answer.

use std::path::Path;

use llm_data::{Ranking, write_jsonl};
use llm_model::{Head, Model, ModelConfig, Params};
use llm_tokenizer::{ChatMessage, Tokenizer};
use llm_train::optim::{OptimizerConfig, Schedule};
use llm_train::recipes::{RewardInputs, RewardModel, RewardRecipe, RewardScale, reward};

use super::common::{fresh_model, quietly};

#[test]
fn reward_scale_is_the_population_mean_and_deviation() {
    assert_eq!(RewardScale::of(&[1., 2., 3., 6.]), RewardScale { mean: 3., std: 3.5f64.sqrt() });
    assert_eq!(RewardScale::of(&[2., 2.]), RewardScale { mean: 2., std: 1. });
    // A model folder may lack the numbers, or have a deviation that is not above 0.
    let dir = tempfile::tempdir().unwrap();
    fresh_model(&dir.path().join("model"), "a few words", 16, 0.3);
    let mut scorer = Model::load(dir.path().join("model")).unwrap().with_head(Head::Sequence, 3).unwrap();
    Tokenizer::load(dir.path().join("model")).unwrap().save(dir.path().join("scorer")).unwrap();
    for (extra, expected) in [
        (vec![], RewardScale { mean: 0., std: 1. }),
        (vec![("reward_mean", 0.5), ("reward_std", 0.25)], RewardScale { mean: 0.5, std: 0.25 }),
        (vec![("reward_mean", 0.5), ("reward_std", 0.)], RewardScale { mean: 0.5, std: 1. }),
        (vec![("reward_mean", 0.5), ("reward_std", -2.)], RewardScale { mean: 0.5, std: 1. }),
    ] {
        scorer.extra = extra.iter().map(|(key, x)| ((*key).to_owned(), serde_json::json!(x))).collect();
        scorer.save(dir.path().join("scorer")).unwrap();
        assert_eq!(RewardModel::load(&dir.path().join("scorer")).unwrap().scale, expected, "{extra:?}");
    }
}

/// Rankings of two to four answers, with different margins; the best answer is not always the first in the file.
fn uneven_rankings(first: usize) -> Vec<Ranking> {
    let words = ["sun", "rain", "tree", "stone", "bird", "moon"];
    let ranking = |(i, order): (usize, &[usize])| {
        let i = first + i;
        let answers = (0..order.len()).map(|k| [words[(i + k) % 6], words[(i * k + 1) % 6]].join(" ")).collect();
        let prompt = vec![ChatMessage::user(format!("Say {i}."))];
        Ranking { margin: 0.3 * i as f64, ..Ranking::strict(i.to_string(), prompt, answers, order) }
    };
    [&[1, 0][..], &[2, 0, 1], &[0, 1], &[3, 1, 0, 2]].into_iter().enumerate().map(ranking).collect()
}

/// The lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The learning rate is too small to change a weight, so the saved model gives the scores of the logged step.
#[test]
fn logged_metrics_equal_those_computed_from_the_scores() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &"Say 1. sun rain tree stone bird moon ".repeat(20), 16, 0.3);
    let (train, test) = (uneven_rankings(0), uneven_rankings(4));
    write_jsonl(&path("train.jsonl"), &train).unwrap();
    write_jsonl(&path("test.jsonl"), &test).unwrap();
    let recipe = RewardRecipe {
        batch_size: 4, // all in one step
        center_rewards_coefficient: 0.2,
        eval_batches: 0,
        optimizer: OptimizerConfig { learning_rate: 1e-30, ..RewardRecipe::default().optimizer },
        ..RewardRecipe::default()
    };
    let (model, data, validation) = (path("model"), path("train.jsonl"), path("test.jsonl"));
    let inputs = RewardInputs {
        adapter: None,
        model: model.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
    };
    quietly(|options| reward(&recipe, &inputs, &path("reward"), options)).unwrap();
    let model = RewardModel::load(&path("reward")).unwrap();
    let raw = |ranking: &Ranking| -> Vec<f64> {
        let scores = model.answer_scores(ranking).unwrap();
        scores.into_iter().map(|score| score * model.scale.std + model.scale.mean).collect()
    };
    // Score of the better and of the worse answer of each pair, by ranking.
    let pairs = |ranking: &Ranking| {
        let (scores, order) = (raw(ranking), ranking.order.concat());
        let after = |i: usize| order[i + 1..].iter().copied();
        let of = |i: usize| after(i).map(|worse| (scores[order[i]], scores[worse])).collect::<Vec<_>>();
        (0..order.len()).flat_map(of).collect::<Vec<_>>()
    };
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let loss = |ranking: &Ranking| {
        let of = |(b, w): &(f64, f64)| (ranking.margin - (b - w)).exp().ln_1p() + 0.2 * (b + w).powi(2);
        mean(&pairs(ranking).iter().map(of).collect::<Vec<_>>())
    };
    let margins = |rankings: &[Ranking]| rankings.iter().flat_map(&pairs).map(|(b, w)| b - w).collect::<Vec<_>>();
    let accuracy = |margins: &[f64]| margins.iter().filter(|m| **m > 0.).count() as f64 / margins.len() as f64;
    let scores: Vec<f64> = train.iter().flat_map(&raw).collect();
    let (ours, tested) = (margins(&train), margins(&test));
    assert_eq!((scores.len(), ours.len()), (11, 11));
    let lines = metrics(&path("reward"));
    assert_eq!(lines.len(), 2, "a step and an evaluation");
    for (line, name, expected) in [
        (0, "loss", mean(&train.iter().map(loss).collect::<Vec<_>>())),
        (0, "accuracy", accuracy(&ours)),
        (0, "margin", mean(&ours)),
        (0, "min_reward", scores.iter().copied().fold(f64::INFINITY, f64::min)),
        (0, "mean_reward", mean(&scores)),
        (0, "max_reward", scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        (1, "eval_accuracy", accuracy(&tested)),
        (1, "eval_margin", mean(&tested)),
    ] {
        let found = lines[line][name].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5, "{name}: {found} is not {expected}");
    }
    let shares = [accuracy(&ours), accuracy(&tested)];
    assert!(shares.iter().all(|share| (0.05..0.95).contains(share) && (share - 0.5).abs() > 0.01), "{shares:?}");
    assert!((model.accuracy(&test).unwrap() - shares[1]).abs() < 1e-9);
    // The scores of the answers that it was trained on have mean 0 and deviation 1.
    let scaled: Vec<f64> = train.iter().flat_map(|ranking| model.answer_scores(ranking).unwrap()).collect();
    let square = mean(&scaled.iter().map(|x| x * x).collect::<Vec<_>>());
    assert!(mean(&scaled).abs() < 1e-5 && (square - 1.).abs() < 1e-5, "{scaled:?}");
    assert!(model.scale.mean.abs() > 1e-3 && (model.scale.std - 1.).abs() > 1e-3, "{:?}", model.scale);
}

#[test]
fn equal_scores_have_accuracy_zero() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &"Say 1. sun rain tree stone bird moon ".repeat(20), 16, 0.3);
    let model = Model::load(path("model")).unwrap();
    let mut tensors = model.params().tensors();
    for (name, tensor) in &mut tensors {
        if name.contains("embed_tokens") {
            *tensor = tensor.ones_like().unwrap();
        } else if name.contains("down_proj") || name.contains("o_proj") {
            *tensor = tensor.zeros_like().unwrap();
        }
    }
    Model::new(model.config().clone(), model.head(), Params::new(tensors)).unwrap().save(path("model")).unwrap();
    let rankings = uneven_rankings(0);
    write_jsonl(&path("train.jsonl"), &rankings).unwrap();
    write_jsonl(&path("test.jsonl"), &uneven_rankings(4)).unwrap();
    let recipe = RewardRecipe {
        batch_size: 4,
        optimizer: OptimizerConfig { learning_rate: 1e-30, ..RewardRecipe::default().optimizer },
        ..RewardRecipe::default()
    };
    let (model, data, validation) = (path("model"), path("train.jsonl"), path("test.jsonl"));
    let inputs = RewardInputs {
        adapter: None,
        model: model.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
    };
    quietly(|options| reward(&recipe, &inputs, &path("reward"), options)).unwrap();
    let lines = metrics(&path("reward"));
    assert_eq!(
        [&lines[0]["accuracy"], &lines[0]["margin"], &lines[1]["eval_accuracy"]].map(serde_json::Value::as_f64),
        [Some(0.); 3]
    );
    let model = RewardModel::load(&path("reward")).unwrap();
    assert_eq!((model.accuracy(&rankings).unwrap(), model.scale.std), (0., 1.));
}

/// Conversations of n, n + 1 and n + 2 tokens; the limit is n + 1, by `max_length` or by the positions of the model.
#[test]
fn rankings_with_a_too_long_answer_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fresh_model(&path("model"), &"Say 1. sun rain tree ".repeat(20), 16, 0.3);
    let tokenizer = Tokenizer::load(path("model")).unwrap();
    let row = |answer: &str| {
        let messages = [ChatMessage::new("user", "b"), ChatMessage::new("assistant", answer)];
        tokenizer.encode_answered(&messages).unwrap().len()
    };
    let n = row("b");
    assert_eq!(["bc", "bcb"].map(row), [n + 1, n + 2]);
    let ranking = |answers: [&str; 2], prompt: &str| {
        let answers = answers.map(str::to_owned).to_vec();
        Ranking::strict(String::new(), vec![ChatMessage::user(prompt)], answers, &[0, 1])
    };
    let train = [ranking(["b", "c"], "b"), ranking(["c", "bc"], "c"), ranking(["b", "bcb"], "d")];
    write_jsonl(&path("train.jsonl"), &train).unwrap();
    write_jsonl(&path("test.jsonl"), &[ranking(["b", "c"], "t")]).unwrap();
    let model = Model::load(path("model")).unwrap();
    for (name, max_length, max_position_embeddings) in [("length", n + 1, 512), ("positions", 512, n + 1)] {
        let config = ModelConfig { max_position_embeddings, ..model.config().clone() };
        let params = Params::new(model.params().tensors());
        Model::new(config, model.head(), params).unwrap().save(path("model")).unwrap();
        let optimizer = OptimizerConfig {
            learning_rate: 1e-3,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            ..RewardRecipe::default().optimizer
        };
        let recipe = RewardRecipe { epochs: 2, batch_size: 1, max_length, optimizer, ..RewardRecipe::default() };
        let (start, data, validation) = (path("model"), path("train.jsonl"), path("test.jsonl"));
        let inputs = RewardInputs {
            adapter: None,
            model: start.clone(),
            data: vec![data.clone()],
            validation: Some(validation.clone()),
        };
        quietly(|options| reward(&recipe, &inputs, &path(name), options)).unwrap();
        let lines = metrics(&path(name));
        let steps: Vec<_> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
        let found: Vec<_> = steps.iter().map(|line| (line["step"].as_u64(), line["learning_rate"].as_f64())).collect();
        let expected = [(1, 1.), (2, 0.75), (3, 0.5), (4, 0.25)].map(|(step, left)| (Some(step), Some(1e-3 * left)));
        assert_eq!(found, expected, "two rankings, two epochs");
    }
}
