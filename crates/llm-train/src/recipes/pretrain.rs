//! Pre-training: next-token prediction on plain text.

mod sources;
mod start;

use std::path::{Path, PathBuf};

use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_kernels::Dropout;
use llm_model::cost::Flops;
use llm_model::{Batch, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use self::sources::{Sources, model_batch};
use super::writer;
use crate::adapters::dropout_seed;
use crate::data::{ShardOptions, one_or_several};
use crate::optim::OptimizerConfig;
use crate::routing::RouterMetrics;
use crate::run::{Evaluating, Evaluation, Outcome, PEAK_SHARE, Plan, RunOptions, RunSetup, Selection, Start, learner};
use crate::{Error, Result, loss};

/// The recipe of pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Seed for initial weights and data order.
    pub seed: u64,
    /// Number of optimizer steps.
    pub steps: u64,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Whether to recompute the activations of each block in the backward pass: less memory, about a third more compute.
    pub activation_checkpointing: bool,
    /// Sequence length in tokens.
    pub seq_len: usize,
    /// Dropout of the embeddings and of what each attention and MLP adds to the residual stream; 0: none.
    pub dropout: f64,
    /// The coefficient of the mean of `logsumexp(logits)²` in the loss; 0: none.
    pub z_loss_coef: f64,
    /// The decay of an exponential moving average of the weights, which is evaluated and saved instead of them; 0: no average.
    pub ema_decay: f64,
    /// Steps between evaluations on the validation split; early ones are more frequent (`is_eval_step`). 0: only at the start and
    /// the end.
    pub eval_every: u64,
    /// Batches per evaluation; 0: the whole validation split.
    pub eval_batches: usize,
    /// Prompts to complete at each evaluation.
    pub sample_prompts: Vec<String>,
    /// Whether the result is the model of the evaluation with the lowest loss instead of the last one.
    pub keep_best: bool,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// How the token shards are used.
    #[serde(default)]
    pub data: ShardOptions,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The new model. `vocab_size` and the special ids come from the tokenizer.
    pub model: ModelConfig,
}

impl Default for PretrainRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`pretrain`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct PretrainInputs {
    /// Folder of the tokenizer.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub tokenizer: PathBuf,
    /// Folders of token shards, written by `llm-train prepare`; several are mixed, by the shares in the recipe's `data.weights`.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "DIR"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Folder of a model to go on from, instead of the recipe's new one; --tokenizer is then its own [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: Option<PathBuf>,
}

