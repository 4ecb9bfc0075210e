//! Knowledge distillation: a student is trained on the next-token distribution of its teacher (Hinton et al. 2015, arXiv
//! 1503.02531).
//!
//! The loss per token is `α · T² · divergence(teacher/T, student/T) + (1 - α) · cross-entropy`. The student is trained on plain text first,
//! then on conversations, where the loss counts the answers only. Plain text has a separate teacher, such as the pre-trained model;
//! without one plain text is trained with labels only (α = 0).

mod batch;
mod hidden;
mod replies;
mod report;
mod student;
mod teachers;
mod trainer;

use std::path::{Path, PathBuf};

use hidden::HiddenStates;
use llm_data::Batches;
use llm_model::{Head, LoraConfig, ModelConfig, ParamCount};
use llm_tokenizer::{ChatFormat, Tokenizer, TrainOn};
use replies::Replies;
pub use report::{DistillReport, DistillRow, MeasureDecode, distill_report, measure_decode};
use serde::{Deserialize, Serialize};
use teachers::Teachers;
use trainer::{Trainer, evaluate};

use super::{chat_format, load_tokenizer};
use crate::adapters::Adapters;
use crate::batches::{BatchSize, LengthBatches};
use crate::data::{DataOptions, one_or_several};
use crate::examples::{Example, take_evenly};
use crate::loss::{DistillationOptions, Divergence};
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
    /// How the student is compared with the teacher.
    pub divergence: DivergenceKind,
    /// β of [`DivergenceKind::Jsd`]: the weight of the teacher in the mixture, from 0 (the forward KL) to 1 (the reverse KL).
    pub beta: f64,
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
    /// λ, from 0 to 1: the probability that a batch of conversations has replies of the student instead of the answers of the data
    /// (generalised knowledge distillation, Agarwal et al. 2024, arXiv 2306.13649). Its loss is the divergence alone, times α.
    pub on_policy: f64,
    /// Whether the answers of the data are replaced by the teacher's most likely ones at the start (sequence-level distillation, Kim and Rush
    /// 2016, arXiv 1606.07947).
    pub sequence_level: bool,
    /// Longest generated reply, in tokens.
    pub max_new_tokens: usize,
    /// The temperature of the student's replies.
    pub sampling_temperature: f64,
    /// Weight of the mean squared error of hidden states after a learned projection, besides the loss above; 0: none.
    pub hidden_weight: f64,
    /// Pairs of layers of student and teacher, counted from 0, whose outputs are compared; empty: each layer of the student with one of the
    /// teacher, evenly spaced, the last with the last.
    pub hidden_layers: Vec<[usize; 2]>,
    /// Whether to train the same student also without the teacher, on the answers of the data in as many steps (α = 0), in the folder `control` of the
    /// run.
    pub control: bool,
    /// Number of layers that a new student takes from the teacher with their weights, evenly spaced, the first and the last among them;
    /// 0: a student of the table `student`, with random weights.
    pub student_layers: usize,
    /// The configuration of a new student. Vocabulary, special ids and context length come from the teacher.
    pub student: ModelConfig,
}

/// The divergence of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DivergenceKind {
    /// [`Divergence::Forward`].
    Forward,
    /// [`Divergence::Reverse`].
    Reverse,
    /// [`Divergence::Jsd`] with the recipe's `beta`.
    Jsd,
}

impl DistillRecipe {
    /// The loss, for vocabularies that share this number of tokens.
    fn loss(&self, vocab: usize) -> DistillationOptions {
        let divergence = match self.divergence {
            DivergenceKind::Forward => Divergence::Forward,
            DivergenceKind::Reverse => Divergence::Reverse,
            DivergenceKind::Jsd => Divergence::Jsd(self.beta),
        };
        DistillationOptions { alpha: self.alpha, temperature: self.temperature, divergence, vocab }
    }
}

impl Default for DistillRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The inputs of [`distill`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Tasks of the built-in world for the table at the end, such as `data/tasks-held_out.jsonl` of a lifecycle run.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE", display_order = 9))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<PathBuf>,
    /// Folder of `teacher-logits write`: the teacher's stored log-probabilities of these conversations, so that it does not run in training.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 8))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_logits: Option<PathBuf>,
    /// Folder of an adapter of the student, of an earlier stage, in the format of PEFT. Without a table `lora` its training goes on; with one it is frozen,
    /// and a new adapter is trained on top of it [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR", display_order = 7))]
    pub adapter: Option<PathBuf>,
}

/// The folder of the student without a teacher, in that of the run.
const CONTROL: &str = "control";

