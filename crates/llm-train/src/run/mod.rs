//! A run is a folder: `recipe.toml`, `metrics.jsonl`, `samples/`, `checkpoints/step-N/`, and at the end the model. The metrics are also
//! in `metrics.csv`, `tensorboard/` and `report.html`.
//!
//! A checkpoint is written under a temporary name and renamed when it is complete, so a crash never damages an older one. All
//! random numbers depend on seed and step only. Model, optimizer and step are therefore enough to resume, and a resumed run ends
//! in the same bytes.
//!
//! A stage first checks its recipe, loads its inputs and builds its models. `RunSetup::open` creates the folder last. A running
//! stage holds the lock of its folder.

mod checkpoint;
mod divergence;
mod events;
mod history;
mod inputs;
mod metrics;
mod record;
mod report;
mod result;
mod saving;
mod setup;
mod stage_times;
mod steps;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::Device;
use llm_files::Lock;
use llm_model::{Model, write_atomic};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

pub(crate) use checkpoint::{Checkpoint, newest_checkpoint};
pub use history::Best;
use history::History;
pub(crate) use history::Selection;
pub(crate) use inputs::fingerprint;
pub(crate) use record::Record;
pub(crate) use result::is_intact;
pub(crate) use setup::{RunSetup, Start, already_exists, refuse_existing};
pub(crate) use stage_times::StageTimes;
pub(crate) use steps::{Evaluating, Evaluation, PEAK_SHARE, Plan, WriteModel};

use crate::optim::{Learner, OptimizerConfig};
use crate::{Error, Recipe, Result};
use metrics::Metrics;
use saving::Writer;
use steps::Pace;

/// Progress of a stage, sent to [`RunOptions::observer`].
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins, or resumes after `done` units.
    Begin {
        /// The name of the stage.
        stage: &'a str,
        /// Total number of units.
        total: u64,
        /// Units already done.
        done: u64,
        /// The name of the unit, such as `steps`.
        unit: &'a str,
    },
    /// The stage made progress.
    Progress {
        /// Units done.
        done: u64,
        /// The latest metrics.
        message: &'a str,
    },
    /// The stage ended.
    End,
}

/// How a stage is run.
pub struct RunOptions<'a> {
    /// Whether to continue the run in the folder; otherwise the folder must not exist.
    pub resume: bool,
    /// The device of the models. The files of a run do not depend on it, except for rounding.
    pub device: Device,
    /// Receives progress events.
    pub observer: &'a mut dyn FnMut(Event),
    /// When this is set, the stage finishes its step, writes a checkpoint and returns [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

impl<'a> RunOptions<'a> {
    /// The options of a stage of a pipeline, which starts or continues in the folder `run`.
    pub(crate) fn of_stage(
        run: &Path,
        device: &Device,
        observer: &'a mut dyn FnMut(Event),
        stop: &'a AtomicBool,
    ) -> Self {
        Self { resume: has_begun(run), device: device.clone(), observer, stop }
    }
}

impl Default for RunOptions<'_> {
    /// A new run on the CPU, without progress events, that nothing interrupts.
    fn default() -> Self {
        // The closure has size 0, so nothing is allocated.
        Self { resume: false, device: Device::Cpu, observer: Box::leak(Box::new(|_: Event| ())), stop: &NEVER }
    }
}

/// A value for [`RunOptions::stop`] that is never set.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The folder with the result.
    pub dir: PathBuf,
    /// Total number of steps (PPO: updates).
    pub steps: u64,
    /// Total seconds, over all resumes.
    pub seconds: f64,
    /// Whether the run was already finished, so that nothing was done.
    pub was_finished: bool,
    /// The last value of each metric in `metrics.jsonl`, such as `loss` and `eval_loss`.
    pub metrics: BTreeMap<String, f64>,
}

impl Outcome {
    fn of_finished(dir: &Path) -> Result<Self> {
        let path = dir.join(FINISHED);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let state: Value =
            serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))?;
        Ok(Self {
            dir: dir.to_owned(),
            steps: state.get("global_step").and_then(Value::as_u64).unwrap_or(0),
            seconds: state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.),
            was_finished: true,
            metrics: metrics::last(dir)?,
        })
    }
}

