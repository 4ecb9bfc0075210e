//! An update of PPO against its definition: gradients, metrics and steps, recomputed from the logits of the models.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use llm_kernels::token_logprobs_and_entropies;
use llm_model::{Batch, Head};
use llm_train::optim::{Learner, OptimizerConfig, Schedule};
use llm_train::recipes::{PpoRecipe, PpoTrainer, RunningMeans, SpecialIds, Targets};
use llm_train::rewards::Reward;
use llm_train::rollout::Rollout;

use super::{EOS, PAD, bytes, fives, metric, model, queries, recipe, trainer, with_experts};

type Gradients = BTreeMap<String, Vec<f32>>;

fn gradients(learner: &Learner) -> Gradients {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    learner.gradients().iter().map(|(name, t)| (name.clone(), flat(t))).collect()
}

fn assert_alike(found: &Gradients, expected: &Gradients) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        let top = expected.iter().fold(0., |m: f32, x| m.max(x.abs()));
        let far = expected.iter().zip(&found[name]).map(|(x, y)| (x - y).abs()).fold(0., f32::max);
        assert!(top > 1e-7 && far <= 1e-3 * top, "{name}: {far} of {top}");
    }
}

/// By how much the log-probability and the value of token `t` of reply `i` are above the old ones.
fn offsets(i: usize, t: usize) -> (f64, f64) {
    ([0.3, -0.25, 0.05][(i + t * t) % 3], [0.5, -0.4, 0.1, -0.6, 0.2][(2 * i + t) % 5])
}

/// One token of a reply in the metrics of an update; its value is `old_value + change`, its return `target`.
struct Token {
    log_ratio: f64,
    advantage: f64,
    old_value: f64,
    change: f64,
    target: f64,
}

/// Replies of different lengths; the old log-probabilities and values differ from those of the models by known offsets.
fn moved(trainer: &PpoTrainer) -> Vec<Rollout> {
    let mut rollouts = trainer.roll_out(&queries(), 5).unwrap();
    for (i, rollout) in rollouts.iter_mut().enumerate() {
        for t in 0..rollout.response.len() {
            let (log_ratio, change) = offsets(i, t);
            rollout.logprobs[t] -= log_ratio;
            rollout.values[t] -= change;
        }
    }
    rollouts
}

