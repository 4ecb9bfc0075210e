//! Knowledge distillation: a small student learns the whole distribution of its teacher (Hinton et al. 2015, arXiv
//! 1503.02531).
//!
//! The loss of each token is `α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy`. A fresh student goes
//! through its teacher's life in short: first plain text, then conversations, where the answers alone count.

use std::path::Path;

use candle_core::Tensor;
use llm_data::{Batches, TokenDataset};
use llm_kernels::Distillation;
use llm_model::{Batch, Head, Model, ModelConfig};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::{load_model, pad_id};
use crate::eval::is_eval_step;
use crate::examples::{Example, LengthBatches, answer_places, pick_rows, train_and_held_out};
use crate::optim::OptimizerConfig;
use crate::run::{Run, RunOptions, learner};
use crate::{Error, Result, loss};

/// The numbers of a distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillRecipe {
    /// Seed of the student's weights and of the order of the data.
    pub seed: u64,
    /// α, the weight of the teacher's distribution; the rest is the data's own next token.
    pub alpha: f64,
    /// T, by which both logits are divided.
    pub temperature: f64,
    /// Steps on plain text, if there is any.
    pub text_steps: u64,
    /// Rows of a step on plain text.
    pub text_batch_size: usize,
    /// Tokens of a row of plain text.
    pub seq_len: usize,
    /// Passes over the conversations.
    pub epochs: u64,
    /// Conversations of a step.
    pub batch_size: usize,
    /// Longer conversations, in tokens, are left out.
    pub max_length: usize,
    /// Steps between two evaluations on held-out conversations.
    pub eval_every: u64,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The shape of a fresh student; what the vocabulary and the positions ask for is the teacher's.
    pub student: ModelConfig,
}

impl Default for DistillRecipe {
    fn default() -> Self {
        let student = ModelConfig {
            hidden_size: 96,
            intermediate_size: 256,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            ..ModelConfig::default()
        };
        Self {
            seed: 42,
            alpha: 0.9,
            temperature: 2.,
            text_steps: 500,
            text_batch_size: 16,
            seq_len: 128,
            epochs: 3,
            batch_size: 32,
            max_length: 512,
            eval_every: 100,
            save_every: 100,
            optimizer: OptimizerConfig { learning_rate: 3e-3, ..OptimizerConfig::default() },
            student,
        }
    }
}

/// What [`distill`] reads.
#[derive(Debug, Clone, Copy)]
pub struct DistillInputs<'a> {
    /// The folder of the teacher.
    pub teacher: &'a Path,
    /// The folder of a student to go on with; none: a fresh one.
    pub student: Option<&'a Path>,
    /// Conversations.
    pub data: &'a Path,
    /// Conversations to test on; none: a twentieth of `data`.
    pub held_out: Option<&'a Path>,
    /// The folder of token shards to read first.
    pub text: Option<&'a Path>,
}

/// Distils a teacher into a student; the run folder `out` becomes the student's Hugging Face folder.
pub fn distill(recipe: &DistillRecipe, inputs: DistillInputs, out: &Path, options: RunOptions) -> Result<()> {
    let tokenizer = Tokenizer::from_dir(inputs.teacher)?;
    if !tokenizer.has_chat_template() {
        let teacher = inputs.teacher.display();
        return Err(Error::Input(format!(
            "{teacher}: has no chat template; fine-tune it by `llm-train finetune` first"
        )));
    }
    let pad = pad_id(&tokenizer, inputs.teacher)?;
    let teacher = load_model(inputs.teacher, Head::LanguageModel)?;
    let max_length = recipe.max_length.min(teacher.config().max_position_embeddings);
    let (train, held_out) = train_and_held_out(inputs.data, inputs.held_out, &tokenizer, max_length)?;
    let text = inputs.text.map(|dir| TokenDataset::open(dir, "train")).transpose()?;
    if text.as_ref().is_some_and(|text| text.manifest().vocab_size > teacher.config().vocab_size) {
        let message =
            "was prepared with a larger vocabulary than the teacher's; prepare it with the teacher's tokenizer";
        return Err(Error::Input(format!("{}: {message}", inputs.text.unwrap_or(inputs.data).display())));
    }
    let mut shown =
        vec![("teacher", inputs.teacher.display().to_string()), ("data", inputs.data.display().to_string())];
    let others = [("student", inputs.student), ("held_out", inputs.held_out), ("text", inputs.text)];
    shown.extend(others.into_iter().filter_map(|(name, path)| Some((name, path?.display().to_string()))));
    let (mut run, checkpoint) = Run::open(out, recipe, &shown, options)?;
    let mut learner = learner(checkpoint.as_ref(), &recipe.optimizer, || student(recipe, &inputs, &teacher))?;
    let size = |m: &Model| m.count().total() as f64;
    let share = 100. * size(&learner.model) / size(&teacher);
    tracing::info!("the student has {share:.1} % of its teacher's parameters");

    let mut conversations =
        LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), recipe.batch_size, recipe.seed)?;
    let mut text = match &text {
        Some(text) => Some(Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed)?),
        None => None,
    };
    let text_steps = if text.is_some() { recipe.text_steps } else { 0 };
    let steps = text_steps + conversations.per_epoch() * recipe.epochs;
    let first = checkpoint.map_or(0, |c| c.step);
    run.begin(steps, first, "steps");

    for step in first..steps {
        let lesson = match &mut text {
            Some(text) if step < text_steps => Lesson::of_text(text.batch(step)?, recipe.seq_len)?,
            _ => {
                let chosen: Vec<&Example> = conversations.batch(step - text_steps).iter().map(|&i| &train[i]).collect();
                Lesson::of_answers(&chosen, pad)?
            }
        };
        // α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy
        let taught = lesson.teach(&learner.model, &teacher, recipe.alpha, recipe.temperature)?;
        learner.backward(&taught.loss)?;
        let learning_rate = recipe.optimizer.learning_rate_at(step, steps);
        let grad_norm = learner.step(learning_rate)?;
        let (done, loss) = (step + 1, loss::scalar(&taught.loss)?);
        run.check_finite(done, &[("loss", loss), ("grad_norm", grad_norm)])?;
        run.log(
            done,
            &[
                ("loss", loss),
                ("kl_loss", recipe.temperature * recipe.temperature * taught.kl),
                ("cross_entropy_loss", taught.cross_entropy),
                ("grad_norm", grad_norm),
                ("learning_rate", learning_rate),
            ],
        )?;
        run.progress(done, &format!("loss {loss:.3}"));
        if is_eval_step(done, recipe.eval_every, steps) {
            let (kl, cross_entropy) = evaluate(&learner.model.frozen()?, &teacher, &held_out, recipe.batch_size, pad)?;
            run.log(done, &[("eval_kl", kl), ("eval_loss", cross_entropy)])?;
            tracing::info!("step {done}: held-out KL from the teacher {kl:.4}, loss {cross_entropy:.4}");
        }
        if done.is_multiple_of(recipe.save_every) {
            run.checkpoint_of(done, &learner, &tokenizer)?;
        }
    }
    run.finish(steps, |dir| {
        tokenizer.save(dir)?;
        Ok(learner.model.save(dir)?)
    })
}