/// The file that is written last: it marks a finished run.
pub(crate) const FINISHED: &str = "trainer_state.json";

/// Whether the run in this folder is finished.
pub fn is_finished(dir: impl AsRef<Path>) -> bool {
    dir.as_ref().join(FINISHED).exists()
}

/// Whether there is a run in this folder, finished or not.
pub fn has_begun(dir: impl AsRef<Path>) -> bool {
    dir.as_ref().join("recipe.toml").exists()
}

/// The recorded recipe of the run in `dir`, with `overrides` (`key`, `value`) applied.
pub fn recorded_recipe<R: Recipe>(dir: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<R> {
    Record::read(dir.as_ref())?.recipe(overrides)
}

/// The models that a stage trains, each with the table of its optimizer in the recipe.
pub(crate) type Learners<'a> = [(&'static str, &'a Learner)];

/// The optimizer of a stage that trains one model.
pub(crate) const OPTIMIZER: &str = "optimizer";

/// A running stage and its folder.
pub(crate) struct Run<'a> {
    dir: PathBuf,
    plan: Plan<'a>,
    /// Number of steps done before this start of the program.
    first: u64,
    /// Number of steps done.
    done: Cell<u64>,
    /// When the last step ended.
    step_ended: Cell<Instant>,
    /// The speed of the last step.
    pace: Cell<Pace>,
    history: RefCell<History>,
    observer: RefCell<&'a mut dyn FnMut(Event)>,
    stop: &'a AtomicBool,
    metrics: Metrics,
    writer: Writer,
    started: Instant,
    /// Seconds of training before this start of the program.
    earlier: f64,
    _lock: Lock,
}

impl<'a> Run<'a> {
    /// The run in the folder `dir`, of which `first` steps took `earlier` seconds. Reports that the stage begins.
    fn begin(
        dir: PathBuf,
        plan: Plan<'a>,
        options: RunOptions<'a>,
        lock: Lock,
        (first, earlier): (u64, f64),
    ) -> Result<Self> {
        let metrics = Metrics::open(&dir, first, earlier)?;
        let selection = plan.evaluation.as_ref().and_then(|evaluation| evaluation.selection);
        let history = RefCell::new(History::of(selection, &metrics::lines(&dir)?));
        let RunOptions { observer, stop, .. } = options;
        let stage = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        let (unit, per_step) = plan.unit;
        let total = plan.steps.saturating_mul(per_step);
        observer(Event::Begin { stage: &stage, total, done: first * per_step, unit });
        let observer = RefCell::new(observer);
        let (started, done) = (Instant::now(), Cell::new(first));
        let (step_ended, writer) = (Cell::new(started), Writer::default());
        let pace = Cell::new(Pace::default());
        Ok(Self {
            dir,
            plan,
            first,
            done,
            step_ended,
            pace,
            history,
            observer,
            stop,
            metrics,
            writer,
            started,
            earlier,
            _lock: lock,
        })
    }

    /// Reports that `done` steps are done.
    fn progress(&self, done: u64, message: &str) {
        let (_, per_step) = self.plan.unit;
        (self.observer.borrow_mut())(Event::Progress { done: done * per_step, message });
    }

    /// Seconds since the run began or was resumed.
    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Appends a line to `metrics.jsonl`. It is an error if a metric is not finite.
    pub fn log(&self, step: u64, metrics: &[(&str, f64)]) -> Result<()> {
        self.log_with(step, metrics, Map::new())
    }

