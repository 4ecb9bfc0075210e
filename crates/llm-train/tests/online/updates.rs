//! Sampling, advantages and gradients of an update.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_kernels::{Dropout, token_logprobs};
use llm_model::{Batch, ExpertsConfig, Head, LoraConfig, Model, ModelConfig, ModelType};
use llm_train::Recipe;
use llm_train::loss::LossType;
use llm_train::optim::{Learner, OptimizerConfig};
use llm_train::recipes::{Episode, GrpoRecipe, GrpoTrainer, RunningMeans};
use llm_train::rewards::{Prompt, Reward};
use llm_train::rl::{MissingEos, ScaleRewards};
use llm_train::rollout::{LogprobDifference, reply_logprobs};

use super::{EOS, IDS, LOSSES, PAD, fives, metric, model, prompts, recipe, trainer, with_loss};

type Gradients = BTreeMap<String, Vec<f32>>;

fn gradients(learner: &Learner) -> Gradients {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    learner.gradients().iter().map(|(name, t)| (name.clone(), flat(t))).collect()
}

/// The gradients of all episodes as one mini-batch.
fn accumulated(trainer: &mut GrpoTrainer, episodes: &[Episode]) -> Gradients {
    let all: Vec<usize> = (0..episodes.len()).collect();
    let (mut means, mut difference) = (RunningMeans::default(), LogprobDifference::default());
    trainer.accumulate_gradients(episodes, &all, &mut means, &mut difference).unwrap();
    gradients(&trainer.policy)
}

/// The largest and the mean difference of two gradients, as shares of the largest entry.
fn residuals(found: &Gradients, expected: &Gradients) -> (f32, f32) {
    assert!(found.keys().eq(expected.keys()));
    let top = expected.values().flatten().fold(0f32, |m, x| m.max(x.abs()));
    assert!(top > 1e-6, "{top}");
    let all: Vec<f32> =
        expected.iter().flat_map(|(name, e)| e.iter().zip(&found[name]).map(|(a, b)| (a - b) / top)).collect();
    let largest = all.iter().fold(0f32, |m, x| m.max(x.abs()));
    (largest, all.iter().sum::<f32>().abs() / all.len() as f32)
}

#[test]
fn replies_of_a_group_share_their_prompt_and_advantages_are_relative_to_it() {
    let reward = Reward::of_rows(fives);
    for loss_type in LOSSES {
        let recipe = with_loss(loss_type);
        let episodes = trainer(&model(1), &reward, &recipe).roll_out(&prompts(), 7).unwrap();
        assert_eq!(episodes.len(), 20);
        for (group, prompt) in episodes.chunks(4).zip(prompts()) {
            assert!(group.iter().all(|episode| episode.query == prompt.query));
            assert!(group.iter().map(|episode| episode.advantage).sum::<f64>().abs() < 1e-9);
            assert!(group[1..].iter().any(|episode| episode.response != group[0].response));
            for episode in group {
                assert_eq!(episode.has_eos, episode.response.last() == Some(&EOS));
                assert_eq!(episode.response.len(), episode.engine_logprobs.len());
                assert_eq!(episode.score, fives(&[[&episode.query[..], &episode.response].concat()]).unwrap()[0]);
            }
        }
        assert!(episodes.iter().any(|episode| episode.advantage != 0.));
    }
}

