//! Proximal policy optimisation from human feedback (Ziegler et al. 2019, arXiv 1909.08593; Stiennon et al. 2020, arXiv
//! 2009.01325; Huang et al. 2024, arXiv 2403.17031).
//!
//! The choices: k1 in the reward; the score at the reply's last token; a critic of its own that begins as the reward
//! model; whitened advantages over all tokens of a batch (population variance plus 1e-8); gradients clipped by norm.

use std::path::Path;

use candle_core::{Device, Tensor};
use llm_data::read_prompts;
use llm_model::{Head, Model};
use llm_tokenizer::{ChatFormat, Tokenizer};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{RewardModel, chat_format, load_model};
use crate::examples::{LengthBatches, chat_messages};
use crate::fitting::{Ids, fitting};
use crate::optim::{Learner, OptimizerConfig, Schedule};
use crate::rl::{MissingEos, adapted_kl_coef, gae, policy_loss, token_rewards, value_loss, whiten};
use crate::rollout::{Reply, Rollout, draw, per_reply, reply_logprobs, reply_values};
use crate::run::{Run, RunOptions, learner, restored, rng};
use crate::{Error, Result, loss};

/// The numbers of PPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoRecipe {
    /// Seed of the critic's head, the order of the prompts and the draws.
    pub seed: u64,
    /// Batches of replies to draw and learn from.
    pub updates: u64,
    /// Replies of each batch.
    pub episodes: usize,
    /// Passes over each batch.
    pub num_ppo_epochs: u64,
    /// Steps of the optimizers in each pass.
    pub num_mini_batches: usize,
    /// Replies that go through a model at once.
    pub micro_batch_size: usize,
    /// A reply is cut off behind so many tokens.
    pub max_new_tokens: usize,
    /// Of the draw, and of all log-probabilities.
    pub temperature: f64,
    /// The price of each nat of KL divergence from the reference.
    pub kl_coef: f64,
    /// If given, `kl_coef` is steered so that a reply's KL, summed over its tokens, comes to this.
    pub kl_target_per_sequence: Option<f64>,
    /// Replies over which the steering acts.
    pub kl_horizon: f64,
    /// How far the ratio of new to old probability may leave 1.
    pub cliprange: f64,
    /// How far a value may leave the old one.
    pub cliprange_value: f64,
    /// Weight of the value loss.
    pub vf_coef: f64,
    /// Discount of later rewards.
    pub gamma: f64,
    /// λ of the advantage estimates.
    pub lam: f64,
    /// Whether rewards are divided by their standard deviation.
    pub whiten_rewards: bool,
    /// What becomes of the score of a reply that was cut off.
    pub missing_eos: MissingEos,
    /// Updates between two checkpoints, each with some of the replies in `samples/`.
    pub save_every: u64,
    /// The policy's optimizer.
    pub optimizer: OptimizerConfig,
    /// The critic's optimizer.
    pub value_optimizer: OptimizerConfig,
}

impl Default for PpoRecipe {
    fn default() -> Self {
        let optimizer = OptimizerConfig {
            learning_rate: 1e-5,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            beta2: 0.999,
            eps: 1e-5,
            weight_decay: 0.,
            ..OptimizerConfig::default()
        };
        Self {
            seed: 42,
            updates: 50,
            episodes: 64,
            num_ppo_epochs: 4,
            num_mini_batches: 1,
            micro_batch_size: 64,
            max_new_tokens: 64,
            temperature: 1.,
            kl_coef: 0.05,
            kl_target_per_sequence: None,
            kl_horizon: 10_000.,
            cliprange: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            gamma: 1.,
            lam: 0.95,
            whiten_rewards: false,
            missing_eos: MissingEos::Subtract(1.),
            save_every: 10,
            value_optimizer: optimizer.clone(),
            optimizer,
        }
    }
}

/// What [`ppo`] reads.
#[derive(Debug, Clone, Copy)]
pub struct PpoInputs<'a> {
    /// The folder of the fine-tuned model: where the policy begins, and the reference.
    pub model: &'a Path,
    /// The folder of the reward model, from which the critic begins too.
    pub reward: &'a Path,
    /// Prompts.
    pub data: &'a Path,
}

