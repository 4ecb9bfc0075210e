//! The examination at the end of a life: every figure of the report comes from here or from the stages' metrics.

mod advice;
mod probes;
mod student;
mod tasks;

use std::path::Path;

use llm_data::TokenDataset;
use llm_data::world::World;
use llm_infer::TextModel;
use llm_model::{Head, Model};
use serde::{Deserialize, Serialize};

use super::LifecycleRecipe;
use super::figure::{Figure, Unit};
use crate::eval::text_loss;
use crate::recipes::RewardModel;
use crate::run::{Event, write_json};
use crate::{Error, Result};

/// What the life came to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Evaluation {
    /// The rows of the report.
    pub figures: Vec<Figure>,
    /// How many times as many tokens per second the student generates as its teacher: the one figure that is measured by the
    /// clock.
    pub tokens_per_second: Figure,
    /// Utility and KL divergence of best-of-n for n = 1, 2, 4, …: (nats, utility, score).
    pub best_of: Vec<(f64, f64, f64)>,
    /// Questions with the reply before and after PPO.
    pub samples: Vec<[String; 3]>,
}

impl Evaluation {
    /// All rows of the report.
    pub fn rows(&self) -> Vec<&Figure> {
        self.figures.iter().chain([&self.tokens_per_second]).collect()
    }
}

/// The models of a life.
pub(super) struct Models {
    pub untrained: Model,
    pub base: TextModel,
    pub instruct: TextModel,
    pub reward: RewardModel,
    pub aligned: TextModel,
    pub student: TextModel,
    /// The same student, trained on the same tokens by their labels alone.
    pub alone: TextModel,
}

impl Models {
    fn load(recipe: &LifecycleRecipe, out: &Path) -> Result<Self> {
        let load = |name: &str| TextModel::load(&out.join(name));
        let base = load("base")?;
        Ok(Self {
            untrained: Model::init(base.model.config().clone(), Head::LanguageModel, recipe.pretrain.seed)?.frozen()?,
            base,
            instruct: load("instruct")?,
            reward: RewardModel::load(&out.join("reward"))?,
            aligned: load("aligned")?,
            student: load("student")?,
            alone: load("student-alone")?,
        })
    }
}

/// Examines the models of the life in `out` and writes `evaluation.json`.
pub(super) fn evaluate(
    recipe: &LifecycleRecipe,
    world: &World,
    out: &Path,
    observer: &mut dyn FnMut(Event),
) -> Result<Evaluation> {
    let mut done = 0;
    observer(Event::Begin { stage: "evaluation", total: 5, done, unit: "parts" });
    let mut tick = |message: &str| {
        done += 1;
        observer(Event::Progress { done, message });
    };
    let models = Models::load(recipe, out)?;
    let mut figures = sizes(recipe, &models, out)?;
    tick("text");
    figures.extend(probes::figures(recipe, world, &models, out)?);
    tick("probes");
    let tested = tasks::read(out)?;
    let (of_tasks, right) = tasks::figures(recipe, world, &models, &tested)?;
    figures.extend(of_tasks);
    tick("tasks");
    let advised = advice::advise(recipe, world, &models)?;
    figures.extend(advised.figures);
    tick("advice");
    figures.extend(student::figures(recipe, &models, &tested, &advised.unseen, (right, advised.utility), out)?);
    tick("student");
    let tokens_per_second = student::speed(&models, &tested)?;
    let evaluation = Evaluation { figures, tokens_per_second, best_of: advised.best_of, samples: advised.samples };
    let json = serde_json::to_value(&evaluation).map_err(|e| Error::Input(format!("evaluation.json: {e}")))?;
    write_json(&out.join("evaluation.json"), &json)?;
    observer(Event::End);
    Ok(evaluation)
}

/// Sizes, and the loss on validation text of all models by the same windows.
fn sizes(recipe: &LifecycleRecipe, models: &Models, out: &Path) -> Result<Vec<Figure>> {
    let data = TokenDataset::open(&out.join("shards"), "held_out")?;
    let manifest = &data.manifest().splits["train"];
    let (batch_size, seq_len) = (recipe.pretrain.batch_size, recipe.pretrain.seq_len);
    let of = |model: &Model| text_loss(model, &data, batch_size, seq_len, EVAL_BATCHES);
    let loss = |model: &Model| Ok::<_, Error>(of(model)?.loss);
    let base = of(&models.base.model)?;
    let size = |model: &Model| model.count().total() as f64;
    Ok(vec![
        Figure::plain("training text: tokens", Unit::Count, manifest.tokens as f64)
            .beside("bytes", manifest.bytes as f64),
        Figure::plain("model: parameters", Unit::Count, size(&models.base.model))
            .beside("vocabulary", models.base.tokenizer.vocab_size() as f64)
            .beside("student", size(&models.student.model)),
        Figure::plain("validation text: loss in nats per token", Unit::Number, base.loss)
            .beside("bits per byte", base.bits_per_byte)
            .beside("untrained", loss(&models.untrained)?)
            .beside("fine-tuned", loss(&models.instruct.model)?)
            .beside("aligned", loss(&models.aligned.model)?)
            .beside("student", loss(&models.student.model)?),
    ])
}

/// Batches of validation text on which all models are compared.
const EVAL_BATCHES: usize = 20;
