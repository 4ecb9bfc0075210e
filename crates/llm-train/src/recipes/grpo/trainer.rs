//! One update: sample replies to each prompt, score them, compare them with each other, train on them.

use candle_core::Tensor;
use llm_engine::SampledReply;
use llm_model::Model;
use rand::seq::SliceRandom;

use super::GrpoRecipe;
use super::episode::Episode;
use super::metrics::{completions, penalty, rewards};
use crate::Result;
use crate::loss::{self, ClipRange, LossType, grpo_loss, rloo_loss, token_weights};
use crate::optim::Learner;
use crate::recipes::ppo::{RunningMeans, SpecialIds, even_parts};
use crate::rewards::{Prompt, Reward};
use crate::rl::{group_advantages, leave_one_out_advantages, sequence_reward};
use crate::rollout::{
    LogprobDifference, Reply, RolloutOptions, flat, has_eos, logprobs_and_routing, per_reply, reply_logprobs,
    sample_replies,
};
use crate::routing::RouterMetrics;
use crate::run::rng;

/// The policy and its update.
pub struct GrpoTrainer<'a> {
    /// The policy, which samples the replies and is trained.
    pub policy: Learner,
    /// The frozen reference of the KL penalty, in the policy's precision; none if `beta` is 0.
    pub reference: Option<Model>,
    /// The reward to maximise.
    pub reward: &'a Reward<'a>,
    /// Special token ids.
    pub ids: SpecialIds,
    /// The recipe.
    pub recipe: &'a GrpoRecipe,
}

impl<'a> GrpoTrainer<'a> {
    /// A trainer of `policy` before its next update.
    pub fn new(
        policy: Learner,
        reference: Option<Model>,
        reward: &'a Reward<'a>,
        ids: SpecialIds,
        recipe: &'a GrpoRecipe,
    ) -> Result<Self> {
        let reference = reference.map(|model| model.in_precision(recipe.optimizer.precision)).transpose()?;
        Ok(Self { policy, reference, reward, ids, recipe })
    }

