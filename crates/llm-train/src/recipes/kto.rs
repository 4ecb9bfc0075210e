//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): alignment with answers that are good or bad, without pairs.
//!
//! `z0`, the estimate of the KL divergence between policy and reference, is the mean log-ratio of mismatched answers: each prompt of the
//! step with the answer of another prompt of the step; 0 if the mean is negative (section 4.1). A step is the mean over its answers.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use llm_data::{LabelledAnswer, ReadOptions, read_labelled_answers};
use llm_eval::stats::share_interval;
use llm_model::{LoraConfig, Model};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::RunningMeans;
use super::policy::Policy;
use crate::adapters::Adapters;
use crate::batches::{BatchSize, LengthBatches};
use crate::completions::{Completions, Room, answer_logprobs, frozen_logprobs, numbers};
use crate::data::{DataOptions, one_or_several};
use crate::examples::take_evenly;
use crate::optim::OptimizerConfig;
use crate::rollout::Reply;
use crate::routing::RouterMetrics;
use crate::run::{Evaluating, Evaluation, Outcome, Plan, RunOptions, RunSetup, Start};
use crate::splits::{Encoded, Source, train_and_validation};
use crate::{Result, loss};

/// The recipe of KTO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KtoRecipe {
    /// Seed for the adapter, the split and the data order.
    pub seed: u64,
    /// The scale β of the rewards: how far the policy may move from the reference.
    pub beta: f64,
    /// Weight of the loss of a good answer.
    pub desirable_weight: f64,
    /// Weight of the loss of a bad answer.
    pub undesirable_weight: f64,
    /// Number of passes over the answers.
    pub epochs: u64,
    /// Answers per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub gradient_accumulation_steps: u64,
    /// Answers with a longer conversation are left out, or lose the beginning of their prompt (`data.too_long`), in tokens.
    pub max_length: usize,
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

impl Default for KtoRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`kto`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct KtoInputs {
    /// Folder of the fine-tuned model: the initial policy, and the reference; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Files or folders of labelled answers: prompt, completion and label (TRL), or rankings, of which the best and the worst answers are
    /// used; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Validation answers [default: those of the recipe's `validation_share` of the prompts of --data].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
    /// Folder of an adapter of an earlier stage, in the format of PEFT. It is part of the reference. Without a table `lora` its training
    /// goes on; with one it is frozen, and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub adapter: Option<PathBuf>,
}

/// An answer in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Labelled {
    prompt: Vec<u32>,
    answer: Vec<u32>,
    label: bool,
}

impl Labelled {
    fn tokens(&self) -> usize {
        self.prompt.len() + self.answer.len()
    }
}

