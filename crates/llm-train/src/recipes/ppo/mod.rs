//! Proximal policy optimisation from human feedback (Ziegler et al. 2019, arXiv 1909.08593; Stiennon et al. 2020, arXiv
//! 2009.01325; Huang et al. 2024, arXiv 2403.17031).
//!
//! The choices: k1 in the reward; rewards scaled so that the reference's replies have mean 0 and deviation 1; the score at the reply's last token; a critic of its own that begins as the reward
//! model; whitened advantages over all tokens of a batch (population variance plus 1e-8); gradients clipped by norm.

mod figures;
mod prompts;
mod trainer;

use std::path::Path;

use llm_infer::{GenerateOptions, Sampling};
use llm_model::{Head, Model};
use llm_tokenizer::{ChatFormat, Tokenizer};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::figures::Averages;
use self::prompts::Prompts;
pub use self::trainer::{PpoTrainer, Score, SpecialIds, Targets};
use super::{RewardModel, RewardScale, chat_format, load_model};
use crate::fitting::{Ids, fitting};
use crate::optim::{OptimizerConfig, Schedule};
use crate::rl::MissingEos;
use crate::rollout::Rollout;
use crate::run::{Input, Opening, Outcome, RunOptions, Start, rng};
use crate::{Error, Result};

/// The numbers of PPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoRecipe {
    /// Seed of the order of the prompts and of the draws.
    pub seed: u64,
    /// Batches of replies to draw and learn from.
    pub updates: u64,
    /// Replies of each batch; where prompts are fewer they are drawn from several times.
    pub episodes: usize,
    /// Passes over each batch.
    pub num_ppo_epochs: u64,
    /// Steps of the optimizers in each pass: the batch is cut into as many parts.
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
    /// Weight of the entropy of the policy's next-token distributions, in nats, in the policy's loss: more of it keeps
    /// replies different from each other (Mnih et al. 2016, arXiv 1602.01783).
    pub entropy_coef: f64,
    /// Discount of later rewards.
    pub gamma: f64,
    /// λ of the advantage estimates.
    pub lam: f64,
    /// Whether rewards are divided by their standard deviation.
    pub whiten_rewards: bool,
    /// What becomes of the score of a reply that was cut off.
    pub missing_eos: MissingEos,
    /// Updates between two checkpoints, each with some of the replies in `samples/`; 0: only at the end.
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
            entropy_coef: 0.,
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
pub fn ppo(recipe: &PpoRecipe, inputs: PpoInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let read =
        Input::given([("model", Some(inputs.model)), ("reward", Some(inputs.reward)), ("data", Some(inputs.data))]);
    let opening = match Opening::check(recipe, read, out, options)? {
        Start::Open(opening) => opening,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = Tokenizer::from_dir(inputs.model)?;
    let reference = load_model(inputs.model, Head::LanguageModel)?;
    let mut reward_model = RewardModel::load(inputs.reward)?;
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, inputs.model)?;
    let other =
        Ids::Other { config: reward_model.model.config(), tokenizer: &reward_model.tokenizer, dir: inputs.reward };
    fitting(reference.config(), (&tokenizer, inputs.model), &[other])?;
    let prompts = Prompts::read(recipe, &inputs, &tokenizer, reference.config().max_position_embeddings)?;
    reward_model.scale = match opening.checkpoint() {
        Some(checkpoint) => {
            let scale = checkpoint.state.get(SCALE).cloned().unwrap_or_default();
            let broken = |e| Error::Input(format!("{}: \"{SCALE}\": {e}", checkpoint.dir.display()));
            serde_json::from_value(scale).map_err(broken)?
        }
        None => scale_on_reference(recipe, &reward_model, &reference, &prompts, end_of_turn)?,
    };
    let score = |rollouts: &[Vec<u32>]| reward_model.scores(rollouts);
    let mut trainer =
        PpoTrainer::new(&reference, reward_model.critic()?, &score, SpecialIds { pad, eos: end_of_turn }, recipe)?;
    if let Some(checkpoint) = opening.checkpoint() {
        trainer.restore(&checkpoint.dir, &checkpoint.state)?;
    }
    let first = opening.step();
    let mut run = opening.open(recipe.updates, recipe.save_every)?;
    run.begin(recipe.updates, first, "updates");

    for update in first..recipe.updates {
        let rollouts = trainer.roll_out(&prompts.of_update(update), rng(recipe.seed, 2, update).random())?;
        let metrics = trainer.learn(&rollouts, update)?;
        let done = update + 1;
        run.log(done, &metrics)?;
        let metric = |name: &str| metrics.iter().find(|m| m.0 == name).map_or(0., |m| m.1);
        run.progress(done, &format!("score {:.2}, KL {:.2}", metric("objective/scores"), metric("objective/kl")));
        if recipe.save_every > 0 && done.is_multiple_of(recipe.save_every) || done == recipe.updates {
            run.sample(done, &samples(&tokenizer, &rollouts)?)?;
        }
        if run.is_due(done) {
            let mut state = trainer.state();
            state.insert(SCALE.to_owned(), json!(reward_model.scale));
            run.checkpoint(done, &[&trainer.policy, &trainer.critic], state, |dir| {
                tokenizer.save(dir)?;
                trainer.save(dir)
            })?;
        }
    }
    run.finish(&[&trainer.policy, &trainer.critic], |dir| {
        tokenizer.save(dir)?;
        Ok(trainer.policy.model.save(dir)?)
    })
}

/// The scale in which the reference's replies have mean 0 and deviation 1: a price of KL means something in no other unit.
fn scale_on_reference(
    recipe: &PpoRecipe,
    reward_model: &RewardModel,
    reference: &Model,
    prompts: &Prompts,
    end_of_turn: u32,
) -> Result<RewardScale> {
    let drawn = recipe.episodes.saturating_mul(usize::try_from(recipe.updates).unwrap_or(usize::MAX));
    let sampling =
        Sampling { temperature: recipe.temperature, seed: rng(recipe.seed, 4, 0).random(), ..Sampling::default() };
    let drawing = GenerateOptions { max_new_tokens: recipe.max_new_tokens, stop_ids: vec![end_of_turn], sampling };
    reward_model.scale_on(reference, &prompts.first(SCALED_ON.min(drawn)), &drawing, recipe.micro_batch_size)
}

/// Replies of the reference on which the rewards are scaled, at most; never more than PPO itself draws.
const SCALED_ON: usize = 256;

/// The scale of the rewards in the state of a checkpoint.
const SCALE: &str = "reward_scale";

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
