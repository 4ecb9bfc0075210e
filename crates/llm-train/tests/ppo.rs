//! The invariants of PPO on tiny models (M1 to M8 of the field's checks): each of them with a case that must fail.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::{fresh_model, quietly};
use llm_kernels::Precision;
use llm_model::{ExpertsConfig, Head, Model, ModelConfig, ModelType, Params};
use llm_tokenizer::Tokenizer;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{Averages, PpoInputs, PpoRecipe, PpoTrainer, RewardModel, SpecialIds, ppo};
use llm_train::rl::{KlEstimator, MissingEos};
use llm_train::rollout::{Rollout, reply_logprobs, reply_logprobs_and_entropies, reply_values};
use llm_train::run::{NEVER, RunOptions};
use serde_json::{Value, json};

const PAD: u32 = 0;
const EOS: u32 = 1;

fn model(head: Head, seed: u64) -> Model {
    let config = ModelConfig {
        vocab_size: 24,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        initializer_range: 0.3,
        ..ModelConfig::default()
    };
    Model::init(config, head, seed).unwrap()
}

fn recipe() -> PpoRecipe {
    let optimizer =
        OptimizerConfig { learning_rate: 1e-3, warmup_steps: 0, max_grad_norm: 0., ..PpoRecipe::default().optimizer };
    PpoRecipe {
        num_ppo_epochs: 1,
        max_new_tokens: 12,
        temperature: 0.7,
        updates: 10,
        value_optimizer: optimizer.clone(),
        optimizer,
        ..PpoRecipe::default()
    }
}

/// Queries of uneven length.
fn queries() -> Vec<Vec<u32>> {
    (0..10).map(|i| (0..=i % 4).map(|t| 2 + (3 * i + 5 * t) % 22).collect()).collect()
}

/// The queries, several times over.
fn many(times: usize) -> Vec<Vec<u32>> {
    vec![queries(); times].concat()
}

/// The number of tokens 5: something that a policy can learn to please.
#[allow(clippy::unnecessary_wraps, reason = "a score may fail")]
fn fives(rows: &[Vec<u32>]) -> llm_train::Result<Vec<f64>> {
    Ok(rows.iter().map(|row| row.iter().filter(|&&id| id == 5).count() as f64).collect())
}

fn trainer(recipe: &PpoRecipe) -> PpoTrainer<'_> {
    let ids = SpecialIds { pad: PAD, eos: EOS };
    PpoTrainer::new(&model(Head::LanguageModel, 1), model(Head::Token, 2), &fives, ids, recipe).unwrap()
}

fn figure(figures: &[(&str, f64)], name: &str) -> f64 {
    figures.iter().find(|f| f.0 == name).unwrap_or_else(|| panic!("{name} is missing")).1
}

/// The bytes of all parameters.
fn bytes(params: &Params) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    params.tensors().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

#[test]
fn m1_before_any_step_old_and_new_policy_are_one() {
    let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
    // Rolled out in chunks of 4 through the cache; learnt from in chunks of 3, padded anew, over three epochs.
    let drawn = PpoRecipe { micro_batch_size: 4, ..recipe() };
    let learnt = PpoRecipe { micro_batch_size: 3, num_ppo_epochs: 3, optimizer: still, ..recipe() };
    let mut trainer = trainer(&drawn);
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    trainer.recipe = &learnt;
    let figures = trainer.learn(&rollouts, 0).unwrap();
    assert!((figure(&figures, "val/ratio") - 1.).abs() < 1e-4);
    assert!(figure(&figures, "policy/approxkl_avg") < 1e-7);
    assert_eq!(figure(&figures, "policy/clipfrac_avg"), 0.);
    assert!(figure(&figures, "loss/policy_avg").abs() < 1e-6);

    // Another temperature in training than in the rollout shows at once.
    let warmer = PpoRecipe { temperature: 1., ..learnt.clone() };
    trainer.recipe = &warmer;
    assert!(figure(&trainer.learn(&rollouts, 0).unwrap(), "policy/approxkl_avg") > 1e-4);
}

