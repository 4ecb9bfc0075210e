//! The invariants of PPO on tiny models (M1 to M7 of the field's checks): each of them with a case that must fail.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_model::{Head, Model, ModelConfig, Params};
use llm_train::optim::{Learner, OptimizerConfig};
use llm_train::recipes::{PpoRecipe, PpoTrainer};
use llm_train::rl::{KlEstimator, MissingEos};
use llm_train::rollout::{Rollout, reply_logprobs, reply_values};

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
    let policy = model(Head::LanguageModel, 1);
    PpoTrainer {
        reference: policy.frozen().unwrap(),
        policy: Learner::new(policy, &recipe.optimizer).unwrap(),
        critic: Learner::new(model(Head::Token, 2), &recipe.value_optimizer).unwrap(),
        score: &fives,
        pad: PAD,
        eos: EOS,
        kl_coef: recipe.kl_coef,
        recipe,
    }
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
fn m2_a_policy_that_is_its_reference_has_no_kl_at_any_temperature() {
    for temperature in [0.5, 1., 1.5] {
        let recipe = PpoRecipe { temperature, ..recipe() };
        let trainer = trainer(&recipe);
        for rollout in trainer.roll_out(&queries(), 3).unwrap() {
            assert!(rollout.kl().abs() < 1e-6);
            for (&p, &r) in rollout.logprobs.iter().zip(&rollout.ref_logprobs) {
                assert!(KlEstimator::K3.estimate(p, r).abs() < 1e-6);
            }
        }
    }
    let recipe = recipe();
    let other = PpoTrainer { reference: model(Head::LanguageModel, 9).frozen().unwrap(), ..trainer(&recipe) };
    assert!(other.roll_out(&queries(), 3).unwrap().iter().map(Rollout::kl).sum::<f64>() > 1.);
}

