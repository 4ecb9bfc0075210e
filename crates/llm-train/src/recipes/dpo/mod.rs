//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and other losses of pairs of answers, of all weights or of a
//! LoRA adapter.
//!
//! Log-probabilities are summed over the tokens of an answer, its end token included; the losses `ipo`, `sigmoid_norm`, `orpo` and
//! `simpo` divide them by their number. Both answers have the ids of one prompt and are in one ragged forward. A step is the mean over
//! its pairs, in whichever micro-batch they are.

mod objective;
mod pairs;
mod reference;

use std::path::{Path, PathBuf};

use llm_model::{LoraConfig, Model};
use serde::{Deserialize, Serialize};

pub use self::objective::PairLoss;
use self::objective::{Batch, evaluate};
use self::pairs::Pair;
use self::reference::Reference;
use super::policy::Policy;
use crate::Result;
use crate::adapters::Adapters;
use crate::batches::{BatchSize, LengthBatches};
use crate::data::{DataOptions, one_or_several};
use crate::optim::OptimizerConfig;
use crate::recipes::RunningMeans;
use crate::routing::RouterMetrics;
use crate::run::{Evaluation, Outcome, Plan, RunOptions, RunSetup, Start};

/// The recipe of DPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoRecipe {
    /// Seed for the adapter, the split and the data order.
    pub seed: u64,
    /// The loss of a pair.
    pub loss: PairLoss,
    /// The scale β of the rewards: how far the policy may move from the reference. The weight of the odds ratio in ORPO.
    pub beta: f64,
    /// The share of pairs that are ranked the wrong way round, below 0.5; of the losses `sigmoid`, `sigmoid_norm` and `robust`.
    pub label_smoothing: f64,
    /// The target margin γ of the loss `simpo`.
    pub simpo_gamma: f64,
    /// Weight of the mean cross-entropy of the chosen answer, in addition to the loss (Pang et al. 2024, arXiv 2404.19733). ORPO has it
    /// with weight 1.
    pub nll_weight: f64,
    /// Number of passes over the pairs.
    pub epochs: u64,
    /// Pairs per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub gradient_accumulation_steps: u64,
    /// Pairs with a longer conversation are left out, or lose the beginning of their prompt (`data.too_long`), in tokens.
    pub max_length: usize,
    /// Whether the log-probabilities of the reference are computed once, before the first step, and stored in the run folder; then the
    /// reference is not in memory during training.
    pub precompute_ref_log_probs: bool,
    /// Without a validation file: the share of the prompts of the data to use for validation, above 0 and below 1.
    pub validation_share: f64,
    /// Steps between evaluations on the validation split; 0: only at the start and the end.
    pub eval_every: u64,
    /// Batches per evaluation, spread evenly over the validation split; 0: all.
    pub eval_batches: usize,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// How the data files are read.
    pub data: DataOptions,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// A LoRA adapter to train instead of the model's weights. The run writes the adapter in the PEFT format, and no model. The
    /// reference is the model at the start and shares its frozen weights.
    pub lora: Option<LoraConfig>,
}

impl Default for DpoRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`dpo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct DpoInputs {
    /// Folder of the fine-tuned model: the initial policy, and the reference; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Files or folders of ranked answers: chosen and rejected (TRL, HH), or answers and order; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Validation rankings [default: those of the recipe's `validation_share` of the prompts of --data].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
    /// Folder of an adapter of an earlier stage, in the format of PEFT. It is part of the reference. Without a table `lora` its training
    /// goes on; with one it is frozen, and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// Aligns a model with pairs of answers by DPO. The run folder `out` becomes the Hugging Face folder of the model or adapter.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn dpo(recipe: &DpoRecipe, inputs: &DpoInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let Policy { tokenizer, base, .. } = Policy::load(&inputs.model, inputs.adapter.as_ref())?;
    let max_length = recipe.max_length.min(base.config().max_position_embeddings);
    let (train, validation) = pairs::read(recipe, inputs, &tokenizer, max_length)?;
    let adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let (reference, ref_validation) = match recipe.loss.has_reference() {
        true => {
            // In the precision of the policy, so that the first log-ratios are 0.
            let model =
                adapters.reference(&base)?.in_precision(recipe.optimizer.precision)?.to_device(setup.device())?;
            let ref_validation = reference::logprobs(&model, &validation, recipe.batch_size)?;
            (reference_of(recipe, model, &train, out.as_ref())?, Some(ref_validation))
        }
        false => (Reference::None, None),
    };
    let mut learner = adapters.learner(&base, &setup, &recipe.optimizer)?;
    let mut batches =
        LengthBatches::new(train.iter().map(Pair::tokens).collect(), BatchSize::Items(recipe.batch_size), recipe.seed)?;
    let micro_batches = recipe.gradient_accumulation_steps;
    let steps = batches.count(recipe.epochs).div_ceil(micro_batches);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3), ("accuracy", "rewards/accuracies", 2)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} pairs", validation.len()),
            run: Box::new(|model, evaluating| {
                evaluate(recipe, &model, &validation, ref_validation.as_deref(), evaluating)
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;
    if let Reference::Stored(logprobs) = &reference {
        reference::store(out.as_ref(), logprobs)?;
    }
    if run.is_new() {
        run.evaluate(0, &learner)?;
    }

    for step in run.steps() {
        let micro: Vec<Vec<usize>> =
            (0..micro_batches).map(|m| batches.batch(step.index * micro_batches + m)).collect();
        let all: usize = micro.iter().map(Vec::len).sum();
        let (mut means, mut routers, mut tokens) = (RunningMeans::default(), RouterMetrics::default(), 0);
        for indices in &micro {
            let pairs: Vec<&Pair> = indices.iter().map(|&i| &train[i]).collect();
            let ref_logprobs = reference.of(&pairs, indices, &learner.model.device())?;
            let batch = Batch::new(&learner.model, &pairs, ref_logprobs)?;
            let losses = batch.losses(recipe)?; // (n,)
            // Each pair of the step has the same weight.
            let share = pairs.len() as f64 / all as f64;
            let loss = (losses.mean_all()? * share)?;
            learner.backward(&routers.add(&loss, batch.routing.as_ref(), share)?)?;
            batch.add_metrics(recipe, &losses, &mut means)?;
            tokens += pairs.iter().map(|pair| pair.tokens()).sum::<usize>();
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        let grad_norm = learner.step(learning_rate)?;
        let mut metrics: Vec<_> = means.all().collect();
        metrics.extend([("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(tokens));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The reference of the training pairs: the model, or its log-probabilities, which an interrupted run has stored.
fn reference_of(recipe: &DpoRecipe, model: Model, train: &[Pair], run: &Path) -> Result<Reference> {
    if !recipe.precompute_ref_log_probs {
        return Ok(Reference::Model(Box::new(model)));
    }
    if let Some(stored) = reference::stored(run, train.len()) {
        return Ok(Reference::Stored(stored));
    }
    tracing::info!("computing the log-probabilities of the reference for {} pairs", train.len());
    Ok(Reference::Stored(reference::logprobs(&model, train, recipe.batch_size)?))
}
