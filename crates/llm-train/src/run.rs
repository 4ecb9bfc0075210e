//! A run is a folder: `recipe.toml`, `metrics.jsonl`, `samples/`, `checkpoints/step-N/`, and in the end the model.
//!
//! A checkpoint is written under another name and renamed when it is whole, so a crash leaves the last one as it was.
//! What a recipe draws at random hangs on its seed and the step alone; so model, optimizer and step are all that is
//! needed to go on as if nothing had happened.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llm_model::{Model, write_atomic};
use llm_tokenizer::Tokenizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::optim::{Learner, OptimizerConfig};
use crate::{Error, Result, recipe};

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
    /// Whether to go on with what an interrupted run left; otherwise the run folder must not exist.
    pub resume: bool,
    /// Hears of the progress.
    pub observer: &'a mut dyn FnMut(Event),
}

/// The folder of a run that is under way.
pub(crate) struct Run<'a> {
    dir: PathBuf,
    observer: &'a mut dyn FnMut(Event),
    metrics: fs::File,
    started: Instant,
    earlier: f64,
    begun_at: Instant,
}

/// Where a run stands when it is opened.
pub(crate) struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub dir: PathBuf,
    /// What the recipe put beside the step.
    pub state: Map<String, Value>,
}

const CHECKPOINTS_KEPT: usize = 2;

/// Whether the run in this folder came to its end.
pub fn is_finished(dir: &Path) -> bool {
    dir.join("trainer_state.json").exists()
}

impl<'a> Run<'a> {
    /// Makes the folder, or opens that of an interrupted run.
    pub fn open<R: Serialize>(
        dir: &Path,
        recipe: &R,
        inputs: &[(&str, String)],
        options: RunOptions<'a>,
    ) -> Result<(Self, Option<Checkpoint>)> {
        open_folder(dir, recipe, inputs, options.resume)?;
        let checkpoint = latest_checkpoint(dir)?;
        let (step, earlier) = checkpoint
            .as_ref()
            .map_or((0, 0.), |c| (c.step, c.state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.)));
        if options.resume && step > 0 {
            tracing::info!("{}: going on behind step {step}", dir.display());
        }
        let metrics = open_metrics(&dir.join("metrics.jsonl"), step)?;
        let now = Instant::now();
        let run =
            Self { dir: dir.to_owned(), observer: options.observer, metrics, started: now, earlier, begun_at: now };
        Ok((run, checkpoint))
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

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        self.log_with(step, figures, Map::new())
    }

    /// The same, with figures that are no single numbers.
    pub fn log_with(&mut self, step: u64, figures: &[(&str, f64)], more: Map<String, Value>) -> Result<()> {
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend(figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        line.extend(more);
        line.insert("elapsed_s".to_owned(), json!((self.elapsed() * 1000.).round() / 1000.));
        let path = self.dir.join("metrics.jsonl");
        writeln!(self.metrics, "{}", Value::Object(line)).map_err(Error::io(path))
    }

    /// Writes `samples/step-N.txt`.
    pub fn sample(&self, step: u64, text: &str) -> Result<()> {
        Ok(write_atomic(&self.dir.join(format!("samples/step-{step}.txt")), text.as_bytes())?)
    }

    /// Writes the checkpoint of `step` steps: `write` fills its folder. Older ones are removed but for the last two.
    pub fn checkpoint(
        &self,
        step: u64,
        mut state: Map<String, Value>,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let folder = self.dir.join("checkpoints");
        let (whole, partial) = (folder.join(format!("step-{step}")), folder.join(format!(".step-{step}.partial")));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(Error::io(&partial))?;
        }
        fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        write(&partial)?;
        state.insert("step".to_owned(), json!(step));
        state.insert("elapsed_s".to_owned(), json!(self.elapsed()));
        write_json(&partial.join("trainer/state.json"), &Value::Object(state))?;
        if whole.exists() {
            fs::remove_dir_all(&whole).map_err(Error::io(&whole))?;
        }
        fs::rename(&partial, &whole).map_err(Error::io(&whole))?;
        let mut steps = checkpoint_steps(&self.dir)?;
        steps.truncate(steps.len().saturating_sub(CHECKPOINTS_KEPT));
        for old in steps {
            let old = folder.join(format!("step-{old}"));
            fs::remove_dir_all(&old).map_err(Error::io(&old))?;
        }
        Ok(())
    }

    /// Writes the checkpoint of a stage in which one model learns.
    pub fn checkpoint_of(&self, step: u64, learner: &Learner, tokenizer: &Tokenizer) -> Result<()> {
        self.checkpoint(step, Map::new(), |dir| {
            learner.model.save(dir)?;
            tokenizer.save(dir)?;
            learner.save_optimizer(&dir.join("trainer/optimizer.safetensors"))
        })
    }

    /// Stops the run if the loss or the gradient of `step` (from 1) is not finite.
    pub fn check_finite(&self, step: u64, figures: &[(&str, f64)]) -> Result<()> {
        let Some((name, value)) = figures.iter().find(|(_, value)| !value.is_finite()) else { return Ok(()) };
        let kept = match latest_checkpoint(&self.dir)? {
            Some(checkpoint) => checkpoint.dir.display().to_string(),
            None => "none, as no checkpoint was due yet".to_owned(),
        };
        Err(Error::Diverged { run: self.dir.clone(), step, what: format!("{name} is {value}"), kept })
    }

    /// Writes the result into the run's folder, and last `trainer_state.json`, which says that the run is finished.
    pub fn finish(self, step: u64, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        write(&self.dir)?;
        let state = json!({"global_step": step, "elapsed_s": self.elapsed()});
        write_json(&self.dir.join("trainer_state.json"), &state)?;
        (self.observer)(Event::End);
        Ok(())
    }

    fn elapsed(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }
}