/// Rows of tokens, the flat places whose next token counts, and those tokens.
struct Lesson {
    batch: Batch,
    places: Option<Vec<u32>>,
    labels: Vec<i64>,
}

impl Lesson {
    /// Every token of plain text.
    fn of_text((inputs, targets): (Vec<u32>, Vec<u32>), seq_len: usize) -> Result<Self> {
        let labels = targets.into_iter().map(i64::from).collect();
        Ok(Self { batch: Batch::from_flat(&inputs, seq_len)?, places: None, labels })
    }

    /// The assistant's tokens of conversations.
    fn of_answers(examples: &[&Example], pad: u32) -> Result<Self> {
        let (batch, places, labels) = answer_places(examples, pad)?;
        Ok(Self { batch, places: Some(places), labels })
    }

    /// The hidden states from which a model tells the tokens that count: `(n, hidden)`.
    fn states(&self, model: &Model) -> Result<Tensor> {
        let hidden = model.hidden(&self.batch, None)?; // (b, t, hidden)
        Ok(match &self.places {
            Some(places) => pick_rows(&hidden, places.clone())?,
            None => hidden.flatten(0, 1)?,
        })
    }

    fn teach(&self, student: &Model, teacher: &Model, alpha: f64, temperature: f64) -> Result<Distillation> {
        let theirs = self.states(teacher)?.detach();
        Ok(student.distillation(&self.states(student)?, (teacher, &theirs), &self.labels, alpha, temperature)?)
    }
}

/// KL divergence from the teacher (at T = 1) and cross-entropy, the means over all tokens of the answers.
fn evaluate(student: &Model, teacher: &Model, held_out: &[Example], batch_size: usize, pad: u32) -> Result<(f64, f64)> {
    let (mut kl_sum, mut loss_sum, mut count) = (0., 0., 0.);
    for chunk in held_out.chunks(batch_size) {
        let lesson = Lesson::of_answers(&chunk.iter().collect::<Vec<_>>(), pad)?;
        let seen = lesson.teach(student, teacher, 1., 1.)?;
        let n = lesson.labels.len() as f64;
        kl_sum += n * seen.kl;
        loss_sum += n * seen.cross_entropy;
        count += n;
    }
    Ok((kl_sum / f64::max(count, 1.), loss_sum / f64::max(count, 1.)))
}

/// The student to begin with: that of a folder, or a fresh one; its vocabulary must be the teacher's.
fn student(recipe: &DistillRecipe, inputs: &DistillInputs, teacher: &Model) -> Result<Model> {
    let taught = teacher.config();
    let Some(dir) = inputs.student else {
        let config = ModelConfig {
            vocab_size: taught.vocab_size,
            max_position_embeddings: taught.max_position_embeddings,
            bos_token_id: taught.bos_token_id,
            eos_token_id: taught.eos_token_id,
            pad_token_id: taught.pad_token_id,
            ..recipe.student.clone()
        };
        return Ok(Model::init(config, Head::LanguageModel, recipe.seed)?);
    };
    let student = load_model(dir, Head::LanguageModel)?;
    let same_words = Tokenizer::from_dir(dir)?.fingerprint() == Tokenizer::from_dir(inputs.teacher)?.fingerprint();
    if student.config().vocab_size != taught.vocab_size || !same_words {
        let (dir, teacher) = (dir.display(), inputs.teacher.display());
        return Err(Error::Input(format!(
            "{dir}: its vocabulary is not that of {teacher}; both must have one tokenizer"
        )));
    }
    Ok(student.trainable()?)
}