/// Trains a new model, or the model of a folder, on token shards. The run folder `out` becomes its Hugging Face folder.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn pretrain(
    recipe: &PretrainRecipe,
    inputs: &PretrainInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = Tokenizer::load(&inputs.tokenizer)?;
    let sources = Sources::open(recipe, &inputs.data)?;
    let config = start::config(recipe, inputs, &tokenizer)?;
    sources.check(&config, (&tokenizer, &inputs.tokenizer), recipe.seq_len)?;
    check_prompts(recipe, &tokenizer, config.max_position_embeddings)?;
    let mut batches = sources.batches(recipe)?;
    let mut learner = learner(&setup, &recipe.optimizer, || start::model(recipe, inputs, config))?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    if recipe.ema_decay > 0. {
        let trainer = setup.checkpoint().map(|checkpoint| checkpoint.dir.join("trainer"));
        learner.average_weights(recipe.ema_decay, trainer.as_deref())?;
    }
    let flops = TrainingFlops::of(&learner.model, recipe);
    let micro_batches = recipe.gradient_accumulation_steps;
    let tokens_per_step = micro_batches * (recipe.batch_size * recipe.seq_len) as u64;
    let run = setup.open(Plan {
        steps: recipe.steps,
        save_every: recipe.save_every,
        unit: ("tokens", tokens_per_step),
        shown: &[("loss", "loss", 3)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: Some(Selection { keep_best: recipe.keep_best, ..Selection::default() }),
            size: format!("{} tokens", sources.evaluated_tokens(recipe)),
            run: Box::new(|model, evaluating| evaluate(recipe, &tokenizer, &sources, model, evaluating)),
        }),
        write: writer(&tokenizer),
    })?;
    if run.is_new() {
        run.evaluate(0, &learner)?;
    }

    for step in run.steps() {
        let (mut terms, mut routers) = ([0.; 2], RouterMetrics::default());
        for micro in 0..micro_batches {
            let number = step.index * micro_batches + micro;
            let (batch, labels) = model_batch(recipe, batches.batch(number)?)?;
            let batch = Batch { residual_dropout: dropout(recipe, number), ..batch };
            let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
            let loss = loss::next_token_z(&learner.model, &hidden.flatten(0, 1)?, &labels, recipe.z_loss_coef)?;
            terms[0] += loss.cross_entropy / micro_batches as f64;
            terms[1] += loss.z_loss / micro_batches as f64;
            let loss = (loss.loss / micro_batches as f64)?;
            learner.backward(&routers.add(&loss, routing.as_ref(), 1. / micro_batches as f64)?)?;
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, recipe.steps);
        let grad_norm = learner.step(learning_rate)?;
        let mut metrics = vec![("loss", terms[0]), ("grad_norm", grad_norm), ("learning_rate", learning_rate)];
        if recipe.z_loss_coef > 0. {
            metrics.push(("z_loss", terms[1]));
        }
        let [_, speed] = step.throughput(tokens_per_step as usize);
        metrics.push(speed);
        metrics.extend(flops.share(speed.1));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The dropout of a micro-batch, by its number.
fn dropout(recipe: &PretrainRecipe, batch: u64) -> Option<Dropout> {
    let settings = Dropout { probability: recipe.dropout, seed: dropout_seed(recipe.seed, batch) };
    (recipe.dropout > 0.).then_some(settings)
}

/// The FLOPs of training a token, and the peak of the machine in FLOP/s.
struct TrainingFlops {
    per_token: f64,
    /// `None` on a device whose peak is not measured.
    peak: Option<f64>,
}

impl TrainingFlops {
    fn of(model: &Model, recipe: &PretrainRecipe) -> Self {
        let per_token = Flops::of_utilisation(model.config(), model.head(), recipe.seq_len as u64);
        let peak = model.device().is_cpu().then(|| llm_kernels::matmul_flops(recipe.optimizer.precision));
        Self { per_token, peak }
    }

    /// The metric of the share of the peak.
    fn share(&self, tokens_per_second: f64) -> Option<(&'static str, f64)> {
        self.peak.map(|peak| (PEAK_SHARE, tokens_per_second * self.per_token / peak))
    }
}

/// Returns an error if a sample prompt leaves no room for a completion.
fn check_prompts(recipe: &PretrainRecipe, tokenizer: &Tokenizer, context: usize) -> Result<()> {
    for prompt in &recipe.sample_prompts {
        let tokens = tokenizer.encode(prompt)?.len() + 1;
        if tokens >= context {
            let start: String = prompt.chars().take(20).collect();
            return Err(Error::TooLong(format!(
                "sample_prompts: \"{start}…\" has {tokens} tokens; it must have fewer than {context}"
            )));
        }
    }
    Ok(())
}

/// Logs the loss on the validation split and completes the sample prompts.
fn evaluate(
    recipe: &PretrainRecipe,
    tokenizer: &Tokenizer,
    sources: &Sources,
    model: Model,
    evaluating: &Evaluating,
) -> Result<()> {
    let (metrics, summary) = sources.evaluate(&model, tokenizer, recipe, evaluating.is_last())?;
    let metrics: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    evaluating.log(&metrics, &summary)?;
    if recipe.sample_prompts.is_empty() {
        return Ok(());
    }
    let text_model = TextModel { model, tokenizer: tokenizer.clone() };
    let prompts = recipe.sample_prompts.iter().map(|p| text_model.document_ids(p)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions {
        max_new_tokens: 32,
        stop_ids: Some(text_model.stop_ids()),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let completions = text_model.complete_all(&prompts, &options, prompts.len(), |_| ())?;
    let pairs = recipe.sample_prompts.iter().zip(completions);
    let samples: String = pairs.map(|(prompt, c)| format!("{prompt}|{}\n", c.text)).collect();
    tracing::info!("{}", samples.lines().next().unwrap_or_default());
    evaluating.sample(&samples)
}