/// Makes the folder of a run with its `recipe.toml`, or checks that the run in it was begun with the same recipe.
pub(crate) fn open_folder<R: Serialize>(dir: &Path, recipe: &R, inputs: &[(&str, String)], resume: bool) -> Result<()> {
    let text = recipe::to_text(recipe, inputs)?;
    let path = dir.join("recipe.toml");
    if !(path.exists() && resume) {
        refuse_existing(dir)?;
        return Ok(write_atomic(&path, text.as_bytes())?);
    }
    let old = fs::read_to_string(&path).map_err(Error::io(&path))?;
    match first_difference(&old, &text) {
        None => llm_files::remove_unfinished(dir).map_err(Error::io(dir)),
        Some((was, is)) => {
            let path = path.display();
            Err(Error::Input(format!("{path}: the run has `{was}`, you ask for `{is}`; resume it as it was begun")))
        }
    }
}

/// Refuses to write into a folder that holds something (but for a file that was being written when a run was killed).
pub(crate) fn refuse_existing(dir: &Path) -> Result<()> {
    let something = |entry: std::io::Result<fs::DirEntry>| {
        entry.map_or(true, |entry| !llm_files::is_unfinished(&entry.file_name()))
    };
    if dir.exists() && fs::read_dir(dir).map_or(true, |mut entries| entries.any(something)) {
        let dir = dir.display();
        return Err(Error::Input(format!("{dir}: exists already; go on with it by --resume, or choose another --out")));
    }
    Ok(())
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

/// A random stream that hangs on the seed, what it is for, and the step alone.
pub(crate) fn rng(seed: u64, purpose: u16, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from(purpose) << 48 | step);
    rng
}

/// Steps of the checkpoints that are there, rising.
fn checkpoint_steps(dir: &Path) -> Result<Vec<u64>> {
    let folder = dir.join("checkpoints");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
        let name = entry.map_err(Error::io(&folder))?.file_name();
        steps.extend(name.to_string_lossy().strip_prefix("step-").and_then(|n| n.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

fn latest_checkpoint(dir: &Path) -> Result<Option<Checkpoint>> {
    let Some(step) = checkpoint_steps(dir)?.pop() else { return Ok(None) };
    let dir = dir.join(format!("checkpoints/step-{step}"));
    let path = dir.join("trainer/state.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let state = serde_json::from_str(&text).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    Ok(Some(Checkpoint { step, dir, state }))
}

/// Opens `metrics.jsonl` for appending; lines of steps that will be done again are dropped.
fn open_metrics(path: &Path, step: u64) -> Result<fs::File> {
    if path.exists() {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let keep = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value.and_then(|v| v.get("step").and_then(Value::as_u64)).is_some_and(|s| s <= step)
        };
        let kept: String = text.lines().filter(keep).map(|line| format!("{line}\n")).collect();
        write_atomic(path, kept.as_bytes())?;
    }
    fs::OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))
}

fn first_difference(old: &str, new: &str) -> Option<(String, String)> {
    let (mut old, mut new) = (old.lines(), new.lines());
    loop {
        match (old.next(), new.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (a, b) => return Some((a.unwrap_or_default().to_owned(), b.unwrap_or_default().to_owned())),
        }
    }
}

/// Seconds that the finished run in `dir` took, over all its resumptions.
pub(crate) fn seconds_of(dir: &Path) -> Result<f64> {
    let path = dir.join("trainer_state.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let state: Value = serde_json::from_str(&text).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    Ok(state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.))
}

/// Seconds of the pieces of work that are not runs of their own, kept in a file.
pub(crate) struct Times {
    path: PathBuf,
    seconds: Map<String, Value>,
}

impl Times {
    /// Reads the file if it is there.
    pub fn open(path: &Path) -> Result<Self> {
        let seconds = match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?,
            Err(_) => Map::new(),
        };
        Ok(Self { path: path.to_owned(), seconds })
    }

    /// Does a piece of work and adds its time.
    pub fn of<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        let seconds = self.get(name) + start.elapsed().as_secs_f64();
        self.seconds.insert(name.to_owned(), json!(seconds));
        write_json(&self.path, &Value::Object(self.seconds.clone()))?;
        Ok(result)
    }

    /// The seconds of a piece of work so far.
    pub fn get(&self, name: &str) -> f64 {
        self.seconds.get(name).and_then(Value::as_f64).unwrap_or(0.)
    }
}
