//! `metrics.jsonl`: one JSON object per line. Resuming removes lines after the checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use llm_model::write_atomic;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Metrics {
    file: fs::File,
    path: PathBuf,
}

impl Metrics {
    /// Opens the file of a run that has done `step` steps. Lines of later steps are removed.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let path = run.join("metrics.jsonl");
        if path.exists() {
            let text = fs::read(&path).map_err(Error::io(&path))?;
            let keep = |line: &&str| {
                let value: Option<Value> = serde_json::from_str(line).ok();
                value.and_then(|v| v.get("step").and_then(Value::as_u64)).is_some_and(|s| step > 0 && s <= step)
            };
            let text = String::from_utf8_lossy(&text);
            let kept: String = text.lines().filter(keep).map(|line| format!("{line}\n")).collect();
            write_atomic(&path, kept.as_bytes())?;
        }
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { file, path })
    }

    /// Appends a line.
    pub fn append(&self, line: Map<String, Value>) -> Result<()> {
        writeln!(&self.file, "{}", Value::Object(line)).map_err(Error::io(&self.path))
    }

    /// Syncs the file to disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))
    }
}

/// The last value of each number in the file of the run in `dir`; empty without a file.
pub(super) fn last(dir: &Path) -> Result<BTreeMap<String, f64>> {
    let path = dir.join("metrics.jsonl");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        text => text.map_err(Error::io(&path))?,
    };
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Map<String, Value>>(line).ok());
    let mut last = BTreeMap::new();
    for (name, value) in lines.flatten() {
        if let Some(value) = value.as_f64().filter(|_| !["step", "elapsed_s"].contains(&name.as_str())) {
            last.insert(name, value);
        }
    }
    Ok(last)
}