/// M1: the old log-probabilities are computed in batches of 3, the gradients in sorted batches of 5, sampling in pages.
#[test]
fn m1_without_an_update_the_ratio_is_one() {
    let reward = Reward::of_rows(fives);
    for loss_type in LOSSES {
        let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
        let base = GrpoRecipe { num_iterations: 3, num_mini_batches: 2, optimizer: still, ..with_loss(loss_type) };
        let (sampling, training) =
            (GrpoRecipe { micro_batch_size: 3, ..base.clone() }, GrpoRecipe { micro_batch_size: 5, ..base.clone() });
        let mut trainer = trainer(&model(1), &reward, &sampling);
        let episodes = trainer.roll_out(&prompts(), 7).unwrap();
        trainer.recipe = &training;
        let metrics = trainer.learn(&episodes, 0).unwrap();
        assert!((metric(&metrics, "val/ratio") - 1.).abs() < 1e-4, "{loss_type:?}");
        assert!(metric(&metrics, "policy/approxkl_avg") < 1e-7);
        assert_eq!(metric(&metrics, "clip_ratio/region_mean"), 0.);
        let [mean, max, exp] =
            ["mean", "max", "exp"].map(|name| metric(&metrics, &format!("sampling/logprob_diff_{name}")));
        assert!(mean < max && max < 1e-4 && exp < 1.0001, "{mean} {max} {exp}");

        // Negative control: another temperature in training than in sampling.
        let warmer = GrpoRecipe { temperature: 1., ..training.clone() };
        trainer.recipe = &warmer;
        assert!(metric(&trainer.learn(&episodes, 0).unwrap(), "policy/approxkl_avg") > 1e-4);
    }
}

/// A policy with a new adapter shares its base with the reference.
#[test]
fn m2_the_kl_of_a_policy_equal_to_its_reference_is_zero() {
    let reward = Reward::of_rows(fives);
    let base = model(1).frozen().unwrap();
    let adapted = base.with_lora(&LoraConfig { r: 2, ..LoraConfig::default() }, 3).unwrap();
    for loss_type in [LossType::Dapo, LossType::Rloo] {
        for temperature in [0.5, 1.5] {
            let recipe = GrpoRecipe { beta: 0.1, num_iterations: 2, temperature, ..with_loss(loss_type) };
            for (start, reference) in
                [(base.trainable().unwrap(), base.clone()), (adapted.clone(), adapted.frozen().unwrap())]
            {
                let policy = Learner::new(start, &recipe.optimizer).unwrap();
                let mut trainer = GrpoTrainer::new(policy, Some(reference), &reward, IDS, &recipe).unwrap();
                let episodes = trainer.roll_out(&prompts(), 3).unwrap();
                let metrics = trainer.learn(&episodes, 0).unwrap();
                assert_eq!(metric(&metrics, "objective/kl"), 0., "{loss_type:?}");
            }
            // Negative control: another reference.
            let policy = Learner::new(base.trainable().unwrap(), &recipe.optimizer).unwrap();
            let mut trainer = GrpoTrainer::new(policy, Some(model(9)), &reward, IDS, &recipe).unwrap();
            let episodes = trainer.roll_out(&prompts(), 3).unwrap();
            assert!(metric(&trainer.learn(&episodes, 0).unwrap(), "objective/kl") > 0.1);
        }
    }
    let recipe = recipe();
    let reference = adapted.frozen().unwrap();
    let learner = Learner::new(adapted, &recipe.optimizer).unwrap();
    let name = "model.embed_tokens.weight";
    let of = |model: &Model| model.params().tensors()[name].clone();
    let own = of(&base);
    for shared in [of(&learner.model), of(&reference)] {
        assert!(
            std::ptr::eq(&raw const *shared.storage_and_layout().0, &raw const *own.storage_and_layout().0),
            "the base is not copied"
        );
    }
}

/// M2, negative control: with dropout the policy is not its reference, so the recipe refuses it.
#[test]
fn m2_dropout_makes_the_kl_differ_from_zero() {
    let policy = model(1);
    let (query, reply) = (vec![4u32, 9, 6], vec![5u32, 8, 12, EOS]);
    let row = [query.as_slice(), &reply].concat();
    let logprobs = |residual_dropout: Option<Dropout>| {
        let batch = Batch { residual_dropout, ..Batch::new(std::slice::from_ref(&row)).unwrap() };
        let logits = policy.forward(&batch).unwrap().squeeze(0).unwrap().narrow(0, 2, 4).unwrap();
        token_logprobs(&logits, &reply, 1.).unwrap().to_vec1::<f32>().unwrap()
    };
    let reference = reply_logprobs(&policy, &[(&query, &reply)], 1., PAD).unwrap().to_vec1::<f32>().unwrap();
    let kl = |logprobs: Vec<f32>| logprobs.iter().zip(&reference).map(|(p, r)| (p - r).abs()).sum::<f32>();
    assert!(kl(logprobs(None)) < 1e-5);
    assert!(kl(logprobs(Some(Dropout { probability: 0.2, seed: 1 }))) > 0.01);
    let lora = Some(LoraConfig { lora_dropout: 0.1, ..LoraConfig::default() });
    let error = GrpoRecipe { lora, ..recipe() }.validate().unwrap_err().to_string();
    assert!(error.contains("lora_dropout"), "{error}");
}

