//! The reward model on synthetic data with a known reward (L5): the sum of the values of the answer's words.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../common/mod.rs"]
mod common;
mod heads;
mod properties;
mod scores;
mod server;
mod sources;

use std::path::Path;

use common::{fresh_model, quietly, write_pairs};
use llm_data::{ReadOptions, read_rankings};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{RewardInputs, RewardModel, RewardRecipe, reward};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WORDS: [(&str, f64); 6] =
    [("sun", 1.), ("rain", -1.), ("tree", 0.5), ("stone", -0.5), ("bird", 0.25), ("moon", -0.25)];

fn answer(rng: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = (0..rng.random_range(2..7)).map(|_| WORDS[rng.random_range(0..WORDS.len())].0).collect();
    words.join(" ")
}

fn true_reward(answer: &str) -> f64 {
    answer.split(' ').map(|word| WORDS.iter().find(|w| w.0 == word).unwrap().1).sum()
}

fn sigmoid(x: f64) -> f64 {
    1. / (1. + (-x).exp())
}

/// (better, worse) answers. `prefers` gives the probability that the first is preferred, from the difference of true rewards.
fn pairs(count: usize, seed: u64, prefers: fn(f64) -> f64) -> Vec<(String, String)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut pairs = Vec::with_capacity(count);
    while pairs.len() < count {
        let (a, b) = (answer(&mut rng), answer(&mut rng));
        if (true_reward(&a) - true_reward(&b)).abs() > 0.1 {
            let first = rng.random::<f64>() < prefers(true_reward(&a) - true_reward(&b));
            pairs.push(if first { (a, b) } else { (b, a) });
        }
    }
    pairs
}

/// Trains on pairs of this annotator; returns the model and its accuracy on 1000 validation pairs.
fn trained(dir: &Path, prefers: fn(f64) -> f64) -> (RewardModel, f64) {
    let path = |name: &str| dir.join(name);
    let all: Vec<&str> = WORDS.iter().map(|w| w.0).collect();
    fresh_model(&path("model"), &format!("Say it. {}", all.join(" ")).repeat(20), 32, 0.05);
    write_pairs(&path("train.jsonl"), &pairs(3000, 1, prefers));
    write_pairs(&path("validation.jsonl"), &pairs(1000, 2, prefers));
    let recipe = RewardRecipe {
        epochs: 3,
        batch_size: 16,
        optimizer: OptimizerConfig {
            learning_rate: 3e-3,
            warmup_steps: 20,
            weight_decay: 0.,
            ..RewardRecipe::default().optimizer
        },
        ..RewardRecipe::default()
    };
    let (model, data, validation) = (path("model"), path("train.jsonl"), path("validation.jsonl"));
    let inputs = RewardInputs {
        adapter: None,
        model: model.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
    };
    quietly(|options| reward(&recipe, &inputs, &path("reward"), options)).unwrap();
    let reward_model = RewardModel::load(&path("reward")).unwrap();
    let accuracy =
        reward_model.accuracy(&read_rankings(&validation, &ReadOptions::default()).unwrap().rankings).unwrap();
    (reward_model, accuracy)
}

#[test]
fn a_known_reward_is_learned_from_noiseless_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let (_, accuracy) = trained(dir.path(), |difference| f64::from(u8::from(difference > 0.)));
    assert!(accuracy > 0.95, "{accuracy}");
}

