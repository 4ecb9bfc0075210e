//! The start of a run: checks against its folder, then creation of the folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use candle_core::Device;
use llm_files::Lock;
use serde::Serialize;
use toml::Table;

use super::checkpoint::{self, Checkpoint};
use super::inputs::{self, Input};
use super::record::{self, Change, Record};
use super::{Outcome, Plan, Run, RunOptions, is_finished, is_intact};
use crate::recipe::Recipe;
use crate::{Error, Result};

/// A run that can start: recipe, inputs and folder are checked, and nothing is written yet.
pub(crate) struct RunSetup<'a> {
    stage: &'static str,
    recipe: Table,
    inputs: Vec<Input>,
    dir: PathBuf,
    options: RunOptions<'a>,
    resumed: Option<ResumeState>,
}

/// The state of a run that is resumed.
struct ResumeState {
    lock: Lock,
    checkpoint: Option<Checkpoint>,
    changes: Vec<Change>,
    earlier: Vec<Change>,
}

/// How to start in a folder.
pub(crate) enum Start<'a> {
    /// Start or resume the run.
    Open(Box<RunSetup<'a>>),
    /// The run is already finished.
    Finished(Outcome),
}

const LOCK: &str = ".lock";

impl<'a> RunSetup<'a> {
    /// Checks the recipe. To resume, also checks that the run in the folder `dir` has the same recipe and inputs.
    pub fn check<R: Recipe>(
        recipe: &R,
        inputs: &impl Serialize,
        dir: &Path,
        options: RunOptions<'a>,
    ) -> Result<Start<'a>> {
        recipe.validate()?;
        if options.stop.load(SeqCst) {
            return Err(Error::Interrupted { run: dir.to_owned(), done: "before it started".to_owned() });
        }
        let (resume, table) = (options.resume, crate::recipe::to_table(recipe)?);
        let inputs = Input::list(inputs)?;
        let setup = Self { stage: R::STAGE, recipe: table, inputs, dir: dir.to_owned(), options, resumed: None };
        if resume {
            let record = Record::read(dir)?;
            let changes = record.changes(recipe)?;
            return setup.resume_from(record, changes);
        }
        refuse_existing(dir)?;
        Ok(Start::Open(Box::new(setup)))
    }

    fn resume_from(mut self, record: Record, changes: Vec<Change>) -> Result<Start<'a>> {
        let dir = &self.dir;
        let lengthened = changes.iter().any(Change::lengthens);
        if is_finished(dir) && !lengthened {
            if let Some(change) = changes.iter().find(|change| change.is_length()) {
                let (dir, key) = (dir.display(), &change.key);
                return Err(Error::BadRequest(format!("{dir}: is finished; a smaller {key} cannot shorten it")));
            }
            is_intact(dir)?;
            return Ok(Start::Finished(Outcome::of_finished(dir)?));
        }
        let lock = self.lock()?;
        inputs::compare(&self.inputs, &record.inputs)?;
        let checkpoint = checkpoint::latest(dir)?;
        if is_finished(dir) {
            let steps = Outcome::of_finished(dir)?.steps;
            if checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.step < steps) {
                let dir = dir.display();
                let message = format!("its checkpoint of step {steps} is gone, so the run cannot be extended");
                return Err(Error::MissingFile(format!("{dir}: {message}; start a new run")));
            }
        }
        self.resumed = Some(ResumeState { lock, checkpoint, changes, earlier: record.run.changes });
        Ok(Start::Open(Box::new(self)))
    }

    /// The checkpoint to resume from; `None`: start at step 0.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.resumed.as_ref().and_then(|state| state.checkpoint.as_ref())
    }

    /// Number of steps done.
    pub fn step(&self) -> u64 {
        self.checkpoint().map_or(0, |checkpoint| checkpoint.step)
    }

    /// The device of the stage's models.
    pub fn device(&self) -> &Device {
        &self.options.device
    }

    /// Creates the folder of the run, or resumes in it. Call it after all checks that can fail by the caller's fault.
    pub fn open<'p>(self, plan: Plan<'p>) -> Result<Run<'p>>
    where
        'a: 'p,
    {
        let (step, earlier) = (self.step(), self.checkpoint().map_or(0., Checkpoint::elapsed));
        let steps = plan.steps;
        if step > steps {
            let dir = self.dir.display();
            return Err(Error::BadRequest(format!("{dir}: has done {step} steps; it cannot end after {steps}")));
        }
        let resume = self.options.resume;
        let (dir, options, lock) = self.open_folder()?;
        if resume && step == 0 {
            tracing::info!("{}: no checkpoint yet; restarts at step 0 of {steps}", dir.display());
        } else if resume {
            tracing::info!("{}: resumes after step {step} of {steps}", dir.display());
        }
        let RunOptions { resume, device, observer, stop } = options;
        Run::begin(dir, plan, RunOptions { resume, device, observer, stop }, lock, (step, earlier))
    }

    /// [`Self::open`] without metrics and checkpoints: only the folder, its recipe and its lock.
    pub fn open_folder(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        match self.resumed.is_some() {
            true => self.resume(),
            false => self.create(),
        }
    }

    fn create(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        let existed = self.dir.exists();
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let lock = self.lock()?;
        let written = refuse_existing(&self.dir).and_then(|()| {
            let text = record::to_text(self.stage, self.recipe.clone(), &self.inputs, &self.dir, &[])?;
            record::write(&self.dir, &text)
        });
        if let Err(error) = written {
            // Restore the previous state.
            fs::remove_file(self.dir.join(LOCK)).ok();
            if !existed {
                fs::remove_dir(&self.dir).ok();
            }
            return Err(error);
        }
        Ok((self.dir, self.options, lock))
    }

    fn resume(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        let step = self.step();
        let Self { stage, recipe, inputs, dir, options, resumed } = self;
        let Some(state) = resumed else { return Err(Error::Internal(format!("{}: nothing to resume", dir.display()))) };
        checkpoint::clear(&dir, step)?;
        if !state.changes.is_empty() {
            let mut changes = state.earlier;
            for change in state.changes {
                let show =
                    |value: &Option<toml::Value>| value.as_ref().map_or("nothing".to_owned(), toml::Value::to_string);
                tracing::info!(
                    "{}: {} changes from {} to {}",
                    dir.display(),
                    change.key,
                    show(&change.from),
                    show(&change.to)
                );
                changes.push(Change { step, ..change });
            }
            let text = record::to_text(stage, recipe, &inputs, &dir, &changes)?;
            record::write(&dir, &text)?;
        }
        let finished = dir.join(super::FINISHED);
        if finished.exists() {
            fs::remove_file(&finished).map_err(Error::io(&finished))?;
        }
        Ok((dir, options, state.lock))
    }

    fn lock(&self) -> Result<Lock> {
        let path = self.dir.join(LOCK);
        Lock::try_acquire(&path).map_err(Error::io(&path))?.ok_or_else(|| {
            let dir = self.dir.display();
            Error::BadRequest(format!(
                "{dir}: another process is running this run; wait for it, or choose another --out"
            ))
        })
    }
}

/// Returns an error if the folder is not empty. Files left by a run that was killed during its start are ignored.
pub(crate) fn refuse_existing(dir: &Path) -> Result<()> {
    let is_content = |entry: std::io::Result<fs::DirEntry>| {
        entry.map_or(true, |entry| !llm_files::is_temp_name(&entry.file_name()) && entry.file_name() != LOCK)
    };
    if dir.exists() && fs::read_dir(dir).map_or(true, |mut entries| entries.any(is_content)) {
        return Err(already_exists(dir, dir.join("recipe.toml").exists()));
    }
    Ok(())
}

/// The error for a folder that a command will not write into. `is_run`: the command can resume it.
pub(crate) fn already_exists(dir: &Path, is_run: bool) -> Error {
    let resume = if is_run { "continue its run with --resume, or " } else { "" };
    Error::BadRequest(format!("{}: already exists; {resume}choose another --out", dir.display()))
}
