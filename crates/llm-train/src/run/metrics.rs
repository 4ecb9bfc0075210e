//! `metrics.jsonl`: one JSON object per line. Resuming removes lines after the checkpoint.

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
