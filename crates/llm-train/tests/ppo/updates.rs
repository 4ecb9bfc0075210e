//! Targets, gradients and metrics of an update.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_model::{Head, LoraConfig, Model, Params};
use llm_train::optim::OptimizerConfig;
use llm_train::recipes::{PpoRecipe, PpoTrainer, RewardModel, RunningMeans, SpecialIds};
use llm_train::rewards::Reward;
use llm_train::rl::MissingEos;
use llm_train::rollout::{Rollout, reply_logprobs_and_entropies, reply_values};

use super::{EOS, PAD, bytes, fives, metric, model, queries, recipe, reward_folder, trainer, with_experts};

/// Two replies, computed by hand. Rewards at a KL coefficient of 0.1: -0.05, 1.05 and -0.02 + 0.4 - 1. With γ = 0.9, λ = 0.5:
/// A₁ = 1.05 - 0.2, A₀ = -0.05 + 0.9 · 0.2 - 0.5 + 0.45 · 0.85, and -0.62 - 0.1.
#[test]
fn targets_match_hand_computed_values() {
    let rollout = |logprobs: &[f64], ref_logprobs: &[f64], values: &[f64], score, has_eos| Rollout {
        query: vec![3],
        response: vec![4; logprobs.len()],
        has_eos,
        score,
        logprobs: logprobs.to_vec(),
        engine_logprobs: Vec::new(),
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
    // The coefficient is the current one of the trainer, not the initial one of the recipe.
    let other = PpoRecipe { kl_coef: 9., ..plain.clone() };
    near(&PpoTrainer { kl_coef: 0.1, ..trainer(&other) }.targets(&rollouts).returns, [0.5125, 1.05, -0.62]);
    // 0.0125, 0.85, -0.72 minus their mean 0.0475, divided by the root of their variance 1.2342875 / 3.
    near(&targets.advantages, [-0.0545658, 1.2511158, -1.1965500]);

    // The mean 0.1266667 of the rewards is kept; they are divided by their deviation 0.6931250.
    let whitened = PpoRecipe { whiten_rewards: true, gamma: 1., lam: 1., ..plain };
    near(&trainer(&whitened).targets(&rollouts).returns, [1.3305801, 1.4587978, -0.9505801]);
}

#[test]
fn m6_the_initial_critic_predicts_the_scaled_score() {
    let dir = tempfile::tempdir().unwrap();
    let folder = reward_folder(dir.path(), 0.7, 0.05);
    let reward_model = RewardModel::load(&folder).unwrap();
    let critic = reward_model.critic().unwrap();
    for row in [vec![5, 9, 11, 7], vec![3], vec![20, 20, 8]] {
        let score = reward_model.scores(std::slice::from_ref(&row)).unwrap()[0];
        // The value before the next token is read at the last token of the row.
        let value = reply_values(&critic, &[(&row, &[4])], PAD).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!(score.abs() > 1., "mean and deviation must matter: {score}");
        assert!((f64::from(value) - score).abs() < 1e-4 * score.abs(), "{value} is not {score}");
    }
    // It can be saved and loaded as a Hugging Face folder.
    critic.save(dir.path().join("critic")).unwrap();
    let again = Model::load(dir.path().join("critic")).unwrap();
    assert_eq!(again.head(), Head::Token);
    assert_eq!(bytes(again.params()), bytes(critic.params()));
}

/// The reward is the same for every text: the scaled critic predicts it, an unscaled critic does not.
#[test]
fn the_critic_predicts_a_constant_reward_from_the_first_update() {
    let dir = tempfile::tempdir().unwrap();
    let folder = reward_folder(dir.path(), -0.4, 0.2);
    let model = Model::load(&folder).unwrap();
    // Equal embeddings and zero output projections: every text has the same hidden states.
    let mut tensors = model.params().tensors();
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
    let reward = || Reward::of_rows(|rows| reward_model.scores(rows));
    let policy = Model::init(constant.config().clone(), Head::LanguageModel, 1).unwrap();
    let ids = SpecialIds { pad: PAD, eos: EOS };
    let mut trainer = PpoTrainer::new(&policy, reward_model.critic().unwrap(), reward(), ids, &recipe).unwrap();
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert!(rollouts[0].score.abs() > 0.3, "{}", rollouts[0].score);
    let metrics = trainer.learn(&rollouts, 0).unwrap();
    assert!(metric(&metrics, "loss/value_avg") < 1e-8, "{}", metric(&metrics, "loss/value_avg"));
    assert!(metric(&metrics, "val/explained_var") >= 0.);

    let raw = constant.with_head(Head::Token, 0).unwrap();
    let mut trainer = PpoTrainer::new(&policy, raw, reward(), ids, &recipe).unwrap();
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert!(metric(&trainer.learn(&rollouts, 0).unwrap(), "loss/value_avg") > 0.01);
}

#[test]
fn a_value_head_on_a_policy_with_an_adapter_is_refused() {
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let adapted = model(Head::LanguageModel, 1).with_lora(&lora, 1).unwrap().frozen().unwrap();
    let (recipe, ids) = (PpoRecipe { value_head_on_policy: true, ..recipe() }, SpecialIds { pad: PAD, eos: EOS });
    let error = PpoTrainer::with_value_head(&adapted, Reward::of_rows(fives), ids, &recipe).err().unwrap();
    assert!(error.to_string().contains("needs a policy without adapters"), "its trunk would be the base: {error}");
}

/// The trunk of the head is that of the policy: training the policy changes it, and once the head is not 0 the value loss has a part
/// in the gradient of the policy.
#[test]
fn m6_a_value_head_on_the_policy_starts_at_zero_and_shares_its_trunk() {
    let gradient = |vf_coef: f64| {
        let recipe = PpoRecipe { value_head_on_policy: true, vf_coef, ..recipe() };
        let ids = SpecialIds { pad: PAD, eos: EOS };
        let start = model(Head::LanguageModel, 1);
        let mut trainer = PpoTrainer::with_value_head(&start, Reward::of_rows(fives), ids, &recipe).unwrap();
        assert_eq!(
            trainer.critic.model.params().vars().into_keys().collect::<Vec<_>>(),
            ["score.bias", "score.weight"]
        );
        let rollouts = trainer.roll_out(&queries(), 7).unwrap();
        assert!(rollouts.iter().all(|rollout| rollout.values.iter().all(|value| *value == 0.)));
        trainer.learn(&rollouts, 0).unwrap();
        let shared =
            |name: &str| [&trainer.policy.model, &trainer.critic.model].map(|m| bytes(m.params())[name].clone());
        let [policy, critic] = shared("model.layers.0.mlp.up_proj.weight");
        assert!(policy == critic && policy != bytes(start.params())["model.layers.0.mlp.up_proj.weight"]);
        let rollouts = trainer.roll_out(&queries(), 8).unwrap();
        assert!(rollouts.iter().any(|rollout| rollout.values.iter().any(|value| *value != 0.)));
        let (targets, all): (_, Vec<usize>) = (trainer.targets(&rollouts), (0..rollouts.len()).collect());
        trainer.accumulate_gradients(&rollouts, &targets, &all, &mut RunningMeans::default()).unwrap();
        let gradient = &trainer.policy.gradients()["model.layers.0.mlp.up_proj.weight"];
        gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    // The first update has no value gradient in the trunk, as the head is 0: both trainers have equal weights after it.
    let (without, with) = (gradient(0.), gradient(10.));
    let far = without.iter().zip(&with).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(far > 1e-6, "the value loss must reach the trunk: {far}");
}

#[test]
fn only_policy_and_critic_are_trained() {
    let recipe = recipe();
    let mut trainer = trainer(&recipe);
    let numbers = |trainer: &PpoTrainer| {
        [&trainer.reference, &trainer.policy.model, &trainer.critic.model].map(|model| bytes(model.params()))
    };
    let before = numbers(&trainer);
    let rollouts = trainer.roll_out(&queries(), 7).unwrap();
    assert_eq!(before, numbers(&trainer), "sampling must not change weights");
    trainer.learn(&rollouts, 0).unwrap();
    let after = numbers(&trainer);
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
    assert_ne!(before[2], after[2]);
}

#[test]
fn m7_micro_batches_accumulate_the_gradient_of_the_whole_batch() {
    let whole = PpoRecipe { entropy_coef: 0.1, ..recipe() };
    let rollouts = trainer(&whole).roll_out(&queries(), 5).unwrap();
    let lengths: Vec<usize> = rollouts.iter().map(|r| r.response.len()).collect();
    assert!(lengths.iter().min() < lengths.iter().max(), "lengths must be uneven: {lengths:?}");
    let gradients = |micro_batch_size| {
        let recipe = PpoRecipe { micro_batch_size, ..whole.clone() };
        let mut trainer = trainer(&recipe);
        let targets = trainer.targets(&rollouts);
        let (all, mut means): (Vec<usize>, _) = ((0..rollouts.len()).collect(), RunningMeans::default());
        trainer.accumulate_gradients(&rollouts, &targets, &all, &mut means).unwrap();
        let [policy, critic] = [&trainer.policy, &trainer.critic].map(|learner| {
            assert_eq!(learner.gradients().len(), learner.model.params().vars().len());
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            learner.gradients().iter().map(|(name, t)| (name.clone(), flat(t))).collect::<BTreeMap<_, _>>()
        });
        let names = ["policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/ratio"];
        (policy, critic, names.map(|name| means.get(name).unwrap()))
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
                // A single number, the bias of the score, is a sum of terms of up to 1 that cancel, each rounded by EPSILON / 2.
                let rounding = if whole.len() == 1 { f32::EPSILON } else { 0. };
                assert!(mean.abs() <= 1e-5 * top + rounding, "{name}, {size} at a time: {mean} of {top} on mean");
            }
        }
    }
}

