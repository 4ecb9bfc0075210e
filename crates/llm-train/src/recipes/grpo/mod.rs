//! Reinforcement learning without a critic: several replies to each prompt are compared with each other. GRPO (Shao et al. 2024, arXiv
//! 2402.03300), Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), DAPO (Yu et al. 2025, arXiv 2503.14476) and RLOO (Ahmadian et al. 2024,
//! arXiv 2402.14740).
//!
//! They differ in the advantages ([`crate::rl::group_advantages`], [`crate::rl::leave_one_out_advantages`]) and in the loss
//! ([`crate::loss::grpo_loss`], [`crate::loss::rloo_loss`]).

mod episode;
mod evaluation;
mod metrics;
mod trainer;

use std::path::{Path, PathBuf};

use llm_model::LoraConfig;
use llm_tokenizer::Tokenizer;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::episode::Episode;
use self::evaluation::Validation;
pub use self::trainer::GrpoTrainer;
use super::policy::Policy;
use super::ppo::SpecialIds;
use crate::Result;
use crate::adapters::Adapters;
use crate::data::{DataOptions, one_or_several};
use crate::loss::LossType;
use crate::optim::OptimizerConfig;
use crate::prompts::{Prompts, read_prompts};
use crate::rewards::RewardTable;
use crate::rl::{MissingEos, ScaleRewards};
use crate::run::{Evaluation, Outcome, Plan, RunOptions, RunSetup, Start, rng};

/// The recipe of GRPO and RLOO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpoRecipe {
    /// Seed for prompt order and sampling.
    pub seed: u64,
    /// Number of updates. Each samples `num_generations` replies to each of `prompts_per_update` prompts and trains on them.
    pub updates: u64,
    /// Prompts per update.
    pub prompts_per_update: usize,
    /// Replies to each prompt.
    pub num_generations: usize,
    /// Passes over the replies of an update.
    pub num_iterations: u64,
    /// Optimizer steps per pass: the replies are split into this many mini-batches.
    pub num_mini_batches: usize,
    /// Replies per forward pass.
    pub micro_batch_size: usize,
    /// Token limit of a reply.
    pub max_new_tokens: usize,
    /// Temperature of sampling and of all log-probabilities.
    pub temperature: f64,
    /// The loss.
    pub loss_type: LossType,
    /// What the rewards of the replies to a prompt are divided by.
    pub scale_rewards: ScaleRewards,
    /// Weight of the KL penalty against the reference, per nat: in the loss, of RLOO in the reward. 0: no reference.
    pub beta: f64,
    /// Clip range of the probability ratio below 1.
    pub epsilon: f64,
    /// Clip range of the probability ratio above 1.
    pub epsilon_high: f64,
    /// Whether replies without an end token are left out of the loss. They count in the mean of their group.
    pub mask_truncated_completions: bool,
    /// How the reward of a reply without an end token changes.
    pub missing_eos: MissingEos,
    /// Updates between evaluations on the validation prompts. 0: only before the first and after the last update.
    pub eval_every: u64,
    /// The number of validation prompts, spread evenly over the file. 0: all.
    pub eval_prompts: usize,
    /// Updates between checkpoints; each also writes some replies to `samples/`. 0: only at the end.
    pub save_every: u64,
    /// How the data files are read.
    pub data: DataOptions,
    /// The sources of the reward; empty: the reward models of `--reward`.
    pub rewards: Vec<RewardTable>,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// A LoRA adapter to train instead of all weights. The run writes the adapter in the PEFT format, and no model. The reference is the
    /// policy at the start and shares its frozen weights.
    pub lora: Option<LoraConfig>,
}

impl Default for GrpoRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`grpo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct GrpoInputs {
    /// Folder of the fine-tuned model: the initial policy, and the reference; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Folders of reward models; the recipe's tables `[[rewards]]` say how they are used [default: none; the mean of their scores].
    #[cfg_attr(feature = "cli", arg(long, num_args = 1.., value_name = "DIR"))]
    #[serde(deserialize_with = "one_or_several", default)]
    pub reward: Vec<PathBuf>,
    /// Prompts in JSONL; their other columns are for the rewards.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub data: PathBuf,
    /// Validation prompts in JSONL: greedy replies to them are scored before, during and after training [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
    /// Folder of an adapter of the policy, of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it. It is part of the reference [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// Trains a model on rewards of its own replies. The run folder `out` becomes its Hugging Face folder.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn grpo(recipe: &GrpoRecipe, inputs: &GrpoInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let policy = Policy::load(&inputs.model, inputs.adapter.as_ref())?;
    let reward = policy.rewards(&recipe.rewards, &inputs.reward, setup.device())?;
    let Policy { tokenizer, base, end_of_turn, pad, .. } = policy;
    let base = base.to_device(setup.device())?;
    let room = (base.config().max_position_embeddings, recipe.max_new_tokens);
    let read = |path: &Path| read_prompts(path, &recipe.data, &tokenizer, room);
    let prompts = Prompts::new(read(&inputs.data)?, recipe.prompts_per_update, recipe.seed)?;
    let validation = inputs.validation.as_deref().map(read).transpose()?;
    let ids = SpecialIds { pad, eos: end_of_turn };
    let validation = validation.map(|prompts| Validation::new(prompts, recipe, &reward, &tokenizer, ids));

    let adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let reference = if recipe.beta > 0. { Some(adapters.reference(&base)?) } else { None };
    let policy = adapters.learner(&base, &setup, &recipe.optimizer)?;
    // Without a reference, the weights at the start are not needed any more.
    drop(base);
    let mut trainer = GrpoTrainer::new(policy, reference, &reward, ids, recipe)?;
    let run = setup.open(Plan {
        steps: recipe.updates,
        save_every: recipe.save_every,
        unit: ("updates", 1),
        shown: &[("reward", "reward", 3), ("length", "completions/mean_length", 0)],
        evaluation: validation.as_ref().map(|validation| Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} prompts", validation.len()),
            run: Box::new(|model, evaluating| validation.evaluate(&model, evaluating)),
        }),
        write: adapters.writer(&tokenizer),
    })?;
    if run.is_new() {
        run.evaluate(0, &trainer.policy)?;
    }

    for step in run.steps() {
        let episodes = trainer.roll_out(&prompts.of_update(step.index), rng(recipe.seed, 2, step.index).random())?;
        let mut metrics = trainer.learn(&episodes, step.index)?;
        metrics.extend(step.throughput(episodes.iter().map(|episode| episode.response.len()).sum()));
        let done = step.done();
        if recipe.save_every > 0 && done.is_multiple_of(recipe.save_every) || done == recipe.updates {
            run.sample(done, &samples(&tokenizer, &episodes)?)?;
        }
        let of_sources = reward.take_metrics().into_iter().map(|(name, value)| (name, json!(value)));
        step.finish(&trainer.policy, &metrics, of_sources.collect())?;
    }
    run.finish(&trainer.policy)
}

/// The number of replies in a file of samples.
const SAMPLES: usize = 16;

/// Some replies as text with their rewards, as JSON lines.
fn samples(tokenizer: &Tokenizer, episodes: &[Episode]) -> Result<String> {
    let mut text = String::new();
    for episode in episodes.iter().take(SAMPLES) {
        let line: Value = json!({
            "prompt": tokenizer.decode(&episode.query)?,
            "completion": tokenizer.decode(&episode.response)?,
            "finished": episode.has_eos,
            "score": episode.score,
            "reward": episode.reward,
            "advantage": episode.advantage,
        });
        text.push_str(&format!("{line}\n"));
    }
    Ok(text)
}
