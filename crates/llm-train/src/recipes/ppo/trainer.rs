//! One update of PPO: sample replies, score them, train on them.

use std::path::Path;

use candle_core::Tensor;
use llm_engine::SampledReply;
use llm_model::Model;
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};

use super::metrics::{RunningMeans, objective};
use super::{PpoRecipe, value_head};
use crate::loss::{policy_loss, value_loss};
use crate::optim::Learner;
use crate::rewards::{Prompt, Reward};
use crate::rl::{adapted_kl_coef, explained_variance, gae, token_rewards, whiten};
use crate::rollout::{
    Reply, Rollout, RolloutOptions, engine_difference, flat, has_eos, logprobs_entropies_and_routing, per_reply,
    reply_hidden, reply_logprobs, reply_values, sample_replies,
};
use crate::routing::RouterMetrics;
use crate::run::{OPTIMIZER, restored, rng};
use crate::{Error, Result, adapters, loss};

/// The special token ids of PPO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Padding. Any id works, as padding is recognised by length.
    pub pad: u32,
    /// End of a reply.
    pub eos: u32,
}

/// The models of PPO and their update.
pub struct PpoTrainer<'a> {
    /// The policy, which samples the replies and is trained.
    pub policy: Learner,
    /// The critic (a model with [`llm_model::Head::Token`]), which is trained.
    pub critic: Learner,
    /// The frozen reference of the KL penalty, in the policy's precision, so that the initial KL is exactly 0.
    pub reference: Model,
    /// The reward to maximise.
    pub reward: Reward<'a>,
    /// Special token ids.
    pub ids: SpecialIds,
    /// The current KL coefficient.
    pub kl_coef: f64,
    /// Number of replies trained on so far.
    pub episodes: u64,
    /// The recipe.
    pub recipe: &'a PpoRecipe,
}

/// Training targets with one entry per token of each reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Targets {
    /// Advantages, whitened over all tokens of the batch.
    pub advantages: Vec<Vec<f64>>,
    /// Returns: the targets of the critic.
    pub returns: Vec<Vec<f64>>,
}

impl<'a> PpoTrainer<'a> {
    /// A trainer before its first update. The policy is a copy of `reference`, or with active adapters a copy of the uppermost adapter
    /// over its weights.
    pub fn new(
        reference: &Model,
        critic: Model,
        reward: Reward<'a>,
        ids: SpecialIds,
        recipe: &'a PpoRecipe,
    ) -> Result<Self> {
        Ok(Self {
            policy: Learner::new(reference.trainable()?, &recipe.optimizer)?,
            critic: Learner::new(critic, &recipe.value_optimizer)?,
            reference: reference.frozen()?.in_precision(recipe.optimizer.precision)?,
            reward,
            ids,
            kl_coef: recipe.kl_coef,
            episodes: 0,
            recipe,
        })
    }

    /// [`Self::new`] with a critic that is a head on the hidden states of the policy and initially predicts 0
    /// (`PpoRecipe::value_head_on_policy`).
    pub fn with_value_head(
        reference: &Model,
        reward: Reward<'a>,
        ids: SpecialIds,
        recipe: &'a PpoRecipe,
    ) -> Result<Self> {
        let policy = Learner::new(reference.trainable()?, &recipe.optimizer)?;
        let critic = value_head::on(&policy.model)?;
        Ok(Self { policy, ..Self::new(reference, critic, reward, ids, recipe)? })
    }

