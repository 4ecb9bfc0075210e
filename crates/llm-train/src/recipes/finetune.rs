//! Instruction fine-tuning: the assistant's words of conversations, and nothing else, are learnt; by all weights, or by an
//! adapter over frozen ones.

use std::path::Path;

use llm_data::{Batches, TokenDataset};
use llm_kernels::BlockFormat;
use llm_model::{Batch, Head, LoraConfig, Model, TokenIndices, WeightFormat};
use llm_tokenizer::{ChatFormat, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{chat_format, load_model};
use crate::eval::is_eval_step;
use crate::examples::{Example, LengthBatches, answer_loss, answer_places, pick_rows, spread, train_and_held_out};
use crate::fitting::{Ids, fitting};
use crate::optim::{Learner, OptimizerConfig};
use crate::routing::RouterLog;
use crate::run::{Checkpoint, Input, Opening, Outcome, RunOptions, Start, learner};
use crate::{Error, Result, loss};

/// The numbers of a fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// Seed of the order of the conversations.
    pub seed: u64,
    /// Passes over the conversations.
    pub epochs: u64,
    /// Conversations of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches for each step.
    pub gradient_accumulation_steps: u64,
    /// Whether blocks run again in the backward instead of keeping their activations: less memory, a third more work.
    pub activation_checkpointing: bool,
    /// Longer conversations, in tokens, are left out.
    pub max_length: usize,
    /// With plain text: rows of it in each step.
    pub text_batch_size: usize,
    /// Tokens of a row of plain text.
    pub seq_len: usize,
    /// Weight of the loss of plain text beside that of the answers.
    pub text_weight: f64,
    /// Steps between two evaluations on held-out conversations; 0: only at the end.
    pub eval_every: u64,
    /// Batches of each evaluation, spread over the held-out conversations; 0: all.
    pub eval_batches: usize,
    /// Steps between two checkpoints; 0: only at the end.
    pub save_every: u64,
    /// What the weights under an adapter are held in.
    pub base_dtype: BaseDtype,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The adapter to learn instead of the model's own weights: the run writes it in PEFT's files, and no model. Without
    /// `trainable_token_indices` it trains the rows of those tokens of the chat template that the model was never trained on
    /// ([`Model::untrained_tokens`]); an empty list trains none.
    pub lora: Option<LoraConfig>,
}

/// What the matrices under an adapter are held in: all but `F32` make it QLoRA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// 4 bytes for each number.
    #[default]
    F32,
    /// 2 bytes.
    Bf16,
    /// 8.5 bits.
    Q8_0,
    /// 4.5 bits.
    Q4_0,
}

impl BaseDtype {
    fn hold(self, model: Model) -> Result<Model> {
        let format = match self {
            Self::F32 => return Ok(model),
            Self::Bf16 => WeightFormat::Bf16,
            Self::Q8_0 => WeightFormat::Quantized(BlockFormat::Q8_0),
            Self::Q4_0 => WeightFormat::Quantized(BlockFormat::Q4_0),
        };
        Ok(model.frozen_as(format)?)
    }
}

impl Default for FinetuneRecipe {
    fn default() -> Self {
        let optimizer = OptimizerConfig { learning_rate: 5e-4, weight_decay: 0.01, ..OptimizerConfig::default() };
        Self {
            seed: 42,
            epochs: 3,
            batch_size: 32,
            gradient_accumulation_steps: 1,
            activation_checkpointing: false,
            max_length: 512,
            text_batch_size: 8,
            seq_len: 128,
            text_weight: 1.,
            eval_every: 100,
            eval_batches: 20,
            save_every: 100,
            base_dtype: BaseDtype::F32,
            optimizer,
            lora: None,
        }
    }
}

