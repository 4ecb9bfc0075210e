//! Knowledge distillation: a small student learns the whole distribution of its teacher (Hinton et al. 2015, arXiv
//! 1503.02531).
//!
//! The loss of each token is `α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy`. A fresh student goes
//! through its teacher's life in short: first plain text, then conversations, where the answers alone count. Plain text
//! has a teacher of its own, a model that was trained on text; without one, its labels alone are trained on (α = 0).

use std::path::Path;

use candle_core::Tensor;
use llm_data::{Batches, TokenDataset};
use llm_model::{Batch, Head, Model, ModelConfig, ParamCount, Routing, read_config};
use llm_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::{chat_format, load_model};
use crate::eval::is_eval_step;
use crate::examples::{Example, LengthBatches, answer_places, pick_rows, spread, train_and_held_out};
use crate::fitting::{Ids, fitting};
use crate::optim::{Learner, OptimizerConfig};
use crate::routing::RouterLog;
use crate::run::{Input, Opening, Outcome, RunOptions, Start, learner};
use crate::{Error, Result, loss};

/// The numbers of a distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillRecipe {
    /// Seed of the student's weights and of the order of the data.
    pub seed: u64,
    /// α, the weight of the teacher's distribution; the rest is the data's own next token. 0: no teacher is run at all, which
    /// trains the same student on the same tokens for comparison.
    pub alpha: f64,
    /// T, by which both logits are divided.
    pub temperature: f64,
    /// Steps on plain text, if there is any.
    pub text_steps: u64,
    /// Rows of a step on plain text.
    pub text_batch_size: usize,
    /// Tokens of a row of plain text.
    pub seq_len: usize,
    /// Weight of the loss of plain text beside that of the answers, after the steps on plain text alone; 0: no more text.
    pub text_weight: f64,
    /// Passes over the conversations.
    pub epochs: u64,
    /// Conversations of a step.
    pub batch_size: usize,
    /// Longer conversations, in tokens, are left out.
    pub max_length: usize,
    /// Steps between two evaluations on held-out conversations; 0: only at the end.
    pub eval_every: u64,
    /// Batches of each evaluation, spread over the held-out conversations; 0: all.
    pub eval_batches: usize,
    /// Steps between two checkpoints; 0: only at the end.
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
            text_weight: 1.,
            epochs: 3,
            batch_size: 32,
            max_length: 512,
            eval_every: 100,
            eval_batches: 20,
            save_every: 100,
            optimizer: OptimizerConfig { learning_rate: 3e-3, ..OptimizerConfig::default() },
            student,
        }
    }
}

/// What [`distill`] reads.
#[derive(Debug, Clone, Copy)]
pub struct DistillInputs<'a> {
    /// The folder of the teacher; the tokenizer and the chat template are its own. With α = 0 its weights are not read.
    pub teacher: &'a Path,
    /// The folder of the teacher of plain text, such as the pre-trained model; none: plain text is trained on by its labels.
    pub text_teacher: Option<&'a Path>,
    /// The folder of a student to go on with; none: a fresh one.
    pub student: Option<&'a Path>,
    /// Conversations.
    pub data: &'a Path,
    /// Conversations to test on; none: those of a twentieth of the prompts of `data`.
    pub held_out: Option<&'a Path>,
    /// The folder of token shards to read first.
    pub text: Option<&'a Path>,
}

impl DistillInputs<'_> {
    fn named(&self) -> Vec<Input> {
        Input::given([
            ("teacher", Some(self.teacher)),
            ("data", Some(self.data)),
            ("student", self.student),
            ("held_out", self.held_out),
            ("text", self.text),
            ("text_teacher", self.text_teacher),
        ])
    }
}

