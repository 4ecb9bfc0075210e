//! Instruction fine-tuning on conversations, of all weights or of a LoRA adapter. The loss counts the assistant's tokens only.

use std::path::{Path, PathBuf};

use llm_data::{Batches, TokenBatch, TokenDataset};
use llm_model::{Batch, Head, LoraConfig, Model, TokenIndices, WeightDtype};
use llm_tokenizer::{TemplateOptions, Tokenizer, TrainOn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answers::{Question, answer, questions};
use super::{chat_format, load_model};
use crate::adapters::{Adapters, dropout_seed, tokenizer_folder};
use crate::batches::{BatchSize, LengthBatches};
use crate::compat::{TokenSource, check_compatible};
use crate::data::{DataOptions, one_or_several};
use crate::examples::{
    Example, answer_loss, answer_positions, embedding_noise, gather_rows, take_evenly, token_shares,
};
use crate::optim::{Learner, OptimizerConfig};
use crate::routing::RouterMetrics;
use crate::rows::train_and_validation;
use crate::run::{Best, Evaluating, Evaluation, Outcome, Plan, RunOptions, RunSetup, Selection, Start, rng};
use crate::{Error, Result, loss};

/// The recipe of fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// Seed for data order and initial adapter weights.
    pub seed: u64,
    /// Number of passes over the conversations.
    pub epochs: u64,
    /// Conversations per micro-batch, padded to the longest; with `max_tokens`: conversations per batch of an evaluation only.
    pub batch_size: usize,
    /// Packs conversations into micro-batches of at most this many tokens by best-fit decreasing, without padding; 0: micro-batches of
    /// `batch_size` conversations. Each conversation keeps its own attention and positions, so that the gradient is that of the same
    /// conversations without packing. At least `max_length`.
    pub max_tokens: usize,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Whether to recompute the activations of each block in the backward pass: less memory, about a third more compute.
    pub activation_checkpointing: bool,
    /// Longer conversations are left out, in tokens.
    pub max_length: usize,
    /// Sequences of plain text per step, if there is plain text.
    pub text_batch_size: usize,
    /// Sequence length of plain text in tokens.
    pub seq_len: usize,
    /// Weight of the loss on plain text; the loss on answers has weight 1.
    pub text_weight: f64,
    /// Steps between evaluations on the validation split; 0: only at the start and the end.
    pub eval_every: u64,
    /// Batches per evaluation, spread evenly over the validation split; 0: all.
    pub eval_batches: usize,
    /// Validation conversations, spread evenly, whose last answer the model writes greedily at each evaluation: the metric `exact_match`,
    /// and `samples/step-N.txt`; 0: none.
    pub eval_prompts: usize,
    /// The most tokens of such an answer.
    pub eval_max_new_tokens: usize,
    /// Compares only the text after the last one of these markers, such as `####`; empty: the whole answer.
    pub answer_marker: String,
    /// Which evaluation is the best, for the two keys below. `exact_match` needs `eval_prompts`.
    pub best: Best,
    /// Evaluations without a better result after which the run ends; 0: it never ends early.
    pub early_stop_patience: u64,
    /// Whether the result is the model of the best evaluation instead of the last step. Its checkpoint is kept too.
    pub keep_best: bool,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// Noise on the embeddings of the conversations in training (`NEFTune`, Jain et al. 2023, arXiv 2310.05914); 0: none. Evaluations and
    /// plain text have none.
    pub neftune_noise_alpha: f64,
    /// Dtype of the frozen matrices under an adapter: f32, bf16, `q8_0`, `q4_0`, `q4_k` or `q6_k`. Quantised formats make it QLoRA (Dettmers
    /// et al. 2023, arXiv 2305.14314).
    pub base_dtype: WeightDtype,
    /// How the data files are read.
    pub data: DataOptions,
    /// The assistant messages that the loss counts, all or the last one; `train` or `weight` of a message wins over it.
    pub train_on: TrainOn,
    /// The date that a chat template writes as today, as `YYYY-MM-DD`, so that a resumed run writes the same text.
    pub date: String,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Variables of the chat template, such as `enable_thinking`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_kwargs: Map<String, Value>,
    /// A LoRA adapter to train instead of the model's weights. The run writes the adapter in the PEFT format, and no model. Without
    /// `trainable_token_indices` the adapter also trains the embeddings of chat template tokens that the model was never trained on
    /// ([`Model::untrained_tokens`]); an empty list trains none.
    pub lora: Option<LoraConfig>,
}