#[test]
fn m3_padding_changes_nothing() {
    let (policy, critic) = (model(Head::LanguageModel, 1), model(Head::Token, 2));
    let short = (&[4u32, 9, 6][..], &[5u32, 8, 5, EOS][..]);
    let longer: Vec<u32> = (2..12).collect();
    let numbers = |replies: &[(&[u32], &[u32])], pad| {
        let logprobs = reply_logprobs(&policy, replies, 0.7, pad).unwrap().0;
        let values = reply_values(&critic, replies, pad).unwrap();
        Tensor::cat(&[logprobs.narrow(0, 0, 4).unwrap(), values.narrow(0, 0, 4).unwrap()], 0).unwrap()
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
    let [padded, ended] = [PAD, EOS].map(|pad| PpoTrainer { pad, ..trainer(&recipe) }.roll_out(&queries(), 1).unwrap());
    assert!(padded.iter().any(|rollout| rollout.has_eos) && padded.iter().any(|rollout| !rollout.has_eos));
    for (padded, ended) in padded.iter().zip(&ended) {
        assert_eq!((&padded.response, padded.has_eos), (&ended.response, ended.has_eos));
        let numbers =
            |r: &Rollout| [r.logprobs.clone(), r.ref_logprobs.clone(), r.values.clone(), vec![r.score]].concat();
        assert!(numbers(padded).iter().zip(numbers(ended)).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn m4_a_token_changes_nothing_before_it() {
    let policy = model(Head::LanguageModel, 1);
    let logprobs =
        |reply: &[u32]| reply_logprobs(&policy, &[(&[4, 9, 6], reply)], 1., PAD).unwrap().0.to_vec1::<f32>().unwrap();
    let (one, other) = (logprobs(&[5, 8, 12, 3]), logprobs(&[5, 8, 20, 3]));
    assert_eq!(one[..2], other[..2]);
    assert!(one[2] != other[2] && one[3] != other[3]);
}

#[test]
fn m5_a_missing_end_costs_only_the_replies_that_miss_it() {
    let recipe = PpoRecipe { missing_eos: MissingEos::Subtract(1.), ..recipe() };
    let rollouts = trainer(&recipe).roll_out(&many(4), 11).unwrap();
    let ended = rollouts.iter().filter(|r| r.has_eos).count();
    assert!(ended > 0 && ended < rollouts.len(), "both kinds are needed: {ended}");
    for rollout in &rollouts {
        assert_eq!(rollout.has_eos, rollout.response.contains(&EOS));
        assert!(rollout.response.iter().rev().skip(1).all(|&id| id != EOS), "an end ends the reply");
        let expected = if rollout.has_eos { rollout.score } else { rollout.score - 1. };
        assert_eq!(recipe.missing_eos.apply(rollout.score, rollout.has_eos), expected);
        assert_eq!(rollout.score, fives(&[rollout.row()]).unwrap()[0]);
    }
}

#[test]
fn m6_a_fresh_value_head_says_its_bias_and_only_policy_and_critic_learn() {
    let recipe = recipe();
    let mut trainer = trainer(&recipe);
    let zero = {
        let critic = model(Head::Token, 2);
        critic.params().vars()["score.weight"]
            .set(&Tensor::zeros((1, 16), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
            .unwrap();
        reply_values(&critic, &[(&[4, 9], &[5, 6, EOS])], PAD).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(zero, [0.; 3]);
    let before =
        [bytes(trainer.reference.params()), bytes(trainer.policy.model.params()), bytes(trainer.critic.model.params())];
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    trainer.learn(&rollouts, 0).unwrap();
    assert_eq!(before[0], bytes(trainer.reference.params()));
    assert_ne!(before[1], bytes(trainer.policy.model.params()));
    assert_ne!(before[2], bytes(trainer.critic.model.params()));
}

/// With an enormous `eps` a first step of Adam is the gradient times a constant: weights show gradients.
#[test]
fn m7_micro_batches_gather_the_gradient_of_the_whole() {
    let optimizer = OptimizerConfig { learning_rate: 1e6, eps: 1e6, ..recipe().optimizer };
    let whole = PpoRecipe { value_optimizer: optimizer.clone(), optimizer, ..recipe() };
    let parts = PpoRecipe { micro_batch_size: 3, ..whole.clone() };
    let rollouts = trainer(&whole).roll_out(&queries(), 5).unwrap();
    let steps = |recipe: &PpoRecipe| {
        let mut trainer = trainer(recipe);
        trainer.learn(&rollouts, 0).unwrap();
        let step = |learner: &Learner, fresh: &Model| -> Vec<f32> {
            let tensors = learner.model.params().tensors().iter();
            let step = |(name, now): (&String, &Tensor)| {
                (now - fresh.params().get(name).unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            tensors.flat_map(step).collect()
        };
        (step(&trainer.policy, &model(Head::LanguageModel, 1)), step(&trainer.critic, &model(Head::Token, 2)))
    };
    let (a, b) = (steps(&whole), steps(&parts));
    for (whole, parts) in [(a.0, b.0), (a.1, b.1)] {
        let size = whole.iter().fold(0., |m: f32, x| m.max(x.abs()));
        let far = whole.iter().zip(&parts).map(|(x, y)| (x - y).abs()).fold(0., f32::max);
        let mean: f32 = whole.iter().zip(&parts).map(|(x, y)| x - y).sum::<f32>() / whole.len() as f32;
        assert!(size > 1e-3, "there must be a gradient: {size}");
        assert!(far < 1e-4 * size.max(1.), "{far} of {size}");
        assert!(mean.abs() < 1e-5 * size.max(1.), "{mean} of {size}");
    }
}

#[test]
fn a_policy_learns_to_please_and_a_high_price_of_kl_holds_it_back() {
    let run = |kl_coef: f64| {
        let optimizer = OptimizerConfig { learning_rate: 1e-2, ..recipe().optimizer };
        let recipe = PpoRecipe {
            updates: 30,
            num_ppo_epochs: 2,
            temperature: 1.,
            kl_coef,
            value_optimizer: optimizer.clone(),
            optimizer,
            ..recipe()
        };
        let mut trainer = trainer(&recipe);
        let mut figures = Vec::new();
        for update in 0..recipe.updates {
            let rollouts = trainer.roll_out(&many(3), update).unwrap();
            figures.push(trainer.learn(&rollouts, update).unwrap());
        }
        let last = figures.last().unwrap();
        let name = "objective/scores";
        (figure(&figures[0], name), figure(last, name), figure(last, "objective/kl"))
    };
    let (before, after, kl) = run(0.01);
    assert!(after > before + 2., "{before} to {after}");
    let (_, _, dear) = run(20.);
    assert!(dear < kl / 4., "KL {kl} at a low price, {dear} at a high one");
}