    /// The policy and the critic, each with the table of its optimizer in the recipe.
    pub(super) fn learners(&self) -> [(&'static str, &Learner); 2] {
        [(OPTIMIZER, &self.policy), ("value_optimizer", &self.critic)]
    }

    /// Saves policy, critic and both optimizers for [`Self::restore`]; `dir` becomes the policy's Hugging Face folder, or that of its
    /// adapter over the model in the folder `base`.
    pub fn save(&self, dir: &Path, base: &str) -> Result<()> {
        adapters::save(&self.policy.model, dir, base)?;
        self.policy.save_optimizer(&dir.join("trainer/optimizer.safetensors"))?;
        match self.recipe.value_head_on_policy {
            true => value_head::save(&self.critic.model, &dir.join("trainer/value_head.safetensors"))?,
            false => self.critic.model.save(dir.join("trainer/value"))?,
        }
        self.critic.save_optimizer(&dir.join("trainer/value_optimizer.safetensors"))
    }

    /// The state to store together with [`Self::save`].
    pub fn state(&self) -> Map<String, Value> {
        Map::from_iter([("kl_coef".to_owned(), json!(self.kl_coef)), ("episode".to_owned(), json!(self.episodes))])
    }

    /// Restores the trainer from [`Self::save`] and [`Self::state`].
    pub fn restore(&mut self, dir: &Path, state: &Map<String, Value>) -> Result<()> {
        let (trainer, device) = (dir.join("trainer"), self.reference.device());
        let optimizer = trainer.join("optimizer.safetensors");
        self.policy = adapters::restored(&self.reference, dir, &optimizer, &self.recipe.optimizer)?;
        let optimizer = trainer.join("value_optimizer.safetensors");
        if self.recipe.value_head_on_policy {
            self.critic = Learner::new(value_head::on(&self.policy.model)?, &self.recipe.value_optimizer)?;
            value_head::restore(&self.critic.model, &trainer.join("value_head.safetensors"))?;
            self.critic.load_optimizer(&optimizer)?;
        } else {
            self.critic = restored(&trainer.join("value"), &optimizer, &self.recipe.value_optimizer, &device)?;
        }
        let missing = |key: &str| {
            let path = trainer.join("state.json");
            Error::BadFile(format!("{}: \"{key}\" is missing; remove this checkpoint", path.display()))
        };
        self.kl_coef = state.get("kl_coef").and_then(Value::as_f64).ok_or_else(|| missing("kl_coef"))?;
        self.episodes = state.get("episode").and_then(Value::as_u64).ok_or_else(|| missing("episode"))?;
        Ok(())
    }

    /// Samples a reply to each prompt and computes log-probabilities, values and scores, `micro_batch_size` replies at a time.
    pub fn roll_out(&self, prompts: &[Prompt], seed: u64) -> Result<Vec<Rollout>> {
        let recipe = self.recipe;
        let options = RolloutOptions::new(recipe.max_new_tokens, self.ids.eos, recipe.temperature, seed);
        let queries: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.query.clone()).collect();
        let replies = sample_replies(&self.policy.model, &queries, &options)?.concat();
        let (policy, critic) = (self.policy.model.detached()?, self.critic.model.detached()?);
        let size = recipe.micro_batch_size.max(1);
        let mut rollouts = Vec::with_capacity(prompts.len());
        for (prompts, replies) in prompts.chunks(size).zip(replies.chunks(size)) {
            rollouts.extend(self.evaluate([&policy, &critic], prompts, replies)?);
        }
        Ok(rollouts)
    }

    /// Log-probabilities, values and scores of these replies.
    fn evaluate(
        &self,
        [policy, critic]: [&Model; 2],
        prompts: &[Prompt],
        sampled: &[SampledReply],
    ) -> Result<Vec<Rollout>> {
        let (temperature, pad) = (self.recipe.temperature, self.ids.pad);
        let scored = prompts.iter().zip(sampled.iter().map(|reply| reply.ids.as_slice()));
        let replies: Vec<Reply> =
            scored.clone().map(|(prompt, response)| (prompt.query.as_slice(), response)).collect();
        let logprobs_of = |model| per_reply(&reply_logprobs(model, &replies, temperature, pad)?, &replies);
        let mut logprobs = logprobs_of(policy)?.into_iter();
        let mut ref_logprobs = logprobs_of(&self.reference)?.into_iter();
        let mut values = per_reply(&reply_values(critic, &replies, pad)?, &replies)?.into_iter();
        let scores = self.reward.score_replies(scored, self.ids.eos)?;
        let rollout = |((prompt, reply), score): ((&Prompt, &SampledReply), f64)| Rollout {
            query: prompt.query.clone(),
            response: reply.ids.clone(),
            has_eos: has_eos(reply),
            score,
            engine_logprobs: reply.logprobs.clone(),
            logprobs: logprobs.next().unwrap_or_default(),
            ref_logprobs: ref_logprobs.next().unwrap_or_default(),
            values: values.next().unwrap_or_default(),
        };
        Ok(prompts.iter().zip(sampled).zip(scores).map(rollout).collect())
    }

    /// Advantages and returns under the current KL coefficient, per reply; advantages are whitened over all tokens of the batch.
    pub fn targets(&self, rollouts: &[Rollout]) -> Targets {
        let recipe = self.recipe;
        let score = |r: &Rollout| recipe.missing_eos.apply(r.score, r.has_eos);
        let rewards = |r: &Rollout| token_rewards(&r.logprobs, &r.ref_logprobs, score(r), self.kl_coef);
        let mut rewards: Vec<Vec<f64>> = rollouts.iter().map(rewards).collect();
        if recipe.whiten_rewards {
            whiten_all(&mut rewards, false);
        }
        let estimates =
            rewards.iter().zip(rollouts).map(|(rewards, r)| gae(rewards, &r.values, recipe.gamma, recipe.lam));
        let (mut advantages, returns): (Vec<_>, Vec<_>) = estimates.unzip();
        whiten_all(&mut advantages, true);
        Targets { advantages, returns }
    }

