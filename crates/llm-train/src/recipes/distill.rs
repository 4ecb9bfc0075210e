//! Knowledge distillation: a student is trained on the next-token distribution of its teacher (Hinton et al. 2015, arXiv
//! 1503.02531).
//!
//! The loss per token is `α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy`. The student is trained on plain text first,
//! then on conversations, where the loss counts the answers only. Plain text has a separate teacher, such as the pre-trained model;
//! without one plain text is trained with labels only (α = 0).

mod batch;

use std::path::{Path, PathBuf};

use batch::DistillBatch;
use candle_core::Device;
use llm_data::{Batches, TokenDataset};
use llm_model::{Head, LoraConfig, Model, ModelConfig, ParamCount, read_config};
use llm_tokenizer::{ChatFormat, Tokenizer, TrainOn};
use serde::{Deserialize, Serialize};

use super::{chat_format, kind, load_model, load_tokenizer};
use crate::adapters::{Adapters, dropout_seed};
use crate::batches::{BatchSize, LengthBatches};
use crate::compat::{TokenSource, check_compatible, refuse_overwritten};
use crate::data::{DataOptions, one_or_several};
use crate::examples::{Example, take_evenly};
use crate::optim::OptimizerConfig;
use crate::routing::RouterMetrics;
use crate::rows::train_and_validation;
use crate::run::{Evaluation, Outcome, Plan, RunOptions, RunSetup, Start};
use crate::{Error, Result};

/// The recipe of distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillRecipe {
    /// Seed for initial weights and data order.
    pub seed: u64,
    /// α, the weight of the distillation loss, from 0 to 1; the cross-entropy has weight 1 - α. 0: no teacher runs, which gives the
    /// baseline of the same student on the same tokens.
    pub alpha: f64,
    /// T: the logits of teacher and student are divided by it.
    pub temperature: f64,
    /// Steps on plain text before the conversations, if there is plain text.
    pub text_steps: u64,
    /// Sequences of plain text per step.
    pub text_batch_size: usize,
    /// Sequence length of plain text in tokens.
    pub seq_len: usize,
    /// Weight of the loss on plain text during the steps on conversations; 0: no plain text then.
    pub text_weight: f64,
    /// Number of passes over the conversations.
    pub epochs: u64,
    /// Conversations per step, padded to the longest; with `max_tokens`: conversations per batch of an evaluation only.
    pub batch_size: usize,
    /// Packs conversations into steps of at most this many tokens by best-fit decreasing, without padding; 0: steps of `batch_size`
    /// conversations. At least `max_length`.
    pub max_tokens: usize,
    /// Longer conversations are left out, in tokens.
    pub max_length: usize,
    /// Steps between evaluations on the validation split; 0: only at the end.
    pub eval_every: u64,
    /// Batches per evaluation, spread evenly over the validation split; 0: all.
    pub eval_batches: usize,
    /// Steps between checkpoints; 0: only at the end.
    pub save_every: u64,
    /// How the data files are read.
    pub data: DataOptions,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// A LoRA adapter of a student with a folder, to train instead of its weights. The run writes the adapter in the PEFT format, and no
    /// model.
    pub lora: Option<LoraConfig>,
    /// The configuration of a new student. Vocabulary, special ids and context length come from the teacher.
    pub student: ModelConfig,
}

impl Default for DistillRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`distill`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct DistillInputs {
    /// Folder of the teacher; on the command line also org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR"))]
    pub teacher: PathBuf,
    /// Data files or folders of conversations, as for `finetune`; may be repeated.
    #[cfg_attr(feature = "cli", arg(long, required = true, num_args = 1.., value_name = "PATH"))]
    #[serde(deserialize_with = "one_or_several")]
    pub data: Vec<PathBuf>,
    /// Folder of a student to continue training [default: a new model of the recipe's shape].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 3))]
    pub student: Option<PathBuf>,
    /// Validation conversations [default: those of 5 % of the prompts of --data, chosen by the recipe's seed].
    #[cfg_attr(feature = "cli", arg(long, alias = "held-out", value_name = "FILE", display_order = 4))]
    pub validation: Option<PathBuf>,
    /// Folder of token shards to train on before the conversations.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 5))]
    pub text: Option<PathBuf>,
    /// Folder of the teacher of plain text, such as the pre-trained model [default: train text on its labels only].
    #[cfg_attr(feature = "cli", arg(long, requires = "text", value_name = "DIR", display_order = 6))]
    pub text_teacher: Option<PathBuf>,
    /// Folder of an adapter of the student, of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 7))]
    pub adapter: Option<PathBuf>,
}