impl Default for FinetuneRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`finetune`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct FinetuneInputs {
    /// Folder of the model to fine-tune; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub model: PathBuf,
    /// Data files or folders (JSONL, JSON, CSV, Parquet, also .gz or .zst) of conversations, prompts with completions, or texts; may be
    /// repeated, with a weight for each in the recipe's `data.weights`.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Validation conversations [default: those of 5 % of the prompts of --data, chosen by the recipe's seed].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", value_name = "FILE", display_order = 3))]
    pub validation: Option<PathBuf>,
    /// Folder of token shards: also train on plain text, so that the model keeps what it learned from text.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 4))]
    pub text: Option<PathBuf>,
    /// Folder of an adapter of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 5))]
    pub adapter: Option<PathBuf>,
}

impl FinetuneRecipe {
    fn selection(&self) -> Selection {
        let Self { best, early_stop_patience, keep_best, .. } = *self;
        Selection { best, early_stop_patience, keep_best }
    }
}

/// Fine-tunes a model on conversations. The run folder `out` becomes the Hugging Face folder of the model or adapter.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn finetune(
    recipe: &FinetuneRecipe,
    inputs: &FinetuneInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let (tokenizer, base, text) = load(recipe, inputs)?;
    let pad = chat_format(&tokenizer, tokenizer_folder(&inputs.model, inputs.adapter.as_ref()))?.pad;
    let max_length = recipe.max_length.min(base.config().max_position_embeddings);
    let (train, validation) = train_and_validation(
        (&inputs.data, inputs.validation.as_deref()),
        &recipe.data,
        recipe.seed,
        (&tokenizer, recipe.train_on),
        max_length,
    )?;
    let questions = questions(&validation, recipe.eval_prompts, &tokenizer, base.config().max_position_embeddings)?;
    let validation = take_evenly(validation, recipe.eval_batches * recipe.batch_size);
    let mut adapters = Adapters::new(&inputs.model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let below = adapters.below(&base)?;
    if let Some(lora) = &mut adapters.lora {
        with_chat_tokens(lora, &below, &tokenizer)?;
    }
    let mut learner = adapters.learner(&base, &setup, &recipe.optimizer)?;
    if recipe.activation_checkpointing {
        learner.model.checkpoint_activations();
    }
    let size = BatchSize::of_recipe(recipe.batch_size, recipe.max_tokens);
    let mut batches = LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), size, recipe.seed)?;
    let batches_of = |text| Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed);
    let mut text = text.as_ref().map(batches_of).transpose()?;
    let micro_batches = recipe.gradient_accumulation_steps;
    let steps = batches.count(recipe.epochs).div_ceil(micro_batches);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: Some(recipe.selection()),
            size: format!("{} conversations", validation.len()),
            run: Box::new(|model, evaluating| {
                evaluate(recipe, (&model, &tokenizer, pad), (&validation, &questions), evaluating)
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;
    if run.is_new() {
        run.evaluate(0, &learner)?;
    }

    for step in run.steps() {
        let micro: Vec<Vec<&Example>> = (0..micro_batches)
            .map(|m| batches.batch(step.index * micro_batches + m).into_iter().map(|i| &train[i]).collect())
            .collect();
        let (mean_loss, routers) =
            train_on_answers(recipe, &mut learner, &micro, size.padding(pad), step.index * micro_batches)?;
        let mut metrics = vec![("loss", mean_loss)];
        if let Some(text) = &mut text {
            metrics.push((
                "text_loss",
                train_on_text(recipe, &mut learner, text.batch(step.index)?, !dropout_seed(recipe.seed, step.index))?,
            ));
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        metrics.extend([("grad_norm", learner.step(learning_rate)?), ("learning_rate", learning_rate)]);
        let text_tokens = text.as_ref().map_or(0, |_| recipe.text_batch_size * recipe.seq_len);
        metrics.extend(step.throughput(micro.iter().flatten().map(|e| e.ids.len()).sum::<usize>() + text_tokens));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// Logs the loss on the validation split, answers the questions and writes the answers.
fn evaluate(
    recipe: &FinetuneRecipe,
    (model, tokenizer, pad): (&Model, &Tokenizer, u32),
    (validation, questions): (&[Example], &[Question]),
    evaluating: &Evaluating,
) -> Result<()> {
    let eval_loss = answer_loss(model, validation, recipe.batch_size, pad)?;
    let mut metrics = vec![("eval_loss", eval_loss)];
    let mut summary = format!("validation loss of the answers {eval_loss:.4}");
    if !questions.is_empty() {
        let size = (recipe.batch_size, recipe.eval_max_new_tokens);
        let answers = answer(model, tokenizer, questions, size, &recipe.answer_marker)?;
        metrics.push(("exact_match", answers.exact_match));
        summary += &format!(", {:.1} % of {} answers right", 100. * answers.exact_match, questions.len());
        evaluating.sample(&answers.text)?;
    }
    evaluating.log(&metrics, &summary)
}

/// Loads the tokenizer, the model and the plain text, and checks that they match and that the recipe applies to them.
pub(crate) fn load(
    recipe: &FinetuneRecipe,
    inputs: &FinetuneInputs,
) -> Result<(Tokenizer, Model, Option<TokenDataset>)> {
    if recipe.lora.is_none() && inputs.adapter.is_none() && recipe.base_dtype != WeightDtype::F32 {
        let message =
            "\"base_dtype\" applies to the frozen weights under an adapter; add a table [lora], or set it to \"f32\"";
        return Err(Error::BadRequest(message.to_owned()));
    }
    let options = TemplateOptions {
        variables: recipe.template_kwargs.clone(),
        date: Some(recipe.date.clone()),
        ..TemplateOptions::default()
    };
    let folder = tokenizer_folder(&inputs.model, inputs.adapter.as_ref());
    let mut tokenizer = Tokenizer::load(folder)?.with_template_options(options)?;
    if !tokenizer.has_chat_template() {
        tokenizer = tokenizer.with_default_chat_template()?;
    }
    let tokenizer = tokenizer.with_end_of_turn_as_eos();
    let end_of_turn = chat_format(&tokenizer, folder)?.end_of_turn;
    let mut base = load_model(&inputs.model, Head::LanguageModel)?;
    let text = inputs.text.as_ref().map(|dir| TokenDataset::open(dir, "train")).transpose()?;
    let source = |(dir, shards)| TokenSource::Shards { shards, dir, seq_len: recipe.seq_len };
    let sources = inputs.text.as_deref().zip(text.as_ref()).map(source);
    check_compatible(base.config(), (&tokenizer, folder), sources.as_slice())?;
    base.set_end_of_turn(end_of_turn);
    let base = if recipe.base_dtype == WeightDtype::F32 { base } else { base.frozen_as(recipe.base_dtype)? };
    Ok((tokenizer, base, text))
}

/// Accumulates the gradients of the cross-entropy of the answers in micro-batches, of which `first` is the number of the first one in
/// the run; returns its mean over all trained tokens.
pub(crate) fn train_on_answers(
    recipe: &FinetuneRecipe,
    learner: &mut Learner,
    micro: &[Vec<&Example>],
    pad: Option<u32>,
    first: u64,
) -> Result<(f64, RouterMetrics)> {
    let (mut mean_loss, mut routers) = (0., RouterMetrics::default());
    for (n, (examples, share)) in micro.iter().zip(token_shares(micro)).enumerate() {
        let (mut batch, positions, labels) = answer_positions(examples, pad)?;
        batch.dropout = Some(dropout_seed(recipe.seed, first + n as u64));
        if recipe.neftune_noise_alpha > 0. {
            let (alpha, hidden_size) = (recipe.neftune_noise_alpha, learner.model.config().hidden_size);
            let mut rng = rng(recipe.seed, NOISE, first + n as u64);
            batch.embedding_noise = Some(embedding_noise(&batch, examples, alpha, hidden_size, &mut rng)?);
        }
        let (hidden, routing) = learner.model.hidden_and_routing(&batch)?; // (b, t, hidden)
        let hidden = gather_rows(&hidden, positions)?; // (n, hidden)
        let loss = (loss::next_token(&learner.model, &hidden, &labels)? * share)?;
        mean_loss += loss::scalar(&loss)?;
        learner.backward(&routers.add(&loss, routing.as_ref(), share)?)?;
    }
    Ok((mean_loss, routers))
}

/// Accumulates the gradients of a batch of plain text; returns its unweighted loss.
fn train_on_text(
    recipe: &FinetuneRecipe,
    learner: &mut Learner,
    TokenBatch { inputs, targets, .. }: TokenBatch,
    dropout: u64,
) -> Result<f64> {
    let labels: Vec<i64> = targets.into_iter().map(i64::from).collect();
    let batch = Batch::from_flat(&inputs, recipe.seq_len)?.with_dropout(dropout);
    let hidden = learner.model.hidden(&batch, None)?; // (b, t, hidden)
    let loss = loss::next_token(&learner.model, &hidden.flatten(0, 1)?, &labels)?;
    learner.backward(&(&loss * recipe.text_weight)?)?;
    loss::scalar(&loss)
}

/// If the adapter's settings name no trainable tokens, adds the chat template tokens that the base was never trained on: their
/// embeddings are nearly equal, so low-rank updates alone could not distinguish roles and ends of turns. An adapter that trains the
/// whole embedding needs no rows. Warns if the settings leave out an untrained end of turn.
fn with_chat_tokens(lora: &mut LoraConfig, base: &Model, tokenizer: &Tokenizer) -> Result<()> {
    if lora.trains_embeddings(base.config()) {
        return Ok(());
    }
    let format = tokenizer.chat_format()?;
    // Rows that pad the embedding to a round size are never trained either.
    let padding = (tokenizer.vocab_size()..base.config().vocab_size).take(64).map(|id| id as u32);
    let among: Vec<u32> = tokenizer.special_ids().into_iter().chain(padding).collect();
    let untrained = base.untrained_tokens(&format.special, &among)?;
    match &lora.trainable_token_indices {
        None if !untrained.is_empty() => {
            let names: Vec<String> = untrained.iter().filter_map(|&id| tokenizer.token(id)).collect();
            tracing::info!("the base was not trained on {}; the adapter trains their embeddings too", names.join(", "));
            lora.trainable_token_indices = Some(TokenIndices::of_both(base.config(), untrained));
        }
        Some(indices) if untrained.contains(&format.end_of_turn) && !indices.contains(format.end_of_turn) => {
            let end = tokenizer.token(format.end_of_turn).unwrap_or_default();
            tracing::warn!(
                "{end} ends the turns, but the base was never trained on it and the adapter does not train its embedding: replies \
                 may not end; leave out \"trainable_token_indices\", or add {} to it",
                format.end_of_turn
            );
        }
        _ => {}
    }
    Ok(())
}

/// The random stream of the noise on embeddings.
const NOISE: u16 = 5;