/// Aligns a model by PPO; the run folder `out` becomes its Hugging Face folder.
pub fn ppo(recipe: &PpoRecipe, inputs: PpoInputs, out: &Path, options: RunOptions) -> Result<()> {
    let tokenizer = Tokenizer::from_dir(inputs.model)?;
    let reference = load_model(inputs.model, Head::LanguageModel)?;
    let reward_model = RewardModel::load(inputs.reward)?;
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, inputs.model)?;
    let other =
        Ids::Other { config: reward_model.model.config(), tokenizer: &reward_model.tokenizer, dir: inputs.reward };
    fitting(reference.config(), (&tokenizer, inputs.model), &[other])?;
    let queries = queries(recipe, &inputs, &tokenizer, reference.config().max_position_embeddings)?;
    let shown = [("model", inputs.model), ("reward", inputs.reward), ("data", inputs.data)];
    let shown = shown.map(|(name, path)| (name, path.display().to_string()));
    let (mut run, checkpoint) = Run::open(out, recipe, &shown, options)?;
    let policy = learner(checkpoint.as_ref(), &recipe.optimizer, || Ok(reference.trainable()?))?;
    let critic = match &checkpoint {
        None => Learner::new(reward_model.model.with_head(Head::Token, recipe.seed)?, &recipe.value_optimizer)?,
        Some(at) => {
            let trainer = at.dir.join("trainer");
            restored(&trainer.join("value"), &trainer.join("value_optimizer.safetensors"), &recipe.value_optimizer)?
        }
    };
    let kl_coef = checkpoint.as_ref().and_then(|c| c.state.get("kl_coef")?.as_f64()).unwrap_or(recipe.kl_coef);
    let score = |rollouts: &[Vec<u32>]| reward_model.scores(rollouts);
    let mut trainer = PpoTrainer { policy, critic, reference, score: &score, pad, eos: end_of_turn, kl_coef, recipe };
    let mut batches = LengthBatches::new(queries.iter().map(Vec::len).collect(), recipe.episodes, recipe.seed)?;
    let first = checkpoint.map_or(0, |c| c.step);
    run.begin(recipe.updates, first, "updates");

    for update in first..recipe.updates {
        let batch: Vec<Vec<u32>> = batches.batch(update).into_iter().map(|i| queries[i].clone()).collect();
        let rollouts = trainer.roll_out(&batch, rng(recipe.seed, 2, update).random())?;
        let figures = trainer.learn(&rollouts, update)?;
        let done = update + 1;
        run.check_finite(done, &figures)?;
        run.log(done, &figures)?;
        let figure = |name: &str| figures.iter().find(|f| f.0 == name).map_or(0., |f| f.1);
        run.progress(done, &format!("score {:.2}, KL {:.2}", figure("objective/scores"), figure("objective/kl")));
        if done.is_multiple_of(recipe.save_every) || done == recipe.updates {
            run.sample(done, &samples(&tokenizer, &rollouts)?)?;
        }
        if done.is_multiple_of(recipe.save_every) {
            run.checkpoint(done, Map::from_iter([("kl_coef".to_owned(), json!(trainer.kl_coef))]), |dir| {
                tokenizer.save(dir)?;
                trainer.policy.model.save(dir)?;
                trainer.policy.save_optimizer(&dir.join("trainer/optimizer.safetensors"))?;
                trainer.critic.model.save(&dir.join("trainer/value"))?;
                trainer.critic.save_optimizer(&dir.join("trainer/value_optimizer.safetensors"))
            })?;
        }
    }
    run.finish(recipe.updates, |dir| {
        tokenizer.save(dir)?;
        Ok(trainer.policy.model.save(dir)?)
    })
}

/// Scores whole conversations in token ids: a reward model, or any function of the text.
pub type Score<'a> = &'a dyn Fn(&[Vec<u32>]) -> Result<Vec<f64>>;

