//! Sampling of replies, and their scores, log-probabilities and values.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_kernels::{Precision, token_logprobs};
use llm_model::{Batch, Head, LoraConfig, Model};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoRecipe, PpoTrainer, SpecialIds};
use llm_train::rewards::Reward;
use llm_train::rl::{MissingEos, k3};
use llm_train::rollout::{Rollout, reply_logprobs, reply_logprobs_and_entropies, reply_values};

use super::{EOS, PAD, fives, many, metric, model, queries, recipe, trainer};

#[test]
fn m1_without_an_update_the_ratio_is_one() {
    let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
    // Sampled in batches of 4 with a KV cache; trained in micro-batches of 3 with other padding, for three epochs.
    let sampling = PpoRecipe { micro_batch_size: 4, ..recipe() };
    let training = PpoRecipe { micro_batch_size: 3, num_ppo_epochs: 3, optimizer: still, ..recipe() };
    let warmer = PpoRecipe { temperature: 1., ..training.clone() };
    let mut trainer = trainer(&sampling);
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    trainer.recipe = &training;
    let metrics = trainer.learn(&rollouts, 0).unwrap();
    assert!((metric(&metrics, "val/ratio") - 1.).abs() < 1e-4);
    assert!(metric(&metrics, "policy/approxkl_avg") < 1e-7);
    assert_eq!(metric(&metrics, "policy/clipfrac_avg"), 0.);
    assert!(metric(&metrics, "loss/policy_avg").abs() < 1e-6);

    // Negative control: another temperature in training than in sampling.
    trainer.recipe = &warmer;
    assert!(metric(&trainer.learn(&rollouts, 0).unwrap(), "policy/approxkl_avg") > 1e-4);
}

/// The engine reads keys and values from pages and computes at most 64 rows at a time, the trainer whole padded batches.
#[test]
fn the_engine_computes_the_log_probabilities_of_the_trainer() {
    let recipe = recipe();
    let mut trainer = trainer(&recipe);
    let mut rollouts = trainer.roll_out(&many(10), 7).unwrap();
    let metrics = trainer.learn(&rollouts, 0).unwrap();
    let [mean, max, exp] =
        ["mean", "max", "exp"].map(|name| metric(&metrics, &format!("sampling/logprob_diff_{name}")));
    assert!(mean > 0. && mean < max && max < 1e-4 && exp < 1. + 1e-4, "{mean} {max} {exp}");
    // Negative control: log-probabilities at another temperature.
    rollouts[0].engine_logprobs.iter_mut().for_each(|x| *x *= 1.4);
    assert!(metric(&trainer.learn(&rollouts, 0).unwrap(), "sampling/logprob_diff_max") > 1e-2);
}

#[test]
fn m2_the_kl_of_a_policy_equal_to_its_reference_is_zero() {
    for precision in [Precision::F32, Precision::Bf16] {
        for temperature in [0.5, 1., 1.5] {
            let optimizer = OptimizerConfig { precision, ..recipe().optimizer };
            let recipe = PpoRecipe { temperature, optimizer, ..recipe() };
            let mut trainer = trainer(&recipe);
            let rollouts = trainer.roll_out(&queries(), 3).unwrap();
            for rollout in &rollouts {
                assert_eq!(rollout.kl(), 0.);
                for (&p, &r) in rollout.logprobs.iter().zip(&rollout.ref_logprobs) {
                    assert_eq!(p, r);
                }
            }
            let metrics = trainer.learn(&rollouts, 0).unwrap();
            let names = ["objective/kl", "objective/kl_k3", "objective/non_score_reward"];
            assert_eq!(names.map(|name| metric(&metrics, name)), [0.; 3], "the estimates k1 and k3");
        }
    }
    // Negative control: other weights, and another precision. Dropout is the next test.
    let kl = |reference: Model| {
        let recipe = recipe();
        let other = PpoTrainer { reference, ..trainer(&recipe) };
        other.roll_out(&queries(), 3).unwrap().iter().map(|r| r.kl().abs()).sum::<f64>()
    };
    assert!(kl(model(Head::LanguageModel, 9).frozen().unwrap()) > 1.);
    if !llm_kernels::skip_on_reference_path("nothing is rounded to bf16") {
        assert!(kl(model(Head::LanguageModel, 1).frozen().unwrap().in_precision(Precision::Bf16).unwrap()) > 1e-4);
    }
}