    /// Samples `num_generations` replies to each prompt, scores them and computes their advantages. The replies to one prompt follow each
    /// other.
    pub fn roll_out(&self, prompts: &[Prompt], seed: u64) -> Result<Vec<Episode>> {
        let recipe = self.recipe;
        let group = recipe.num_generations;
        let options = RolloutOptions {
            num_generations: group,
            ..RolloutOptions::new(recipe.max_new_tokens, self.ids.eos, recipe.temperature, seed)
        };
        let queries: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.query.clone()).collect();
        let replies = sample_replies(&self.policy.model, &queries, &options)?.concat();
        let prompt_of = |at: usize| &prompts[at / group];
        let scored = replies.iter().enumerate().map(|(at, reply)| (prompt_of(at), reply.ids.as_slice()));
        let scores = self.reward.score_replies(scored, self.ids.eos)?;
        let episode = |((at, reply), score): ((usize, SampledReply), f64)| {
            let has_eos = has_eos(&reply);
            Episode {
                query: prompt_of(at).query.clone(),
                has_eos,
                score,
                reward: recipe.missing_eos.apply(score, has_eos),
                advantage: 0.,
                response: reply.ids,
                engine_logprobs: reply.logprobs,
                old_logprobs: None,
                ref_logprobs: None,
            }
        };
        let mut episodes: Vec<Episode> = replies.into_iter().enumerate().zip(scores).map(episode).collect();
        if let Some(reference) = &self.reference {
            let logprobs = self.logprobs(reference, &episodes)?;
            episodes.iter_mut().zip(logprobs).for_each(|(episode, logprobs)| episode.ref_logprobs = Some(logprobs));
        }
        let is_rloo = recipe.loss_type == LossType::Rloo;
        if recipe.is_off_policy() || is_rloo && self.reference.is_some() {
            let logprobs = self.logprobs(&self.policy.model.detached()?, &episodes)?;
            episodes.iter_mut().zip(logprobs).for_each(|(episode, logprobs)| episode.old_logprobs = Some(logprobs));
        }
        if is_rloo {
            for episode in &mut episodes {
                if let (Some(logprobs), Some(reference)) = (&episode.old_logprobs, &episode.ref_logprobs) {
                    episode.reward = sequence_reward(logprobs, reference, episode.reward, recipe.beta);
                }
            }
        }
        for group in episodes.chunks_mut(group) {
            let rewards: Vec<f64> = group.iter().map(|episode| episode.reward).collect();
            let advantages = if is_rloo {
                leave_one_out_advantages(&rewards)
            } else {
                group_advantages(&rewards, recipe.scale_rewards)
            };
            group.iter_mut().zip(advantages).for_each(|(episode, advantage)| episode.advantage = advantage);
        }
        Ok(episodes)
    }

    /// The log-probabilities of the replies, `micro_batch_size` at a time.
    fn logprobs(&self, model: &Model, episodes: &[Episode]) -> Result<Vec<Vec<f64>>> {
        let mut all = Vec::with_capacity(episodes.len());
        for episodes in episodes.chunks(self.recipe.micro_batch_size.max(1)) {
            let replies: Vec<Reply> = episodes.iter().map(Episode::reply).collect();
            let logprobs = reply_logprobs(model, &replies, self.recipe.temperature, self.ids.pad)?;
            all.extend(per_reply(&logprobs, &replies)?);
        }
        Ok(all)
    }

    /// Trains on the episodes of update number `update` (counted from 0) and returns the metrics, with the names of TRL.
    pub fn learn(&mut self, episodes: &[Episode], update: u64) -> Result<Vec<(&'static str, f64)>> {
        let recipe = self.recipe;
        let learning_rate = recipe.optimizer.learning_rate_at(update, recipe.updates);
        let (mut means, mut difference) = (RunningMeans::default(), LogprobDifference::default());
        for iteration in 0..recipe.num_iterations {
            let mut order: Vec<usize> = (0..episodes.len()).collect();
            if recipe.num_mini_batches > 1 {
                order.shuffle(&mut rng(recipe.seed, 3, update * recipe.num_iterations + iteration));
            }
            for mini_batch in even_parts(&order, recipe.num_mini_batches) {
                self.accumulate_gradients(episodes, mini_batch, &mut means, &mut difference)?;
                means.add("grad_norm", self.policy.step(learning_rate)?, 1.);
            }
        }
        if update == 0 {
            difference.warn();
        }
        let mut metrics = rewards(episodes, recipe.num_generations);
        metrics.extend(completions(episodes));
        metrics.extend(penalty(episodes));
        metrics.extend(means.all());
        metrics.extend(difference.metrics());
        metrics.push(("learning_rate", learning_rate));
        Ok(metrics)
    }

    /// Accumulates the gradients of a mini-batch (indices of episodes) without a step. The weight of a token is that in the whole
    /// mini-batch, whichever micro-batch it is in. Replies without a gradient are not computed.
    pub fn accumulate_gradients(
        &mut self,
        episodes: &[Episode],
        mini_batch: &[usize],
        means: &mut RunningMeans,
        difference: &mut LogprobDifference,
    ) -> Result<()> {
        let recipe = self.recipe;
        let is_masked = |episode: &Episode| recipe.mask_truncated_completions && !episode.has_eos;
        let length = |&at: &usize| if is_masked(&episodes[at]) { 0 } else { episodes[at].response.len() };
        let lengths: Vec<usize> = mini_batch.iter().map(length).collect();
        let weights = token_weights(recipe.loss_type, &lengths, recipe.max_new_tokens);
        let needs_all = self.reference.is_some() && recipe.loss_type != LossType::Rloo
            || self.policy.model.config().experts.is_some();
        let mut trained: Vec<(&Episode, f64)> = mini_batch.iter().map(|&at| &episodes[at]).zip(weights).collect();
        let first = trained.first().map(|&(episode, _)| (episode, 0.));
        trained.retain(|(episode, _)| !is_masked(episode) && (needs_all || episode.advantage != 0.));
        let tokens = lengths.iter().sum::<usize>().max(1) as f64;
        let mut share_of_token = 1. / tokens;
        if trained.is_empty() {
            // A step with gradients of 0, those of routers too.
            trained.extend(first);
            share_of_token = 0.;
        }
        // Replies of similar length together: less padding.
        trained.sort_by_key(|(episode, _)| episode.response.len() + episode.query.len());
        let mut sums = Sums::default();
        for micro_batch in trained.chunks(recipe.micro_batch_size.max(1)) {
            self.micro_batch(micro_batch, share_of_token, &mut sums, difference)?;
        }
        let ratios = if recipe.loss_type == LossType::Rloo { lengths.len() as f64 } else { tokens };
        means.add("loss", sums.loss, 1.);
        means.add("clip_ratio/low_mean", sums.low / ratios, 1.);
        means.add("clip_ratio/high_mean", sums.high / ratios, 1.);
        means.add("clip_ratio/region_mean", (sums.low + sums.high) / ratios, 1.);
        means.add("policy/approxkl_avg", sums.square / 2. / sums.tokens.max(1.), 1.);
        means.add("val/ratio", sums.ratio / sums.ratios.max(1.), 1.);
        if self.reference.is_some() && recipe.loss_type != LossType::Rloo && lengths.iter().any(|&length| length > 0) {
            means.add("kl", sums.kl / tokens, 1.);
        }
        Ok(())
    }

    /// Accumulates the gradients of replies with the weights of their tokens; `share_of_token` is the weight of a token in the loss of routers.
    fn micro_batch(
        &mut self,
        micro_batch: &[(&Episode, f64)],
        share_of_token: f64,
        sums: &mut Sums,
        difference: &mut LogprobDifference,
    ) -> Result<()> {
        let recipe = self.recipe;
        let replies: Vec<Reply> = micro_batch.iter().map(|(episode, _)| episode.reply()).collect();
        let (logprobs, routing) = logprobs_and_routing(&self.policy.model, &replies, recipe.temperature, self.ids.pad)?;
        let device = logprobs.device().clone();
        let list = |of: &dyn Fn(&Episode) -> Option<&Vec<f64>>| -> Result<Option<Tensor>> {
            let lists: Option<Vec<&Vec<f64>>> = micro_batch.iter().map(|(episode, _)| of(episode)).collect();
            lists.map(|lists| flat(lists.into_iter().flatten().copied(), &device)).transpose()
        };
        // On-policy the ratio is 1; it still has a gradient.
        let old_logprobs = list(&|episode| episode.old_logprobs.as_ref())?.unwrap_or_else(|| logprobs.detach());
        let ref_logprobs = list(&|episode| episode.ref_logprobs.as_ref())?;
        let clip = ClipRange { low: recipe.epsilon, high: recipe.epsilon_high };
        let found = if recipe.loss_type == LossType::Rloo {
            let lengths: Vec<usize> = replies.iter().map(|(_, response)| response.len()).collect();
            let advantages = flat(micro_batch.iter().map(|(episode, _)| episode.advantage), &device)?;
            let weights = flat(micro_batch.iter().map(|(_, weight)| *weight), &device)?;
            rloo_loss(&logprobs, &old_logprobs, &lengths, &advantages, &weights, clip)?
        } else {
            let each = |of: &dyn Fn(&(&Episode, f64)) -> f64| {
                let repeated = micro_batch.iter().flat_map(|item| std::iter::repeat_n(of(item), item.0.response.len()));
                flat(repeated, &device)
            };
            let (advantages, weights) = (each(&|(episode, _)| episode.advantage)?, each(&|(_, weight)| *weight)?);
            let reference = ref_logprobs.as_ref().map(|logprobs| (logprobs, recipe.beta));
            grpo_loss(&logprobs, &old_logprobs, &advantages, &weights, clip, reference)?
        };
        let count = logprobs.elem_count() as f64;
        let total = RouterMetrics::default().add(&found.loss, routing.as_ref(), count * share_of_token)?;
        self.policy.backward(&total)?;

        let log_ratios = (&logprobs - &old_logprobs)?.detach();
        for ((episode, _), logprobs) in micro_batch.iter().zip(per_reply(&old_logprobs, &replies)?) {
            difference.add(&episode.engine_logprobs, &logprobs);
        }
        sums.loss += loss::scalar(&found.loss)?;
        sums.low += found.low_clipped;
        sums.high += found.high_clipped;
        sums.kl += found.kl_sum;
        sums.square += loss::scalar(&log_ratios.sqr()?.sum_all()?)?;
        sums.tokens += count;
        sums.ratio += loss::scalar(&found.ratios.sum_all()?)?;
        sums.ratios += found.ratios.elem_count() as f64;
        Ok(())
    }
}

impl GrpoRecipe {
    /// Whether some steps of an update train a policy that is not the one that sampled.
    fn is_off_policy(&self) -> bool {
        self.num_iterations > 1 || self.num_mini_batches > 1
    }
}

/// Sums over the tokens and ratios of a mini-batch.
#[derive(Debug, Default)]
struct Sums {
    loss: f64,
    low: f64,
    high: f64,
    kl: f64,
    square: f64,
    tokens: f64,
    ratio: f64,
    ratios: f64,
}