/// With a learning rate of 0 the metrics are means over the batch, for any split into mini-batches and micro-batches.
#[test]
fn metrics_do_not_depend_on_the_batch_split() {
    let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
    let whole = PpoRecipe { optimizer: still.clone(), value_optimizer: still, ..recipe() };
    let rollouts = trainer(&whole).roll_out(&queries()[..8], 5).unwrap();
    let metrics = |recipe: &PpoRecipe| trainer(recipe).learn(&rollouts, 0).unwrap();
    let expected = metrics(&whole);
    assert!((metric(&expected, "val/ratio") - 1.).abs() < 1e-5);
    for (num_mini_batches, micro_batch_size, num_ppo_epochs) in [(6, 64, 1), (3, 2, 2), (8, 1, 1), (20, 5, 3)] {
        let cut = PpoRecipe { num_mini_batches, micro_batch_size, num_ppo_epochs, ..whole.clone() };
        for (name, found) in metrics(&cut) {
            let (expected, steps) = (metric(&expected, name), name.ends_with("grad_norm"));
            assert!(steps || (found - expected).abs() < 1e-5, "{name}: {found} is not {expected}");
        }
    }
    // The entropy excludes padding: compare with a direct computation.
    let replies: Vec<_> = rollouts.iter().map(Rollout::reply).collect();
    let entropies = reply_logprobs_and_entropies(&model(Head::LanguageModel, 1), &replies, 0.7, PAD).unwrap().1;
    let mean = f64::from(entropies.mean_all().unwrap().to_scalar::<f32>().unwrap());
    assert!((metric(&expected, "policy/entropy_avg") - mean).abs() < 1e-5);
}