/// What [`finetune`] reads.
#[derive(Debug, Clone, Copy)]
pub struct FinetuneInputs<'a> {
    /// The folder of the model to start from.
    pub model: &'a Path,
    /// Conversations to learn from.
    pub data: &'a Path,
    /// Conversations to test on; none: those of a twentieth of the prompts of `data`.
    pub held_out: Option<&'a Path>,
    /// The folder of token shards of plain text that is trained on beside the conversations, so that what the model knew
    /// from text is kept (rehearsal, Robins 1995); none: conversations alone.
    pub text: Option<&'a Path>,
}

/// Fine-tunes a model on conversations; the run folder `out` becomes its Hugging Face folder, or that of its adapter.
pub fn finetune(recipe: &FinetuneRecipe, inputs: FinetuneInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let read = Input::given([
        ("model", Some(inputs.model)),
        ("data", Some(inputs.data)),
        ("held_out", inputs.held_out),
        ("text", inputs.text),
    ]);
    let opening = match Opening::check(recipe, read, out, options)? {
        Start::Open(opening) => opening,
        Start::Finished(outcome) => return Ok(outcome),
    };
    if recipe.lora.is_none() && recipe.base_dtype != BaseDtype::F32 {
        let message =
            "\"base_dtype\" is for the frozen weights under an adapter; add a table [lora], or leave it at \"f32\"";
        return Err(Error::Input(message.to_owned()));
    }
    let mut tokenizer = Tokenizer::from_dir(inputs.model)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, inputs.model)?;
    let mut base = load_model(inputs.model, Head::LanguageModel)?;
    let text = inputs.text.map(|dir| TokenDataset::open(dir, "train")).transpose()?;
    let shards =
        inputs.text.zip(text.as_ref()).map(|(dir, shards)| Ids::Shards { shards, dir, seq_len: recipe.seq_len });
    fitting(base.config(), (&tokenizer, inputs.model), shards.as_slice())?;
    base.set_eos_token_id(Some(end_of_turn));
    let max_length = recipe.max_length.min(base.config().max_position_embeddings);
    let (train, held_out) = train_and_held_out((inputs.data, inputs.held_out), recipe.seed, &tokenizer, max_length)?;
    let held_out = spread(held_out, recipe.eval_batches * recipe.batch_size);
    let mut learner = match &recipe.lora {
        Some(lora) => {
            let lora = with_chat_tokens(lora, &base, &tokenizer)?;
            adapter_learner(recipe, &lora, base, opening.checkpoint())?
        }
        None => learner(opening.checkpoint(), &recipe.optimizer, || Ok(base.trainable()?))?,
    };
    let write = |model: &Model, dir: &Path| -> Result<()> {
        tokenizer.save(dir)?;
        match recipe.lora {
            Some(_) => Ok(model.save_adapter(dir, &inputs.model.display().to_string())?),
            None => Ok(model.save(dir)?),
        }
    };
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let mut batches = LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), recipe.batch_size, recipe.seed)?;
    let mut text = match &text {
        Some(text) => Some(Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed)?),
        None => None,
    };
    let micro_batches = recipe.gradient_accumulation_steps;
    let steps = (batches.per_epoch() * recipe.epochs).div_ceil(micro_batches);
    let first = opening.step();
    let mut run = opening.open(steps, recipe.save_every)?;
    run.begin(steps, first, "steps");

    for step in first..steps {
        if step == 0 {
            let eval_loss = answer_loss(&learner.model.frozen()?, &held_out, recipe.batch_size, pad)?;
            run.log(0, &[("eval_loss", eval_loss)])?;
        }
        let micro: Vec<Vec<&Example>> = (0..micro_batches)
            .map(|m| batches.batch(step * micro_batches + m).into_iter().map(|i| &train[i]).collect())
            .collect();
        // Each learnt token weighs the same, whichever micro-batch it is in.
        let tokens = micro.iter().flatten().map(|e| e.learnt[1..].iter().filter(|&&l| l).count()).sum::<usize>();
        let (mut mean_loss, mut routers) = (0., RouterLog::default());
        for examples in &micro {
            let (batch, places, labels) = answer_places(examples, pad)?;
            let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
            let hidden = pick_rows(&hidden, places)?; // (n, hidden)
            let share = labels.len() as f64 / tokens as f64;
            let loss = (learner.model.cross_entropy(&hidden, &labels)? * share)?;
            mean_loss += loss::scalar(&loss)?;
            learner.backward(&routers.add(&loss, routing.as_ref(), share)?)?;
        }
        let mut figures = vec![("loss", mean_loss)];
        if let Some(text) = &mut text {
            figures.push(("text_loss", rehearse(recipe, &mut learner, text.batch(step)?)?));
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step, steps);
        let grad_norm = learner.step(learning_rate)?;
        let done = step + 1;
        figures.extend([("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        run.check_step(done, &figures)?;
        run.log_with(done, &figures, routers.figures())?;
        run.progress(done, &format!("loss {mean_loss:.3}"));
        if is_eval_step(done, recipe.eval_every, steps) {
            run.progress(done, "evaluating");
            let eval_loss = answer_loss(&learner.model.frozen()?, &held_out, recipe.batch_size, pad)?;
            run.log(done, &[("eval_loss", eval_loss)])?;
            tracing::info!("step {done}: held-out loss of the answers {eval_loss:.4}");
        }
        if run.is_due(done) {
            run.checkpoint(done, &[&learner], Map::new(), |dir| {
                write(&learner.model, dir)?;
                learner.save_optimizer(&dir.join("trainer/optimizer.safetensors"))
            })?;
        }
    }
    run.finish(&[&learner], |dir| write(&learner.model, dir))
}

/// Gathers the gradients of a batch of plain text; returns its loss.
fn rehearse(recipe: &FinetuneRecipe, learner: &mut Learner, (input_ids, targets): (Vec<u32>, Vec<u32>)) -> Result<f64> {
    let labels: Vec<i64> = targets.into_iter().map(i64::from).collect();
    let hidden = learner.model.hidden(&Batch::from_flat(&input_ids, recipe.seq_len)?, None)?; // (b, t, hidden)
    let loss = learner.model.cross_entropy(&hidden.flatten(0, 1)?, &labels)?;
    learner.backward(&(&loss * recipe.text_weight)?)?;
    loss::scalar(&loss)
}

/// The adapter's settings, where nothing is said of tokens with those of the chat template that the base was never trained on:
/// low-rank changes cannot tell apart tokens whose rows are alike, so a base model would learn neither roles nor ends of turns.
fn with_chat_tokens(lora: &LoraConfig, base: &Model, tokenizer: &Tokenizer) -> Result<LoraConfig> {
    let mut lora = lora.clone();
    if lora.trainable_token_indices.is_none() {
        let untrained = base.untrained_tokens(&tokenizer.chat_format()?.special, &tokenizer.special_ids())?;
        if !untrained.is_empty() {
            let names: Vec<String> = untrained.iter().filter_map(|&id| tokenizer.token(id)).collect();
            tracing::info!("the base never saw {}; the adapter trains their rows too", names.join(", "));
            lora.trainable_token_indices = Some(TokenIndices::of_both(base.config(), untrained));
        }
    }
    Ok(lora)
}

/// The learner of an adapter over `base`: a fresh one, or the checkpoint's.
fn adapter_learner(
    recipe: &FinetuneRecipe,
    lora: &LoraConfig,
    base: Model,
    checkpoint: Option<&Checkpoint>,
) -> Result<Learner> {
    let mut model = recipe.base_dtype.hold(base)?;
    let Some(checkpoint) = checkpoint else {
        return Learner::new(model.with_lora(lora, recipe.seed)?, &recipe.optimizer);
    };
    model.load_adapter(ADAPTER, &checkpoint.dir)?;
    model.use_adapter(Some(ADAPTER))?;
    let mut learner = Learner::new(model.trainable()?, &recipe.optimizer)?;
    learner.load_optimizer(&checkpoint.dir.join("trainer/optimizer.safetensors"))?;
    Ok(learner)
}

const ADAPTER: &str = "default";
