//! GRPO and RLOO converge to known optima (L1 to L3).

use std::cell::Cell;

use llm_model::{Head, Model, ModelConfig, Params};
use llm_train::loss::LossType;
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::GrpoRecipe;
use llm_train::rewards::{Prompt, Reward};
use llm_train::rl::ScaleRewards;
use llm_train::rollout::reply_logprobs;

use super::{EOS, PAD, metric, trainer};

type Metrics = Vec<(&'static str, f64)>;

fn model(vocab_size: usize, hidden_size: usize, initializer_range: f64, seed: u64) -> Model {
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
    Model::init(config, Head::LanguageModel, seed).unwrap()
}

/// Advantages are not divided by the deviation of the group, which would scale β.
fn recipe(loss_type: LossType, learning_rate: f64, beta: f64) -> GrpoRecipe {
    GrpoRecipe {
        loss_type,
        scale_rewards: ScaleRewards::None,
        beta,
        micro_batch_size: 512,
        optimizer: OptimizerConfig { learning_rate, ..GrpoRecipe::default().optimizer },
        ..GrpoRecipe::default()
    }
}

/// Trains `start` on the same prompts in each update; returns the policy and the metrics of each update.
fn train(start: &Model, reward: &Reward, prompts: &[Prompt], recipe: &GrpoRecipe) -> (Model, Vec<Metrics>) {
    let mut trainer = trainer(start, reward, recipe);
    let update = |update| {
        let episodes = trainer.roll_out(prompts, recipe.seed * 10_000 + update).unwrap();
        trainer.learn(&episodes, update).unwrap()
    };
    let metrics = (0..recipe.updates).map(update).collect();
    (trainer.policy.model.frozen().unwrap(), metrics)
}

/// A model of 8 tokens with equal probabilities.
fn uniform() -> Model {
    let start = model(8, 16, 0.1, 1);
    let mut tensors = start.params().tensors();
    let head = tensors.get_mut("lm_head.weight").unwrap();
    *head = head.zeros_like().unwrap();
    Model::new(start.config().clone(), Head::LanguageModel, Params::new(tensors)).unwrap()
}

/// The probability of token 3 after training on `sign` if it is sampled, else 0.
fn bandit(recipe: &GrpoRecipe, sign: f64) -> f64 {
    let reward = Reward::of_rows(move |rows: &[Vec<u32>]| {
        Ok(rows.iter().map(|row| sign * f64::from(u8::from(row[1] == 3))).collect())
    });
    let (policy, _) = train(&uniform(), &reward, &[Prompt::from(vec![2])], recipe);
    let logprob = reply_logprobs(&policy, &[(&[2], &[3])], 1., PAD).unwrap();
    f64::from(logprob.to_vec1::<f32>().unwrap()[0]).exp()
}

/// L1: one token out of eight, reward 1 for token 3. The optimum is `e^(1/β) / (e^(1/β) + 7)`.
#[test]
fn l1_grpo_and_rloo_find_the_optimum_of_the_regularised_bandit() {
    for loss_type in [LossType::Dapo, LossType::Rloo] {
        for (beta, published) in [(1., 0.2797), (0.5, 0.5135), (0.2, 0.9550)] {
            let optimum = (1f64 / beta).exp() / ((1f64 / beta).exp() + 7.);
            assert!((optimum - published).abs() < 1e-4);
            for seed in 1..=2 {
                let base = recipe(loss_type, 2e-2, beta);
                let recipe = GrpoRecipe { seed, updates: 100, num_generations: 256, max_new_tokens: 1, ..base };
                let found = bandit(&recipe, 1.);
                println!("{loss_type:?}, beta {beta}, seed {seed}: {found:.4} of {optimum:.4}");
                assert!((found - optimum).abs() < 0.01, "{loss_type:?}, beta {beta}, seed {seed}: {found}");
            }
        }
        // Negative controls: a doubled penalty, and the opposite reward.
        let at = |beta| GrpoRecipe {
            updates: 100,
            num_generations: 256,
            max_new_tokens: 1,
            ..recipe(loss_type, 2e-2, beta)
        };
        let (doubled, opposite) = (bandit(&at(1.), 1.), bandit(&at(0.5), -1.));
        assert!((doubled - 0.5135).abs() > 0.2, "{doubled}");
        assert!(opposite < 0.03, "{opposite}: the optimum is 0.0190");
    }
}

/// With a second pass over the replies the ratio is not 1, and the penalty is still that of the policy.
#[test]
fn l1_a_second_pass_over_the_replies_finds_the_same_optimum() {
    for loss_type in [LossType::Dapo, LossType::Rloo] {
        let base = recipe(loss_type, 1e-2, 0.5);
        let recipe = GrpoRecipe {
            updates: 100,
            num_generations: 256,
            max_new_tokens: 1,
            num_iterations: 2,
            num_mini_batches: 2,
            ..base
        };
        let found = bandit(&recipe, 1.);
        assert!((found - 0.5135).abs() < 0.02, "{loss_type:?}: {found}");
    }
}

/// All replies of at most two tokens of four: those with an end token, and those cut off.
fn all_replies() -> Vec<Vec<u32>> {
    let one = (0..4).map(|a| vec![a]).filter(|reply| reply[0] == EOS);
    let two = (0..4).filter(|&a| a != EOS).flat_map(|a| (0..4).map(move |b| vec![a, b]));
    one.chain(two).collect()
}

/// A deterministic pseudo-random reward in [-1, 1] for each text.
fn hashed(row: &[u32]) -> f64 {
    let hash = row.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &id| (h ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.
}

/// The probability of each reply to `query`.
fn probabilities(model: &Model, query: &[u32], replies: &[Vec<u32>]) -> Vec<f64> {
    let of = |reply: &Vec<u32>| {
        let logprobs = reply_logprobs(model, &[(query, reply)], 1., PAD).unwrap().to_vec1::<f32>().unwrap();
        logprobs.iter().map(|&x| f64::from(x)).sum::<f64>().exp()
    };
    replies.iter().map(of).collect()
}

fn distance(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.
}

/// `reference · exp(score / beta)`, normalised.
fn tilted(reference: &[f64], scores: &[f64], beta: f64) -> Vec<f64> {
    let weights: Vec<f64> = reference.iter().zip(scores).map(|(p, r)| p * (r / beta).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Where the penalty in the loss of each token ends: the last token has the optimal distribution. The first one pays for its own
/// divergence only, so it follows the expected score and not the score minus the later penalty.
fn token_wise_optimum(reference: &[f64], scores: &[f64], replies: &[Vec<u32>], beta: f64) -> Vec<f64> {
    let firsts: Vec<Vec<usize>> =
        (0..4).map(|id| (0..replies.len()).filter(|&i| replies[i][0] == id).collect()).collect();
    let pick = |all: &[f64], chosen: &[usize]| chosen.iter().map(|&i| all[i]).collect::<Vec<f64>>();
    let lasts: Vec<Vec<f64>> =
        firsts.iter().map(|chosen| tilted(&pick(reference, chosen), &pick(scores, chosen), beta)).collect();
    let mass: Vec<f64> = firsts.iter().map(|chosen| pick(reference, chosen).iter().sum()).collect();
    let expected =
        |(last, chosen): (&Vec<f64>, &Vec<usize>)| last.iter().zip(chosen).map(|(p, &i)| p * scores[i]).sum();
    let expected: Vec<f64> = lasts.iter().zip(&firsts).map(expected).collect();
    let first = tilted(&mass, &expected, beta);
    let mut all = vec![0.; replies.len()];
    for (id, chosen) in firsts.iter().enumerate() {
        chosen.iter().zip(&lasts[id]).for_each(|(&i, last)| all[i] = first[id] * last);
    }
    all
}

/// L2: texts of one or two tokens with pseudo-random rewards. RLOO, with the penalty in the reward, finds the optimum; the penalty in the
/// loss finds its own fixed point, which is near.
#[test]
fn l2_the_best_distribution_over_short_texts_is_found() {
    let (beta, query, replies) = (0.3, vec![2u32, 3], all_replies());
    let start = model(4, 32, 0.3, 1);
    let before = probabilities(&start, &query, &replies);
    assert!((before.iter().sum::<f64>() - 1.).abs() < 1e-5, "the replies are complete");
    let scores: Vec<f64> = replies.iter().map(|reply| hashed(&[query.as_slice(), reply].concat())).collect();
    let best = tilted(&before, &scores, beta);
    let token_wise = token_wise_optimum(&before, &scores, &replies, beta);
    let objective = |p: &[f64]| -> f64 {
        p.iter().zip(&before).zip(&scores).map(|((p, q), r)| p * (r - beta * (p.max(1e-300) / q).ln())).sum()
    };
    assert!(distance(&before, &best) > 0.2, "the reference must be far");
    println!("the fixed points differ by {:.4}", distance(&best, &token_wise));
    let reward = Reward::of_rows(|rows: &[Vec<u32>]| Ok(rows.iter().map(|row| hashed(row)).collect()));
    let end = |loss_type, beta, seed| {
        let base = recipe(loss_type, 5e-3, beta);
        let recipe = GrpoRecipe { seed, updates: 200, num_generations: 256, max_new_tokens: 2, ..base };
        let (policy, _) = train(&start, &reward, &[Prompt::from(query.clone())], &recipe);
        probabilities(&policy, &query, &replies)
    };
    for seed in 1..=2 {
        let (rloo, dapo) = (end(LossType::Rloo, beta, seed), end(LossType::Dapo, beta, seed));
        println!("seed {seed}: RLOO {:.4}, DAPO {:.4}", distance(&rloo, &best), distance(&dapo, &token_wise));
        assert!(distance(&rloo, &best) < 0.05, "seed {seed}: {}", distance(&rloo, &best));
        let (found, optimum) = (objective(&rloo), objective(&best));
        assert!(found > optimum - 0.01 * optimum.abs(), "seed {seed}: J {found} of {optimum}");
        assert!(distance(&dapo, &token_wise) < 0.03, "seed {seed}: {}", distance(&dapo, &token_wise));
        assert!(distance(&dapo, &best) < 0.05, "seed {seed}: {}", distance(&dapo, &best));
    }
    // Negative control: a doubled penalty ends elsewhere.
    let far = distance(&end(LossType::Rloo, 2. * beta, 1), &best);
    assert!(far > 0.1, "{far}");
}

/// The number of tokens 5 in each row.
fn fives(rows: &[Vec<u32>]) -> Vec<f64> {
    rows.iter().map(|row| row.iter().filter(|&&id| id == 5).count() as f64).collect()
}

/// Trains on this reward: the mean count of token 5 before and after, and the metrics.
fn train_on(loss_type: LossType, beta: f64, reward: &Reward) -> (f64, f64, Vec<Metrics>) {
    let base = recipe(loss_type, 1e-2, beta);
    let recipe = GrpoRecipe { updates: 40, max_new_tokens: 6, micro_batch_size: 128, ..base };
    let start = model(12, 16, 0.3, 1);
    let prompts: Vec<Prompt> = (0..12).map(|i| Prompt::from(vec![2 + i % 3, 7 + i % 5])).collect();
    let count = |policy: &Model| {
        let counted = Reward::of_rows(|rows: &[Vec<u32>]| Ok(fives(rows)));
        let episodes = trainer(policy, &counted, &recipe).roll_out(&prompts, 99).unwrap();
        episodes.iter().map(|episode| episode.score).sum::<f64>() / episodes.len() as f64
    };
    let (policy, metrics) = train(&start, reward, &prompts, &recipe);
    (count(&start), count(&policy), metrics)
}

#[test]
fn l3_training_follows_the_reward_and_ignores_noise() {
    for loss_type in [LossType::Grpo, LossType::DrGrpo, LossType::Dapo, LossType::Rloo] {
        let counted = Reward::of_rows(|rows: &[Vec<u32>]| Ok(fives(rows)));
        let (before, after, metrics) = train_on(loss_type, 0.02, &counted);
        let (first, last) = (&metrics[0], &metrics[metrics.len() - 1]);
        let kl = |metrics: &Metrics| metrics.iter().find(|m| ["kl", "objective/kl"].contains(&m.0)).unwrap().1;
        println!("{loss_type:?}: {before:.2} to {after:.2}; KL {:.3} to {:.3}", kl(first), kl(last));
        assert!(after - before > 0.5 * (6. - before), "{loss_type:?}: {before} to {after}");
        assert!(kl(first).abs() < 1e-6 && kl(last) > 0.1, "{loss_type:?}: {} {}", kl(first), kl(last));
        assert!(metric(last, "entropy") < 0.8 * metric(first, "entropy"));
        if loss_type != LossType::Dapo {
            continue;
        }
        let calls = Cell::new(0u32);
        let noise = Reward::of_rows(|rows: &[Vec<u32>]| {
            calls.set(calls.get() + 1);
            Ok((0..rows.len() as u32).map(|i| hashed(&[calls.get(), i])).collect())
        });
        let (_, unmoved, _) = train_on(loss_type, 0.02, &noise);
        assert!((unmoved - before).abs() < 0.25 * (after - before), "noise: {before} to {unmoved}");
        let opposite = Reward::of_rows(|rows: &[Vec<u32>]| Ok(fives(rows).into_iter().map(|x| -x).collect()));
        let (_, fallen, _) = train_on(loss_type, 0.02, &opposite);
        assert!(fallen < 0.5 * before, "the opposite: {before} to {fallen}");
    }
}

#[test]
fn l3_a_higher_coefficient_gives_a_smaller_kl() {
    let counted = Reward::of_rows(|rows: &[Vec<u32>]| Ok(fives(rows)));
    for (loss_type, name) in [(LossType::Dapo, "kl"), (LossType::Rloo, "objective/kl")] {
        let last = |beta| metric(train_on(loss_type, beta, &counted).2.last().unwrap(), name);
        let kl = [0.02, 0.3, 3.].map(last);
        assert!(kl[0] > 1.5 * kl[1] && kl[1] > 1.5 * kl[2], "{loss_type:?}: {kl:?}");
    }
}