/// The four models of PPO, and one update of two of them.
pub struct PpoTrainer<'a> {
    /// Draws the replies and learns.
    pub policy: Learner,
    /// Foresees the rewards (a model with [`Head::Token`]) and learns.
    pub critic: Learner,
    /// What the policy shall not leave too far.
    pub reference: Model,
    /// What is to become large.
    pub score: Score<'a>,
    /// Fills up rows; any id serves, as replies are told from padding by their lengths.
    pub pad: u32,
    /// Ends a reply.
    pub eos: u32,
    /// The price of each nat of KL now.
    pub kl_coef: f64,
    /// The numbers.
    pub recipe: &'a PpoRecipe,
}

impl PpoTrainer<'_> {
    /// Draws a reply to each query and gathers what policy, reference, critic and score say of it.
    pub fn roll_out(&self, queries: &[Vec<u32>], seed: u64) -> Result<Vec<Rollout>> {
        let recipe = self.recipe;
        let (policy, critic) = (self.policy.model.frozen()?, self.critic.model.frozen()?);
        let responses = draw(&policy, queries, self.eos, recipe.max_new_tokens, recipe.temperature, seed)?;
        let mut rollouts = Vec::with_capacity(queries.len());
        let both: Vec<Reply> = queries.iter().zip(&responses).map(|(q, r)| (q.as_slice(), r.as_slice())).collect();
        for replies in both.chunks(recipe.micro_batch_size.max(1)) {
            let logprobs = |model| reply_logprobs(model, replies, recipe.temperature, self.pad);
            let logprobs_of = |model| per_reply(&logprobs(model)?.0, replies);
            let (logprobs, ref_logprobs) = (logprobs_of(&policy)?, logprobs_of(&self.reference)?);
            let values = per_reply(&reply_values(&critic, replies, self.pad)?, replies)?;
            let rows: Vec<Vec<u32>> = replies.iter().map(|(query, response)| [*query, *response].concat()).collect();
            let scores = (self.score)(&rows)?;
            let lists = logprobs.into_iter().zip(ref_logprobs).zip(values).zip(scores);
            for ((query, response), (((logprobs, ref_logprobs), values), score)) in replies.iter().zip(lists) {
                rollouts.push(Rollout {
                    query: query.to_vec(),
                    response: response.to_vec(),
                    has_eos: response.last() == Some(&self.eos),
                    score,
                    logprobs,
                    ref_logprobs,
                    values,
                });
            }
        }
        Ok(rollouts)
    }

    /// Learns from the rollouts of update number `update` (from 0) and returns its figures, named as TRL names them.
    pub fn learn(&mut self, rollouts: &[Rollout], update: u64) -> Result<Vec<(&'static str, f64)>> {
        let recipe = self.recipe;
        let (advantages, returns) = advantages_and_returns(rollouts, recipe, self.kl_coef);
        let learning_rate = recipe.optimizer.learning_rate_at(update, recipe.updates);
        let value_learning_rate = recipe.value_optimizer.learning_rate_at(update, recipe.updates);
        let mut means = Means::default();
        for epoch in 0..recipe.num_ppo_epochs {
            let mut order: Vec<usize> = (0..rollouts.len()).collect();
            order.shuffle(&mut rng(recipe.seed, 3, update * recipe.num_ppo_epochs + epoch));
            for mini_batch in order.chunks(rollouts.len().div_ceil(recipe.num_mini_batches.max(1)).max(1)) {
                let tokens: usize = mini_batch.iter().map(|&i| rollouts[i].response.len()).sum();
                let mut mini = Means::default();
                for micro_batch in mini_batch.chunks(recipe.micro_batch_size.max(1)) {
                    let chosen: Vec<&Rollout> = micro_batch.iter().map(|&i| &rollouts[i]).collect();
                    let pick = |lists: &[Vec<f64>]| micro_batch.iter().flat_map(|&i| lists[i].clone()).collect();
                    let weight = chosen.iter().map(|r| r.response.len()).sum::<usize>() as f64 / tokens as f64;
                    self.learn_from(&chosen, pick(&advantages), pick(&returns), weight, &mut mini)?;
                }
                let grad_norm = self.policy.step(learning_rate)?;
                let value_grad_norm = self.critic.step(value_learning_rate)?;
                mini.add(&[("policy/grad_norm", grad_norm), ("value/grad_norm", value_grad_norm)], 1.);
                means.add(&mini.0, 1. / (recipe.num_ppo_epochs as f64 * recipe.num_mini_batches.max(1) as f64));
            }
        }
        let mut figures = objective(rollouts, self.kl_coef);
        figures.extend(means.0);
        figures.push(("val/explained_var", explained_variance(rollouts, &returns)));
        figures.push(("lr", learning_rate));
        figures.push(("episode", ((update + 1) * rollouts.len() as u64) as f64));
        if let Some(target) = recipe.kl_target_per_sequence {
            let kl = rollouts.iter().map(Rollout::kl).sum::<f64>() / rollouts.len() as f64;
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, target, rollouts.len(), recipe.kl_horizon);
        }
        Ok(figures)
    }

    /// Gathers the gradients of one micro-batch, which holds the share `weight` of its mini-batch's tokens.
    fn learn_from(
        &mut self,
        rollouts: &[&Rollout],
        advantages: Vec<f64>,
        returns: Vec<f64>,
        weight: f64,
        means: &mut Means,
    ) -> Result<()> {
        let recipe = self.recipe;
        let replies: Vec<Reply> = rollouts.iter().map(|r| (r.query.as_slice(), r.response.as_slice())).collect();
        let flat = |list: fn(&Rollout) -> &Vec<f64>| tensor(rollouts.iter().flat_map(|r| list(r).clone()).collect());
        let (advantages, returns) = (tensor(advantages)?, tensor(returns)?); // (n,)

        let (logprobs, entropy) = reply_logprobs(&self.policy.model, &replies, recipe.temperature, self.pad)?;
        let old_logprobs = flat(|r| &r.logprobs)?;
        let pg = policy_loss(&logprobs, &old_logprobs, &advantages, recipe.cliprange)?;
        self.policy.backward(&(&pg.loss * weight)?)?;

        let values = reply_values(&self.critic.model, &replies, self.pad)?;
        let vf = value_loss(&values, &flat(|r| &r.values)?, &returns, recipe.cliprange_value)?;
        self.critic.backward(&(&vf.loss * (weight * recipe.vf_coef))?)?;

        let difference = (logprobs - old_logprobs)?.detach();
        let ratio = difference.exp()?;
        let (mean_ratio, mean_square) = (loss::scalar(&ratio.mean_all()?)?, loss::scalar(&ratio.sqr()?.mean_all()?)?);
        means.add(
            &[
                ("policy/approxkl_avg", loss::scalar(&difference.sqr()?.mean_all()?)? / 2.),
                ("policy/clipfrac_avg", pg.clip_fraction),
                ("policy/entropy_avg", entropy),
                ("loss/policy_avg", loss::scalar(&pg.loss)?),
                ("loss/value_avg", loss::scalar(&vf.loss)?),
                ("val/clipfrac_avg", vf.clip_fraction),
                ("val/ratio", mean_ratio),
                ("val/ratio_var", (mean_square - mean_ratio * mean_ratio).max(0.)),
            ],
            weight,
        );
        Ok(())
    }
}

