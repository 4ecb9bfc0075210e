//! Pre-training: the next token of plain text.

use std::path::Path;

use llm_data::{Batches, TokenDataset};
use llm_infer::{GenerateOptions, Sampling, TextModel};
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::eval::{is_eval_step, text_loss};
use crate::fitting::{Ids, fitting};
use crate::optim::{Learner, OptimizerConfig};
use crate::routing::RouterLog;
use crate::run::{Input, Opening, Outcome, Run, RunOptions, Start, learner};
use crate::{Error, Result, loss};

/// The numbers of a pre-training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Seed of the weights and of the order of the text.
    pub seed: u64,
    /// Steps of the optimizer.
    pub steps: u64,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches for each step.
    pub gradient_accumulation_steps: u64,
    /// Whether blocks run again in the backward instead of keeping their activations: less memory, a third more work.
    pub activation_checkpointing: bool,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Steps between two evaluations on held-out text; the first ones are closer ([`is_eval_step`]). 0: none later.
    pub eval_every: u64,
    /// Batches of each evaluation; 0: all of the held-out text.
    pub eval_batches: usize,
    /// Texts that each evaluation lets the model continue.
    pub sample_prompts: Vec<String>,
    /// Steps between two checkpoints; 0: only at the end.
    pub save_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The model; `vocab_size` and the special ids are the tokenizer's.
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

/// What [`pretrain`] reads.
#[derive(Debug, Clone, Copy)]
pub struct PretrainInputs<'a> {
    /// The folder of the tokenizer.
    pub tokenizer: &'a Path,
    /// The folder of the token shards.
    pub data: &'a Path,
}

/// Trains a fresh model on token shards; the run folder `out` becomes its Hugging Face folder.
pub fn pretrain(recipe: &PretrainRecipe, inputs: PretrainInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let read = vec![Input::new("tokenizer", inputs.tokenizer), Input::new("data", inputs.data)];
    let opening = match Opening::check(recipe, read, out, options)? {
        Start::Open(opening) => opening,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = Tokenizer::from_dir(inputs.tokenizer)?;
    let train = TokenDataset::open(inputs.data, "train")?;
    let held_out = TokenDataset::open(inputs.data, "held_out")?;
    let config = model_config(recipe, &tokenizer)?;
    let rows = Ids::Shards { shards: &train, dir: inputs.data, seq_len: recipe.seq_len };
    fitting(&config, (&tokenizer, inputs.tokenizer), &[rows])?;
    check_prompts(recipe, &tokenizer)?;
    let mut batches = Batches::new(&train, recipe.batch_size, recipe.seq_len, recipe.seed)?;
    let mut learner = learner(opening.checkpoint(), &recipe.optimizer, || {
        Ok(Model::init(config, Head::LanguageModel, recipe.seed)?)
    })?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let first = opening.step();
    let micro_batches = recipe.gradient_accumulation_steps;
    let tokens_per_step = micro_batches * (recipe.batch_size * recipe.seq_len) as u64;
    let mut run = opening.open(recipe.steps, recipe.save_every)?;
    run.begin(recipe.steps.saturating_mul(tokens_per_step), first * tokens_per_step, "tokens");

    for step in first..recipe.steps {
        if step == 0 {
            evaluate(&run_context(recipe, &tokenizer, &held_out), &learner, &mut run, 0)?;
        }
        let (mut mean_loss, mut routers) = (0., RouterLog::default());
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
            routers.figures(),
        )?;
        run.progress(done * tokens_per_step, &format!("loss {mean_loss:.3}"));
        if is_eval_step(done, recipe.eval_every, recipe.steps) {
            run.progress(done * tokens_per_step, "evaluating");
            evaluate(&run_context(recipe, &tokenizer, &held_out), &learner, &mut run, done)?;
        }
        if run.is_due(done) {
            run.checkpoint_of(done, &learner, &tokenizer)?;
        }
    }
    run.finish(&[&learner], |dir| {
        tokenizer.save(dir)?;
        Ok(learner.model.save(dir)?)
    })
}

/// The model of the recipe, with what the tokenizer says of the vocabulary.
fn model_config(recipe: &PretrainRecipe, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let (given, unsaid, right) = (recipe.model.vocab_size, ModelConfig::default().vocab_size, tokenizer.vocab_size());
    if given != right && given != unsaid {
        return Err(Error::Input(format!(
            "model.vocab_size is {given}; it is the tokenizer's, {right}: leave the key out"
        )));
    }
    Ok(ModelConfig {
        vocab_size: right,
        bos_token_id: tokenizer.bos_id(),
        eos_token_id: tokenizer.eos_id(),
        pad_token_id: tokenizer.pad_id(),
        ..recipe.model.clone()
    })
}

/// Refuses sample prompts that leave no room for a continuation.
fn check_prompts(recipe: &PretrainRecipe, tokenizer: &Tokenizer) -> Result<()> {
    for prompt in &recipe.sample_prompts {
        let (tokens, most) = (tokenizer.encode(prompt)?.len() + 1, recipe.model.max_position_embeddings);
        if tokens >= most {
            let beginning: String = prompt.chars().take(20).collect();
            return Err(Error::Input(format!(
                "sample_prompts: \"{beginning}…\" has {tokens} tokens; the model takes fewer than {most}"
            )));
        }
    }
    Ok(())
}

struct Evaluation<'a> {
    recipe: &'a PretrainRecipe,
    tokenizer: &'a Tokenizer,
    held_out: &'a TokenDataset,
}

fn run_context<'a>(recipe: &'a PretrainRecipe, tokenizer: &'a Tokenizer, held_out: &'a TokenDataset) -> Evaluation<'a> {
    Evaluation { recipe, tokenizer, held_out }
}

/// Loss on held-out text, and what the model makes of the sample prompts.
fn evaluate(with: &Evaluation, learner: &Learner, run: &mut Run, step: u64) -> Result<()> {
    let recipe = with.recipe;
    let model = learner.model.frozen()?;
    let seen = text_loss(&model, with.held_out, recipe.batch_size, recipe.seq_len, recipe.eval_batches)?;
    run.log(step, &[("eval_loss", seen.loss), ("eval_bits_per_byte", seen.bits_per_byte)])?;
    tracing::info!("step {step}: held-out loss {:.4}, {:.4} bits per byte", seen.loss, seen.bits_per_byte);
    if recipe.sample_prompts.is_empty() {
        return Ok(());
    }
    let text_model = TextModel { model, tokenizer: with.tokenizer.clone() };
    let prompts = recipe.sample_prompts.iter().map(|p| text_model.document_ids(p)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions {
        max_new_tokens: 32,
        stop_ids: text_model.stop_ids(),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let completions = text_model.complete_all(&prompts, &options, prompts.len(), |_| ())?;
    let pairs = recipe.sample_prompts.iter().zip(completions);
    let text: String = pairs.map(|(prompt, c)| format!("{prompt}|{}\n", c.text)).collect();
    tracing::info!("{}", text.lines().next().unwrap_or_default());
    run.sample(step, &text)
}