/// Distils a teacher into a student, and with `control` trains the student without the teacher too. The run folder `out` becomes the student's
/// Hugging Face folder.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn distill(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    out: impl AsRef<Path>,
    options: RunOptions,
) -> Result<Outcome> {
    let (out, RunOptions { resume, device, observer, stop }) = (out.as_ref(), options);
    let outcome =
        train(recipe, inputs, out, RunOptions { resume, device: device.clone(), observer: &mut *observer, stop })?;
    if recipe.control {
        let alone = DistillRecipe {
            alpha: 0.,
            on_policy: 0.,
            sequence_level: false,
            hidden_weight: 0.,
            control: false,
            ..recipe.clone()
        };
        let inputs = DistillInputs { text_teacher: None, teacher_logits: None, ..inputs.clone() };
        let dir = out.join(CONTROL);
        train(&alone, &inputs, &dir, RunOptions::of_stage(&dir, &device, observer, stop)).map_err(
            |error| match error {
                Error::Interrupted { done, .. } => {
                    Error::Interrupted { run: out.to_owned(), done: format!("{done} ({CONTROL})") }
                }
                error => error,
            },
        )?;
    }
    Ok(outcome)
}

/// Trains a student in the folder `out`.
fn train(recipe: &DistillRecipe, inputs: &DistillInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let setup = match RunSetup::check(recipe, inputs, out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = load_tokenizer(&inputs.teacher)?.with_end_of_turn_as_eos();
    let ChatFormat { end_of_turn, pad, .. } = *chat_format(&tokenizer, &inputs.teacher)?;
    let mut teachers = Teachers::load(recipe, inputs, &tokenizer, setup.device())?;
    let mut first_student = student::first(recipe, inputs, (&teachers.teacher_config, &tokenizer))?;
    first_student.set_end_of_turn(end_of_turn);
    let positions = teachers.teacher_config.max_position_embeddings;
    let max_length = recipe.max_length.min(positions).min(first_student.config().max_position_embeddings);
    let (train, validation) = examples(recipe, inputs, &tokenizer, max_length)?;
    teachers.read_stored(recipe, inputs, &tokenizer, (&train, &validation))?;
    let replies = Replies { recipe, max_length };
    let train = teachers.answers(replies, train, end_of_turn)?;
    let validation = validation_of(recipe, &validation, pad);
    if let Some(tasks) = &inputs.tasks {
        report::read_tasks(tasks)?;
    }
    let size = BatchSize::of_recipe(recipe.batch_size, recipe.max_tokens);
    let conversations = LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), size, recipe.seed)?;
    let Teachers { teacher_config, teacher, text_teacher, text } = &teachers;
    let batches_of = |text| Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed);
    let text = text.as_ref().map(batches_of).transpose()?;
    let model = inputs.student.as_deref().unwrap_or(&inputs.teacher);
    let adapters = Adapters::new(model, recipe.lora.as_ref(), inputs.adapter.as_ref(), recipe.seed);
    let mut learner = adapters.learner(&first_student, &setup, &recipe.optimizer)?;
    let hidden = HiddenStates::of(recipe, first_student.config(), teacher_config, setup.device())?;
    if let Some(hidden) = &hidden {
        let trainer = setup.checkpoint().map(|checkpoint| checkpoint.dir.join("trainer"));
        learner.train_also(hidden.projections(), &recipe.optimizer, trainer.as_deref())?;
    }
    log_share(learner.model.config(), teacher_config);
    let loss = recipe.loss(tokenizer.vocab_size());
    let text_steps = if text.is_some() { recipe.text_steps } else { 0 };
    let (hidden, text_teacher) = (hidden.as_ref(), text_teacher.as_ref());
    let train = train.as_slice();
    #[rustfmt::skip]
    let mut trainer = Trainer {
        recipe, loss, teacher, text_teacher, hidden, train, conversations, text, text_steps, size, pad, replies,
    };
    let steps = text_steps + trainer.conversations.count(recipe.epochs);
    let run = setup.open(Plan {
        steps,
        save_every: recipe.save_every,
        unit: ("steps", 1),
        shown: &[("loss", "loss", 3)],
        evaluation: Some(Evaluation {
            every: recipe.eval_every,
            selection: None,
            size: format!("{} conversations", validation.examples.len()),
            run: Box::new(|model, evaluating| {
                let metrics = evaluate((&model, teacher), &validation, &loss)?;
                let shown: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                evaluating.log(&metrics, &shown.join(", "))
            }),
        }),
        write: adapters.writer(&tokenizer),
    })?;
    for step in run.steps() {
        let mut routers = RouterMetrics::default();
        let (mut metrics, tokens) = trainer.accumulate(&mut learner, step.index, &mut routers)?;
        let learning_rate = recipe.optimizer.learning_rate_at(step.index, steps);
        metrics.extend([("grad_norm", learner.step(learning_rate)?), ("learning_rate", learning_rate)]);
        metrics.extend(step.throughput(tokens));
        step.finish(&learner, &metrics, routers.metrics())?;
    }
    run.finish(&learner)
}

/// The conversations to validate on.
struct Validation {
    /// With their numbers in the whole validation split.
    examples: Vec<(usize, Example)>,
    batch_size: usize,
    pad: u32,
}

/// The conversations of the validation split that are evaluated.
fn validation_of(recipe: &DistillRecipe, validation: &[Example], pad: u32) -> Validation {
    let chosen = take_evenly((0..validation.len()).collect(), recipe.eval_batches * recipe.batch_size);
    let examples = chosen.into_iter().map(|i| (i, validation[i].clone())).collect();
    Validation { examples, batch_size: recipe.batch_size, pad }
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
