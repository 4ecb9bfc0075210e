//! Proximal policy optimisation from human feedback (Ziegler et al. 2019, arXiv 1909.08593; Stiennon et al. 2020, arXiv
//! 2009.01325; Huang et al. 2024, arXiv 2403.17031).
//!
//! Implementation choices: k1 KL estimates in the reward; scores scaled to mean 0 and deviation 1 over replies of the reference;
//! the score is added to the reward of the last token; a separate critic, initialised from the reward model; advantages whitened
//! over all tokens of a batch (population variance plus 1e-8); gradients clipped by norm.

mod metrics;
mod trainer;
mod value_head;

use std::path::{Path, PathBuf};

use llm_engine::{GenerateOptions, Sampling};
use llm_model::{Head, LoraConfig, Model};
use llm_tokenizer::Tokenizer;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::metrics::RunningMeans;
pub(super) use self::trainer::even_parts;
pub use self::trainer::{PpoTrainer, SpecialIds, Targets};
use super::policy::Policy;
use crate::adapters::Adapters;
use crate::data::{DataOptions, one_or_several};
use crate::optim::OptimizerConfig;
use crate::prompts::{Prompts, read_prompts};
use crate::rewards::{RewardModel, RewardScale, RewardTable};
use crate::rl::MissingEos;
use crate::rollout::Rollout;
use crate::run::{Outcome, Plan, RunOptions, RunSetup, Start, rng};
use crate::{Error, Result};

/// The recipe of PPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PpoRecipe {
    /// Seed for prompt order and sampling.
    pub seed: u64,
    /// Number of updates. Each samples a batch of replies and trains on it.
    pub updates: u64,
    /// Replies per update. With fewer prompts some are used several times.
    pub episodes: usize,
    /// Passes over each batch of replies.
    pub num_ppo_epochs: u64,
    /// Optimizer steps per pass: the batch is split into this many mini-batches.
    pub num_mini_batches: usize,
    /// Replies per forward pass.
    pub micro_batch_size: usize,
    /// Token limit of a reply.
    pub max_new_tokens: usize,
    /// Temperature of sampling and of all log-probabilities.
    pub temperature: f64,
    /// Weight of the KL penalty against the reference, per nat.
    pub kl_coef: f64,
    /// If given, `kl_coef` adapts so that the KL per reply, in nats, approaches this.
    pub kl_target_per_sequence: Option<f64>,
    /// Number of replies over which `kl_coef` adapts.
    pub kl_horizon: f64,
    /// If given, no further pass over the replies of an update follows one in which the estimated KL of the policy from the one that
    /// sampled them (`policy/approxkl_avg`, in nats per token) is above this.
    pub target_kl: Option<f64>,
    /// Clip range of the probability ratio around 1.
    pub cliprange: f64,
    /// Clip range of a value around the old value.
    pub cliprange_value: f64,
    /// Whether the critic is a linear head on the hidden states of the policy, initially 0, instead of a model of its own. It needs
    /// less memory: that of one model and its optimizer.
    pub value_head_on_policy: bool,
    /// With `value_head_on_policy`: the weight of the value loss in the gradient of the policy.
    pub vf_coef: f64,
    /// Weight of the entropy bonus in the policy loss, per nat; it keeps replies diverse (Mnih et al. 2016, arXiv 1602.01783).
    pub entropy_coef: f64,
    /// γ, the discount of future rewards.
    pub gamma: f64,
    /// λ of generalised advantage estimation.
    pub lam: f64,
    /// Whether to divide rewards by their standard deviation.
    pub whiten_rewards: bool,
    /// How the score of a reply without an end token changes.
    pub missing_eos: MissingEos,
    /// Updates between checkpoints; each also writes some replies to `samples/`. 0: only at the end.
    pub save_every: u64,
    /// How the data files are read.
    pub data: DataOptions,
    /// The sources of the reward; empty: the reward models of `--reward`.
    pub rewards: Vec<RewardTable>,
    /// The policy's optimizer.
    pub optimizer: OptimizerConfig,
    /// The critic's optimizer.
    pub value_optimizer: OptimizerConfig,
    /// A LoRA adapter of the policy to train instead of its weights. The run writes the adapter in the PEFT format, and no model. The
    /// reference is the policy at the start and shares its frozen weights; all weights of the critic are trained.
    pub lora: Option<LoraConfig>,
}

