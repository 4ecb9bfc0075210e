//! The whole pipeline on the built-in synthetic dataset: pre-training, fine-tuning, reward model, PPO, distillation and
//! evaluation.

mod data;
mod evaluate;
mod metric;
mod report;
mod seeds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use llm_feedback::Annotator;
use llm_model::{Head, Model, ModelConfig, write_atomic};
use llm_synthetic::{World, WorldConfig};
use llm_tokenizer::TrainConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    DistillInputs, DistillRecipe, FinetuneInputs, FinetuneRecipe, PpoInputs, PpoRecipe, PrepareInputs, PretrainInputs,
    PretrainRecipe, RewardInputs, RewardRecipe, distill, finetune, ppo, prepare, pretrain, reward, train_tokenizer,
};
use crate::run::{Event, FINISHED, RunOptions, RunSetup, StageTimes, Start, is_intact, write_json};
use crate::{Error, Result};

pub use seeds::lifecycle_seeds;
pub(super) use seeds::reseeded;

/// The configuration of the whole pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifecycleRecipe {
    /// The synthetic dataset.
    pub world: WorldConfig,
    /// The sizes of its training and test sets.
    pub questions: Questions,
    /// The tokenizer.
    pub tokenizer: TrainConfig,
    /// The simulated annotator that ranks answers.
    pub annotator: Annotator,
    /// Pre-training on the dataset's text.
    pub pretrain: PretrainRecipe,
    /// Fine-tuning on its tasks, dialogues and crowd answers.
    pub finetune: FinetuneRecipe,
    /// The reward model, trained on ranked answers.
    pub reward: RewardRecipe,
    /// PPO.
    pub ppo: PpoRecipe,
    /// Distillation into a smaller student.
    pub distill: DistillRecipe,
}

/// The number of items in each training and test set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Questions {
    /// Fine-tuning: tasks with a known answer.
    pub tasks: usize,
    /// Fine-tuning: requests for advice, answered by the crowd.
    pub crowd: usize,
    /// Fine-tuning: dialogues of several turns.
    pub dialogues: usize,
    /// Fine-tuning: words to repeat.
    pub echoes: usize,
    /// Reward model: questions whose answers are ranked by the annotator.
    pub rankings: usize,
    /// PPO: prompts.
    pub prompts: usize,
    /// Distillation: questions answered by the teacher.
    pub lessons: usize,
    /// Evaluation: tasks, and requests for advice, on held-out facts and themes.
    pub held_out: usize,
    /// Evaluation: minimal pairs for each kind of probe.
    pub probes: usize,
}

impl Default for LifecycleRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

/// The result of a pipeline run.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineOutcome {
    /// The table of `report.md`.
    pub table: String,
    /// The metrics of the table by name; those of one stage begin with its name, their parts with a dash.
    pub metrics: BTreeMap<String, f64>,
}

impl PipelineOutcome {
    fn read(out: &Path) -> Result<Self> {
        let path = out.join(SUMMARY);
        let table = std::fs::read_to_string(&path).map_err(Error::io(path))?;
        let evaluation = seeds::read(out)?;
        let metrics = evaluation.rows().into_iter().map(|metric| (metric.name.clone(), metric.value)).collect();
        Ok(Self { table, metrics })
    }
}

/// Runs the whole pipeline in the folder `out` and writes `report.md` there.
#[tracing::instrument(level = "debug", skip_all, fields(run = %out.as_ref().display()))]
pub fn lifecycle(recipe: &LifecycleRecipe, out: impl AsRef<Path>, options: RunOptions) -> Result<PipelineOutcome> {
    let out = out.as_ref();
    let resume = options.resume;
    let setup = match RunSetup::check(recipe, &(), out, options)? {
        Start::Open(setup) => setup,
        Start::Finished(_) => {
            for (stage, _) in STAGES {
                is_intact(&out.join(stage))?;
            }
            return PipelineOutcome::read(out);
        }
    };
    build_models(recipe)?;
    let (_, options, _lock) = setup.open_folder()?;
    // An interrupted stage is resumed through the pipeline's folder.
    let table = run_stages(recipe, out, resume, options).map_err(|error| match error {
        Error::Interrupted { run, done } => {
            let stage = run.file_name().filter(|_| run != out).map(|stage| format!(" ({})", stage.display()));
            Error::Interrupted { run: out.to_owned(), done: format!("{done}{}", stage.unwrap_or_default()) }
        }
        error => error,
    })?;
    write_atomic(&out.join(SUMMARY), table.as_bytes())?;
    write_json(&out.join(FINISHED), &json!({}))?;
    PipelineOutcome::read(out)
}