/// Large steps: after the first pass the policy is far from the one that sampled. The first pass itself has a KL of 0.
#[test]
fn passes_end_when_the_policy_is_far_from_the_one_that_sampled() {
    let optimizer = OptimizerConfig { learning_rate: 3e-2, ..recipe().optimizer };
    let passes = |target_kl: Option<f64>| {
        let recipe = PpoRecipe { num_ppo_epochs: 4, optimizer: optimizer.clone(), target_kl, ..recipe() };
        let mut trainer = trainer(&recipe);
        let rollouts = trainer.roll_out(&queries(), 5).unwrap();
        trainer.learn(&rollouts, 0).unwrap()
    };
    let found = [1e-4, 1e9].map(|target| passes(Some(target)));
    assert_eq!([0, 1].map(|i| metric(&found[i], "policy/passes")), [2., 4.]);
    assert!(metric(&found[0], "policy/approxkl_avg") > 1e-4);
    let without = passes(None);
    assert!(without.iter().all(|(name, _)| *name != "policy/passes"));
    assert_eq!(metric(&without, "policy/approxkl_avg"), metric(&found[1], "policy/approxkl_avg"));
}

#[test]
fn a_policy_with_experts_trains_with_router_losses() {
    let recipe = PpoRecipe { micro_batch_size: 4, ..recipe() };
    let norm = |coefficient: f64| {
        let ids = SpecialIds { pad: PAD, eos: EOS };
        let mut trainer =
            PpoTrainer::new(&with_experts(coefficient), model(Head::Token, 2), Reward::of_rows(fives), ids, &recipe)
                .unwrap();
        let rollouts = trainer.roll_out(&queries(), 3).unwrap();
        let (targets, mut means) = (trainer.targets(&rollouts), RunningMeans::default());
        let all: Vec<usize> = (0..rollouts.len()).collect();
        trainer.accumulate_gradients(&rollouts, &targets, &all, &mut means).unwrap();
        assert!(means.get("policy/load_balancing_loss").unwrap() >= 1.9, "at least k, up to rounding");
        let gate = &trainer.policy.gradients()["model.layers.0.mlp.gate.weight"];
        gate.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    };
    assert!(norm(50.) > 3. * norm(0.), "the coefficient must reach the gradient");
}
