//! Checkpoints: written under another name with their checksums, sent to the disk, then renamed; so a crash leaves those that were
//! there, and what is damaged later is found.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Where a run can go on.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub dir: PathBuf,
    /// What the recipe put beside the step.
    pub state: Map<String, Value>,
}

/// How many are kept.
const KEPT: usize = 2;
/// The checksums of all its other files.
const CHECKSUMS: &str = "trainer/checksums.b3";

impl Checkpoint {
    /// Seconds that the run had taken by then.
    pub fn elapsed(&self) -> f64 {
        self.state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.)
    }

    /// Reads a checkpoint's state after a check of all its files.
    fn read(run: &Path, step: u64) -> std::result::Result<Self, String> {
        let dir = folder(run, step);
        llm_files::verify_checksums(&dir, CHECKSUMS).map_err(|e| e.to_string())?;
        let text =
            fs::read_to_string(dir.join("trainer/state.json")).map_err(|e| format!("trainer/state.json: {e}"))?;
        let state = serde_json::from_str(&text).map_err(|e| format!("trainer/state.json: {e}"))?;
        Ok(Self { step, dir, state })
    }
}

/// The newest checkpoint of a run that is whole, if it has any; a damaged one is reported and passed over.
pub(crate) fn latest(run: &Path) -> Result<Option<Checkpoint>> {
    let steps = steps(run)?;
    let mut damage = None;
    for &step in steps.iter().rev() {
        match Checkpoint::read(run, step) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(what) => {
                tracing::warn!("{}: damaged ({what}); looking for an older checkpoint", folder(run, step).display());
                damage = Some(what);
            }
        }
    }
    match damage {
        None => Ok(None),
        Some(what) => {
            let dir = run.join("checkpoints");
            let dir = dir.display();
            Err(Error::Input(format!("{dir}: no checkpoint is whole ({what}); remove the folder to begin at step 0")))
        }
    }
}

/// The folder of the newest checkpoint, unchecked.
pub(crate) fn newest(run: &Path) -> Result<Option<PathBuf>> {
    Ok(steps(run)?.last().map(|&step| folder(run, step)))
}

/// Writes a checkpoint: `write` fills its folder. `every` is the number of steps between two; the last two of these, and this one,
/// are kept.
pub(crate) fn write(
    run: &Path,
    step: u64,
    every: u64,
    state: Map<String, Value>,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let all = run.join("checkpoints");
    let (whole, partial) = (folder(run, step), all.join(format!(".step-{step}.partial")));
    remove(&partial)?;
    fs::create_dir_all(partial.join("trainer")).map_err(Error::io(&partial))?;
    write(&partial)?;
    let mut state = state;
    state.insert("step".to_owned(), json!(step));
    super::write_json(&partial.join("trainer/state.json"), &Value::Object(state))?;
    llm_files::write_checksums(&partial, CHECKSUMS).map_err(Error::io(&partial))?;
    remove(&whole)?;
    fs::rename(&partial, &whole).map_err(Error::io(&whole))?;
    llm_files::sync_folder(&all).map_err(Error::io(&all))?;
    remove_old(run, step, every)
}

/// Removes what a killed run left unfinished, and checkpoints of later steps than `step`, which are damaged.
pub(crate) fn clear(run: &Path, step: u64) -> Result<()> {
    llm_files::remove_temp_files(run).map_err(Error::io(run))?;
    let all = run.join("checkpoints");
    if all.exists() {
        for entry in fs::read_dir(&all).map_err(Error::io(&all))? {
            let entry = entry.map_err(Error::io(&all))?;
            if entry.file_name().to_string_lossy().starts_with(".step-") {
                remove(&entry.path())?;
            }
        }
    }
    steps(run)?.into_iter().filter(|&later| later > step).try_for_each(|later| remove_whole(run, later))
}

/// Of the checkpoints before `newest` those stay that a run without interruption would have.
fn remove_old(run: &Path, newest: u64, every: u64) -> Result<()> {
    let (due, others): (Vec<u64>, Vec<u64>) =
        steps(run)?.into_iter().filter(|&step| step != newest).partition(|&step| every > 0 && step % every == 0);
    let old = due.len().saturating_sub(KEPT - 1);
    others.into_iter().chain(due.into_iter().take(old)).try_for_each(|step| remove_whole(run, step))
}

/// Removes the checkpoint of `step` steps, if there is one.
pub(crate) fn discard(run: &Path, step: u64) -> Result<()> {
    if folder(run, step).exists() { remove_whole(run, step) } else { Ok(()) }
}

/// Removes a checkpoint so that nobody takes what is left of it for a whole one.
fn remove_whole(run: &Path, step: u64) -> Result<()> {
    let (whole, doomed) = (folder(run, step), run.join(format!("checkpoints/.step-{step}.old")));
    remove(&doomed)?;
    fs::rename(&whole, &doomed).map_err(Error::io(&whole))?;
    remove(&doomed)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() { fs::remove_dir_all(dir).map_err(Error::io(dir)) } else { Ok(()) }
}

fn folder(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step}"))
}

/// Steps of the checkpoints that are there, rising.
fn steps(run: &Path) -> Result<Vec<u64>> {
    let all = run.join("checkpoints");
    if !all.exists() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs::read_dir(&all).map_err(Error::io(&all))? {
        let name = entry.map_err(Error::io(&all))?.file_name();
        steps.extend(name.to_string_lossy().strip_prefix("step-").and_then(|n| n.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(run: &Path, step: u64, every: u64) {
        write(run, step, every, Map::new(), |dir| {
            fs::write(dir.join("weights"), step.to_string()).map_err(Error::io(dir))
        })
        .unwrap();
    }

    #[test]
    fn those_that_an_uninterrupted_run_would_have_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for step in [5, 10, 12] {
            written(dir.path(), step, 5);
        }
        assert_eq!(steps(dir.path()).unwrap(), [10, 12]);
        written(dir.path(), 15, 5);
        assert_eq!(steps(dir.path()).unwrap(), [10, 15]);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 1, 1);
        written(dir.path(), 2, 1);
        fs::write(dir.path().join("checkpoints/step-2/weights"), "3").unwrap();
        let found = latest(dir.path()).unwrap().unwrap();
        assert_eq!(found.step, 1);
        fs::create_dir_all(dir.path().join("checkpoints/.step-3.partial/deep")).unwrap();
        clear(dir.path(), found.step).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 1);

        fs::remove_file(dir.path().join("checkpoints/step-1/trainer/checksums.b3")).unwrap();
        let message = latest(dir.path()).unwrap_err().to_string();
        assert!(message.contains("no checkpoint is whole"), "{message}");
    }
}
