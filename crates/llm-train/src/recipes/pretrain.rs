//! Pre-training: next-token prediction on plain text.

use std::path::Path;

use llm_data::{Batches, TokenDataset};
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::text_loss;
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::compat::{TokenSource, check_compatible, refuse_overwritten};
use crate::eval::is_eval_step;
use crate::optim::{Learner, OptimizerConfig};
use crate::routing::RouterMetrics;
use crate::run::{Input, OPTIMIZER, Outcome, Run, RunOptions, RunSetup, Start, learner};
use crate::{Error, Result, loss};

/// The recipe of pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// Steps between evaluations on the validation split; early ones are more frequent ([`is_eval_step`]). 0: only at the start and
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
    fn default() -> Self {
        Self {
            seed: 42,
            steps: 1000,
            batch_size: 16,
            gradient_accumulation_steps: 1,
            activation_checkpointing: false,
            seq_len: 128,
            eval_every: 200,
            eval_batches: 20,
            sample_prompts: Vec::new(),
            save_every: 200,
            optimizer: OptimizerConfig::default(),
            model: ModelConfig::default(),
        }
    }
}

/// The inputs of [`pretrain`].
#[derive(Debug, Clone, Copy)]
pub struct PretrainInputs<'a> {
    /// The folder of the tokenizer.
    pub tokenizer: &'a Path,
    /// The folder of token shards.
    pub data: &'a Path,
}

/// Trains a new model on token shards. The run folder `out` becomes its Hugging Face folder.
pub fn pretrain(recipe: &PretrainRecipe, inputs: PretrainInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let read = vec![Input::new("tokenizer", inputs.tokenizer), Input::new("data", inputs.data)];
    let setup = match RunSetup::check(recipe, read, out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = Tokenizer::load(inputs.tokenizer)?;
    let train = TokenDataset::open(inputs.data, "train")?;
    let validation = TokenDataset::open(inputs.data, "held_out")?;
    let config = model_config(recipe, &tokenizer)?;
    let rows = TokenSource::Shards { shards: &train, dir: inputs.data, seq_len: recipe.seq_len };
    check_compatible(&config, (&tokenizer, inputs.tokenizer), &[rows])?;
    check_prompts(recipe, &tokenizer)?;
    let mut batches = Batches::new(&train, recipe.batch_size, recipe.seq_len, recipe.seed)?;
    let mut learner =
        learner(setup.checkpoint(), &recipe.optimizer, || Ok(Model::init(config, Head::LanguageModel, recipe.seed)?))?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let first = setup.step();
    let micro_batches = recipe.gradient_accumulation_steps;
    let tokens_per_step = micro_batches * (recipe.batch_size * recipe.seq_len) as u64;
    let mut run = setup.open(recipe.steps, recipe.save_every)?;
    run.begin(recipe.steps.saturating_mul(tokens_per_step), first * tokens_per_step, "tokens");

    for step in first..recipe.steps {
        if step == 0 {
            evaluate(&evaluation(recipe, &tokenizer, &validation), &learner, &mut run, 0)?;
        }
        let (mut mean_loss, mut routers) = (0., RouterMetrics::default());
        for micro in 0..micro_batches {
            let (input_ids, targets) = batches.batch(step * micro_batches + micro)?;
            let labels: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
            let batch = Batch::from_flat(&input_ids, recipe.seq_len)?;
            let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
            let loss = (learner.model.cross_entropy(&hidden.flatten(0, 1)?, &labels)? / micro_batches as f64)?;
            mean_loss += loss::scalar(&loss)?;
            learner.backward(&routers.add(&loss, routing.as_ref(), 1. / micro_batches as f64)?)?;
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step, recipe.steps);
        let grad_norm = learner.step(learning_rate)?;
        let done = step + 1;
        run.check_step(done, &[("loss", mean_loss), ("grad_norm", grad_norm)])?;
        let rate = ((done - first) * tokens_per_step) as f64 / run.seconds();
        run.log_with(
            done,
            &[
                ("loss", mean_loss),
                ("grad_norm", grad_norm),
                ("learning_rate", learning_rate),
                ("tokens_per_second", rate.round()),
            ],
            routers.metrics(),
        )?;
        run.progress(done * tokens_per_step, &format!("loss {mean_loss:.3}"));
        if is_eval_step(done, recipe.eval_every, recipe.steps) {
            run.progress(done * tokens_per_step, "evaluating");
            evaluate(&evaluation(recipe, &tokenizer, &validation), &learner, &mut run, done)?;
        }
        if run.is_due(done) {
            run.checkpoint_of(done, &learner, &tokenizer)?;
        }
    }
    run.finish(&[(OPTIMIZER, &learner)], |dir| {
        tokenizer.save(dir)?;
        Ok(learner.model.save(dir)?)
    })
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
            return Err(Error::Input(format!(
                "sample_prompts: \"{start}…\" has {tokens} tokens; it must have fewer than {context}"
            )));
        }
    }
    Ok(())
}

struct Evaluation<'a> {
    recipe: &'a PretrainRecipe,
    tokenizer: &'a Tokenizer,
    validation: &'a TokenDataset,
}

fn evaluation<'a>(
    recipe: &'a PretrainRecipe,
    tokenizer: &'a Tokenizer,
    validation: &'a TokenDataset,
) -> Evaluation<'a> {
    Evaluation { recipe, tokenizer, validation }
}

/// Logs the loss on the validation split and completes the sample prompts.
fn evaluate(evaluation: &Evaluation, learner: &Learner, run: &mut Run, step: u64) -> Result<()> {
    let recipe = evaluation.recipe;
    let model = learner.model.frozen()?;
    let text = text_loss(&model, evaluation.validation, recipe.batch_size, recipe.seq_len, recipe.eval_batches)?;
    run.log(step, &[("eval_loss", text.loss), ("eval_bits_per_byte", text.bits_per_byte)])?;
    tracing::info!("step {step}: validation loss {:.4}, {:.4} bits per byte", text.loss, text.bits_per_byte);
    if recipe.sample_prompts.is_empty() {
        return Ok(());
    }
    let text_model = TextModel { model, tokenizer: evaluation.tokenizer.clone() };
    let prompts = recipe.sample_prompts.iter().map(|p| text_model.document_ids(p)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions {
        max_new_tokens: 32,
        stop_ids: text_model.stop_ids(),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let completions = text_model.complete_all(&prompts, &options, prompts.len(), |_| ())?;
    let pairs = recipe.sample_prompts.iter().zip(completions);
    let samples: String = pairs.map(|(prompt, c)| format!("{prompt}|{}\n", c.text)).collect();
    tracing::info!("{}", samples.lines().next().unwrap_or_default());
    run.sample(step, &samples)
}
