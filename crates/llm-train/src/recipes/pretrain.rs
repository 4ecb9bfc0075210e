//! Pre-training: next-token prediction on plain text.

use std::path::{Path, PathBuf};

use llm_data::{Batches, TokenDataset};
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::text_loss;
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::save;
use crate::compat::{TokenSource, check_compatible, refuse_overwritten};
use crate::optim::OptimizerConfig;
use crate::routing::RouterMetrics;
use crate::run::{Evaluating, Evaluation, Outcome, Plan, RunOptions, RunSetup, Selection, Start, learner};
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
    /// Steps between evaluations on the validation split; early ones are more frequent (`is_eval_step`). 0: only at the start and
    /// the end.
    pub eval_every: u64,
    /// Batches per evaluation; 0: the whole validation split.
    pub eval_batches: usize,
    /// Prompts to complete at each evaluation.
    pub sample_prompts: Vec<String>,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The model. `vocab_size` and the special ids come from the tokenizer.
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
    /// Folder of token shards, written by `llm-train prepare`.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub data: PathBuf,
}

/// Trains a new model on token shards. The run folder `out` becomes its Hugging Face folder.
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
    let train = TokenDataset::open(&inputs.data, "train")?;
    let validation = TokenDataset::open(&inputs.data, "held_out")?;
    let config = model_config(recipe, &tokenizer)?;
    let rows = TokenSource::Shards { shards: &train, dir: &inputs.data, seq_len: recipe.seq_len };
    check_compatible(&config, (&tokenizer, &inputs.tokenizer), &[rows])?;
    check_prompts(recipe, &tokenizer)?;
    let mut batches = Batches::new(&train, recipe.batch_size, recipe.seq_len, recipe.seed)?;
    let mut learner =
        learner(&setup, &recipe.optimizer, || Ok(Model::init(config, Head::LanguageModel, recipe.seed)?))?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let micro_batches = recipe.gradient_accumulation_steps;
    let tokens_per_step = micro_batches * (recipe.batch_size * recipe.seq_len) as u64;
    let run = setup.open(Plan {
        steps: recipe.steps,
        save_every: recipe.save_every,
        unit: ("tokens", tokens_per_step),
        shown: &[("loss", "loss", 3)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: Some(Selection::default()),
            size: format!("{} tokens", evaluated_tokens(recipe, &validation)),
            run: Box::new(|model, evaluating| evaluate(recipe, &tokenizer, &validation, model, evaluating)),
        }),
        write: Box::new(|model, dir| save(model, &tokenizer, dir)),
    })?;
    if run.is_new() {
        run.evaluate(0, &learner)?;
    }

    for step in run.steps() {
        let (mut mean_loss, mut routers) = (0., RouterMetrics::default());
        for micro in 0..micro_batches {
            let (input_ids, targets) = batches.batch(step.index * micro_batches + micro)?;
            let labels: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
            let batch = Batch::from_flat(&input_ids, recipe.seq_len)?;
            let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
            let loss = (loss::next_token(&learner.model, &hidden.flatten(0, 1)?, &labels)? / micro_batches as f64)?;
            mean_loss += loss::scalar(&loss)?;
            learner.backward(&routers.add(&loss, routing.as_ref(), 1. / micro_batches as f64)?)?;
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, recipe.steps);
        let grad_norm = learner.step(learning_rate)?;
        let metrics = [
            ("loss", mean_loss),
            ("grad_norm", grad_norm),
            ("learning_rate", learning_rate),
            ("tokens_per_second", step.units_per_second().round()),
        ];
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The model configuration of the recipe, with vocabulary and special ids of the tokenizer.
fn model_config(recipe: &PretrainRecipe, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        bos_token_id: tokenizer.bos_id(),
        eos_token_id: tokenizer.eos_id(),
        pad_token_id: tokenizer.pad_id(),
        ..recipe.model.clone()
    };
    refuse_overwritten("model", &recipe.model, &config, "the tokenizer")?;
    Ok(config)
}

/// Returns an error if a sample prompt leaves no room for a completion.
fn check_prompts(recipe: &PretrainRecipe, tokenizer: &Tokenizer) -> Result<()> {
    for prompt in &recipe.sample_prompts {
        let (tokens, context) = (tokenizer.encode(prompt)?.len() + 1, recipe.model.max_position_embeddings);
        if tokens >= context {
            let start: String = prompt.chars().take(20).collect();
            return Err(Error::TooLong(format!(
                "sample_prompts: \"{start}…\" has {tokens} tokens; it must have fewer than {context}"
            )));
        }
    }
    Ok(())
}

/// The number of validation tokens that an evaluation predicts.
fn evaluated_tokens(recipe: &PretrainRecipe, validation: &TokenDataset) -> usize {
    let all = validation.len().saturating_sub(1);
    match recipe.eval_batches {
        0 => all,
        batches => all.min(batches * recipe.batch_size * recipe.seq_len),
    }
}

/// Logs the loss on the validation split and completes the sample prompts.
fn evaluate(
    recipe: &PretrainRecipe,
    tokenizer: &Tokenizer,
    validation: &TokenDataset,
    model: Model,
    evaluating: &Evaluating,
) -> Result<()> {
    let text = text_loss(&model, validation, recipe.batch_size, recipe.seq_len, recipe.eval_batches)?;
    evaluating.log(
        &[("eval_loss", text.loss), ("eval_bits_per_byte", text.bits_per_byte)],
        &format!("validation loss {:.4}, {:.4} bits per byte", text.loss, text.bits_per_byte),
    )?;
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