/// A policy whose adapter was trained with dropout: PPO computes all log-probabilities without it, so that the KL is 0. In a forward
/// pass with dropout they differ from those of the reference.
#[test]
fn m2_dropout_is_off_and_would_make_the_initial_kl_positive() {
    let lora = LoraConfig { r: 4, lora_alpha: 64., lora_dropout: 0.3, ..LoraConfig::default() };
    let mut tuned = model(Head::LanguageModel, 1).with_lora(&lora, 1).unwrap();
    for (name, var) in tuned.params().vars().iter().filter(|(name, _)| name.contains("lora_B")) {
        let noise = Tensor::randn_like(var, 0., 0.3).unwrap();
        var.set(&noise).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    tuned = tuned.frozen().unwrap();
    let recipe = recipe();
    let ids = SpecialIds { pad: PAD, eos: EOS };
    let trainer = PpoTrainer::new(&tuned, model(Head::Token, 2), Reward::of_rows(fives), ids, &recipe).unwrap();
    let rollouts = trainer.roll_out(&queries(), 3).unwrap();
    assert!(rollouts.iter().all(|rollout| rollout.kl() == 0.));

    // Negative control: the k3 estimate with the log-probabilities of a forward pass with dropout.
    let kl = |dropout: Option<u64>| {
        let of_rollout = |rollout: &Rollout| {
            let batch = Batch { dropout, ..Batch::new(&[rollout.row()]).unwrap() };
            let logits = trainer.policy.model.forward(&batch).unwrap().squeeze(0).unwrap();
            let logits = logits.narrow(0, rollout.query.len() - 1, rollout.response.len()).unwrap();
            let logprobs =
                token_logprobs(&logits, &rollout.response, recipe.temperature).unwrap().to_vec1::<f32>().unwrap();
            logprobs.iter().zip(&rollout.ref_logprobs).map(|(&p, &r)| k3(f64::from(p), r)).sum::<f64>()
        };
        rollouts.iter().map(of_rollout).sum::<f64>() / rollouts.len() as f64
    };
    assert!(kl(None) < 1e-6, "{}", kl(None));
    assert!(kl(Some(5)) > 1e-3, "{}", kl(Some(5)));
}

#[test]
fn m3_padding_does_not_change_log_probabilities_or_values() {
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
        (vec![short, (&longer[..6], &[7, EOS][..])], PAD), // 3 padding tokens on the left
        (vec![short, (&longer[..], &longer[..])], PAD),    // 7 on the left, 6 on the right
        (vec![short, (&longer[..], &longer[..])], 17),     // another padding id
    ] {
        let padded = numbers(&replies, pad).to_vec1::<f32>().unwrap();
        let error = alone.iter().zip(&padded).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert!(error < 1e-5, "{error}");
    }
    let other = numbers(&[(&[4, 9, 7], short.1)], PAD).to_vec1::<f32>().unwrap();
    assert!(alone.iter().zip(&other).any(|(a, b)| (a - b).abs() > 1e-3), "the query must matter");

    // Padding is recognised by length, so the end token can be the padding token.
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
    assert!(reply_logprobs(&policy, &[(&[], &[5])], 1., PAD).is_err(), "an empty query");
}

/// Compares with a forward pass over the whole sequence.
#[test]
fn log_probabilities_are_read_in_the_column_before_their_token() {
    let (policy, critic) = (model(Head::LanguageModel, 1), model(Head::Token, 2));
    let (query, reply) = (vec![4u32, 9, 6], vec![5u32, 8, EOS]);
    let batch = Batch::new(&[[query.clone(), reply.clone()].concat()]).unwrap();
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
fn m4_a_token_does_not_change_earlier_log_probabilities() {
    let policy = model(Head::LanguageModel, 1);
    let logprobs =
        |reply: &[u32]| reply_logprobs(&policy, &[(&[4, 9, 6], reply)], 1., PAD).unwrap().to_vec1::<f32>().unwrap();
    let (one, other) = (logprobs(&[5, 8, 12, 3]), logprobs(&[5, 8, 20, 3]));
    assert_eq!(one[..2], other[..2]);
    assert!(one[2] != other[2] && one[3] != other[3]);
}

/// With γ = λ = 1 the return of a token is the sum of the rewards from it on.
#[test]
fn m5_rewards_sum_to_the_penalised_score_minus_the_kl_penalty() {
    for missing_eos in [MissingEos::None, MissingEos::Subtract(1.5), MissingEos::Replace(-2.)] {
        let recipe = PpoRecipe { max_new_tokens: 4, kl_coef: 0.3, gamma: 1., lam: 1., missing_eos, ..recipe() };
        let trainer = PpoTrainer { reference: model(Head::LanguageModel, 9).frozen().unwrap(), ..trainer(&recipe) };
        let rollouts = trainer.roll_out(&many(12), 11).unwrap();
        let returns = trainer.targets(&rollouts).returns;
        let mut ends = BTreeMap::new();
        for (rollout, returns) in rollouts.iter().zip(&returns) {
            let end = rollout.response.iter().position(|&id| id == EOS);
            assert_eq!(rollout.has_eos, end.is_some());
            assert_eq!(
                rollout.response.len(),
                end.map_or(4, |at| at + 1),
                "the end token is the last token, or max_new_tokens are sampled"
            );
            assert_eq!(rollout.row(), [rollout.query.as_slice(), &rollout.response].concat());
            assert_eq!(rollout.score, fives(&[rollout.row()]).unwrap()[0]);
            *ends.entry(end).or_insert(0) += 1;
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
                    "the score is added to the last token only"
                );
            }
        }
        for end in [Some(0), Some(1), Some(3), None] {
            assert!(ends.contains_key(&end), "no reply ends at {end:?}: {ends:?}");
        }
    }
}