/// The report's table, which a finished run prints again.
const SUMMARY: &str = "summary.md";

/// Builds the recipe's models once, so that an invalid configuration fails before the first stage.
fn build_models(recipe: &LifecycleRecipe) -> Result<()> {
    for (table, config) in [("pretrain.model", &recipe.pretrain.model), ("distill.student", &recipe.distill.student)] {
        let config = ModelConfig { vocab_size: recipe.tokenizer.vocab_size, ..config.clone() };
        let model = Model::init(config, Head::LanguageModel, 0);
        model.map_err(|error| Error::BadRequest(format!("{table}: {error}")))?;
    }
    Ok(())
}

/// The stages in order: the name in events, and the title that a user sees.
const STAGES: [(&str, &str); 7] = [
    ("base", "pre-training"),
    ("instruct", "fine-tuning"),
    ("reward", "reward model"),
    ("aligned", "PPO"),
    ("student", "distillation"),
    ("student-alone", "baseline of distillation"),
    ("evaluation", "evaluation"),
];

/// The title of a stage with its number, such as `[2/7] fine-tuning`.
fn title(stage: &str) -> String {
    match STAGES.iter().position(|(name, _)| *name == stage) {
        Some(at) => format!("[{}/{}] {}", at + 1, STAGES.len(), STAGES[at].1),
        None => stage.to_owned(),
    }
}

/// Writes the dataset, the tokenizer and the token shards into these folders.
fn write_data(
    recipe: &LifecycleRecipe,
    world: &World,
    (data, tokenizer, shards): (&Path, &Path, &Path),
    times: &mut StageTimes,
    options: RunOptions,
) -> Result<()> {
    let (resume, stop) = (options.resume, options.stop);
    (options.observer)(Event::Begin { stage: "data", total: 1, done: 0, unit: "datasets" });
    times.measure("world", || data::write_world(recipe, world, data))?;
    (options.observer)(Event::End);
    unless_stopped(stop, data)?;
    let text = |split: &str| [data.join(format!("text-{split}.jsonl"))];
    times.measure("tokenizer", || train_tokenizer(&recipe.tokenizer, &text("train"), tokenizer, resume))?;
    unless_stopped(stop, tokenizer)?;
    times.measure("prepare", || {
        let inputs = PrepareInputs {
            tokenizer: tokenizer.to_owned(),
            train: text("train").into(),
            validation: text("held_out").into(),
            ..PrepareInputs::default()
        };
        prepare(&inputs, shards, options)
    })?;
    unless_stopped(stop, shards)
}

/// [`Error::Interrupted`] if the user asked the pipeline to stop; `part` is the folder that was just written.
fn unless_stopped(stop: &AtomicBool, part: &Path) -> Result<()> {
    match stop.load(SeqCst) {
        true => Err(Error::Interrupted { run: part.to_owned(), done: "after this part".to_owned() }),
        false => Ok(()),
    }
}

/// The folders of the stages that alignment starts from, in the folder of a pipeline.
pub(in crate::recipes) struct Folders {
    pub data: PathBuf,
    tokenizer: PathBuf,
    shards: PathBuf,
    base: PathBuf,
    pub instruct: PathBuf,
    pub reward: PathBuf,
}

impl Folders {
    pub fn of(out: &Path) -> Self {
        let dir = |name: &str| out.join(name);
        Self {
            data: dir("data"),
            tokenizer: dir("tokenizer"),
            shards: dir("shards"),
            base: dir("base"),
            instruct: dir("instruct"),
            reward: dir("reward"),
        }
    }
}