/// Distils a teacher into a student. The run folder `out` becomes the student's Hugging Face folder.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn distill(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out.as_ref(), options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = load_tokenizer(&inputs.teacher)?.with_end_of_turn_as_eos();
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, &inputs.teacher)?;
    let Teachers { teacher_config, teacher, text_teacher, text } =
        Teachers::load(recipe, inputs, &tokenizer, setup.device())?;
    let mut first_student = student(recipe, inputs, &teacher_config, &tokenizer, text.as_ref())?;
    first_student.set_end_of_turn(end_of_turn);
    let positions = teacher_config.max_position_embeddings.min(first_student.config().max_position_embeddings);
    let max_length = recipe.max_length.min(positions);
    let (train, validation) = examples(recipe, inputs, &tokenizer, max_length)?;
    let size = BatchSize::of_recipe(recipe.batch_size, recipe.max_tokens);
    let mut conversations = LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), size, recipe.seed)?;
    let batches_of = |text| Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed);
    let mut text = text.as_ref().map(batches_of).transpose()?;
    let validation = take_evenly(validation, recipe.eval_batches * recipe.batch_size);
    let model = inputs.student.as_deref().unwrap_or(&inputs.teacher);
    let adapters = Adapters::new(model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let mut learner = adapters.learner(&first_student, &setup, &recipe.optimizer)?;
    log_share(learner.model.config(), &teacher_config);
    let text_steps = if text.is_some() { recipe.text_steps } else { 0 };
    let steps = text_steps + conversations.count(recipe.epochs);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} conversations", validation.len()),
            run: Box::new(|model, evaluating| {
                let metrics = evaluate(&model, teacher.as_ref(), &validation, recipe.batch_size, pad)?;
                let shown: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                evaluating.log(&metrics, &shown.join(", "))
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;

    for step in run.steps() {
        // Plain text first, then conversations, with plain text as rehearsal.
        let mut routers = RouterMetrics::default();
        let (mut metrics, mut tokens) = (Vec::new(), 0);
        let dropout = dropout_seed(recipe.seed, step.index);
        let on_answers = step.index.checked_sub(text_steps);
        if let Some(n) = on_answers {
            let chosen: Vec<&Example> = conversations.batch(n).iter().map(|&i| &train[i]).collect();
            tokens += chosen.iter().map(|example| example.ids.len()).sum::<usize>();
            let batch = DistillBatch::of_answers(&chosen, size.padding(pad), Some(dropout))?;
            metrics.extend(batch.accumulate_gradients(&mut learner, teacher.as_ref(), recipe, 1., &mut routers)?);
        }
        if let Some(text) = text.as_mut().filter(|_| on_answers.is_none() || recipe.text_weight > 0.) {
            tokens += recipe.text_batch_size * recipe.seq_len;
            let batch = DistillBatch::of_text(text.batch(step.index)?, recipe.seq_len, !dropout)?;
            let weight = if on_answers.is_none() { 1. } else { recipe.text_weight };
            let losses =
                batch.accumulate_gradients(&mut learner, text_teacher.as_ref(), recipe, weight, &mut routers)?;
            match on_answers {
                None => metrics.extend(losses),
                Some(_) => metrics.push(("text_loss", losses[0].1)),
            }
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        metrics.extend([("grad_norm", learner.step(learning_rate)?), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(tokens));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The teachers and the plain text.
struct Teachers {
    /// The configuration of the teacher.
    teacher_config: ModelConfig,
    /// The teacher of conversations; `None` if α is 0.
    teacher: Option<Model>,
    /// The teacher of plain text; `None` if not given, or if α is 0.
    text_teacher: Option<Model>,
    text: Option<TokenDataset>,
}

impl Teachers {
    /// Loads the teachers and checks that all have the same tokenizer.
    fn load(recipe: &DistillRecipe, inputs: &DistillInputs, tokenizer: &Tokenizer, device: &Device) -> Result<Self> {
        let described = read_config(&inputs.teacher)?;
        if described.head != Head::LanguageModel {
            let (teacher, found) = (inputs.teacher.display(), kind(described.head));
            return Err(Error::Unsupported(format!(
                "{teacher}: the model is {found}; a teacher must be a language model"
            )));
        }
        let teacher_config = described.config;
        let teacher_tokenizer = (tokenizer, inputs.teacher.as_path());
        let text = inputs.text.as_ref().map(|dir| TokenDataset::open(dir, "train")).transpose()?;
        check_compatible(&teacher_config, teacher_tokenizer, text_source(recipe, inputs, text.as_ref()).as_slice())?;
        if let Some(dir) = &inputs.text_teacher {
            if text.is_none() {
                let dir = dir.display();
                return Err(Error::BadRequest(format!(
                    "{dir}: a teacher of plain text needs plain text; give --text too"
                )));
            }
            let source = text_source(recipe, inputs, text.as_ref());
            check_vocabulary((&teacher_config, teacher_tokenizer), (&read_config(dir)?.config, dir), source)?;
        }
        // The teacher has the precision of the student, as both see the same tokens in every step.
        let load = |dir: &Path| {
            let model = load_model(dir, Head::LanguageModel)?.to_device(device)?;
            Ok::<_, Error>(model.in_precision(recipe.optimizer.precision)?)
        };
        let runs_teacher = recipe.alpha != 0.;
        let teacher = if runs_teacher { Some(load(&inputs.teacher)?) } else { None };
        let text_teacher = inputs.text_teacher.as_deref().filter(|_| runs_teacher).map(load).transpose()?;
        Ok(Self { teacher_config, teacher, text_teacher, text })
    }
}

/// The plain text as a source of tokens, if there is any.
fn text_source<'a>(
    recipe: &DistillRecipe,
    inputs: &'a DistillInputs,
    text: Option<&'a TokenDataset>,
) -> Option<TokenSource<'a>> {
    let (shards, dir) = text.zip(inputs.text.as_deref())?;
    Some(TokenSource::Shards { shards, dir, seq_len: recipe.seq_len })
}

/// Checks that the model in `dir` has the tokenizer and the vocabulary size of the teacher.
fn check_vocabulary(
    (teacher_config, teacher_tokenizer): (&ModelConfig, (&Tokenizer, &Path)),
    (config, dir): (&ModelConfig, &Path),
    text: Option<TokenSource>,
) -> Result<()> {
    let other = TokenSource::Model { config, tokenizer: &Tokenizer::load(dir)?, dir };
    check_compatible(teacher_config, teacher_tokenizer, &text.into_iter().chain([other]).collect::<Vec<_>>())?;
    if config.vocab_size != teacher_config.vocab_size {
        let (found, expected, teacher) = (config.vocab_size, teacher_config.vocab_size, teacher_tokenizer.1.display());
        return Err(Error::BadRequest(format!(
            "{}: \"vocab_size\" is {found}, that of {teacher} is {expected}; both must be equal",
            dir.display()
        )));
    }
    Ok(())
}

/// `eval_loss`, the cross-entropy, and with a teacher `eval_kl`, the KL divergence at T = 1: means over the tokens of all answers.
fn evaluate(
    student: &Model,
    teacher: Option<&Model>,
    validation: &[Example],
    batch_size: usize,
    pad: u32,
) -> Result<Vec<(&'static str, f64)>> {
    let (mut kl_sum, mut loss_sum, mut count) = (0., 0., 0.);
    for chunk in validation.chunks(batch_size) {
        let batch = DistillBatch::of_answers(&chunk.iter().collect::<Vec<_>>(), Some(pad), None)?;
        let losses = batch.loss(student, teacher, 1., 1.)?;
        let n = batch.labels.len() as f64;
        kl_sum += n * losses.kl.unwrap_or(0.);
        loss_sum += n * losses.cross_entropy;
        count += n;
    }
    let count = f64::max(count, 1.);
    let kl = teacher.map(|_| ("eval_kl", kl_sum / count));
    Ok(kl.into_iter().chain([("eval_loss", loss_sum / count)]).collect())
}

/// The conversations to train and to validate on.
fn examples(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Example>, Vec<Example>)> {
    let files = (inputs.data.as_slice(), inputs.validation.as_deref());
    train_and_validation(files, &recipe.data, recipe.seed, (tokenizer, TrainOn::All), max_length)
}

fn log_share(student: &ModelConfig, teacher: &ModelConfig) {
    let parameters = |config: &ModelConfig| ParamCount::of(config, Head::LanguageModel).total() as f64;
    let share = 100. * parameters(student) / parameters(teacher);
    tracing::info!("the student has {share:.1} % of the teacher's parameters");
}

/// The initial student: loaded from a folder, or a new one. Its vocabulary must be the teacher's.
fn student(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    teacher_config: &ModelConfig,
    teacher_tokenizer: &Tokenizer,
    text: Option<&TokenDataset>,
) -> Result<Model> {
    let Some(dir) = &inputs.student else {
        if recipe.lora.is_some() || inputs.adapter.is_some() {
            let message = "an adapter needs a trained model below it; give the student's folder with --student";
            return Err(Error::BadRequest(message.to_owned()));
        }
        let config = ModelConfig {
            vocab_size: teacher_config.vocab_size,
            max_position_embeddings: teacher_config.max_position_embeddings,
            bos_token_id: teacher_config.bos_token_id,
            eos_token_id: teacher_config.eos_token_id,
            pad_token_id: teacher_config.pad_token_id,
            ..recipe.student.clone()
        };
        refuse_overwritten("student", &recipe.student, &config, "the teacher")?;
        return Ok(Model::init(config, Head::LanguageModel, recipe.seed)?);
    };
    let student = load_model(dir, Head::LanguageModel)?;
    let source = text_source(recipe, inputs, text);
    check_vocabulary((teacher_config, (teacher_tokenizer, &inputs.teacher)), (student.config(), dir), source)?;
    Ok(student)
}
