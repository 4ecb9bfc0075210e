//! The result of a finished run: the checksums of its files in `trainer_state.json`, and what to do if a file is damaged.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{FINISHED, checkpoint, inputs, is_finished, write_json};
use crate::error::shell_word;
use crate::{Error, Result};

/// Writes `trainer_state.json` with the checksums of the model in `dir`.
pub(super) fn write(dir: &Path, steps: u64, seconds: f64) -> Result<()> {
    let state = json!({"global_step": steps, "elapsed_s": seconds, CHECKSUMS: checksums(dir)?});
    write_json(&dir.join(FINISHED), &state)
}

const CHECKSUMS: &str = "checksums";

/// BLAKE3 of each file of the model and of `tokenizer.json`, by name.
fn checksums(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for name in inputs::files_of(dir).map_err(Error::io(dir))? {
        if inputs::is_model(&name) || ["adapter_config.json", "tokenizer.json"].contains(&name.as_str()) {
            let path = dir.join(&name);
            all.insert(name, llm_files::checksum(&path).map_err(Error::io(path))?);
        }
    }
    Ok(all)
}

/// Whether the run in this folder is finished. An error if a file of its result is missing or has changed since; it names the
/// command that restores the file from a checkpoint, if there is one.
pub(crate) fn is_intact(dir: &Path) -> Result<bool> {
    if !is_finished(dir) {
        return Ok(false);
    }
    let path = dir.join(FINISHED);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let state: Value = serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))?;
    for (name, checksum) in state.get(CHECKSUMS).and_then(Value::as_object).into_iter().flatten() {
        let (file, checksum) = (dir.join(name), checksum.as_str().unwrap_or_default());
        let what = match file.exists() {
            true if llm_files::checksum(&file).map_err(Error::io(&file))? == checksum => continue,
            true => "has changed since the end of the run",
            false => "is missing",
        };
        let fix = match copy_of(dir, checksum)? {
            Some(copy) => format!("restore it with: cp {} {}", shell_word(&copy), shell_word(&file)),
            None => "no intact checkpoint has this file; start a new run".to_owned(),
        };
        return Err(Error::BadFile(format!("{}: is finished, but {name} {what}; {fix}", dir.display())));
    }
    Ok(true)
}

/// A file with this checksum in a checkpoint, if there is one.
fn copy_of(dir: &Path, wanted: &str) -> Result<Option<std::path::PathBuf>> {
    for checkpoint in checkpoint::folders(dir)? {
        for name in llm_files::list_files(&checkpoint).map_err(Error::io(&checkpoint))? {
            let file = checkpoint.join(name);
            if llm_files::checksum(&file).map_err(Error::io(&file))? == wanted {
                return Ok(Some(file));
            }
        }
    }
    Ok(None)
}
