//! A run is a folder: `recipe.toml`, `metrics.jsonl`, `samples/`, `checkpoints/step-N/`, and in the end the model.
//!
//! A checkpoint is written under another name and renamed when it is whole, so a crash leaves the last one as it was.
//! What a recipe draws at random depends on its seed and the step alone; so model, optimizer and step are all that is
//! needed to go on as if nothing had happened.
//!
//! A stage checks its recipe, loads its inputs and builds its models first; `Opening::open` makes the folder last. While the run
//! is under way it holds the lock of its folder.

mod checkpoint;
mod inputs;
mod metrics;
mod opening;
mod record;
mod times;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use llm_files::Lock;
use llm_model::{Model, write_atomic};
use llm_tokenizer::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

pub(crate) use checkpoint::Checkpoint;
pub(crate) use inputs::Input;
pub(crate) use opening::{Opening, Start, refuse_existing};
pub(crate) use record::Record;
pub(crate) use times::Times;

use crate::optim::{Learner, OptimizerConfig};
use crate::{Error, Recipe, Result};
use metrics::Metrics;

/// What a stage tells whoever watches it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins, or goes on behind `done`.
    Begin {
        /// Its name.
        stage: &'a str,
        /// Units in all.
        total: u64,
        /// Units done before.
        done: u64,
        /// What is counted.
        unit: &'a str,
    },
    /// So many units are done.
    Progress {
        /// Units done.
        done: u64,
        /// The latest figures.
        message: &'a str,
    },
    /// The stage is over.
    End,
}

/// How a stage is run.
pub struct RunOptions<'a> {
    /// Whether to go on with the run in the folder; otherwise the folder must not exist.
    pub resume: bool,
    /// Hears of the progress.
    pub observer: &'a mut dyn FnMut(Event),
    /// Once this is set, the stage finishes its step, writes a checkpoint and returns [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

/// For [`RunOptions::stop`]: a run that nobody interrupts.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The folder with the result.
    pub dir: PathBuf,
    /// Steps (of PPO: updates) in all.
    pub steps: u64,
    /// Seconds that they took, over all resumptions.
    pub seconds: f64,
    /// Whether the run had been finished before, and nothing was done.
    pub was_finished: bool,
}

impl Outcome {
    fn of_finished(dir: &Path) -> Result<Self> {
        let path = dir.join(FINISHED);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let state: Value = serde_json::from_str(&text).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
        Ok(Self {
            dir: dir.to_owned(),
            steps: state.get("global_step").and_then(Value::as_u64).unwrap_or(0),
            seconds: state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.),
            was_finished: true,
        })
    }
}

/// Written last into the folder of a run.
pub(crate) const FINISHED: &str = "trainer_state.json";

/// Whether the run in this folder came to its end.
pub fn is_finished(dir: &Path) -> bool {
    dir.join(FINISHED).exists()
}

/// Whether a run was begun in this folder.
pub fn has_begun(dir: &Path) -> bool {
    dir.join("recipe.toml").exists()
}

/// The recipe of the run in `dir`, with `overrides` (`key`, `value`) applied.
pub fn recorded_recipe<R: Recipe>(dir: &Path, overrides: &[(String, String)]) -> Result<R> {
    Record::read(dir)?.recipe(overrides)
}

/// The folder of a run that is under way.
pub(crate) struct Run<'a> {
    dir: PathBuf,
    observer: &'a mut dyn FnMut(Event),
    stop: &'a AtomicBool,
    metrics: Metrics,
    steps: u64,
    save_every: u64,
    started: Instant,
    earlier: f64,
    begun_at: Instant,
    _lock: Lock,
}

impl<'a> Run<'a> {
    fn new(
        dir: PathBuf,
        options: RunOptions<'a>,
        lock: Lock,
        (step, steps, save_every): (u64, u64, u64),
        earlier: f64,
    ) -> Result<Self> {
        let metrics = Metrics::open(&dir, step)?;
        let RunOptions { observer, stop, .. } = options;
        let now = Instant::now();
        Ok(Self { dir, observer, stop, metrics, steps, save_every, started: now, earlier, begun_at: now, _lock: lock })
    }

    /// Tells that the stage begins.
    pub fn begin(&mut self, total: u64, done: u64, unit: &str) {
        let stage = self.dir.file_name().unwrap_or(self.dir.as_os_str()).to_string_lossy().into_owned();
        self.begun_at = Instant::now();
        (self.observer)(Event::Begin { stage: &stage, total, done, unit });
    }

    /// Tells that so many units are done.
    pub fn progress(&mut self, done: u64, message: &str) {
        (self.observer)(Event::Progress { done, message });
    }

    /// Seconds since the stage began in this process.
    pub fn seconds(&self) -> f64 {
        self.begun_at.elapsed().as_secs_f64().max(1e-9)
    }