#[test]
fn the_micro_batch_size_does_not_change_the_replies() {
    let largest = RefCell::new(0);
    let score = |rows: &[Vec<u32>]| {
        let mut largest = largest.borrow_mut();
        *largest = rows.len().max(*largest);
        fives(rows)
    };
    let draw = |micro_batch_size| {
        let recipe = PpoRecipe { micro_batch_size, ..recipe() };
        let trainer = PpoTrainer { reward: Reward::of_rows(&score), ..trainer(&recipe) };
        let rollouts = trainer.roll_out(&vec![vec![4, 5].into(); 10], 7).unwrap();
        rollouts.into_iter().map(|r| r.response).collect::<Vec<_>>()
    };
    let few = draw(3);
    assert_eq!(*largest.borrow(), 3);
    assert_eq!(few, draw(64));
    let mut distinct = few.clone();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 7, "equal queries must get different replies: {few:?}");
}

/// At a very low temperature sampling is greedy, so the seed does not matter.
#[test]
fn replies_are_sampled_at_the_recipe_temperature() {
    let draw = |temperature, seed| {
        let recipe = PpoRecipe { temperature, ..recipe() };
        trainer(&recipe).roll_out(&queries(), seed).unwrap().into_iter().map(|r| r.response).collect::<Vec<_>>()
    };
    assert_eq!(draw(1e-3, 1), draw(1e-3, 2));
    assert_ne!(draw(0.7, 1), draw(0.7, 2));
}

#[test]
fn a_wrong_number_of_scores_is_an_error() {
    let recipe = recipe();
    let reward = Reward::of_rows(|rows| fives(&rows[1..]));
    let message = PpoTrainer { reward, ..trainer(&recipe) }.roll_out(&queries(), 1).unwrap_err().to_string();
    assert!(message.contains("the reward \"closure\": 9 scores for 10 replies"), "{message}");
}

/// With a vocabulary of a million tokens a chunk of logits has 16 rows: two replies of ten tokens make two chunks.
#[test]
fn logits_in_chunks_give_the_same_logprobs_and_entropies() {
    let config = llm_model::ModelConfig {
        vocab_size: 1 << 20,
        hidden_size: 4,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        initializer_range: 0.5,
        ..llm_model::ModelConfig::default()
    };
    let policy = Model::init(config, Head::LanguageModel, 1).unwrap().frozen().unwrap();
    let reply = |first: u32| (first..first + 10).map(|i| i * 999_983 % (1 << 20)).collect::<Vec<_>>();
    let (one, two) = (reply(1), reply(50));
    let (one, two) = ((&[4u32, 9, 6][..], one.as_slice()), (&[8u32][..], two.as_slice()));
    let numbers = |replies: &[(&[u32], &[u32])]| {
        let (logprobs, entropies) = reply_logprobs_and_entropies(&policy, replies, 0.7, PAD).unwrap();
        assert_eq!(
            reply_logprobs(&policy, replies, 0.7, PAD).unwrap().to_vec1::<f32>().unwrap(),
            logprobs.to_vec1::<f32>().unwrap()
        );
        [logprobs, entropies].map(|numbers| numbers.to_vec1::<f32>().unwrap())
    };
    let (both, [first, second]) = (numbers(&[one, two]), [numbers(&[one]), numbers(&[two])]);
    for i in 0..2 {
        let alone = [first[i].as_slice(), &second[i]].concat();
        assert!(both[i].iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-4), "{:?} is not {alone:?}", both[i]);
    }
}
