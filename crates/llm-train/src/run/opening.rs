//! Before a run is under way: what is checked against its folder, and the making of that folder, which comes last.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use llm_files::Lock;
use llm_model::write_atomic;
use toml::Table;

use super::checkpoint::{self, Checkpoint};
use super::inputs::{self, Input};
use super::record::{self, Change, Record};
use super::{Outcome, Run, RunOptions, is_finished};
use crate::recipe::Recipe;
use crate::{Error, Result};

/// A run that may begin: its recipe, inputs and folder fit together, and nothing has been made yet.
pub(crate) struct Opening<'a> {
    stage: &'static str,
    recipe: Table,
    inputs: Vec<Input>,
    dir: PathBuf,
    options: RunOptions<'a>,
    past: Option<Past>,
}

/// What a run that is resumed has done before.
struct Past {
    lock: Lock,
    checkpoint: Option<Checkpoint>,
    changes: Vec<Change>,
    earlier: Vec<Change>,
}

/// What is to be done with a folder.
pub(crate) enum Start<'a> {
    /// Begin, or go on.
    Open(Box<Opening<'a>>),
    /// Nothing: the run is finished.
    Finished(Outcome),
}

const LOCK: &str = ".lock";

impl<'a> Opening<'a> {
    /// Checks the recipe, and that the run in the folder `dir` (if one is to be resumed) was begun with the same recipe and inputs.
    pub fn check<R: Recipe>(recipe: &R, inputs: Vec<Input>, dir: &Path, options: RunOptions<'a>) -> Result<Start<'a>> {
        recipe.validate()?;
        if options.stop.load(SeqCst) {
            return Err(Error::Interrupted { run: dir.to_owned(), done: "before it began".to_owned() });
        }
        let (resume, table) = (options.resume, crate::recipe::to_table(recipe)?);
        let opening = Self { stage: R::STAGE, recipe: table, inputs, dir: dir.to_owned(), options, past: None };
        if resume {
            let record = Record::read(dir)?;
            let changes = record.changes(recipe)?;
            return opening.resumed(record, changes);
        }
        refuse_existing(dir)?;
        Ok(Start::Open(Box::new(opening)))
    }

    fn resumed(mut self, record: Record, changes: Vec<Change>) -> Result<Start<'a>> {
        let dir = &self.dir;
        let lengthened = changes.iter().any(Change::lengthens);
        if is_finished(dir) && !lengthened {
            if let Some(change) = changes.iter().find(|change| change.is_length()) {
                let (dir, key) = (dir.display(), &change.key);
                return Err(Error::Input(format!("{dir}: is finished; a smaller {key} cannot shorten it")));
            }
            return Ok(Start::Finished(Outcome::of_finished(dir)?));
        }
        let lock = self.lock()?;
        inputs::compare(&self.inputs, &record.inputs)?;
        let checkpoint = checkpoint::latest(dir)?;
        if is_finished(dir) {
            let steps = Outcome::of_finished(dir)?.steps;
            if checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.step < steps) {
                let dir = dir.display();
                let message = format!("its checkpoint of step {steps} is gone, so the run cannot be made longer");
                return Err(Error::Input(format!("{dir}: {message}; begin another one")));
            }
        }
        self.past = Some(Past { lock, checkpoint, changes, earlier: record.run.changes });
        Ok(Start::Open(Box::new(self)))
    }

    /// Where the run goes on; none: at its first step.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.past.as_ref().and_then(|past| past.checkpoint.as_ref())
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.checkpoint().map_or(0, |checkpoint| checkpoint.step)
    }

    /// Makes the folder of the run, or goes on in it. Whatever can fail for the caller's fault has been tried before.
    pub fn open(self, steps: u64, save_every: u64) -> Result<Run<'a>> {
        let (step, earlier) = (self.step(), self.checkpoint().map_or(0., Checkpoint::elapsed));
        if step > steps {
            let dir = self.dir.display();
            return Err(Error::Input(format!("{dir}: has done {step} steps; it cannot end after {steps}")));
        }
        let resume = self.options.resume;
        let (dir, options, lock) = self.open_folder()?;
        if resume && step == 0 {
            tracing::info!("{}: begins again at step 0 of {steps}, as no checkpoint was due before", dir.display());
        } else if resume {
            tracing::info!("{}: resumes after step {step} of {steps}", dir.display());
        }
        Run::new(dir, options, lock, (step, steps, save_every), earlier)
    }

    /// The same for what is no stage of its own: only the folder, its recipe and its lock.
    pub fn open_folder(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        match self.past.is_some() {
            true => self.go_on(),
            false => self.begin(),
        }
    }

    fn begin(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        let existed = self.dir.exists();
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let lock = self.lock()?;
        let begun = refuse_existing(&self.dir).and_then(|()| {
            let text = record::to_text(self.stage, self.recipe.clone(), &self.inputs, &self.dir, &[])?;
            Ok(write_atomic(&self.dir.join("recipe.toml"), text.as_bytes())?)
        });
        if let Err(error) = begun {
            // An empty folder, as it was.
            fs::remove_file(self.dir.join(LOCK)).ok();
            if !existed {
                fs::remove_dir(&self.dir).ok();
            }
            return Err(error);
        }
        Ok((self.dir, self.options, lock))
    }

    fn go_on(self) -> Result<(PathBuf, RunOptions<'a>, Lock)> {
        let step = self.step();
        let Self { stage, recipe, inputs, dir, options, past } = self;
        let Some(past) = past else { return Err(Error::Input(format!("{}: nothing to resume", dir.display()))) };
        checkpoint::clear(&dir, step)?;
        if !past.changes.is_empty() {
            let mut changes = past.earlier;
            for change in past.changes {
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
            write_atomic(&dir.join("recipe.toml"), text.as_bytes())?;
        }
        let finished = dir.join(super::FINISHED);
        if finished.exists() {
            fs::remove_file(&finished).map_err(Error::io(&finished))?;
        }
        Ok((dir, options, past.lock))
    }

    fn lock(&self) -> Result<Lock> {
        let path = self.dir.join(LOCK);
        Lock::try_acquire(&path).map_err(Error::io(&path))?.ok_or_else(|| {
            let dir = self.dir.display();
            Error::Input(format!(
                "{dir}: another process is at work on this run; wait for its end, or choose another --out"
            ))
        })
    }
}

/// Refuses to write into a folder that holds something (but for what a run that was killed at its very beginning left).
pub(crate) fn refuse_existing(dir: &Path) -> Result<()> {
    let something = |entry: std::io::Result<fs::DirEntry>| {
        entry.map_or(true, |entry| !llm_files::is_temp_name(&entry.file_name()) && entry.file_name() != LOCK)
    };
    if dir.exists() && fs::read_dir(dir).map_or(true, |mut entries| entries.any(something)) {
        let begun = dir.join("recipe.toml").exists();
        let go_on = if begun { "go on with the run in it by --resume, or " } else { "" };
        let dir = dir.display();
        return Err(Error::Input(format!("{dir}: exists already; {go_on}choose another --out")));
    }
    Ok(())
}