/// Distils a teacher into a student; the run folder `out` becomes the student's Hugging Face folder.
pub fn distill(recipe: &DistillRecipe, inputs: DistillInputs, out: &Path, options: RunOptions) -> Result<Outcome> {
    let opening = match Opening::check(recipe, inputs.named(), out, options)? {
        Start::Open(opening) => opening,
        Start::Finished(outcome) => return Ok(outcome),
    };
    let tokenizer = Tokenizer::from_dir(inputs.teacher)?;
    let pad = chat_format(&tokenizer, inputs.teacher)?.pad;
    let Teachers { taught, teacher, text_teacher, text } = Teachers::load(recipe, &inputs, &tokenizer)?;
    let first_student = student(recipe, &inputs, &taught, &tokenizer, text.as_ref())?;
    let positions = taught.max_position_embeddings.min(first_student.config().max_position_embeddings);
    let max_length = recipe.max_length.min(positions);
    let (train, held_out) = train_and_held_out((inputs.data, inputs.held_out), recipe.seed, &tokenizer, max_length)?;
    let mut conversations =
        LengthBatches::new(train.iter().map(|e| e.ids.len()).collect(), recipe.batch_size, recipe.seed)?;
    let mut text = match &text {
        Some(text) => Some(Batches::new(text, recipe.text_batch_size, recipe.seq_len, recipe.seed)?),
        None => None,
    };
    let held_out = spread(held_out, recipe.eval_batches * recipe.batch_size);
    let mut learner = learner(opening.checkpoint(), &recipe.optimizer, || Ok(first_student))?;
    let size = |config: &ModelConfig| ParamCount::of(config, Head::LanguageModel).total() as f64;
    let share = 100. * size(learner.model.config()) / size(&taught);
    tracing::info!("the student has {share:.1} % of its teacher's parameters");

    let text_steps = if text.is_some() { recipe.text_steps } else { 0 };
    let steps = text_steps + conversations.per_epoch() * recipe.epochs;
    let first = opening.step();
    let mut run = opening.open(steps, recipe.save_every)?;
    run.begin(steps, first, "steps");

    for step in first..steps {
        // Plain text first, then answers, with plain text beside them so that it is not forgotten.
        let mut routers = RouterLog::default();
        let mut figures = Vec::new();
        if step >= text_steps {
            let chosen: Vec<&Example> = conversations.batch(step - text_steps).iter().map(|&i| &train[i]).collect();
            let lesson = Lesson::of_answers(&chosen, pad)?;
            figures.extend(lesson.learn(&mut learner, teacher.as_ref(), recipe, 1., &mut routers)?);
        }
        if let Some(text) = text.as_mut().filter(|_| step < text_steps || recipe.text_weight > 0.) {
            let lesson = Lesson::of_text(text.batch(step)?, recipe.seq_len)?;
            let guide = text_teacher.as_ref();
            if step < text_steps {
                figures.extend(lesson.learn(&mut learner, guide, recipe, 1., &mut routers)?);
            } else {
                let seen = lesson.learn(&mut learner, guide, recipe, recipe.text_weight, &mut routers)?;
                figures.extend(seen.into_iter().take(1).map(|(_, loss)| ("text_loss", loss)));
            }
        }
        let learning_rate = recipe.optimizer.learning_rate_at(step, steps);
        let grad_norm = learner.step(learning_rate)?;
        let (done, loss) = (step + 1, figures[0].1);
        figures.extend([("grad_norm", grad_norm), ("learning_rate", learning_rate)]);
        run.check_step(done, &figures)?;
        run.log_with(done, &figures, routers.figures())?;
        run.progress(done, &format!("loss {loss:.3}"));
        if is_eval_step(done, recipe.eval_every, steps) {
            run.progress(done, "evaluating");
            let figures = evaluate(&learner.model.frozen()?, teacher.as_ref(), &held_out, recipe.batch_size, pad)?;
            run.log(done, &figures)?;
            let shown: Vec<String> = figures.iter().map(|(name, figure)| format!("{name} {figure:.4}")).collect();
            tracing::info!("step {done}: {}", shown.join(", "));
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

/// Who teaches what: the models that are run, and the text.
struct Teachers {
    /// The shape of the teacher.
    taught: ModelConfig,
    /// The teacher of conversations; none if α is 0.
    teacher: Option<Model>,
    /// The teacher of plain text; none if there is none, or α is 0.
    text_teacher: Option<Model>,
    text: Option<TokenDataset>,
}

impl Teachers {
    /// Reads what teaches and checks that all of it has one tokenizer.
    fn load(recipe: &DistillRecipe, inputs: &DistillInputs, tokenizer: &Tokenizer) -> Result<Self> {
        let described = read_config(inputs.teacher)?;
        if described.head != Head::LanguageModel {
            let (teacher, head) = (inputs.teacher.display(), described.head);
            return Err(Error::Input(format!(
                "{teacher}: the model has the head {head:?}; a teacher is a language model"
            )));
        }
        let taught = described.config;
        let own = (tokenizer, inputs.teacher);
        let text = inputs.text.map(|dir| TokenDataset::open(dir, "train")).transpose()?;
        fitting(&taught, own, rows(recipe, inputs, text.as_ref()).as_slice())?;
        if let Some(dir) = inputs.text_teacher {
            if text.is_none() {
                let dir = dir.display();
                return Err(Error::Input(format!(
                    "{dir}: a teacher of plain text needs some; give token shards too (--text)"
                )));
            }
            let rows = rows(recipe, inputs, text.as_ref());
            same_vocabulary((&taught, own), (&read_config(dir)?.config, dir), rows)?;
        }
        let load = |dir: &Path| load_model(dir, Head::LanguageModel);
        let runs = recipe.alpha != 0.;
        let teacher = if runs { Some(load(inputs.teacher)?) } else { None };
        let text_teacher = inputs.text_teacher.filter(|_| runs).map(load).transpose()?;
        Ok(Self { taught, teacher, text_teacher, text })
    }
}

/// The rows of plain text, if there is any.
fn rows<'a>(recipe: &DistillRecipe, inputs: &DistillInputs<'a>, text: Option<&'a TokenDataset>) -> Option<Ids<'a>> {
    let (shards, dir) = text.zip(inputs.text)?;
    Some(Ids::Shards { shards, dir, seq_len: recipe.seq_len })
}

/// Checks that a model in `dir` reads what the teacher reads, and has as many logits.
fn same_vocabulary(
    (taught, own): (&ModelConfig, (&Tokenizer, &Path)),
    (config, dir): (&ModelConfig, &Path),
    rows: Option<Ids>,
) -> Result<()> {
    let other = Ids::Other { config, tokenizer: &Tokenizer::from_dir(dir)?, dir };
    fitting(taught, own, &rows.into_iter().chain([other]).collect::<Vec<_>>())?;
    if config.vocab_size != taught.vocab_size {
        let (is, wanted, teacher) = (config.vocab_size, taught.vocab_size, own.1.display());
        return Err(Error::Input(format!(
            "{}: \"vocab_size\" is {is}, that of {teacher} is {wanted}; logits are compared one by one, so both must be equal",
            dir.display()
        )));
    }
    Ok(())
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

    /// Of hidden states `(b, t, hidden)` those from which the tokens that count are predicted: `(n, hidden)`.
    fn pick(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(match &self.places {
            Some(places) => pick_rows(hidden, places.clone())?,
            None => hidden.flatten(0, 1)?,
        })
    }

    /// What the lesson comes to; without a teacher its labels alone count, whatever `alpha` is.
    /// Gathers the gradients of `weight · (α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy)`, where α is 0 without a
    /// teacher; returns the loss, without the weight, and its parts.
    fn learn(
        &self,
        learner: &mut Learner,
        teacher: Option<&Model>,
        recipe: &DistillRecipe,
        weight: f64,
        routers: &mut RouterLog,
    ) -> Result<Vec<(&'static str, f64)>> {
        let seen = self.teach(&learner.model, teacher, recipe.alpha, recipe.temperature)?;
        learner.backward(&routers.add(&(&seen.loss * weight)?, seen.routing.as_ref(), weight)?)?;
        let mut figures = vec![("loss", loss::scalar(&seen.loss)?), ("cross_entropy_loss", seen.cross_entropy)];
        figures.extend(seen.kl.map(|kl| ("kl_loss", recipe.temperature * recipe.temperature * kl)));
        Ok(figures)
    }

    fn teach(&self, student: &Model, teacher: Option<&Model>, alpha: f64, temperature: f64) -> Result<Taught> {
        let (hidden, routing) = student.hidden_and_routing(&self.batch)?; // (b, t, hidden)
        let ours = self.pick(&hidden)?; // (n, hidden)
        let Some(teacher) = teacher else {
            let loss = student.cross_entropy(&ours, &self.labels)?;
            return Ok(Taught { kl: None, cross_entropy: loss::scalar(&loss)?, loss, routing });
        };
        let theirs = self.pick(&teacher.hidden(&self.batch, None)?)?.detach();
        let seen = student.distillation(&ours, (teacher, &theirs), &self.labels, alpha, temperature)?;
        Ok(Taught { loss: seen.loss, kl: Some(seen.kl), cross_entropy: seen.cross_entropy, routing })
    }
}

/// What a lesson comes to: means over its tokens.
struct Taught {
    /// What is to become small: a scalar.
    loss: Tensor,
    /// `KL(teacher/T ‖ student/T)`, if there is a teacher.
    kl: Option<f64>,
    cross_entropy: f64,
    /// What the student's routers did.
    routing: Option<Routing>,
}

/// `eval_loss`, the cross-entropy, and `eval_kl`, the divergence from the teacher (at T = 1) if there is one: means over all
/// tokens of the answers.
fn evaluate(
    student: &Model,
    teacher: Option<&Model>,
    held_out: &[Example],
    batch_size: usize,
    pad: u32,
) -> Result<Vec<(&'static str, f64)>> {
    let (mut kl_sum, mut loss_sum, mut count) = (0., 0., 0.);
    for chunk in held_out.chunks(batch_size) {
        let lesson = Lesson::of_answers(&chunk.iter().collect::<Vec<_>>(), pad)?;
        let seen = lesson.teach(student, teacher, 1., 1.)?;
        let n = lesson.labels.len() as f64;
        kl_sum += n * seen.kl.unwrap_or(0.);
        loss_sum += n * seen.cross_entropy;
        count += n;
    }
    let count = f64::max(count, 1.);
    let kl = teacher.map(|_| ("eval_kl", kl_sum / count));
    Ok(kl.into_iter().chain([("eval_loss", loss_sum / count)]).collect())
}

/// The student to begin with: that of a folder, or a fresh one; its vocabulary must be the teacher's.
fn student(
    recipe: &DistillRecipe,
    inputs: &DistillInputs,
    taught: &ModelConfig,
    own: &Tokenizer,
    text: Option<&TokenDataset>,
) -> Result<Model> {
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
    same_vocabulary((taught, (own, inputs.teacher)), (student.config(), dir), rows(recipe, inputs, text))?;
    Ok(student.trainable()?)
}