/// The whitened advantage and the return of every token: each rollout's by itself, whitened over all of them.
fn advantages_and_returns(rollouts: &[Rollout], recipe: &PpoRecipe, kl_coef: f64) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let mut rewards: Vec<Vec<f64>> = rollouts
        .iter()
        .map(|r| token_rewards(&r.logprobs, &r.ref_logprobs, recipe.missing_eos.apply(r.score, r.has_eos), kl_coef))
        .collect();
    if recipe.whiten_rewards {
        whiten_all(&mut rewards, false);
    }
    let (mut advantages, returns): (Vec<_>, Vec<_>) =
        rewards.iter().zip(rollouts).map(|(rewards, r)| gae(rewards, &r.values, recipe.gamma, recipe.lam)).unzip();
    whiten_all(&mut advantages, true);
    (advantages, returns)
}

fn whiten_all(lists: &mut [Vec<f64>], shift_mean: bool) {
    let mut all = lists.concat();
    whiten(&mut all, shift_mean);
    let mut all = all.into_iter();
    for x in lists.iter_mut().flatten() {
        *x = all.next().unwrap_or(0.);
    }
}

/// Averages by name.
#[derive(Default)]
struct Means(Vec<(&'static str, f64)>);

impl Means {
    fn add(&mut self, figures: &[(&'static str, f64)], weight: f64) {
        for &(name, figure) in figures {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += weight * figure,
                None => self.0.push((name, weight * figure)),
            }
        }
    }
}

/// What the batch of replies says of the goal: means over replies of what is summed over a reply's tokens.
fn objective(rollouts: &[Rollout], kl_coef: f64) -> Vec<(&'static str, f64)> {
    let n = rollouts.len().max(1) as f64;
    let mean = |figure: &dyn Fn(&Rollout) -> f64| rollouts.iter().map(figure).sum::<f64>() / n;
    let (kl, scores) = (mean(&Rollout::kl), mean(&|r| r.score));
    let ended = rollouts.iter().filter(|r| r.has_eos).count() as f64;
    vec![
        ("objective/kl", kl),
        ("objective/entropy", mean(&|r| -r.logprobs.iter().sum::<f64>())),
        ("objective/non_score_reward", -kl_coef * kl),
        ("objective/rlhf_reward", scores - kl_coef * kl),
        ("objective/scores", scores),
        ("objective/kl_coef", kl_coef),
        ("rollout/length", mean(&|r| r.response.len() as f64)),
        ("rollout/no_eos_frac", 1. - ended / n),
        ("val/num_eos_tokens", ended),
    ]
}

/// `1 - Var(return - value) / Var(return)` over all tokens: 1 for a critic that foresees everything.
fn explained_variance(rollouts: &[Rollout], returns: &[Vec<f64>]) -> f64 {
    let variance = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
        x.iter().map(|x| (x - mean).powi(2)).sum::<f64>()
    };
    let returns = returns.concat();
    let values = rollouts.iter().flat_map(|r| r.values.iter());
    let errors: Vec<f64> = returns.iter().zip(values).map(|(r, v)| r - v).collect();
    1. - variance(&errors) / variance(&returns).max(1e-12)
}

fn tensor(data: Vec<f64>) -> Result<Tensor> {
    let data: Vec<f32> = data.into_iter().map(|x| x as f32).collect();
    let n = data.len();
    Ok(Tensor::from_vec(data, n, &Device::Cpu)?)
}

/// The prompts in token ids, up to the assistant's turn; those that leave no room for a reply are left out.
fn queries(recipe: &PpoRecipe, inputs: &PpoInputs, tokenizer: &Tokenizer, positions: usize) -> Result<Vec<Vec<u32>>> {
    if !(recipe.temperature > 0. && recipe.temperature.is_finite()) {
        return Err(Error::Input(format!(
            "temperature is {}; PPO draws its replies, it must be above 0",
            recipe.temperature
        )));
    }
    if recipe.max_new_tokens == 0 {
        return Err(Error::Input("max_new_tokens is 0; a reply needs at least one token".to_owned()));
    }
    let prompts = read_prompts(inputs.data)?;
    let mut queries = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let ids = tokenizer.encode_chat(&chat_messages(prompt), true)?;
        if ids.len() + recipe.max_new_tokens <= positions {
            queries.push(ids);
        }
    }
    let (left, all, data) = (queries.len(), prompts.len(), inputs.data.display());
    if left == 0 {
        return Err(Error::Input(format!(
            "{data}: no prompt leaves room for {} tokens; lower max_new_tokens",
            recipe.max_new_tokens
        )));
    }
    if left < all {
        tracing::warn!("{data}: {} of {all} prompts are too long and left out", all - left);
    }
    Ok(queries)
}

/// Some replies in plain text with their scores, as JSON lines.
fn samples(tokenizer: &Tokenizer, rollouts: &[Rollout]) -> Result<String> {
    let mut text = String::new();
    for rollout in rollouts.iter().take(8) {
        let line: Value = json!({
            "prompt": tokenizer.decode(&rollout.query)?,
            "response": tokenizer.decode(&rollout.response)?,
            "score": rollout.score,
            "kl": rollout.kl(),
        });
        text.push_str(&format!("{line}\n"));
    }
    Ok(text)
}