    /// Trains on the rollouts of update number `update` (counted from 0) and returns the metrics, with the names of TRL.
    pub fn learn(&mut self, rollouts: &[Rollout], update: u64) -> Result<Vec<(&'static str, f64)>> {
        let recipe = self.recipe;
        let targets = self.targets(rollouts);
        let learning_rate = recipe.optimizer.learning_rate_at(update, recipe.updates);
        let value_learning_rate = recipe.value_optimizer.learning_rate_at(update, recipe.updates);
        let (mut means, mut passes) = (RunningMeans::default(), 0);
        for epoch in 0..recipe.num_ppo_epochs {
            let mut order: Vec<usize> = (0..rollouts.len()).collect();
            order.shuffle(&mut rng(recipe.seed, 3, update * recipe.num_ppo_epochs + epoch));
            let mut of_pass = RunningMeans::default();
            for mini_batch in even_parts(&order, recipe.num_mini_batches) {
                self.accumulate_gradients(rollouts, &targets, mini_batch, &mut of_pass)?;
                of_pass.add("policy/grad_norm", self.policy.step(learning_rate)?, 1.);
                of_pass.add("value/grad_norm", self.critic.step(value_learning_rate)?, 1.);
            }
            let kl = of_pass.get("policy/approxkl_avg");
            means.merge(of_pass);
            passes += 1;
            if recipe.target_kl.is_some_and(|target| kl > Some(target)) {
                break;
            }
        }
        self.episodes += rollouts.len() as u64;
        let mut metrics = objective(rollouts, recipe, self.kl_coef);
        let difference = engine_difference(rollouts);
        metrics.extend(difference.metrics());
        if update == 0 {
            difference.warn();
        }
        let mean_square = means.take(MEAN_SQUARE_RATIO).unwrap_or(1.);
        let ratio = means.get("val/ratio").unwrap_or(1.);
        metrics.extend(means.all());
        metrics.push(("val/ratio_var", (mean_square - ratio * ratio).max(0.)));
        let values: Vec<f64> = rollouts.iter().flat_map(|r| r.values.iter().copied()).collect();
        metrics.push(("val/explained_var", explained_variance(&targets.returns.concat(), &values)));
        if recipe.target_kl.is_some() {
            metrics.push(("policy/passes", f64::from(passes)));
        }
        metrics.push(("lr", learning_rate));
        metrics.push(("episode", self.episodes as f64));
        if let Some(target) = recipe.kl_target_per_sequence {
            let kl = rollouts.iter().map(Rollout::kl).sum::<f64>() / rollouts.len().max(1) as f64;
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, target, rollouts.len(), recipe.kl_horizon);
        }
        Ok(metrics)
    }

    /// Accumulates the gradients of a mini-batch (indices of rollouts) without a step. Every token has the same weight, whichever
    /// micro-batch it is in.
    pub fn accumulate_gradients(
        &mut self,
        rollouts: &[Rollout],
        targets: &Targets,
        mini_batch: &[usize],
        means: &mut RunningMeans,
    ) -> Result<()> {
        let tokens_of = |part: &[usize]| part.iter().map(|&i| rollouts[i].response.len()).sum::<usize>() as f64;
        let (tokens, device) = (tokens_of(mini_batch), self.policy.model.device());
        for micro_batch in mini_batch.chunks(self.recipe.micro_batch_size.max(1)) {
            let chosen: Vec<&Rollout> = micro_batch.iter().map(|&i| &rollouts[i]).collect();
            let pick = |lists: &[Vec<f64>]| flat(micro_batch.iter().flat_map(|&i| lists[i].iter().copied()), &device);
            let (advantages, returns) = (pick(&targets.advantages)?, pick(&targets.returns)?); // (n,)
            let count = tokens_of(micro_batch);
            self.policy_gradients(&chosen, &advantages, count / tokens, count, means)?;
            self.value_gradients(&chosen, &returns, count / tokens, count, means)?;
        }
        Ok(())
    }

    /// Accumulates the policy's gradients of a micro-batch of `count` tokens, a share `share` of its mini-batch.
    fn policy_gradients(
        &mut self,
        rollouts: &[&Rollout],
        advantages: &Tensor,
        share: f64,
        count: f64,
        means: &mut RunningMeans,
    ) -> Result<()> {
        let recipe = self.recipe;
        let replies: Vec<Reply> = rollouts.iter().map(|r| r.reply()).collect();
        let (logprobs, entropies, routing) =
            logprobs_entropies_and_routing(&self.policy.model, &replies, recipe.temperature, self.ids.pad)?;
        let old_logprobs = flat(rollouts.iter().flat_map(|r| r.logprobs.iter().copied()), logprobs.device())?;
        let clipped = policy_loss(&logprobs, &old_logprobs, advantages, recipe.cliprange)?;
        let entropy = entropies.mean_all()?;
        let loss = match recipe.entropy_coef == 0. {
            true => clipped.loss.clone(),
            false => (&clipped.loss - (&entropy * recipe.entropy_coef)?)?,
        };
        let loss = RouterMetrics::default().add(&(loss * share)?, routing.as_ref(), share)?;
        self.policy.backward(&loss)?;
        if let Some(routing) = &routing {
            means.add("policy/load_balancing_loss", routing.load_balancing_loss, count);
            means.add("policy/router_z_loss", routing.z_loss, count);
        }

        let difference = (logprobs - old_logprobs)?.detach();
        let ratio = difference.exp()?;
        means.add("policy/approxkl_avg", loss::scalar(&difference.sqr()?.mean_all()?)? / 2., count);
        means.add("policy/clipfrac_avg", clipped.clip_fraction, count);
        means.add("policy/entropy_avg", loss::scalar(&entropy)?, count);
        means.add("loss/policy_avg", loss::scalar(&clipped.loss)?, count);
        means.add("val/ratio", loss::scalar(&ratio.mean_all()?)?, count);
        means.add(MEAN_SQUARE_RATIO, loss::scalar(&ratio.sqr()?.mean_all()?)?, count);
        Ok(())
    }

    /// Accumulates the critic's gradients of a micro-batch of `count` tokens, a share `share` of its mini-batch.
    fn value_gradients(
        &mut self,
        rollouts: &[&Rollout],
        returns: &Tensor,
        share: f64,
        count: f64,
        means: &mut RunningMeans,
    ) -> Result<()> {
        let replies: Vec<Reply> = rollouts.iter().map(|r| r.reply()).collect();
        let hidden = reply_hidden(&self.critic.model, &replies, self.ids.pad)?; // (n, hidden)
        let old_values = flat(rollouts.iter().flat_map(|r| r.values.iter().copied()), hidden.device())?;
        let loss_on = |critic: &Model, hidden: &Tensor| {
            value_loss(&critic.output(hidden)?.squeeze(1)?, &old_values, returns, self.recipe.cliprange_value)
        };
        let clipped = match self.recipe.value_head_on_policy {
            true => {
                // The trunk is the policy's: its part of the gradient goes there, that of the head to the head.
                let shared = loss_on(&self.critic.model, &hidden)?.loss;
                let of_head = loss_on(&self.critic.model, &hidden.detach())?;
                self.policy.backward(&(shared * (share * self.recipe.vf_coef))?)?;
                of_head
            }
            false => loss_on(&self.critic.model, &hidden)?,
        };
        self.critic.backward(&(&clipped.loss * share)?)?;
        means.add("loss/value_avg", loss::scalar(&clipped.loss)?, count);
        means.add("val/clipfrac_avg", clipped.clip_fraction, count);
        Ok(())
    }
}

