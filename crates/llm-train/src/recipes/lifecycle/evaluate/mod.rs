//! Evaluation of all models at the end of the pipeline: the metrics of the report.

mod advice;
mod probes;
mod student;
mod tasks;

use std::path::Path;

use candle_core::Device;
use llm_data::TokenDataset;
use llm_engine::TextModel;
use llm_eval::{TextWindows, text_loss};
use llm_model::{Head, Model};
use llm_synthetic::World;
use serde::{Deserialize, Serialize};

use super::LifecycleRecipe;
use super::metric::{Metric, Unit};
use crate::recipes::RewardModel;
use crate::run::{Event, write_json};
use crate::{Error, Result};

/// The results of the evaluation, written to `evaluation.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Evaluation {
    /// The rows of the report.
    #[serde(alias = "figures")]
    pub metrics: Vec<Metric>,
    /// Generation speed of the student divided by the teacher's: the only metric that depends on the machine.
    pub tokens_per_second: Metric,
    /// Best-of-n for n = 1, 2, 4, …: (KL in nats, true utility, reward model score).
    pub best_of: Vec<(f64, f64, f64)>,
    /// (question, reply before PPO, reply after PPO).
    pub samples: Vec<[String; 3]>,
}

impl Evaluation {
    /// All rows of the report.
    pub fn rows(&self) -> Vec<&Metric> {
        self.metrics.iter().chain([&self.tokens_per_second]).collect()
    }
}

/// The models of all stages.
pub(super) struct Models {
    pub untrained: Model,
    pub base: TextModel,
    pub instruct: TextModel,
    pub reward: RewardModel,
    pub aligned: TextModel,
    pub student: TextModel,
    /// The baseline of distillation: the same student, trained on the same tokens with labels only.
    pub labels_only: TextModel,
}

impl Models {
    fn load(recipe: &LifecycleRecipe, out: &Path, device: &Device) -> Result<Self> {
        let load = |name: &str| TextModel::load(out.join(name))?.to_device(device);
        let base = load("base")?;
        let untrained = Model::init(base.model.config().clone(), Head::LanguageModel, recipe.pretrain.seed)?;
        let mut reward = RewardModel::load(&out.join("reward"))?;
        reward.model = reward.model.to_device(device)?;
        Ok(Self {
            untrained: untrained.frozen()?.to_device(device)?,
            base,
            instruct: load("instruct")?,
            reward,
            aligned: load("aligned")?,
            student: load("student")?,
            labels_only: load("student-alone")?,
        })
    }
}

/// Evaluates the models of the pipeline run in `out` and writes `evaluation.json`.
pub(super) fn evaluate(
    recipe: &LifecycleRecipe,
    world: &World,
    out: &Path,
    device: &Device,
    observer: &mut dyn FnMut(Event),
) -> Result<Evaluation> {
    let mut done = 0;
    observer(Event::Begin { stage: "evaluation", total: 5, done, unit: "parts" });
    let mut tick = |message: &str| {
        done += 1;
        observer(Event::Progress { done, message });
    };
    let models = Models::load(recipe, out, device)?;
    let mut metrics = sizes(recipe, &models, out)?;
    tick("text");
    metrics.extend(probes::metrics(recipe, world, &models, out)?);
    tick("probes");
    let tasks = tasks::read(out)?;
    let (task_metrics, accuracy) = tasks::metrics(recipe, world, &models, &tasks)?;
    metrics.extend(task_metrics);
    tick("tasks");
    let advice = advice::evaluate(recipe, world, &models)?;
    metrics.extend(advice.metrics);
    tick("advice");
    metrics.extend(student::metrics(recipe, &models, &tasks, &advice.held_out, (accuracy, advice.utility), out)?);
    tick("student");
    let tokens_per_second = student::speed(&models, &tasks)?;
    let evaluation = Evaluation { metrics, tokens_per_second, best_of: advice.best_of, samples: advice.samples };
    let json = serde_json::to_value(&evaluation).map_err(|e| Error::Internal(format!("evaluation.json: {e}")))?;
    write_json(&out.join("evaluation.json"), &json)?;
    observer(Event::End);
    Ok(evaluation)
}

/// Sizes of data and models, and the loss of all models on the same validation text.
fn sizes(recipe: &LifecycleRecipe, models: &Models, out: &Path) -> Result<Vec<Metric>> {
    let data = TokenDataset::open(out.join("shards"), "held_out")?;
    let manifest = &data.manifest().splits["train"];
    let (batch_size, seq_len) = (recipe.pretrain.batch_size, recipe.pretrain.seq_len);
    let token_bytes = models.base.tokenizer.token_bytes();
    let windows =
        TextWindows { data: &data, token_bytes: &token_bytes, batch_size, seq_len, max_batches: EVAL_BATCHES };
    let of = |model: &Model| text_loss(model, &windows);
    let loss = |model: &Model| Ok::<_, Error>(of(model)?.loss);
    let base = of(&models.base.model)?;
    let size = |model: &Model| model.count().total() as f64;
    Ok(vec![
        Metric::plain("training text, tokens", Unit::Count, manifest.tokens as f64)
            .reference("bytes", manifest.bytes as f64),
        Metric::plain("model, parameters", Unit::Count, size(&models.base.model))
            .reference("vocabulary", models.base.tokenizer.vocab_size() as f64)
            .reference("student", size(&models.student.model)),
        Metric::plain("validation loss, nats per token", Unit::Number, base.loss)
            .reference("bits per byte", base.bits_per_byte)
            .reference("untrained", loss(&models.untrained)?)
            .reference("fine-tuned", loss(&models.instruct.model)?)
            .reference("aligned", loss(&models.aligned.model)?)
            .reference("student", loss(&models.student.model)?),
    ])
}

/// Batches of validation text.
const EVAL_BATCHES: usize = 20;