/// G12: at the first step the loss of GRPO is 0, its gradient is that of a loop over the replies: `-A / (replies · tokens) · Σ log π`.
#[test]
fn g12_the_first_gradient_is_that_of_a_loop_over_the_replies() {
    let reward = Reward::of_rows(fives);
    for loss_type in LOSSES {
        let recipe = GrpoRecipe { micro_batch_size: 3, ..with_loss(loss_type) };
        let mut trainer = trainer(&model(1), &reward, &recipe);
        let episodes = trainer.roll_out(&prompts(), 5).unwrap();
        let mut alone = Learner::new(model(1), &recipe.optimizer).unwrap();
        let total: usize = episodes.iter().map(|episode| episode.response.len()).sum();
        for episode in &episodes {
            let (before, tokens) = (episode.query.len() - 1, episode.response.len());
            let row = [episode.query.as_slice(), &episode.response].concat();
            let logits = alone.model.forward(&Batch::new(&[row]).unwrap()).unwrap().squeeze(0).unwrap();
            let logits = logits.narrow(0, before, tokens).unwrap();
            let sum = token_logprobs(&logits, &episode.response, recipe.temperature).unwrap().sum_all().unwrap();
            let weight = match loss_type {
                LossType::Grpo => 1. / (20. * tokens as f64),
                LossType::DrGrpo => 1. / (20. * 12.),
                LossType::Dapo => 1. / total as f64,
                LossType::Rloo => 1. / 20.,
            };
            alone.backward(&(sum * (-episode.advantage * weight)).unwrap()).unwrap();
        }
        let (found, expected) = (accumulated(&mut trainer, &episodes), gradients(&alone));
        let (largest, mean) = residuals(&found, &expected);
        assert!(largest < 1e-4 && mean < 1e-5, "{loss_type:?}: {largest} {mean}");
        if loss_type == LossType::Grpo {
            let loss = metric(&trainer.learn(&episodes, 0).unwrap(), "loss");
            assert!(loss.abs() < 1e-6, "{loss}");
        }
    }
}

/// M7: gradients and metrics do not depend on the micro-batches, with replies of different lengths, masked replies and a penalty.
#[test]
fn m7_micro_batches_add_up_to_the_whole_batch() {
    let reward = Reward::of_rows(fives);
    let still = OptimizerConfig { learning_rate: 0., ..recipe().optimizer };
    for loss_type in LOSSES {
        for (beta, mask_truncated_completions) in [(0., false), (0.2, false), (0., true)] {
            let base = GrpoRecipe {
                beta,
                mask_truncated_completions,
                num_iterations: 2,
                epsilon: 0.05,
                optimizer: still.clone(),
                ..with_loss(loss_type)
            };
            let gather = |micro_batch_size| {
                let recipe = GrpoRecipe { micro_batch_size, ..base.clone() };
                let mut trainer = trainer(&model(1), &reward, &recipe);
                let mut episodes = trainer.roll_out(&prompts(), 5).unwrap();
                assert!(
                    episodes.iter().any(|episode| episode.has_eos) && episodes.iter().any(|episode| !episode.has_eos)
                );
                for (i, episode) in episodes.iter_mut().enumerate() {
                    let moved = episode.old_logprobs.iter_mut().flatten().enumerate();
                    moved.for_each(|(t, x)| *x -= [0.3, -0.25, 0.05][(i + t * t) % 3]);
                }
                let found = accumulated(&mut trainer, &episodes);
                let metrics = trainer.learn(&episodes, 0).unwrap();
                (found, ["loss", "clip_ratio/region_mean", "val/ratio"].map(|name| metric(&metrics, name)))
            };
            let (whole, metrics) = gather(64);
            for size in [1, 3] {
                let (found, of_parts) = gather(size);
                let (largest, mean) = residuals(&found, &whole);
                assert!(largest < 1e-4 && mean < 1e-5, "{loss_type:?}, {size}: {largest} {mean}");
                for (a, b) in of_parts.iter().zip(metrics) {
                    assert!((a - b).abs() < 1e-4, "{loss_type:?}: {of_parts:?} {metrics:?}");
                }
            }
            assert!(metrics[1] > 0., "something is clipped");
        }
    }
}