/// Before the first step the ratio is 1 and the values are the old ones, so the gradients are those of `-A · log π`, of the
/// entropy bonus, and of `(V - R)² / 2`, averaged over all tokens.
#[test]
fn initial_gradients_equal_the_policy_gradient() {
    let recipe = PpoRecipe { entropy_coef: 0.3, micro_batch_size: 3, ..recipe() };
    let mut trainer = trainer(&recipe);
    let rollouts = trainer.roll_out(&queries(), 5).unwrap();
    let targets = trainer.targets(&rollouts);
    let mut policy = Learner::new(model(Head::LanguageModel, 1), &recipe.optimizer).unwrap();
    let mut critic = Learner::new(model(Head::Token, 2), &recipe.value_optimizer).unwrap();
    let (mut logprobs, mut entropies, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for rollout in &rollouts {
        // One conversation per batch, without padding.
        let batch = Batch::new(&[rollout.row()]).unwrap();
        let (before, tokens) = (rollout.query.len() - 1, rollout.response.len());
        let logits = policy.model.forward(&batch).unwrap().squeeze(0).unwrap().narrow(0, before, tokens).unwrap();
        let (logprob, entropy) = token_logprobs_and_entropies(&logits, &rollout.response, recipe.temperature).unwrap();
        logprobs.push(logprob);
        entropies.push(entropy);
        values.push(critic.model.forward(&batch).unwrap().flatten_all().unwrap().narrow(0, before, tokens).unwrap());
    }
    let all = |parts: &[Tensor]| Tensor::cat(parts, 0).unwrap();
    let column = |lists: &[Vec<f64>]| {
        let numbers: Vec<f32> = lists.concat().into_iter().map(|x| x as f32).collect();
        Tensor::new(numbers, &Device::Cpu).unwrap()
    };
    let surrogate = (all(&logprobs) * column(&targets.advantages)).unwrap().mean_all().unwrap();
    let bonus = (all(&entropies).mean_all().unwrap() * 0.3).unwrap();
    policy.backward(&(surrogate + bonus).unwrap().neg().unwrap()).unwrap();
    let errors = (all(&values) - column(&targets.returns)).unwrap().sqr().unwrap();
    critic.backward(&(errors.mean_all().unwrap() * 0.5).unwrap()).unwrap();

    let mini_batch: Vec<usize> = (0..rollouts.len()).collect();
    trainer.accumulate_gradients(&rollouts, &targets, &mini_batch, &mut RunningMeans::default()).unwrap();
    assert_alike(&gradients(&trainer.policy), &gradients(&policy));
    assert_alike(&gradients(&trainer.critic), &gradients(&critic));
}

#[test]
fn metrics_after_a_change_of_the_models_equal_their_definitions() {
    let value_optimizer = OptimizerConfig { learning_rate: 7e-3, ..recipe().value_optimizer };
    let first = PpoRecipe { micro_batch_size: 3, cliprange: 0.1, cliprange_value: 0.45, value_optimizer, ..recipe() };
    #[allow(clippy::needless_late_init, reason = "the trainer borrows it, so it is declared first")]
    let steered;
    let mut trainer =
        PpoTrainer { reference: model(Head::LanguageModel, 9).frozen().unwrap(), kl_coef: 0.2, ..trainer(&first) };
    let rollouts = moved(&trainer);
    let kl = rollouts.iter().map(Rollout::kl).sum::<f64>() / 10.;
    assert!(kl > 0.1, "{kl}");
    steered = PpoRecipe { kl_target_per_sequence: Some(kl / 1.1), kl_horizon: 100., ..first.clone() };
    trainer.recipe = &steered;
    let targets = trainer.targets(&rollouts);
    let found = trainer.learn(&rollouts, 4).unwrap();

    let (mut tokens, mut at) = (Vec::new(), 0);
    let (advantages, returns) = (targets.advantages.concat(), targets.returns.concat());
    for (i, rollout) in rollouts.iter().enumerate() {
        for (t, &old_value) in rollout.values.iter().enumerate() {
            let (log_ratio, change) = offsets(i, t);
            tokens.push(Token { log_ratio, advantage: advantages[at], old_value, change, target: returns[at] });
            at += 1;
        }
    }
    let mean = |f: &dyn Fn(&Token) -> f64| tokens.iter().map(f).sum::<f64>() / tokens.len() as f64;
    let share = |f: &dyn Fn(&Token) -> bool| mean(&|token| f64::from(u8::from(f(token))));
    let unclipped = |t: &Token| -t.advantage * t.log_ratio.exp();
    let clipped = |t: &Token| -t.advantage * t.log_ratio.exp().clamp(0.9, 1.1);
    let error = |t: &Token| (t.old_value + t.change - t.target).powi(2);
    let near = |t: &Token| (t.old_value + t.change.clamp(-0.45, 0.45) - t.target).powi(2);
    let mean_of_replies = |estimate: &dyn Fn(f64, f64) -> f64| {
        let of_tokens = |(p, r): (&f64, &f64)| estimate(*p, *r);
        let of_reply = |r: &Rollout| r.logprobs.iter().zip(&r.ref_logprobs).map(of_tokens).sum::<f64>();
        rollouts.iter().map(of_reply).sum::<f64>() / rollouts.len() as f64
    };
    let ratio = mean(&|t| t.log_ratio.exp());
    let variance = |f: &dyn Fn(&Token) -> f64| mean(&|t| f(t).powi(2)) - mean(f).powi(2);
    let unexplained = variance(&|t| t.target - t.old_value) / variance(&|t| t.target);
    let expected = [
        ("objective/kl", kl),
        ("objective/kl_k3", mean_of_replies(&|p, r| (r - p).exp() - 1. - (r - p))),
        ("objective/kl_coef", 0.2),
        ("policy/approxkl_avg", mean(&|t| t.log_ratio.powi(2) / 2.)),
        ("policy/clipfrac_avg", share(&|t| clipped(t) > unclipped(t))),
        ("loss/policy_avg", mean(&|t| clipped(t).max(unclipped(t)))),
        ("val/ratio", ratio),
        ("val/ratio_var", variance(&|t| t.log_ratio.exp())),
        ("loss/value_avg", mean(&|t| error(t).max(near(t)) / 2.)),
        // Where the value is not clipped, both errors are equal up to f32 rounding.
        ("val/clipfrac_avg", share(&|t| t.change.abs() > 0.45 && near(t) > error(t))),
        ("val/explained_var", 1. - unexplained),
        ("lr", 0.6e-3),
        ("episode", 10.),
    ];
    for (name, expected) in expected {
        let found = metric(&found, name);
        let far = if name == "val/clipfrac_avg" { 0.5 } else { 1e-4 * expected.abs().max(0.1) };
        assert!((found - expected).abs() < far, "{name}: {found} is not {expected}");
    }
    let others = [
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "rollout/raw_scores",
        "rollout/length",
        "rollout/no_eos_frac",
        "sampling/logprob_diff_mean",
        "sampling/logprob_diff_max",
        "sampling/logprob_diff_exp",
        "val/num_eos_tokens",
        "policy/entropy_avg",
        "policy/grad_norm",
        "value/grad_norm",
    ];
    let mut names: Vec<&str> = others.into_iter().chain(expected.map(|e| e.0)).collect();
    names.sort_unstable();
    let mut logged: Vec<&str> = found.iter().map(|f| f.0).collect();
    logged.sort_unstable();
    assert_eq!(logged, names);
    // 10 % above the target, 10 replies, horizon 100.
    assert!((trainer.kl_coef - 0.2 * 1.01).abs() < 1e-9, "{}", trainer.kl_coef);
}

/// Gradients and metrics of a mini-batch depend only on its own replies; each token has the same weight.
#[test]
fn mini_batch_gradients_and_metrics_are_means_over_its_tokens() {
    let recipe = PpoRecipe { micro_batch_size: 3, cliprange: 0.1, ..recipe() };
    let fresh = || {
        PpoTrainer::new(
            &with_experts(1.),
            model(Head::Token, 2),
            Reward::of_rows(fives),
            SpecialIds { pad: PAD, eos: EOS },
            &recipe,
        )
        .unwrap()
    };
    let rollouts = moved(&fresh());
    let targets = fresh().targets(&rollouts);
    let gather = |rollouts: &[Rollout], targets: &Targets, mini_batch: &[usize]| {
        let (mut trainer, mut means) = (fresh(), RunningMeans::default());
        trainer.accumulate_gradients(rollouts, targets, mini_batch, &mut means).unwrap();
        (gradients(&trainer.policy), gradients(&trainer.critic), means)
    };
    let pick = |lists: &[Vec<f64>]| [7, 2, 5].map(|i: usize| lists[i].clone()).to_vec();
    let own: Vec<Rollout> = [7, 2, 5].map(|i: usize| rollouts[i].clone()).to_vec();
    let own_targets = Targets { advantages: pick(&targets.advantages), returns: pick(&targets.returns) };
    let alone = gather(&own, &own_targets, &[0, 1, 2]);
    // As part of a larger batch; and twice, in two equal micro-batches.
    for part in [gather(&rollouts, &targets, &[7, 2, 5]), gather(&rollouts, &targets, &[7, 2, 5, 7, 2, 5])] {
        assert_alike(&part.0, &alone.0);
        assert_alike(&part.1, &alone.1);
    }
    // Two micro-batches of different sizes: metrics are means over the tokens of both.
    let lengths: Vec<f64> = rollouts.iter().map(|r| r.response.len() as f64).collect();
    let (first, second) = (lengths[7] + lengths[2] + lengths[5], lengths[0]);
    let [one, both] = [&[0][..], &[7, 2, 5, 0]].map(|mini_batch| gather(&rollouts, &targets, mini_batch).2);
    for name in [
        "policy/load_balancing_loss",
        "policy/router_z_loss",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "val/ratio",
        "mean square of the ratio",
        "loss/value_avg",
        "val/clipfrac_avg",
    ] {
        let [a, b, both] = [&alone.2, &one, &both].map(|means| means.get(name).unwrap());
        assert!((a - b).abs() > 1e-3, "{name} must differ between the micro-batches: {a} and {b}");
        let expected = (first * a + second * b) / (first + second);
        assert!((both - expected).abs() < 1e-5 * expected.abs().max(1.), "{name}: {both} is not {expected}");
    }
}

fn constant(learning_rate: f64) -> OptimizerConfig {
    OptimizerConfig { learning_rate, schedule: Schedule::Constant, ..recipe().optimizer }
}

/// The parameters of policy and critic after these updates on the same replies.
fn after(recipe: &PpoRecipe, rollouts: &[Rollout], updates: &[u64]) -> [BTreeMap<String, Vec<u32>>; 2] {
    let mut trainer = trainer(recipe);
    for &update in updates {
        trainer.learn(rollouts, update).unwrap();
    }
    [&trainer.policy, &trainer.critic].map(|learner| bytes(learner.model.params()))
}

/// Each epoch has its own order of the batch, which depends on seed, update and epoch.
#[test]
fn an_update_of_two_epochs_equals_two_updates_of_one_epoch() {
    let once =
        PpoRecipe { num_mini_batches: 3, optimizer: constant(1e-3), value_optimizer: constant(2e-3), ..recipe() };
    let twice = PpoRecipe { num_ppo_epochs: 2, ..once.clone() };
    let rollouts = trainer(&once).roll_out(&queries(), 5).unwrap();
    let learn = |recipe: &PpoRecipe, updates: &[u64]| after(recipe, &rollouts, updates);
    assert!(learn(&twice, &[0]) == learn(&once, &[0, 1]));
    assert!(learn(&twice, &[1]) == learn(&once, &[2, 3]));
    let first = learn(&once, &[0]);
    assert!(first != learn(&once, &[1]), "the order depends on the update");
    assert!(first != learn(&PpoRecipe { seed: 43, ..once.clone() }, &[0]), "and on the seed");
    assert!(first != learn(&PpoRecipe { num_mini_batches: 1, ..once.clone() }, &[0]), "one step for each mini-batch");
}

#[test]
fn policy_and_critic_have_separate_optimizers() {
    let base = recipe();
    let rollouts = trainer(&base).roll_out(&queries(), 5).unwrap();
    let [policy, critic] = after(&base, &rollouts, &[3]);
    for other in [
        OptimizerConfig { learning_rate: 2e-3, ..base.optimizer.clone() },
        OptimizerConfig { weight_decay: 0.5, ..base.optimizer.clone() },
        OptimizerConfig { schedule: Schedule::Constant, ..base.optimizer.clone() },
    ] {
        let [moved, still] = after(&PpoRecipe { optimizer: other.clone(), ..base.clone() }, &rollouts, &[3]);
        assert!(moved != policy && still == critic, "the policy's: {other:?}");
        let [still, moved] = after(&PpoRecipe { value_optimizer: other.clone(), ..base.clone() }, &rollouts, &[3]);
        assert!(still == policy && moved != critic, "the critic's: {other:?}");
    }
}
