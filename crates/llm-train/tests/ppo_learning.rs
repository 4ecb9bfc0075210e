//! PPO converges to known optima (L1 to L4), over three seeds: KL-regularised bandits and short texts, whose optimal policy is
//! proportional to `reference · exp(score / kl_coef)`.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::cell::Cell;

use candle_core::Tensor;
use llm_model::{Head, Model, ModelConfig, Params};
use llm_train::Result;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoRecipe, PpoTrainer, SpecialIds};
use llm_train::rewards::{Prompt, Reward};
use llm_train::rl::{MissingEos, k1, k3};
use llm_train::rollout::{reply_logprobs, reply_values};

const PAD: u32 = 0;
const EOS: u32 = 1;
const IDS: SpecialIds = SpecialIds { pad: PAD, eos: EOS };

/// The metrics of an update by name.
type Metrics = Vec<(&'static str, f64)>;

fn model(vocab_size: usize, hidden_size: usize, initializer_range: f64, head: Head, seed: u64) -> Model {
    let config = ModelConfig {
        vocab_size,
        hidden_size,
        intermediate_size: 2 * hidden_size,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        tie_word_embeddings: false,
        initializer_range,
        ..ModelConfig::default()
    };
    Model::init(config, head, seed).unwrap()
}

fn recipe(learning_rate: f64, kl_coef: f64) -> PpoRecipe {
    let optimizer = OptimizerConfig { learning_rate, ..PpoRecipe::default().optimizer };
    PpoRecipe {
        kl_coef,
        missing_eos: MissingEos::None,
        value_optimizer: optimizer.clone(),
        optimizer,
        ..PpoRecipe::default()
    }
}

/// Trains on the same queries in each update; returns the metrics of each update.
fn train(trainer: &mut PpoTrainer, queries: &[Prompt]) -> Vec<Metrics> {
    let recipe = trainer.recipe;
    let update = |update| {
        let rollouts = trainer.roll_out(queries, recipe.seed * 10_000 + update).unwrap();
        trainer.learn(&rollouts, update).unwrap()
    };
    (0..recipe.updates).map(update).collect()
}

fn metric(metrics: &[(&str, f64)], name: &str) -> f64 {
    metrics.iter().find(|m| m.0 == name).unwrap_or_else(|| panic!("{name} is missing")).1
}

/// A uniform policy over eight tokens.
fn uniform() -> Model {
    let start = model(8, 16, 0.1, Head::LanguageModel, 1);
    let mut tensors = start.params().tensors();
    let head = tensors.get_mut("lm_head.weight").unwrap();
    *head = head.zeros_like().unwrap();
    Model::new(start.config().clone(), Head::LanguageModel, Params::new(tensors)).unwrap()
}

/// The probability of token 3 after PPO on the bandit: one token out of eight, uniform reference, score 1 for token 3.
fn bandit(kl_coef: f64, seed: u64) -> f64 {
    bandit_with(false, kl_coef, seed)
}

/// [`bandit`], with the critic as a head on the policy or as a model of its own.
fn bandit_with(value_head_on_policy: bool, kl_coef: f64, seed: u64) -> f64 {
    let score =
        |rows: &[Vec<u32>]| -> Result<Vec<f64>> { Ok(rows.iter().map(|r| f64::from(u8::from(r[1] == 3))).collect()) };
    let recipe = PpoRecipe {
        seed,
        updates: 80,
        max_new_tokens: 1,
        micro_batch_size: 512,
        value_head_on_policy,
        ..recipe(5e-3, kl_coef)
    };
    let mut trainer = match value_head_on_policy {
        true => PpoTrainer::with_value_head(&uniform(), Reward::of_rows(score), IDS, &recipe).unwrap(),
        false => {
            let critic = model(8, 16, 0.1, Head::Token, seed);
            PpoTrainer::new(&uniform(), critic, Reward::of_rows(score), IDS, &recipe).unwrap()
        }
    };
    train(&mut trainer, &vec![vec![2].into(); 512]);
    let logprob = reply_logprobs(&trainer.policy.model, &[(&[2], &[3])], 1., PAD).unwrap();
    f64::from(logprob.to_vec1::<f32>().unwrap()[0]).exp()
}

/// L1: the optimal probability is `e^(1/β) / (e^(1/β) + 7)`.
#[test]
fn l1_ppo_finds_the_optimum_of_the_regularised_bandit() {
    for (beta, published) in [(1., 0.2797), (0.5, 0.5135), (0.2, 0.9550)] {
        let optimum = (1f64 / beta).exp() / ((1f64 / beta).exp() + 7.);
        assert!((optimum - published).abs() < 1e-4);
        for seed in 1..=3 {
            let found = bandit(beta, seed);
            println!("beta {beta}, seed {seed}: {found:.4} of {optimum:.4}");
            assert!((found - optimum).abs() < 0.01, "beta {beta}, seed {seed}: {found} is not {optimum}");
        }
    }
}

#[test]
fn l1_a_value_head_on_the_policy_finds_the_optimum_of_the_bandit() {
    let found = bandit_with(true, 0.5, 1);
    assert!((found - 0.5135).abs() < 0.01, "{found}");
}

/// Negative control: a penalty that is counted twice has another optimum, none at all has none.
#[test]
fn l1_a_doubled_or_missing_penalty_misses_the_optimum_of_the_bandit() {
    let (doubled, missing) = (bandit(2. * 0.5, 1), bandit(0., 1));
    assert!((doubled - 0.2797).abs() < 0.01, "the optimum at a coefficient of 1: {doubled}");
    assert!(missing > 0.99, "{missing}");
}

/// The estimate k3 as a penalty in the reward does not regularise: the expected gradient of the policy at the optimum of the bandit is
/// 0 for k1, and far from it for k3. So the recipe offers no estimate to choose.
#[test]
fn k3_in_the_reward_would_miss_the_optimum_of_the_bandit_and_is_not_offered() {
    let (beta, reference) = (0.5, 0.125f64);
    let good = (1f64 / beta).exp() / ((1f64 / beta).exp() + 7.);
    let policy = |id: usize| if id == 3 { good } else { (1. - good) / 7. };
    // The gradient of the expected reward by the logit of token 3, with rewards that are fixed after sampling.
    let gradient = |estimate: fn(f64, f64) -> f64| {
        let reward = |id: usize| f64::from(u8::from(id == 3)) - beta * estimate(policy(id).ln(), reference.ln());
        let mean: f64 = (0..8).map(|id| policy(id) * reward(id)).sum();
        good * (reward(3) - mean)
    };
    assert!(gradient(k1).abs() < 1e-12, "{}", gradient(k1));
    assert!(gradient(k3) > 0.05, "it still rises: {}", gradient(k3));
    let error =
        llm_train::read_recipe::<PpoRecipe>("ppo", &[("kl_estimator".to_owned(), "k3".to_owned())]).unwrap_err();
    assert!(error.to_string().contains("unknown key \"kl_estimator\""), "{error}");
}

/// All replies of at most `length` tokens: those with an end token, and those cut off.
fn all_replies(vocab: u32, length: usize) -> Vec<Vec<u32>> {
    let (mut open, mut ended): (Vec<Vec<u32>>, Vec<Vec<u32>>) = (vec![Vec::new()], Vec::new());
    for _ in 0..length {
        let longer = open.iter().flat_map(|reply| (0..vocab).map(|id| [reply.as_slice(), &[id]].concat()));
        let (ends, continues): (Vec<_>, Vec<_>) = longer.partition(|reply| reply.last() == Some(&EOS));
        ended.extend(ends);
        open = continues;
    }
    [ended, open].concat()
}

/// A deterministic pseudo-random score in [-1, 1] for each text.
fn hashed(row: &[u32]) -> f64 {
    let hash = row.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &id| (h ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.
}

#[allow(clippy::unnecessary_wraps, reason = "a score may fail")]
fn hashed_scores(rows: &[Vec<u32>]) -> Result<Vec<f64>> {
    Ok(rows.iter().map(|row| hashed(row)).collect())
}

/// The probability of each reply to `query`.
fn probabilities(model: &Model, query: &[u32], replies: &[Vec<u32>]) -> Vec<f64> {
    let pairs: Vec<(&[u32], &[u32])> = replies.iter().map(|reply| (query, reply.as_slice())).collect();
    let logprobs = reply_logprobs(model, &pairs, 1., PAD).unwrap().to_vec1::<f32>().unwrap();
    let mut rest = logprobs.as_slice();
    let mut probability = |reply: &Vec<u32>| {
        let (own, others) = rest.split_at(reply.len());
        rest = others;
        own.iter().map(|&x| f64::from(x)).sum::<f64>().exp()
    };
    replies.iter().map(&mut probability).collect()
}

/// L2: texts of one or two tokens from a vocabulary of four, with pseudo-random scores: the optimal distribution is known.
#[test]
fn l2_ppo_finds_the_best_distribution_over_short_texts() {
    let beta = 0.3;
    let (query, replies) = (vec![2u32, 3], all_replies(4, 2));
    let reference = model(4, 32, 0.3, Head::LanguageModel, 1);
    let before = probabilities(&reference, &query, &replies);
    assert!((before.iter().sum::<f64>() - 1.).abs() < 1e-5, "the replies are complete");
    let scores: Vec<f64> = replies.iter().map(|reply| hashed(&[query.as_slice(), reply].concat())).collect();
    let weights: Vec<f64> = before.iter().zip(&scores).map(|(p, r)| p * (r / beta).exp()).collect();
    let total: f64 = weights.iter().sum();
    let best: Vec<f64> = weights.iter().map(|w| w / total).collect();
    let objective = |p: &[f64]| -> f64 {
        p.iter().zip(&before).zip(&scores).map(|((p, q), r)| p * (r - beta * (p.max(1e-300) / q).ln())).sum()
    };
    let distance = |p: &[f64]| p.iter().zip(&best).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.;
    assert!((objective(&best) - beta * total.ln()).abs() < 1e-6);
    assert!(distance(&before) > 0.2, "the reference must be far: {}", distance(&before));
    for seed in 1..=3 {
        let recipe = PpoRecipe {
            seed,
            updates: 100,
            num_mini_batches: 2,
            max_new_tokens: 2,
            micro_batch_size: 256,
            lam: 1.,
            ..recipe(2e-3, beta)
        };
        let critic = model(4, 32, 0.3, Head::Token, seed);
        let mut trainer = PpoTrainer::new(&reference, critic, Reward::of_rows(hashed_scores), IDS, &recipe).unwrap();
        train(&mut trainer, &vec![query.clone().into(); 256]);
        let after = probabilities(&trainer.policy.model, &query, &replies);
        let (found, optimum) = (objective(&after), objective(&best));
        assert!(distance(&after) < 0.05, "seed {seed}: TV {}", distance(&after));
        assert!(found > optimum - 0.01 * optimum.abs(), "seed {seed}: J {found} of {optimum}");
    }
}

/// The number of tokens 5 in each row.
fn fives(rows: &[Vec<u32>]) -> Vec<f64> {
    rows.iter().map(|row| row.iter().filter(|&&id| id == 5).count() as f64).collect()
}

/// Trains with this score: the mean count of token 5 before and after, and the metrics.
fn train_on(kl_coef: f64, reward: Reward) -> (f64, f64, Vec<Metrics>) {
    let recipe =
        PpoRecipe { updates: 40, num_ppo_epochs: 2, max_new_tokens: 6, micro_batch_size: 128, ..recipe(1e-2, kl_coef) };
    let start = model(12, 16, 0.3, Head::LanguageModel, 1);
    let mut trainer = PpoTrainer::new(&start, model(12, 16, 0.3, Head::Token, 2), reward, IDS, &recipe).unwrap();
    let queries: Vec<Prompt> = (0..96).map(|i| vec![2 + i % 3, 7 + i % 5].into()).collect();
    let count = |trainer: &PpoTrainer| {
        let rows: Vec<Vec<u32>> = trainer.roll_out(&queries, 99).unwrap().into_iter().map(|r| r.response).collect();
        fives(&rows).iter().sum::<f64>() / rows.len() as f64
    };
    let before = count(&trainer);
    let metrics = train(&mut trainer, &queries);
    (before, count(&trainer), metrics)
}

#[test]
fn l3_ppo_follows_the_score_and_ignores_noise() {
    let (before, after, metrics) = train_on(0.02, Reward::of_rows(|rows| Ok(fives(rows))));
    let (first, last) = (&metrics[0], &metrics[metrics.len() - 1]);
    println!("score: {before} to {after}; KL {} to {}", metric(first, "objective/kl"), metric(last, "objective/kl"));
    assert!(after - before > 0.5 * (6. - before), "half of the possible gain: {before} to {after}");
    assert_eq!(metric(first, "objective/kl"), 0.);
    assert!(metric(last, "objective/kl") > 1.);
    assert!(metric(last, "policy/entropy_avg") < 0.8 * metric(first, "policy/entropy_avg"));

    let calls = Cell::new(0u32);
    let noise = |rows: &[Vec<u32>]| {
        calls.set(calls.get() + 1);
        Ok((0..rows.len() as u32).map(|i| hashed(&[calls.get(), i])).collect())
    };
    let (_, unmoved, _) = train_on(0.02, Reward::of_rows(noise));
    assert!((unmoved - before).abs() < 0.2 * (after - before), "noise: {before} to {unmoved}");

    let (_, fallen, _) = train_on(0.02, Reward::of_rows(|rows| Ok(fives(rows).into_iter().map(|x| -x).collect())));
    assert!(fallen < 0.5 * before, "the opposite: {before} to {fallen}");
}

#[test]
fn l3_a_higher_kl_coefficient_gives_a_smaller_kl() {
    let last = |(_, _, metrics): (f64, f64, Vec<Metrics>)| metrics.last().unwrap().clone();
    let kl = [0.02, 0.3, 3.]
        .map(|kl_coef| metric(&last(train_on(kl_coef, Reward::of_rows(|rows| Ok(fives(rows))))), "objective/kl"));
    assert!(kl[0] > 1.5 * kl[1] && kl[1] > 1.5 * kl[2], "{kl:?}");
}

/// Without any reward the entropy bonus makes the policy uniform.
#[test]
fn the_entropy_bonus_alone_makes_the_policy_uniform() {
    let entropy = |entropy_coef: f64| {
        let recipe =
            PpoRecipe { updates: 30, max_new_tokens: 1, micro_batch_size: 64, entropy_coef, ..recipe(1e-2, 0.) };
        let start = model(8, 16, 0.5, Head::LanguageModel, 1);
        let nothing = |rows: &[Vec<u32>]| Ok(vec![0.; rows.len()]);
        // A critic that predicts 0, so that the initial advantages are 0.
        let critic = model(8, 16, 0.3, Head::Token, 2);
        critic.params().vars()["score.weight"]
            .set(&Tensor::zeros((1, 16), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
            .unwrap();
        let mut trainer = PpoTrainer::new(&start, critic, Reward::of_rows(nothing), IDS, &recipe).unwrap();
        let metrics = train(&mut trainer, &vec![vec![2].into(); 64]);
        [metric(&metrics[0], "policy/entropy_avg"), metric(&metrics[29], "policy/entropy_avg")]
    };
    let ([before, still], [_, even]) = (entropy(0.), entropy(0.1));
    assert!(before < 8f64.ln() - 0.2 && (still - before).abs() < 0.01, "{before} to {still} without");
    assert!(even > 8f64.ln() - 0.01, "{before} to {even} of {}", 8f64.ln());
}

/// Trains the critic with a fixed policy; returns the trainer and the explained variance.
fn learn_values<'a>(recipe: &'a PpoRecipe, reward: Reward<'a>, queries: &[Prompt]) -> (PpoTrainer<'a>, f64) {
    let policy = model(4, 32, 0.3, Head::LanguageModel, 1);
    let mut trainer =
        PpoTrainer::new(&policy, model(4, 32, 0.3, Head::Token, recipe.seed), reward, IDS, recipe).unwrap();
    let metrics = train(&mut trainer, queries);
    (trainer, metric(metrics.last().unwrap(), "val/explained_var"))
}

fn critic_recipe(seed: u64, learning_rate: f64) -> PpoRecipe {
    let base = recipe(learning_rate, 0.05);
    let still = OptimizerConfig { learning_rate: 0., ..base.optimizer.clone() };
    PpoRecipe {
        seed,
        updates: 60,
        num_mini_batches: 4,
        lam: 1.,
        max_new_tokens: 2,
        micro_batch_size: 256,
        optimizer: still,
        ..base
    }
}

/// L4: the critic explains a reward that depends on the prompt only.
#[test]
fn l4_a_critic_explains_a_reward_of_the_prompt() {
    let queries: Vec<Prompt> = (0..128).map(|i| vec![2 + i % 2, i / 2 % 2, 2].into()).collect();
    let score = |rows: &[Vec<u32>]| Ok(rows.iter().map(|row| 2. * hashed(&row[..3])).collect());
    for seed in 1..=3 {
        let recipe = critic_recipe(seed, 5e-3);
        let (_, explained) = learn_values(&recipe, Reward::of_rows(score), &queries);
        assert!(explained > 0.9, "seed {seed}: {explained}");
    }
}

/// L4: under a fixed policy the value of every prefix is the expected score.
#[test]
fn l4_values_are_the_expected_returns() {
    let (query, replies) = (vec![2u32, 3], all_replies(4, 2));
    for seed in 1..=3 {
        let recipe = critic_recipe(seed, 3e-3);
        let (trainer, _) = learn_values(&recipe, Reward::of_rows(hashed_scores), &vec![query.clone().into(); 256]);
        let probability = probabilities(&trainer.policy.model, &query, &replies);
        let mut worst = (0f64, 0.);
        for beginning in all_replies(4, 1).into_iter().filter(|b| !b.contains(&EOS)).chain([vec![]]) {
            let (mut mass, mut sum) = (0., 0.);
            for (reply, p) in replies.iter().zip(&probability).filter(|(reply, _)| reply.starts_with(&beginning)) {
                mass += p;
                sum += p * hashed(&[query.as_slice(), reply].concat());
            }
            let row = [query.as_slice(), &beginning].concat();
            let value = reply_values(&trainer.critic.model, &[(&row, &[0])], PAD).unwrap().to_vec1::<f32>().unwrap()[0];
            let off = (f64::from(value) - sum / mass).abs();
            worst = if mass > 0.03 && off > worst.0 { (off, sum / mass) } else { worst };
        }
        assert!(worst.0 < 0.1, "seed {seed}: {} off at an expected return of {}", worst.0, worst.1);
    }
}