#[test]
fn a_reply_without_an_end_is_masked_or_penalised() {
    let reward = Reward::of_rows(fives);
    let masked = GrpoRecipe { mask_truncated_completions: true, ..with_loss(LossType::Dapo) };
    let mut with_mask = trainer(&model(1), &reward, &masked);
    let episodes = with_mask.roll_out(&prompts(), 5).unwrap();
    let ended: Vec<Episode> = episodes.iter().filter(|episode| episode.has_eos).cloned().collect();
    assert!(!ended.is_empty() && ended.len() < episodes.len());
    let plain = with_loss(LossType::Dapo);
    let expected = accumulated(&mut trainer(&model(1), &reward, &plain), &ended);
    let (largest, _) = residuals(&accumulated(&mut with_mask, &episodes), &expected);
    assert!(largest < 1e-4, "only ended replies have a gradient: {largest}");

    let penalty = GrpoRecipe { missing_eos: MissingEos::Subtract(2.), ..plain };
    let penalised = trainer(&model(1), &reward, &penalty).roll_out(&prompts(), 5).unwrap();
    for episode in penalised {
        assert_eq!(episode.reward, episode.score - if episode.has_eos { 0. } else { 2. });
    }
}

#[test]
fn equal_rewards_are_counted_and_move_nothing() {
    let reward = Reward::of_rows(|rows: &[Vec<u32>]| Ok(vec![0.7; rows.len()]));
    for loss_type in LOSSES {
        let recipe = with_loss(loss_type);
        let mut trainer = trainer(&model(1), &reward, &recipe);
        let episodes = trainer.roll_out(&prompts(), 5).unwrap();
        let metrics = trainer.learn(&episodes, 0).unwrap();
        assert_eq!(metric(&metrics, "frac_reward_zero_std"), 1.);
        assert_eq!([metric(&metrics, "grad_norm"), metric(&metrics, "loss")], [0., 0.], "{loss_type:?}");
        assert!(metrics.iter().all(|(_, value)| value.is_finite()));
        let same = |name: &str| {
            let bits = |model: &Model| model.params().tensors()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            bits(&trainer.policy.model) == bits(&model(1))
        };
        assert!(same("model.embed_tokens.weight"));
    }
}

/// Dr. GRPO and RLOO as in their papers have no division by the deviation.
#[test]
fn a_loss_with_a_scale_that_its_paper_does_not_have_is_refused() {
    for loss_type in [LossType::DrGrpo, LossType::Rloo] {
        let error = GrpoRecipe { scale_rewards: ScaleRewards::Group, ..with_loss(loss_type) }.validate().unwrap_err();
        assert!(error.to_string().contains("scale_rewards"), "{error}");
    }
}

#[test]
fn a_mixture_of_experts_is_trained_with_its_router_losses() {
    let experts = ExpertsConfig { num_experts: 4, moe_intermediate_size: 16, ..ExpertsConfig::default() };
    let dense = model(1).config().clone();
    let config = ModelConfig { model_type: ModelType::Mixtral, intermediate_size: 16, experts: Some(experts), ..dense };
    let start = Model::init(config, Head::LanguageModel, 1).unwrap();
    let reward = Reward::of_rows(|rows: &[Vec<u32>]| Ok(vec![0.; rows.len()]));
    let recipe = recipe();
    let mut trainer = trainer(&start, &reward, &recipe);
    let episodes = trainer.roll_out(&[Prompt::from(vec![3, 4])], 1).unwrap();
    let found = accumulated(&mut trainer, &episodes);
    assert!(found.iter().any(|(name, gradient)| name.contains("gate") && gradient.iter().any(|x| *x != 0.)));
}