/// Writes the dataset and trains the pre-trained model, the fine-tuned model and the reward model, except what is there.
pub(in crate::recipes) fn reward_stages(
    recipe: &LifecycleRecipe,
    world: &World,
    dirs: &Folders,
    times: &mut StageTimes,
    options: RunOptions,
) -> Result<()> {
    let RunOptions { resume, device, observer, stop } = options;
    let data_options = RunOptions { resume, device: device.clone(), observer: &mut *observer, stop };
    write_data(recipe, world, (&dirs.data, &dirs.tokenizer, &dirs.shards), times, data_options)?;
    let (base, instruct, reward_model) = (&dirs.base, &dirs.instruct, &dirs.reward);
    if !is_intact(base)? {
        let inputs = PretrainInputs { model: None, tokenizer: dirs.tokenizer.clone(), data: vec![dirs.shards.clone()] };
        pretrain(&recipe.pretrain, &inputs, base, RunOptions::of_stage(base, &device, observer, stop))?;
    }
    if !is_intact(instruct)? {
        let inputs = FinetuneInputs {
            adapter: None,
            model: base.clone(),
            data: vec![dirs.data.join("instruct-train.jsonl")],
            validation: Some(dirs.data.join("instruct-held_out.jsonl")),
            text: Some(dirs.shards.clone()),
        };
        finetune(&recipe.finetune, &inputs, instruct, RunOptions::of_stage(instruct, &device, observer, stop))?;
    }
    if !is_intact(reward_model)? {
        let inputs = RewardInputs {
            adapter: None,
            model: instruct.clone(),
            data: vec![dirs.data.join("rankings-train.jsonl")],
            validation: Some(dirs.data.join("rankings-held_out.jsonl")),
        };
        reward(&recipe.reward, &inputs, reward_model, RunOptions::of_stage(reward_model, &device, observer, stop))?;
    }
    Ok(())
}

/// Runs all stages that are not finished.
fn run_stages(recipe: &LifecycleRecipe, out: &Path, resume: bool, options: RunOptions) -> Result<String> {
    let RunOptions { device, observer, stop, .. } = options;
    let observer: &mut dyn FnMut(Event) = &mut |event| match event {
        Event::Begin { stage, total, done, unit } => observer(Event::Begin { stage: &title(stage), total, done, unit }),
        event => observer(event),
    };
    let world = World::new(recipe.world.clone());
    let mut times = StageTimes::open(&out.join("times.json"))?;
    let dirs = Folders::of(out);
    let first = RunOptions { resume, device: device.clone(), observer: &mut *observer, stop };
    reward_stages(recipe, &world, &dirs, &mut times, first)?;
    let Folders { data, shards, base, instruct, reward: reward_model, .. } = dirs;
    let (aligned, student) = (out.join("aligned"), out.join("student"));
    if !is_intact(&aligned)? {
        let inputs =
            PpoInputs { adapter: None, model: instruct, reward: vec![reward_model], data: data.join("prompts.jsonl") };
        ppo(&recipe.ppo, &inputs, &aligned, RunOptions::of_stage(&aligned, &device, observer, stop))?;
    }
    if !is_intact(&student)? {
        times.measure("teacher", || data::write_lessons(recipe, &world, &aligned, &data, &device, observer))?;
        unless_stopped(stop, &data)?;
    }
    // The baseline of distillation: the same student on the same tokens, trained on the labels only (alpha = 0).
    let (baseline, labels_only) = (out.join("student-alone"), DistillRecipe { alpha: 0., ..recipe.distill.clone() });
    for (recipe, text_teacher, out) in [(&recipe.distill, Some(base), &student), (&labels_only, None, &baseline)] {
        if !is_intact(out)? {
            let inputs = DistillInputs {
                teacher: aligned.clone(),
                text_teacher,
                data: vec![data.join("lessons-train.jsonl")],
                validation: Some(data.join("lessons-held_out.jsonl")),
                text: Some(shards.clone()),
                ..DistillInputs::default()
            };
            distill(recipe, &inputs, out, RunOptions::of_stage(out, &device, observer, stop))?;
        }
    }
    unless_stopped(stop, &baseline)?;
    let evaluation = times.measure("evaluation", || evaluate::evaluate(recipe, &world, out, &device, observer))?;
    report::write(&evaluation, &times, out)
}