#[test]
fn accuracy_on_noisy_pairs_is_at_most_the_noise_ceiling() {
    let dir = tempfile::tempdir().unwrap();
    let (model, accuracy) = trained(dir.path(), sigmoid);
    let validation = pairs(1000, 2, sigmoid);
    let best = validation.iter().map(|(a, b)| sigmoid((true_reward(a) - true_reward(b)).abs())).sum::<f64>() / 1000.;
    assert!(accuracy > best - 0.04, "{accuracy}, ceiling {best}");
    assert!(accuracy < best + 0.045, "{accuracy}, ceiling {best}: leaked data");

    // Score differences are proportional to true differences (slope 1) and calibrated.
    let std = model.model.extra["reward_std"].as_f64().unwrap();
    let rows = |text: &String| {
        let messages =
            [llm_tokenizer::ChatMessage::new("user", "Say it."), llm_tokenizer::ChatMessage::new("assistant", text)];
        model.tokenizer.encode_chat(&messages, false).unwrap()
    };
    let scores = |texts: Vec<Vec<u32>>| model.scores(&texts).unwrap();
    let better = scores(validation.iter().map(|p| rows(&p.0)).collect());
    let worse = scores(validation.iter().map(|p| rows(&p.1)).collect());
    let margins: Vec<f64> = better.iter().zip(&worse).map(|(b, w)| std * (b - w)).collect();
    let truths: Vec<f64> = validation.iter().map(|(a, b)| true_reward(a) - true_reward(b)).collect();
    let slope =
        margins.iter().zip(&truths).map(|(m, t)| m * t).sum::<f64>() / truths.iter().map(|t| t * t).sum::<f64>();
    assert!((0.7..1.4).contains(&slope), "slope {slope}");
    for (low, high) in [(0., 0.7), (0.7, 1.5), (1.5, 9.)] {
        let bin: Vec<f64> = margins.iter().copied().filter(|m| (low..high).contains(&m.abs())).collect();
        let predicted = bin.iter().map(|m| sigmoid(m.abs())).sum::<f64>() / bin.len() as f64;
        let observed = bin.iter().filter(|m| **m > 0.).count() as f64 / bin.len() as f64;
        assert!(
            (predicted - observed).abs() < 0.1,
            "margins {low} to {high}: {predicted}, observed {observed} of {}",
            bin.len()
        );
    }
}

#[test]
fn random_labels_give_chance_accuracy() {
    let dir = tempfile::tempdir().unwrap();
    let (_, accuracy) = trained(dir.path(), |_| 0.5);
    assert!((accuracy - 0.5).abs() < 0.05, "{accuracy}");
}

#[test]
fn the_margin_of_the_data_is_part_of_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (dir.path().join("model"), dir.path().join("pairs.jsonl"));
    fresh_model(&model, "good bad one two three four", 16, 0.05);
    let prompts = ["one", "two", "three", "four"];
    let first_loss = |margin: f64| {
        let of = |p: &&str| format!(r#"{{"prompt": "{p}", "chosen": "good", "rejected": "bad", "margin": {margin}}}"#);
        std::fs::write(&data, prompts.iter().map(of).collect::<Vec<_>>().join("\n")).unwrap();
        let recipe = RewardRecipe { center_rewards_coefficient: 0., batch_size: 2, ..RewardRecipe::default() };
        let (inputs, out) = (
            RewardInputs { adapter: None, model: model.clone(), data: vec![data.clone()], validation: None },
            dir.path().join(margin.to_string()),
        );
        quietly(|options| reward(&recipe, &inputs, &out, options)).unwrap();
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        first["loss"].as_f64().unwrap()
    };
    // -log sigmoid(d - margin); the score difference d of the initial head is about 0 and equal in both runs.
    let (without, with) = (first_loss(0.), first_loss(6.));
    let d = -(without.exp() - 1.).ln();
    assert!(d.abs() < 0.5 && (with - (1. + (6. - d).exp()).ln()).abs() < 0.02, "{without} and {with}");
}

#[test]
fn a_score_depends_on_its_own_row_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    fresh_model(&path, "a few words", 16, 0.3);
    let scorer = llm_model::Model::load(&path).unwrap().with_head(llm_model::Head::Sequence, 3).unwrap();
    llm_tokenizer::Tokenizer::load(&path).unwrap().save(dir.path().join("scorer")).unwrap();
    scorer.save(dir.path().join("scorer")).unwrap();
    let model = RewardModel::load(&dir.path().join("scorer")).unwrap();
    let (short, long) = (vec![5u32, 6, 7], (4..20).collect::<Vec<u32>>());
    let alone = model.scores(std::slice::from_ref(&short)).unwrap()[0];
    let padded = model.scores(&[short.clone(), long]).unwrap()[0];
    assert!((alone - padded).abs() < 1e-5, "{alone} and {padded}");
    assert!((alone - model.scores(&[vec![5, 6]]).unwrap()[0]).abs() > 1e-3, "the score is read at the last token");
}

