//! The metrics of a run: `metrics.jsonl`, one JSON object per line, and the same numbers in the event file of `TensorBoard`. Resuming
//! removes what was written after the checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use llm_model::write_atomic;
use serde_json::{Map, Value};

use super::events::{EventFile, now};
use crate::{Error, Result};

/// The files, open for appending.
#[derive(Debug)]
pub(crate) struct Metrics {
    file: fs::File,
    path: PathBuf,
    events: EventFile,
}

impl Metrics {
    /// Opens the files of a run that has done `step` steps in `seconds`. Lines of later steps are removed.
    pub fn open(run: &Path, step: u64, seconds: f64) -> Result<Self> {
        let path = run.join(FILE);
        let mut kept = Vec::new();
        if path.exists() {
            let done = |line: &Map<String, Value>| line.get("step").and_then(Value::as_u64);
            kept = lines(run)?;
            kept.retain(|line| done(line).is_some_and(|s| step > 0 && s <= step));
            let text: String = kept.iter().map(|line| format!("{}\n", Value::Object(line.clone()))).collect();
            write_atomic(&path, text.as_bytes())?;
        }
        let start = now() - seconds;
        let time = |line: &Map<String, Value>| start + line.get("elapsed_s").and_then(Value::as_f64).unwrap_or(0.);
        let events = EventFile::create(run, kept.iter().map(|line| (time(line), line)))?;
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { file, path, events })
    }

    /// Appends a line.
    pub fn append(&self, line: Map<String, Value>) -> Result<()> {
        self.events.append(now(), &line)?;
        writeln!(&self.file, "{}", Value::Object(line)).map_err(Error::io(&self.path))
    }

    /// Another handle of the file, to sync it on another thread.
    pub fn handle(&self) -> Result<fs::File> {
        self.file.try_clone().map_err(Error::io(&self.path))
    }

    /// Syncs the file to disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))
    }
}

const FILE: &str = "metrics.jsonl";

/// The lines of `metrics.jsonl` of the run in `dir`, without lines that are no objects, such as one that a killed program wrote in
/// part; empty without the file.
pub(super) fn lines(dir: &Path) -> Result<Vec<Map<String, Value>>> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(Error::io(&path))?,
    };
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The last value of each number in the file of the run in `dir`; empty without a file.
pub(super) fn last(dir: &Path) -> Result<BTreeMap<String, f64>> {
    let lines = lines(dir)?;
    let values = lines.iter().flat_map(super::events::numbers);
    Ok(values.map(|(name, value)| (name.to_owned(), value)).collect())
}