impl Default for PpoRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`ppo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct PpoInputs {
    /// Folder of the fine-tuned model: the initial policy, and the reference; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Folders of reward models; may be repeated. Their mean score is the reward, or a part of it with tables `[[rewards]]` in the recipe
    /// [default: none].
    #[cfg_attr(feature = "cli", arg(long, num_args = 1.., value_name = "DIR"))]
    #[serde(deserialize_with = "one_or_several", default)]
    pub reward: Vec<PathBuf>,
    /// Prompts in JSONL.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub data: PathBuf,
    /// Folder of an adapter of the policy, of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it. It is part of the reference [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// Aligns a model by PPO. The run folder `out` becomes its Hugging Face folder.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn ppo(recipe: &PpoRecipe, inputs: &PpoInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let policy = Policy::load(&inputs.model, inputs.adapter.as_ref())?;
    let mut reward = policy.rewards(&recipe.rewards, &inputs.reward, setup.device())?;
    let Policy { tokenizer, base, end_of_turn, pad, .. } = policy;
    let adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let reference = adapters.reference(&base)?.to_device(setup.device())?;
    drop(base);
    let room = (reference.config().max_position_embeddings, recipe.max_new_tokens);
    let prompts = read_prompts(&inputs.data, &recipe.data, &tokenizer, room)?;
    let prompts = Prompts::new(prompts, recipe.episodes, recipe.seed)?;
    match setup.checkpoint() {
        Some(checkpoint) => {
            // Earlier versions have one reward model and its scale.
            let one = || checkpoint.state.get("reward_scale").map(|scale| json!([scale]));
            let scales = checkpoint.state.get(SCALES).cloned().or_else(one).unwrap_or_default();
            let broken = |e| Error::BadFile(format!("{}: \"{SCALES}\": {e}", checkpoint.dir.display()));
            let scales: Vec<RewardScale> = serde_json::from_value(scales).map_err(broken)?;
            reward.models_mut().zip(scales).for_each(|(model, scale)| model.scale = scale);
        }
        None => {
            for model in reward.models_mut() {
                model.scale = scale_on_reference(recipe, model, &reference, &prompts, end_of_turn)?;
            }
        }
    }
    let ids = SpecialIds { pad, eos: end_of_turn };
    let critic = match reward.models().next() {
        _ if recipe.value_head_on_policy => None,
        Some(model) => Some(model.critic()?),
        None => Some(critic_of(&reference)?),
    };
    let mut trainer = match critic {
        Some(critic) => PpoTrainer::new(&reference, critic, reward, ids, recipe)?,
        None => PpoTrainer::with_value_head(&reference, reward, ids, recipe)?,
    };
    if let Some(checkpoint) = setup.checkpoint() {
        trainer.restore(&checkpoint.dir, &checkpoint.state)?;
    }
    let run = setup.open(Plan {
        steps: recipe.updates,
        save_every: recipe.save_every,
        unit: ("updates", 1),
        shown: &[("score", "objective/scores", 2), ("KL", "objective/kl", 2)],
        evaluation: None,
        write: adapters.writer(&tokenizer),
    })?;

    for step in run.steps() {
        let rollouts = trainer.roll_out(&prompts.of_update(step.index), rng(recipe.seed, 2, step.index).random())?;
        let metrics = trainer.learn(&rollouts, step.index)?;
        let (done, learners) = (step.done(), trainer.learners());
        // First, because weights of one model that are not finite make all metrics not finite.
        run.check_learners(done, &learners)?;
        let of_sources = trainer.reward.take_metrics().into_iter().map(|(name, value)| (name, json!(value)));
        step.log(&metrics, of_sources.collect())?;
        if recipe.save_every > 0 && done.is_multiple_of(recipe.save_every) || done == recipe.updates {
            run.sample(done, &samples(&tokenizer, &rollouts)?)?;
        }
        let mut state = trainer.state();
        let scales: Vec<RewardScale> = trainer.reward.models().map(|model| model.scale).collect();
        state.insert(SCALES.to_owned(), json!(scales));
        step.save(&learners, state, |dir| {
            tokenizer.save(dir)?;
            trainer.save(dir, &inputs.model.display().to_string())
        })?;
    }
    run.finish_with(&trainer.learners(), |dir| adapters.save(&trainer.policy.model, &tokenizer, dir))
}

/// The score scale that gives replies of the reference mean 0 and deviation 1.
fn scale_on_reference(
    recipe: &PpoRecipe,
    reward_model: &RewardModel,
    reference: &Model,
    prompts: &Prompts,
    end_of_turn: u32,
) -> Result<RewardScale> {
    let total = recipe.episodes.saturating_mul(usize::try_from(recipe.updates).unwrap_or(usize::MAX));
    let sampling = Sampling {
        temperature: recipe.temperature,
        seed: Some(rng(recipe.seed, 4, 0).random()),
        ..Sampling::default()
    };
    let options =
        GenerateOptions { max_new_tokens: recipe.max_new_tokens, stop_ids: Some(vec![end_of_turn]), sampling };
    let first = prompts.first(SCALE_REPLIES.min(total)).into_iter().map(|prompt| prompt.query);
    reward_model.scale_on(reference, &first.collect::<Vec<_>>(), &options, recipe.micro_batch_size)
}

/// Without a reward model: the reference with a value head that predicts 0.
fn critic_of(reference: &Model) -> Result<Model> {
    let merged = if reference.active_adapters().is_empty() { None } else { Some(reference.merged()?) };
    let critic = merged.as_ref().unwrap_or(reference).with_head(Head::Token, 0)?;
    let weight = &critic.params().vars()["score.weight"];
    weight.set(&weight.zeros_like()?)?;
    Ok(critic)
}

/// Maximum number of reference replies for the score scale; never more than PPO samples in total.
const SCALE_REPLIES: usize = 256;

/// The key of the score scales of the reward models in the state of a checkpoint.
const SCALES: &str = "reward_scales";

/// Some replies as text with their scores, as JSON lines.
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