/// Aligns a model with good and bad answers by KTO. The run folder `out` becomes the Hugging Face folder of the model or adapter.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn kto(recipe: &KtoRecipe, inputs: &KtoInputs, out: impl AsRef<Path>, options: RunOptions) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let Policy { tokenizer, base, .. } = Policy::load(&inputs.model, inputs.adapter.as_ref())?;
    let positions = base.config().max_position_embeddings;
    let (train, validation) = read(recipe, inputs, &tokenizer, recipe.max_length.min(positions))?;
    warn_of_imbalance(recipe, &train);
    let adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    // In the precision of the policy, so that the first log-ratios are 0.
    let reference = adapters.reference(&base)?.in_precision(recipe.optimizer.precision)?.to_device(setup.device())?;
    let mut learner = adapters.learner(&base, &setup, &recipe.optimizer)?;
    let size = BatchSize::Items(recipe.batch_size);
    let mut batches = LengthBatches::new(train.iter().map(Labelled::tokens).collect(), size, recipe.seed)?;
    let micro_batches = recipe.gradient_accumulation_steps;
    let steps = batches.count(recipe.epochs).div_ceil(micro_batches);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3), ("KL", "kl", 2)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} answers", validation.len()),
            run: Box::new(|model, evaluating| evaluate(recipe, [&model, &reference], &validation, evaluating)),
        }),
        write: adapters.writer(&tokenizer),
    })?;
    if run.is_new() {
        run.evaluate(0, &learner)?;
    }

    for step in run.steps() {
        let micro: Vec<Vec<&Labelled>> = (0..micro_batches)
            .map(|m| batches.batch(step.index * micro_batches + m).into_iter().map(|i| &train[i]).collect())
            .collect();
        let all: Vec<&Labelled> = micro.concat();
        let z0 = z0([&learner.model.detached()?, &reference], &all, recipe.batch_size)?;
        let (mut means, mut routers) = (RunningMeans::default(), RouterMetrics::default());
        for answers in &micro {
            let policy = answer_logprobs(&learner.model, &replies(answers))?;
            let log_ratio = (&policy.sums - frozen(&reference, answers)?)?; // (n,)
            let losses = losses(recipe, &log_ratio, answers, z0)?; // (n,)
            // Each answer of the step has the same weight.
            let share = answers.len() as f64 / all.len() as f64;
            let loss = (losses.mean_all()? * share)?;
            learner.backward(&routers.add(&loss, policy.routing.as_ref(), share)?)?;
            means.add("entropy", policy.entropy, answers.len() as f64);
            add_metrics(recipe, [&losses, &log_ratio, &policy.sums], answers, &mut means)?;
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        let grad_norm = learner.step(learning_rate)?;
        let mut metrics = with_margin(&means);
        metrics.extend([("kl", z0), ("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(all.iter().map(|answer| answer.tokens()).sum()));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The weighted loss of each answer: `(n,)`.
fn losses(recipe: &KtoRecipe, log_ratio: &Tensor, answers: &[&Labelled], z0: f64) -> Result<Tensor> {
    let labels: Vec<bool> = answers.iter().map(|answer| answer.label).collect();
    let weight = |&label: &bool| if label { recipe.desirable_weight } else { recipe.undesirable_weight } as f32;
    let weights = Tensor::from_vec(labels.iter().map(weight).collect::<Vec<_>>(), labels.len(), &Device::Cpu)?;
    Ok((loss::kto(log_ratio, &labels, z0, recipe.beta)? * weights.to_device(log_ratio.device())?)?)
}

fn replies<'a>(answers: &[&'a Labelled]) -> Vec<Reply<'a>> {
    answers.iter().map(|answer| (&answer.prompt[..], &answer.answer[..])).collect()
}

/// The log-probabilities of answers under the reference: `(n,)`.
fn frozen(reference: &Model, answers: &[&Labelled]) -> Result<Tensor> {
    Ok(answer_logprobs(reference, &replies(answers))?.sums.detach())
}

/// The estimate of the KL divergence between two models (policy, reference), in nats: the mean log-ratio of each prompt with an answer to
/// another prompt, at least 0. An answer is left out if all prompts are equal.
fn z0([policy, reference]: [&Model; 2], answers: &[&Labelled], batch_size: usize) -> Result<f64> {
    let positions = policy.config().max_position_embeddings;
    let n = answers.len();
    let mismatched: Vec<Reply> = (0..n)
        .filter_map(|i| {
            let prompt = answers[i].prompt.as_slice();
            let other = (1..n).map(|by| (i + n - by) % n).find(|&j| answers[j].prompt != prompt)?;
            let answer = answers[other].answer.as_slice();
            Some((prompt, &answer[..answer.len().min(positions - prompt.len())]))
        })
        .collect();
    let policy = frozen_logprobs(policy, &mismatched, batch_size)?;
    let reference = frozen_logprobs(reference, &mismatched, batch_size)?;
    let sum: f64 = policy.iter().zip(&reference).map(|(policy, reference)| policy - reference).sum();
    Ok((sum / mismatched.len().max(1) as f64).max(0.))
}

/// Adds the metrics of (losses, log-ratios, log-probabilities) to means over answers, with the names of TRL.
fn add_metrics(
    recipe: &KtoRecipe,
    [losses, log_ratios, logprobs]: [&Tensor; 3],
    answers: &[&Labelled],
    means: &mut RunningMeans,
) -> Result<()> {
    let (losses, log_ratios, logprobs) = (numbers(losses)?, numbers(log_ratios)?, numbers(logprobs)?);
    for (i, answer) in answers.iter().enumerate() {
        let names = match answer.label {
            true => ["rewards/chosen", "logps/chosen", "length/chosen"],
            false => ["rewards/rejected", "logps/rejected", "length/rejected"],
        };
        means.add("loss", losses[i], 1.);
        means.add(names[0], recipe.beta * log_ratios[i], 1.);
        means.add(names[1], logprobs[i], 1.);
        means.add(names[2], answer.answer.len() as f64, 1.);
    }
    Ok(())
}

/// All means, and the margin of the rewards if there are good and bad answers.
fn with_margin(means: &RunningMeans) -> Vec<(&'static str, f64)> {
    let mut metrics: Vec<_> = means.all().collect();
    if let (Some(chosen), Some(rejected)) = (means.get("rewards/chosen"), means.get("rewards/rejected")) {
        metrics.push(("rewards/margins", chosen - rejected));
    }
    metrics
}

/// Logs the metrics of the validation answers. An answer is right if its log-ratio is above `z0` and it is good, or the opposite; the last
/// evaluation has a 95 % interval of this share, over prompts.
fn evaluate(
    recipe: &KtoRecipe,
    [model, reference]: [&Model; 2],
    answers: &[Labelled],
    evaluating: &Evaluating,
) -> Result<()> {
    let answers: Vec<&Labelled> = answers.iter().collect();
    let z0 = z0([model, reference], &answers, recipe.batch_size)?;
    let (mut means, mut right) = (RunningMeans::default(), Vec::new());
    for chunk in answers.chunks(recipe.batch_size) {
        let policy = answer_logprobs(model, &replies(chunk))?.sums;
        let log_ratio = (&policy - frozen(reference, chunk)?)?;
        add_metrics(recipe, [&losses(recipe, &log_ratio, chunk, z0)?, &log_ratio, &policy], chunk, &mut means)?;
        let is_right = |(ratio, answer): (f64, &&Labelled)| f64::from(u8::from((ratio > z0) == answer.label));
        right.extend(numbers(&log_ratio)?.into_iter().zip(chunk).map(is_right));
    }
    let accuracy = right.iter().sum::<f64>() / right.len() as f64;
    let named: Vec<_> = with_margin(&means).into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect();
    let mut metrics: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    metrics.extend([("eval_kl", z0), ("eval_rewards/accuracies", accuracy)]);
    let loss = means.get("loss").unwrap_or_default();
    let mut summary = format!("validation loss {loss:.4}, {:.1} % of the answers on their side of z0", 100. * accuracy);
    if evaluating.is_last() {
        let mut prompts: Vec<&[u32]> = answers.iter().map(|answer| answer.prompt.as_slice()).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let number = |answer: &&Labelled| prompts.binary_search(&answer.prompt.as_slice()).unwrap_or_default();
        let clusters: Vec<usize> = answers.iter().map(number).collect();
        let interval = share_interval(&right, &clusters, recipe.seed)?;
        metrics.push(("eval_rewards/accuracies_low", interval.low));
        metrics.push(("eval_rewards/accuracies_high", interval.high));
        summary += &format!(" (95 % interval {:.1} to {:.1})", 100. * interval.low, 100. * interval.high);
    }
    evaluating.log(&metrics, &summary)
}

/// Warns if the weighted numbers of good and bad answers differ by more than the paper recommends (arXiv 2402.01306, equation 9: their
/// ratio is from 1 to 4/3).
fn warn_of_imbalance(recipe: &KtoRecipe, answers: &[Labelled]) {
    let good = answers.iter().filter(|answer| answer.label).count();
    let bad = answers.len() - good;
    let ratio = recipe.desirable_weight * good as f64 / (recipe.undesirable_weight * bad as f64);
    if !(1. ..=4. / 3.).contains(&ratio) {
        tracing::warn!(
            "{good} good and {bad} bad answers with the weights {} and {}: the ratio of the weighted numbers is {ratio:.2}; from 1 to \
             1.33 is recommended, for example by desirable_weight = {:.3}",
            recipe.desirable_weight,
            recipe.undesirable_weight,
            recipe.undesirable_weight * bad as f64 / good.max(1) as f64
        );
    }
}

/// Training and validation answers in token ids.
fn read(
    recipe: &KtoRecipe,
    inputs: &KtoInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Labelled>, Vec<Labelled>)> {
    let source = Source {
        data: &inputs.data,
        validation: inputs.validation.as_deref(),
        validation_share: recipe.validation_share,
        seed: recipe.seed,
        max_length,
        options: &recipe.data,
    };
    let room = Room { max_length, too_long: recipe.data.too_long };
    let read = |path: &Path, options: &ReadOptions| {
        let read = read_labelled_answers(path, options)?;
        Ok((read.answers, read.warnings))
    };
    let (train, validation) = train_and_validation(&source, read, |row: &LabelledAnswer| {
        Ok(match Completions::encode(tokenizer, &row.prompt, &[row.answer.as_str()], room)? {
            Encoded::Fits(Completions { prompt, answers }) => {
                Encoded::Fits(Labelled { prompt, answer: answers.concat(), label: row.label })
            }
            Encoded::TooLong => Encoded::TooLong,
            Encoded::Untrained => Encoded::Untrained,
        })
    })?;
    Ok((train, take_evenly(validation, recipe.eval_batches * recipe.batch_size)))
}