#[test]
fn m2_a_policy_that_is_its_reference_has_no_kl_at_any_temperature_in_any_precision() {
    for precision in [Precision::F32, Precision::Bf16] {
        for temperature in [0.5, 1., 1.5] {
            let optimizer = OptimizerConfig { precision, ..recipe().optimizer };
            let recipe = PpoRecipe { temperature, optimizer, ..recipe() };
            let mut trainer = trainer(&recipe);
            let rollouts = trainer.roll_out(&queries(), 3).unwrap();
            for rollout in &rollouts {
                assert_eq!(rollout.kl(), 0.);
                for (&p, &r) in rollout.logprobs.iter().zip(&rollout.ref_logprobs) {
                    assert_eq!(KlEstimator::K3.estimate(p, r), 0.);
                }
            }
            let figures = trainer.learn(&rollouts, 0).unwrap();
            assert_eq!([figure(&figures, "objective/kl"), figure(&figures, "objective/non_score_reward")], [0., 0.]);
        }
    }
    // Whatever makes the two models different shows: other weights, and the other precision.
    let kl = |reference: Model| {
        let recipe = recipe();
        let other = PpoTrainer { reference, ..trainer(&recipe) };
        other.roll_out(&queries(), 3).unwrap().iter().map(|r| r.kl().abs()).sum::<f64>()
    };
    assert!(kl(model(Head::LanguageModel, 9).frozen().unwrap()) > 1.);
    assert!(kl(model(Head::LanguageModel, 1).frozen().unwrap().in_precision(Precision::Bf16).unwrap()) > 1e-4);
}

