//! Checkpoints. They are written under a temporary name with checksums, synced to disk and renamed, so that a crash leaves older
//! checkpoints intact and later damage is detected.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// A state from which a run can resume.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Number of steps done.
    pub step: u64,
    /// The folder of the checkpoint.
    pub dir: PathBuf,
    /// Additional state of the recipe.
    pub state: Map<String, Value>,
}

/// Number of checkpoints to keep.
const KEPT: usize = 2;
/// The file with the checksums of all other files.
const CHECKSUMS: &str = "trainer/checksums.b3";

impl Checkpoint {
    /// Seconds of training until this checkpoint.
    pub fn elapsed(&self) -> f64 {
        self.state.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.)
    }

    /// Verifies all files of a checkpoint and reads its state.
    fn read(run: &Path, step: u64) -> std::result::Result<Self, String> {
        let dir = folder(run, step);
        llm_files::verify_checksums(&dir, CHECKSUMS).map_err(|e| e.to_string())?;
        let text =
            fs::read_to_string(dir.join("trainer/state.json")).map_err(|e| format!("trainer/state.json: {e}"))?;
        let state = serde_json::from_str(&text).map_err(|e| format!("trainer/state.json: {e}"))?;
        Ok(Self { step, dir, state })
    }
}

/// The newest valid checkpoint of a run, if any. Damaged checkpoints are logged and skipped. It is an error if all are damaged.
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
            Err(Error::BadFile(format!("{dir}: no valid checkpoint ({what}); remove the folder to restart at step 0")))
        }
    }
}

/// The step and the folder of the newest checkpoint, without verification.
pub(crate) fn newest_checkpoint(run: &Path) -> Result<Option<(u64, PathBuf)>> {
    Ok(steps(run)?.last().map(|&step| (step, folder(run, step))))
}

/// Writes a checkpoint; `write` fills its folder. Keeps this one and the last ones at multiples of `every` steps, [`KEPT`] in total, and
/// that of step `best`.
pub(crate) fn write(
    run: &Path,
    step: u64,
    (every, best): (u64, Option<u64>),
    state: Map<String, Value>,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let all = run.join("checkpoints");
    let (complete, partial) = (folder(run, step), all.join(format!(".step-{step}.partial")));
    remove(&partial)?;
    fs::create_dir_all(partial.join("trainer")).map_err(Error::io(&partial))?;
    write(&partial)?;
    let mut state = state;
    state.insert("step".to_owned(), json!(step));
    super::write_json(&partial.join("trainer/state.json"), &Value::Object(state))?;
    llm_files::write_checksums(&partial, CHECKSUMS).map_err(Error::io(&partial))?;
    remove(&complete)?;
    fs::rename(&partial, &complete).map_err(Error::io(&complete))?;
    llm_files::sync_folder(&all).map_err(Error::io(&all))?;
    remove_old(run, step, every, best)
}

/// Removes partial files of a killed run, and the (damaged) checkpoints after `step`.
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
    steps(run)?.into_iter().filter(|&later| later > step).try_for_each(|later| remove_checkpoint(run, later))
}

/// Removes old checkpoints, so that an interrupted run keeps the same ones as an uninterrupted run.
fn remove_old(run: &Path, newest: u64, every: u64, best: Option<u64>) -> Result<()> {
    let (due, others): (Vec<u64>, Vec<u64>) =
        steps(run)?.into_iter().filter(|&step| step != newest).partition(|&step| every > 0 && step % every == 0);
    let old = due.len().saturating_sub(KEPT - 1);
    let mut removed = others.into_iter().chain(due.into_iter().take(old)).filter(|&step| Some(step) != best);
    removed.try_for_each(|step| remove_checkpoint(run, step))
}

/// Copies the model of the checkpoint of `step` into the folder of its run.
pub(crate) fn copy_model(run: &Path, step: u64) -> Result<()> {
    let from = folder(run, step);
    llm_files::verify_checksums(&from, CHECKSUMS).map_err(|e| Error::BadFile(format!("{}: {e}", from.display())))?;
    for name in llm_files::list_files(&from).map_err(Error::io(&from))? {
        if !name.starts_with("trainer/") {
            let (from, to) = (from.join(&name), run.join(&name));
            let mut file = fs::File::open(&from).map_err(Error::io(&from))?;
            let copy = |to: &mut dyn std::io::Write| std::io::copy(&mut file, to).map(|_| ());
            llm_files::write_atomic(&to, copy).map_err(Error::io(&to))?;
        }
    }
    Ok(())
}

/// The folders of all checkpoints of a run, the newest first, without verification.
pub(crate) fn folders(run: &Path) -> Result<Vec<PathBuf>> {
    Ok(steps(run)?.into_iter().rev().map(|step| folder(run, step)).collect())
}

/// Removes the checkpoint of `step`, if it exists.
pub(crate) fn discard(run: &Path, step: u64) -> Result<()> {
    if folder(run, step).exists() { remove_checkpoint(run, step) } else { Ok(()) }
}

/// Removes a checkpoint. It is renamed first, so that a partly removed one is never mistaken for a complete one.
fn remove_checkpoint(run: &Path, step: u64) -> Result<()> {
    let (complete, old) = (folder(run, step), run.join(format!("checkpoints/.step-{step}.old")));
    remove(&old)?;
    fs::rename(&complete, &old).map_err(Error::io(&complete))?;
    remove(&old)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() { fs::remove_dir_all(dir).map_err(Error::io(dir)) } else { Ok(()) }
}

fn folder(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step}"))
}

/// The steps of all checkpoints, ascending.
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

    fn write_checkpoint(run: &Path, step: u64, every: u64, best: Option<u64>) {
        write(run, step, (every, best), Map::new(), |dir| {
            fs::write(dir.join("weights"), step.to_string()).map_err(Error::io(dir))
        })
        .unwrap();
    }

    #[test]
    fn the_checkpoints_of_an_uninterrupted_run_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for step in [5, 10, 12] {
            write_checkpoint(dir.path(), step, 5, None);
        }
        assert_eq!(steps(dir.path()).unwrap(), [10, 12]);
        write_checkpoint(dir.path(), 15, 5, None);
        assert_eq!(steps(dir.path()).unwrap(), [10, 15]);
        // The best one is kept besides these.
        for step in [18, 20, 25, 30] {
            write_checkpoint(dir.path(), step, 5, Some(18));
        }
        assert_eq!(steps(dir.path()).unwrap(), [18, 25, 30]);
    }

    #[test]
    fn a_damaged_checkpoint_is_skipped_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), 1, 1, None);
        write_checkpoint(dir.path(), 2, 1, None);
        fs::write(dir.path().join("checkpoints/step-2/weights"), "3").unwrap();
        let found = latest(dir.path()).unwrap().unwrap();
        assert_eq!(found.step, 1);
        fs::create_dir_all(dir.path().join("checkpoints/.step-3.partial/deep")).unwrap();
        clear(dir.path(), found.step).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 1);

        fs::remove_file(dir.path().join("checkpoints/step-1/trainer/checksums.b3")).unwrap();
        let message = latest(dir.path()).unwrap_err().to_string();
        assert!(message.contains("no valid checkpoint"), "{message}");
    }
}