/// Replaces the chat template of a folder: a turn ends with a special token other than `eos_token`, then a newline.
fn write_template_with_newlines(dir: &Path) {
    let template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|system|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

#[test]
fn training_and_ppo_read_the_score_at_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let all: Vec<&str> = WORDS.iter().map(|w| w.0).collect();
    fresh_model(&path("model"), &format!("Say it. {}", all.join(" ")).repeat(20), 24, 0.05);
    write_template_with_newlines(&path("model"));
    let prefers = |difference: f64| f64::from(u8::from(difference > 0.));
    write_pairs(&path("train.jsonl"), &pairs(1200, 1, prefers));
    write_pairs(&path("validation.jsonl"), &pairs(200, 2, prefers));
    let recipe = RewardRecipe {
        epochs: 2,
        optimizer: OptimizerConfig {
            learning_rate: 5e-3,
            warmup_steps: 20,
            weight_decay: 0.,
            ..RewardRecipe::default().optimizer
        },
        ..RewardRecipe::default()
    };
    let (model, data, validation) = (path("model"), path("train.jsonl"), path("validation.jsonl"));
    let inputs = RewardInputs {
        adapter: None,
        model: model.clone(),
        data: vec![data.clone()],
        validation: Some(validation.clone()),
    };
    quietly(|options| reward(&recipe, &inputs, &path("reward"), options)).unwrap();
    let reward_model = RewardModel::load(&path("reward")).unwrap();
    assert_eq!(reward_model.model.config().eos_token_id, Some(2), "<|system|> ends turns in this template");

    // The rows of PPO: the prompt up to the assistant's turn, the answer, the end token.
    let tokenizer = &reward_model.tokenizer;
    let question = [llm_tokenizer::ChatMessage::new("user", "Say it.")];
    let query = tokenizer.encode_chat(&question, true).unwrap();
    let row = |answer: &String| [query.clone(), tokenizer.encode(answer).unwrap(), vec![2]].concat();
    let validation = pairs(200, 2, prefers);
    let score = |rows: Vec<Vec<u32>>| reward_model.scores(&rows).unwrap();
    let better = score(validation.iter().map(|p| row(&p.0)).collect());
    let worse = score(validation.iter().map(|p| row(&p.1)).collect());
    let right = better.iter().zip(&worse).filter(|(b, w)| b > w).count() as f64 / 200.;
    let trained = reward_model
        .accuracy(&read_rankings(path("validation.jsonl"), &ReadOptions::default()).unwrap().rankings)
        .unwrap();
    assert!(right > 0.9 && (right - trained).abs() < 1e-9, "{right} in PPO, {trained} in training");
    let all: Vec<f64> = better.into_iter().chain(worse).collect();
    let mean = all.iter().sum::<f64>() / 400.;
    let std = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 400.).sqrt();
    assert!((0.7..1.4).contains(&std), "PPO and training must have the same deviation: {std}");
}

#[test]
fn rewards_are_scaled_over_replies_of_the_reference() {
    use llm_engine::{GenerateOptions, Sampling, generate};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    fresh_model(&path, "a few words and some more of them", 16, 0.3);
    let policy = llm_model::Model::load(&path).unwrap();
    let mut scorer = policy.with_head(llm_model::Head::Sequence, 3).unwrap().frozen().unwrap();
    for (key, value) in [("reward_mean", -7.), ("reward_std", 0.01)] {
        scorer.extra.insert(key.to_owned(), serde_json::json!(value));
    }
    llm_tokenizer::Tokenizer::load(&path).unwrap().save(dir.path().join("scorer")).unwrap();
    scorer.save(dir.path().join("scorer")).unwrap();
    let mut model = RewardModel::load(&dir.path().join("scorer")).unwrap();
    let prompts: Vec<Vec<u32>> = (0..40).map(|i| vec![3, 6 + i, 5, 4]).collect();
    let sampling = Sampling { temperature: 1., seed: Some(9), ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens: 5, stop_ids: Some(vec![5]), sampling };
    let scale = model.scale_on(&policy, &prompts, &options, 64).unwrap();
    assert_eq!(scale, model.scale_on(&policy, &prompts, &options, 64).unwrap());
    let few = model.scale_on(&policy, &prompts, &options, 7).unwrap();
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4 * scale.std;
    assert!(near(scale.mean, few.mean) && near(scale.std, few.std), "{scale:?} and {few:?}, a few at a time");
    model.scale = scale;
    let replies = generate(&policy, &prompts, &options, |_, _| true).unwrap();
    let rows: Vec<Vec<u32>> = prompts.iter().zip(replies).map(|(p, r)| [p.clone(), r].concat()).collect();
    let scores = model.scores(&rows).unwrap();
    let mean = scores.iter().sum::<f64>() / 40.;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / 40.;
    assert!(mean.abs() < 1e-4 && (variance - 1.).abs() < 1e-4, "{mean}, {variance}");
}