#[test]
fn m3_padding_changes_nothing() {
    let (policy, critic) = (model(Head::LanguageModel, 1), model(Head::Token, 2));
    let short = (&[4u32, 9, 6][..], &[5u32, 8, 5, EOS][..]);
    let longer: Vec<u32> = (2..12).collect();
    let numbers = |replies: &[(&[u32], &[u32])], pad| {
        let (logprobs, entropies) = reply_logprobs_and_entropies(&policy, replies, 0.7, pad).unwrap();
        let values = reply_values(&critic, replies, pad).unwrap();
        let first = |numbers: Tensor| numbers.narrow(0, 0, 4).unwrap();
        Tensor::cat(&[first(logprobs), first(entropies), first(values)], 0).unwrap()
    };
    let alone = numbers(&[short], PAD).to_vec1::<f32>().unwrap();
    for (replies, pad) in [
        (vec![short, (&longer[..6], &[7, EOS][..])], PAD), // 3 tokens of padding on the left
        (vec![short, (&longer[..], &longer[..])], PAD),    // 7 on the left, 6 on the right
        (vec![short, (&longer[..], &longer[..])], 17),     // other contents
    ] {
        let padded = numbers(&replies, pad).to_vec1::<f32>().unwrap();
        let far = alone.iter().zip(&padded).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(far < 1e-5, "{far}");
    }
    let other = numbers(&[(&[4, 9, 7], short.1)], PAD).to_vec1::<f32>().unwrap();
    assert!(alone.iter().zip(&other).any(|(a, b)| (a - b).abs() > 1e-3), "the query must matter");

    // Rows are told from padding by their lengths: an id that ends replies fills them as well.
    let recipe = recipe();
    let drawn = [PAD, EOS].map(|pad| {
        let ids = SpecialIds { pad, eos: EOS };
        PpoTrainer { ids, ..trainer(&recipe) }.roll_out(&queries(), 1).unwrap()
    });
    assert!(drawn[0].iter().any(|rollout| rollout.has_eos) && drawn[0].iter().any(|rollout| !rollout.has_eos));
    for (padded, ended) in drawn[0].iter().zip(&drawn[1]) {
        assert_eq!((&padded.response, padded.has_eos), (&ended.response, ended.has_eos));
        let numbers =
            |r: &Rollout| [r.logprobs.clone(), r.ref_logprobs.clone(), r.values.clone(), vec![r.score]].concat();
        assert!(numbers(padded).iter().zip(numbers(ended)).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    assert!(reply_logprobs(&policy, &[(&[], &[5])], 1., PAD).is_err(), "a reply to nothing");
}

/// The log-probabilities of a reply are those that the whole text has, token by token, in the model's own logits.
#[test]
fn log_probabilities_are_read_from_the_column_before_their_token() {
    let (policy, critic) = (model(Head::LanguageModel, 1), model(Head::Token, 2));
    let (query, reply) = (vec![4u32, 9, 6], vec![5u32, 8, EOS]);
    let batch = llm_model::Batch::new(&[[query.clone(), reply.clone()].concat()]).unwrap();
    let logits = policy.forward(&batch).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
    let values = critic.forward(&batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let replies = [(query.as_slice(), reply.as_slice())];
    let (logprobs, entropies) = reply_logprobs_and_entropies(&policy, &replies, 0.7, PAD).unwrap();
    let (logprobs, entropies) = (logprobs.to_vec1::<f32>().unwrap(), entropies.to_vec1::<f32>().unwrap());
    assert_eq!(reply_logprobs(&policy, &replies, 0.7, PAD).unwrap().to_vec1::<f32>().unwrap(), logprobs);
    let critics = reply_values(&critic, &replies, PAD).unwrap().to_vec1::<f32>().unwrap();
    for (t, &id) in reply.iter().enumerate() {
        let row: Vec<f64> = logits[query.len() - 1 + t].iter().map(|&z| f64::from(z) / 0.7).collect();
        let log_sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
        let entropy: f64 = row.iter().map(|z| -(z - log_sum).exp() * (z - log_sum)).sum();
        assert!((f64::from(logprobs[t]) - (row[id as usize] - log_sum)).abs() < 1e-5);
        assert!((f64::from(entropies[t]) - entropy).abs() < 1e-5);
        assert!((critics[t] - values[query.len() - 1 + t]).abs() < 1e-5);
    }
}

#[test]
fn m4_a_token_changes_nothing_before_it() {
    let policy = model(Head::LanguageModel, 1);
    let logprobs =
        |reply: &[u32]| reply_logprobs(&policy, &[(&[4, 9, 6], reply)], 1., PAD).unwrap().to_vec1::<f32>().unwrap();
    let (one, other) = (logprobs(&[5, 8, 12, 3]), logprobs(&[5, 8, 20, 3]));
    assert_eq!(one[..2], other[..2]);
    assert!(one[2] != other[2] && one[3] != other[3]);
}

/// With γ = λ = 1 a token's return is the sum of the rewards from it on: the rewards that are optimised can be read.
#[test]
fn m5_rewards_sum_to_the_score_with_its_penalty_less_the_price_of_the_kl() {
    for missing_eos in [MissingEos::None, MissingEos::Subtract(1.5), MissingEos::Replace(-2.)] {
        let recipe = PpoRecipe { max_new_tokens: 4, kl_coef: 0.3, gamma: 1., lam: 1., missing_eos, ..recipe() };
        let trainer = PpoTrainer { reference: model(Head::LanguageModel, 9).frozen().unwrap(), ..trainer(&recipe) };
        let rollouts = trainer.roll_out(&many(12), 11).unwrap();
        let returns = trainer.targets(&rollouts).returns;
        let mut seen = BTreeMap::new();
        for (rollout, returns) in rollouts.iter().zip(&returns) {
            let end = rollout.response.iter().position(|&id| id == EOS);
            assert_eq!(rollout.has_eos, end.is_some());
            assert!(end.is_none_or(|at| at + 1 == rollout.response.len()), "an end ends the reply");
            assert_eq!(rollout.score, fives(&[rollout.row()]).unwrap()[0]);
            *seen.entry(end).or_insert(0) += 1;
            let score = match (end, missing_eos) {
                (None, MissingEos::Subtract(_)) => rollout.score - 1.5,
                (None, MissingEos::Replace(_)) => -2.,
                _ => rollout.score,
            };
            let kl = |t: usize| rollout.logprobs[t] - rollout.ref_logprobs[t];
            let tokens = rollout.response.len();
            let sum = score - 0.3 * (0..tokens).map(kl).sum::<f64>();
            assert!((returns[0] - sum).abs() < 1e-9, "{end:?}: {} is not {sum}", returns[0]);
            for t in 0..tokens - 1 {
                assert!(
                    (returns[t] - returns[t + 1] + 0.3 * kl(t)).abs() < 1e-9,
                    "the score is placed once, at the end"
                );
            }
        }
        for end in [Some(0), Some(1), Some(3), None] {
            assert!(seen.contains_key(&end), "no reply ends at {end:?}: {seen:?}");
        }
    }
}

/// Two replies by hand. Rewards at a KL coefficient of 0.1: -0.05, 1.05 and -0.02 + 0.4 - 1. With γ = 0.9, λ = 0.5:
/// A₁ = 1.05 - 0.2, A₀ = -0.05 + 0.9 · 0.2 - 0.5 + 0.45 · 0.85, and -0.62 - 0.1.
#[test]
fn targets_have_their_hand_computed_values() {
    let rollout = |logprobs: &[f64], ref_logprobs: &[f64], values: &[f64], score, has_eos| Rollout {
        query: vec![3],
        response: vec![4; logprobs.len()],
        has_eos,
        score,
        logprobs: logprobs.to_vec(),
        ref_logprobs: ref_logprobs.to_vec(),
        values: values.to_vec(),
    };
    let rollouts =
        [rollout(&[-1., -2.], &[-1.5, -1.5], &[0.5, 0.2], 1., true), rollout(&[-0.5], &[-0.7], &[0.1], 0.4, false)];
    let plain = PpoRecipe { kl_coef: 0.1, gamma: 0.9, lam: 0.5, ..recipe() };
    let near = |lists: &[Vec<f64>], expected: [f64; 3]| {
        let found = lists.concat();
        assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
    };
    let targets = trainer(&plain).targets(&rollouts);
    near(&targets.returns, [0.5125, 1.05, -0.62]);
    // 0.0125, 0.85, -0.72 less their mean 0.0475, over the root of their variance 1.2342875 / 3.
    near(&targets.advantages, [-0.0545658, 1.2511158, -1.1965500]);

    // The rewards' mean 0.1266667 is kept, their deviation 0.6931250 is divided by: -0.1282176, 1.4587978, -0.9505801.
    let whitened = PpoRecipe { whiten_rewards: true, gamma: 1., lam: 1., ..plain };
    near(&trainer(&whitened).targets(&rollouts).returns, [1.3305801, 1.4587978, -0.9505801]);
}

#[test]
fn m6_the_critic_begins_as_the_reward_model_in_its_unit() {
    let dir = tempfile::tempdir().unwrap();
    let folder = reward_folder(dir.path(), 0.7, 0.05);
    let reward_model = RewardModel::load(&folder).unwrap();
    let critic = reward_model.critic().unwrap();
    for row in [vec![5, 9, 11, 7], vec![3], vec![20, 20, 8]] {
        let score = reward_model.scores(std::slice::from_ref(&row)).unwrap()[0];
        // What is said before the token after the row is said at the row's last token.
        let value = reply_values(&critic, &[(&row, &[4])], PAD).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!(score.abs() > 1., "mean and deviation must matter: {score}");
        assert!((f64::from(value) - score).abs() < 1e-4 * score.abs(), "{value} is not {score}");
    }
    // It is saved and read again as a Hugging Face folder.
    critic.save(&dir.path().join("critic")).unwrap();
    let again = Model::load(&dir.path().join("critic")).unwrap();
    assert_eq!(again.head(), Head::Token);
    assert_eq!(bytes(again.params()), bytes(critic.params()));
}

/// A reward that is the same for every text: a critic in its unit has nothing to learn, one in another unit has.
#[test]
fn a_constant_reward_is_predicted_from_the_first_update_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = reward_folder(dir.path(), -0.4, 0.2);
    let model = Model::load(&folder).unwrap();
    // Alike embeddings and no blocks that tell positions apart: every text has the same hidden states.
    let mut tensors = model.params().tensors().clone();
    for (name, tensor) in &mut tensors {
        if name.contains("embed_tokens") || name.contains("down_proj") || name.contains("o_proj") {
            let scale = if name.contains("embed_tokens") { 1. } else { 0. };
            *tensor = (tensor.ones_like().unwrap() * scale).unwrap();
        }
    }
    let mut constant = Model::new(model.config().clone(), Head::Sequence, Params::new(tensors)).unwrap();
    constant.extra = model.extra.clone();
    constant.save(&folder).unwrap();
    let reward_model = RewardModel::load(&folder).unwrap();
    let recipe = PpoRecipe { missing_eos: MissingEos::None, ..recipe() };
    let score = |rows: &[Vec<u32>]| reward_model.scores(rows);
    let policy = Model::init(constant.config().clone(), Head::LanguageModel, 1).unwrap();
    let ids = SpecialIds { pad: PAD, eos: EOS };
    let mut trainer = PpoTrainer::new(&policy, reward_model.critic().unwrap(), &score, ids, &recipe).unwrap();
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert!(rollouts[0].score.abs() > 0.3, "{}", rollouts[0].score);
    let figures = trainer.learn(&rollouts, 0).unwrap();
    assert!(figure(&figures, "loss/value_avg") < 1e-8, "{}", figure(&figures, "loss/value_avg"));
    assert!(figure(&figures, "val/explained_var") >= 0.);

    let raw = constant.with_head(Head::Token, 0).unwrap();
    let mut trainer = PpoTrainer::new(&policy, raw, &score, ids, &recipe).unwrap();
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert!(figure(&trainer.learn(&rollouts, 0).unwrap(), "loss/value_avg") > 0.01);
}

#[test]
fn only_policy_and_critic_learn() {
    let recipe = recipe();
    let mut trainer = trainer(&recipe);
    let numbers = |trainer: &PpoTrainer| {
        [&trainer.reference, &trainer.policy.model, &trainer.critic.model].map(|model| bytes(model.params()))
    };
    let before = numbers(&trainer);
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert_eq!(before, numbers(&trainer), "a draw changes nothing");
    trainer.learn(&rollouts, 0).unwrap();
    let after = numbers(&trainer);
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    assert_ne!(before[2], after[2]);
}

#[test]
fn m7_micro_batches_gather_the_gradient_of_the_whole() {
    let whole = PpoRecipe { entropy_coef: 0.1, ..recipe() };
    let rollouts = trainer(&whole).roll_out(&queries(), 5).unwrap();
    let lengths: Vec<usize> = rollouts.iter().map(|r| r.response.len()).collect();
    assert!(lengths.iter().min() < lengths.iter().max(), "lengths must be uneven: {lengths:?}");
    let gradients = |micro_batch_size| {
        let recipe = PpoRecipe { micro_batch_size, ..whole.clone() };
        let mut trainer = trainer(&recipe);
        let targets = trainer.targets(&rollouts);
        let (all, mut averages): (Vec<usize>, _) = ((0..rollouts.len()).collect(), Averages::default());
        trainer.gather_gradients(&rollouts, &targets, &all, &mut averages).unwrap();
        let [policy, critic] = [&trainer.policy, &trainer.critic].map(|learner| {
            assert_eq!(learner.gradients().len(), learner.model.params().vars().len());
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            learner.gradients().iter().map(|(name, t)| (name.clone(), flat(t))).collect::<BTreeMap<_, _>>()
        });
        let names = ["policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/ratio"];
        (policy, critic, names.map(|name| averages.get(name).unwrap()))
    };
    let one = gradients(64);
    for size in [1, 3, 4] {
        let parts = gradients(size);
        assert!(one.2.iter().zip(parts.2).all(|(a, b)| (a - b).abs() < 1e-5), "{:?} is not {:?}", one.2, parts.2);
        for (whole, parts) in [(&one.0, &parts.0), (&one.1, &parts.1)] {
            for (name, whole) in whole {
                let parts = &parts[name];
                let top = whole.iter().fold(0., |m: f32, x| m.max(x.abs()));
                let far = whole.iter().zip(parts).map(|(x, y)| (x - y).abs()).fold(0., f32::max);
                let mean = whole.iter().zip(parts).map(|(x, y)| x - y).sum::<f32>() / whole.len() as f32;
                assert!(top > 1e-7, "{name} must have a gradient: {top}");
                assert!(far <= 1e-4 * top, "{name}, {size} at a time: {far} of {top}");
                assert!(mean.abs() <= 1e-5 * top, "{name}, {size} at a time: {mean} of {top} on average");
            }
        }
    }
}

/// Averages are over what was done: with a learning rate of 0 they are those of the batch, however it is cut.
#[test]
fn metrics_do_not_depend_on_how_the_batch_is_cut() {
    let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
    let whole = PpoRecipe { optimizer: still.clone(), value_optimizer: still, ..recipe() };
    let rollouts = trainer(&whole).roll_out(&queries()[..8], 5).unwrap();
    let metrics = |recipe: &PpoRecipe| trainer(recipe).learn(&rollouts, 0).unwrap();
    let expected = metrics(&whole);
    assert!((figure(&expected, "val/ratio") - 1.).abs() < 1e-5);
    for (num_mini_batches, micro_batch_size, num_ppo_epochs) in [(6, 64, 1), (3, 2, 2), (8, 1, 1), (20, 5, 3)] {
        let cut = PpoRecipe { num_mini_batches, micro_batch_size, num_ppo_epochs, ..whole.clone() };
        for (name, found) in metrics(&cut) {
            let (expected, steps) = (figure(&expected, name), name.ends_with("grad_norm"));
            assert!(steps || (found - expected).abs() < 1e-5, "{name}: {found} is not {expected}");
        }
    }
    // The entropy is that of the distributions, not of padding: once more by itself.
    let replies: Vec<_> = rollouts.iter().map(Rollout::reply).collect();
    let entropies = reply_logprobs_and_entropies(&model(Head::LanguageModel, 1), &replies, 0.7, PAD).unwrap().1;
    let mean = f64::from(entropies.mean_all().unwrap().to_scalar::<f32>().unwrap());
    assert!((figure(&expected, "policy/entropy_avg") - mean).abs() < 1e-5);
}

#[test]
fn micro_batches_draw_the_replies_of_the_whole_a_few_at_a_time() {
    let largest = RefCell::new(0);
    let score = |rows: &[Vec<u32>]| {
        let mut largest = largest.borrow_mut();
        *largest = rows.len().max(*largest);
        fives(rows)
    };
    let draw = |micro_batch_size| {
        let recipe = PpoRecipe { micro_batch_size, ..recipe() };
        let trainer = PpoTrainer { score: &score, ..trainer(&recipe) };
        let rollouts = trainer.roll_out(&vec![vec![4, 5]; 10], 7).unwrap();
        rollouts.into_iter().map(|r| r.response).collect::<Vec<_>>()
    };
    let few = draw(3);
    assert_eq!(*largest.borrow(), 3);
    assert_eq!(few, draw(64));
    let mut distinct = few.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 7, "the same query in another micro-batch has a draw of its own: {few:?}");
}

/// The folder of a reward model with its statistics, made from a fresh model.
fn reward_folder(dir: &Path, mean: f64, std: f64) -> std::path::PathBuf {
    fresh_model(&dir.join("model"), &"The sun and the rain. Say it again.".repeat(20), 16, 0.3);
    let mut reward = Model::load(&dir.join("model")).unwrap().with_head(Head::Sequence, 3).unwrap();
    reward.extra.insert("reward_mean".to_owned(), json!(mean));
    reward.extra.insert("reward_std".to_owned(), json!(std));
    reward.save(&dir.join("reward")).unwrap();
    Tokenizer::from_dir(&dir.join("model")).unwrap().save(&dir.join("reward")).unwrap();
    dir.join("reward")
}

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

/// Three prompts, eight episodes: what is logged is what was done, twice the same, and over an interruption too.
#[test]
fn m8_a_run_is_the_same_twice_and_over_an_interruption() {
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
    // Not in the unit of the folder, in which the replies of the reference have scores of several hundred.
    let first = lines[0]["objective/scores"].as_f64().unwrap();
    assert!(first.abs() < 1.5, "the reference's replies have mean 0 and deviation 1, the first eight {first}");
    let episodes: Vec<f64> = lines.iter().map(|line| line["episode"].as_f64().unwrap()).collect();
    assert_eq!(episodes, [8., 16., 24., 32., 40.]);
    assert!(lines[0]["objective/kl_coef"] != lines[4]["objective/kl_coef"], "the KL coefficient must be steered");

    // As if the second run had been killed after its fourth update.
    for file in ["trainer_state.json", "model.safetensors", "config.json"] {
        std::fs::remove_file(path("two").join(file)).unwrap();
    }
    std::fs::remove_dir_all(path("two").join("checkpoints/step-5")).unwrap();
    ppo(&recipe, inputs, &path("two"), RunOptions { resume: true, observer: &mut |_| (), stop: &NEVER }).unwrap();
    assert_eq!(lines, metrics(&path("two")));
    let model = |run: &str| std::fs::read(path(run).join("model.safetensors")).unwrap();
    assert_eq!(model("one"), model("two"));
}

#[test]
fn a_policy_with_experts_learns_with_the_losses_of_its_routers() {
    let policy = |coefficient: f64| {
        let experts = ExpertsConfig {
            num_experts: 4,
            moe_intermediate_size: 16,
            router_aux_loss_coef: coefficient,
            ..ExpertsConfig::default()
        };
        let dense = model(Head::LanguageModel, 1).config().clone();
        let config =
            ModelConfig { model_type: ModelType::Mixtral, intermediate_size: 16, experts: Some(experts), ..dense };
        Model::init(config, Head::LanguageModel, 1).unwrap()
    };
    let recipe = PpoRecipe { micro_batch_size: 4, ..recipe() };
    let norm = |coefficient: f64| {
        let ids = SpecialIds { pad: PAD, eos: EOS };
        let mut trainer = PpoTrainer::new(&policy(coefficient), model(Head::Token, 2), &fives, ids, &recipe).unwrap();
        let rollouts = trainer.roll_out(&queries(), 3).unwrap();
        let (targets, mut averages) = (trainer.targets(&rollouts), Averages::default());
        let all: Vec<usize> = (0..rollouts.len()).collect();
        trainer.gather_gradients(&rollouts, &targets, &all, &mut averages).unwrap();
        assert!(averages.get("policy/load_balancing_loss").unwrap() >= 1.9, "k at least, but for rounding");
        let gate = &trainer.policy.gradients()["model.layers.0.mlp.gate.weight"];
        gate.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    };
    assert!(norm(50.) > 3. * norm(0.), "the coefficient must reach the gradient");
}