    /// Appends a line to `metrics.jsonl`. A figure that is not finite ends the run.
    pub fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        self.log_with(step, figures, Map::new())
    }

    /// The same, with figures that are no single numbers.
    pub fn log_with(&mut self, step: u64, figures: &[(&str, f64)], more: Map<String, Value>) -> Result<()> {
        self.check_finite(step, figures)?;
        // JSON has no NaN and no infinity: serde_json makes null of them.
        if let Some((name, _)) = more.iter().find(|(_, value)| has_null(value)) {
            return Err(self.diverged(step, format!("{name} is not finite"))?);
        }
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        line.extend(more);
        line.insert("elapsed_s".to_owned(), json!((self.elapsed() * 1000.).round() / 1000.));
        self.metrics.append(line)
    }

    /// Writes `samples/step-N.txt`.
    pub fn sample(&self, step: u64, text: &str) -> Result<()> {
        Ok(write_atomic(&self.dir.join(format!("samples/step-{step}.txt")), text.as_bytes())?)
    }

    /// Whether a checkpoint is to be written after `step` steps: every so many, at the end (from which the run can be made
    /// longer), and where somebody asks the run to stop.
    pub fn is_due(&self, step: u64) -> bool {
        step == self.steps || self.save_every > 0 && step.is_multiple_of(self.save_every) || self.stop.load(SeqCst)
    }

    /// Writes the checkpoint of `step` steps: `write` fills its folder. Older ones are removed but for the last two. If
    /// somebody asked the run to stop, it ends here by an error.
    ///
    /// Nothing is written of `learners` whose weights or moments are not finite: every checkpoint is a state that one can go on
    /// from.
    pub fn checkpoint(
        &self,
        step: u64,
        learners: &[&Learner],
        mut state: Map<String, Value>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.check_learners(step, learners)?;
        self.metrics.sync()?;
        state.insert("elapsed_s".to_owned(), json!(self.elapsed()));
        checkpoint::write(&self.dir, step, self.save_every, state, write)?;
        if self.stop.load(SeqCst) && step < self.steps {
            let done = format!("after step {step} of {}", self.steps);
            return Err(Error::Interrupted { run: self.dir.clone(), done });
        }
        Ok(())
    }

    /// Writes the checkpoint of a stage in which one model learns.
    pub fn checkpoint_of(&self, step: u64, learner: &Learner, tokenizer: &Tokenizer) -> Result<()> {
        self.checkpoint(step, &[learner], Map::new(), |dir| {
            learner.model.save(dir)?;
            tokenizer.save(dir)?;
            learner.save_optimizer(&dir.join("trainer/optimizer.safetensors"))
        })
    }

    /// Stops the run if the loss or the gradient of `step` (from 1) is not finite. Both were computed with the weights of the
    /// step before: a checkpoint of these is no state that one can go on from, and is removed.
    pub fn check_step(&self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        if figures.iter().any(|(_, value)| !value.is_finite()) {
            checkpoint::discard(&self.dir, step - 1)?;
        }
        self.check_finite(step, figures)
    }

    /// Stops the run if a figure of `step` (from 1) is not finite.
    pub fn check_finite(&self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        match figures.iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((name, value)) => Err(self.diverged(step, format!("{name} is {value}"))?),
        }
    }

    fn check_learners(&self, step: u64, learners: &[&Learner]) -> Result<()> {
        for learner in learners {
            if let Some(what) = learner.not_finite()? {
                return Err(self.diverged(step, what)?);
            }
        }
        Ok(())
    }

    fn diverged(&self, step: u64, what: String) -> Result<Error> {
        let kept = match checkpoint::newest(&self.dir)? {
            Some(dir) => dir.display().to_string(),
            None => "none, as no checkpoint was due yet".to_owned(),
        };
        Ok(Error::Diverged { run: self.dir.clone(), step, what, kept })
    }

    /// Writes the result into the run's folder, and last `trainer_state.json`, which says that the run is finished.
    pub fn finish(self, learners: &[&Learner], write: impl FnOnce(&Path) -> Result<()>) -> Result<Outcome> {
        self.check_learners(self.steps, learners)?;
        self.metrics.sync()?;
        write(&self.dir)?;
        let seconds = self.elapsed();
        write_json(&self.dir.join(FINISHED), &json!({"global_step": self.steps, "elapsed_s": seconds}))?;
        (self.observer)(Event::End);
        Ok(Outcome { dir: self.dir, steps: self.steps, seconds, was_finished: false })
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

/// The learner of a checkpoint, or a new one of `model`.
pub(crate) fn learner(
    checkpoint: Option<&Checkpoint>,
    config: &OptimizerConfig,
    model: impl FnOnce() -> Result<Model>,
) -> Result<Learner> {
    match checkpoint {
        None => Learner::new(model()?, config),
        Some(checkpoint) => restored(&checkpoint.dir, &checkpoint.dir.join("trainer/optimizer.safetensors"), config),
    }
}

/// The learner whose model is in `dir` and whose optimizer is that file.
pub(crate) fn restored(dir: &Path, optimizer: &Path, config: &OptimizerConfig) -> Result<Learner> {
    let mut learner = Learner::new(Model::load(dir)?.trainable()?, config)?;
    learner.load_optimizer(optimizer)?;
    Ok(learner)
}

/// A random stream that depends on the seed, what it is for, and the step alone.
pub(crate) fn rng(seed: u64, purpose: u16, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from(purpose) << 48 | step);
    rng
}

/// Seconds that the finished run in `dir` took, over all its resumptions.
pub(crate) fn seconds_of(dir: &Path) -> Result<f64> {
    Ok(Outcome::of_finished(dir)?.seconds)
}