/// Used for `val/ratio_var`; not logged.
const MEAN_SQUARE_RATIO: &str = "mean square of the ratio";

/// Splits into `parts` parts whose sizes differ by at most one; fewer parts if there are fewer items.
pub(in crate::recipes) fn even_parts<T>(items: &[T], parts: usize) -> impl Iterator<Item = &[T]> {
    let parts = parts.clamp(1, items.len().max(1));
    (0..parts).map(move |i| &items[i * items.len() / parts..(i + 1) * items.len() / parts])
}

fn whiten_all(lists: &mut [Vec<f64>], shift_mean: bool) {
    let mut all = lists.concat();
    whiten(&mut all, shift_mean);
    for (x, whitened) in lists.iter_mut().flatten().zip(all) {
        *x = whitened;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_split_into_even_parts() {
        let items: Vec<u32> = (0..8).collect();
        for (parts, sizes) in [(6, vec![1, 1, 2, 1, 1, 2]), (3, vec![2, 3, 3]), (1, vec![8]), (9, vec![1; 8])] {
            let made: Vec<&[u32]> = even_parts(&items, parts).collect();
            assert_eq!(made.iter().map(|part| part.len()).collect::<Vec<_>>(), sizes, "{parts}");
            assert_eq!(made.concat(), items);
        }
    }
}