    /// [`Self::log`] with additional metrics that are lists or objects.
    pub fn log_with(&self, step: u64, metrics: &[(&str, f64)], more: Map<String, Value>) -> Result<()> {
        self.check_finite(step, metrics)?;
        // serde_json writes NaN and infinity as null.
        if let Some((name, _)) = more.iter().find(|(_, value)| has_null(value)) {
            return Err(self.diverged(step, format!("{name} is not finite"), OPTIMIZER)?);
        }
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend(metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        line.extend(more);
        line.insert("elapsed_s".to_owned(), json!((self.elapsed() * 1000.).round() / 1000.));
        if let Some(found) = self.history.borrow_mut().push(&line) {
            found.warn(&self.dir);
        }
        self.metrics.append(line)
    }

    /// Writes `metrics.csv` and `report.html` of a run that has done `step` steps.
    fn report(&self, step: u64) -> Result<()> {
        report::write(&self.dir, &metrics::lines(&self.dir)?, step, self.plan.steps)
    }

    /// Writes `samples/step-N.txt`.
    pub fn sample(&self, step: u64, text: &str) -> Result<()> {
        self.sample_as(&format!("step-{step}"), text)
    }

    /// Writes `samples/NAME.txt`.
    fn sample_as(&self, name: &str, text: &str) -> Result<()> {
        Ok(write_atomic(&self.dir.join(format!("samples/{name}.txt")), text.as_bytes())?)
    }

    /// Whether the evaluations say that the run ends before its last step.
    fn ends_early(&self) -> bool {
        self.history.borrow().stop().is_some()
    }

    /// Writes the model of `learner` into the run's folder and ends the run.
    pub fn finish(self, learner: &Learner) -> Result<Outcome> {
        self.check_learners(self.done.get(), &[(OPTIMIZER, learner)])?;
        self.writer.wait()?;
        self.metrics.sync()?;
        let history = self.history.borrow();
        if let Some((best, value)) = history.stop() {
            let (dir, done) = (self.dir.display(), self.done.get());
            tracing::info!(
                "{dir}: ends early, after step {done}; no evaluation was better than that of step {best} ({value:.4})"
            );
        }
        match history.kept().filter(|&best| best != self.done.get()) {
            Some(best) => {
                tracing::info!("{}: the result is the model of step {best}, the best evaluation", self.dir.display());
                checkpoint::copy_model(&self.dir, best)?;
            }
            None => (self.plan.write)(learner.averaged(), &self.dir)?,
        }
        drop(history);
        self.end()
    }

    /// Writes the result of several learners into the run's folder by `write` and ends the run.
    pub fn finish_with(self, learners: &Learners, write: impl FnOnce(&Path) -> Result<()>) -> Result<Outcome> {
        self.check_learners(self.plan.steps, learners)?;
        self.writer.wait()?;
        self.metrics.sync()?;
        write(&self.dir)?;
        self.end()
    }

    /// Writes `trainer_state.json`, which marks the run as finished.
    fn end(self) -> Result<Outcome> {
        let (steps, seconds) = (self.done.get(), self.elapsed());
        self.report(steps)?;
        result::write(&self.dir, steps, seconds)?;
        (self.observer.into_inner())(Event::End);
        let metrics = metrics::last(&self.dir)?;
        Ok(Outcome { dir: self.dir, steps, seconds, was_finished: false, metrics })
    }

    fn elapsed(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.iter().any(has_null),
        Value::Object(map) => map.values().any(has_null),
        _ => false,
    }
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(write_atomic(path, format!("{value:#}\n").as_bytes())?)
}

/// The learner of a setup's checkpoint, or a new learner of `model`, on the setup's device.
pub(crate) fn learner(
    setup: &RunSetup,
    config: &OptimizerConfig,
    model: impl FnOnce() -> Result<Model>,
) -> Result<Learner> {
    let device = setup.device();
    match setup.checkpoint() {
        None => Learner::new(model()?.to_device(device)?, config),
        Some(Checkpoint { dir, .. }) => restored(dir, &dir.join("trainer/optimizer.safetensors"), config, device),
    }
}

/// Loads a learner: its model from `dir`, its optimizer state from `optimizer`.
pub(crate) fn restored(dir: &Path, optimizer: &Path, config: &OptimizerConfig, device: &Device) -> Result<Learner> {
    let mut learner = Learner::new(Model::load(dir)?.trainable()?.to_device(device)?, config)?;
    learner.load_optimizer(optimizer)?;
    Ok(learner)
}

/// A random stream that depends on seed, purpose and step only.
pub(crate) fn rng(seed: u64, purpose: u16, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from(purpose) << 48 | step);
    rng
}

/// Total seconds of the finished run in `dir`, over all resumes.
pub(crate) fn seconds_of(dir: &Path) -> Result<f64> {
    Ok(Outcome::of_finished(dir)?.seconds)
}
