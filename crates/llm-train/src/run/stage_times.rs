//! Durations of the pipeline's stages that are not runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::write_json;
use crate::{Error, Result};

/// Seconds of each stage that is not a run, stored in a file.
pub(crate) struct StageTimes {
    path: PathBuf,
    seconds: Map<String, Value>,
}

impl StageTimes {
    /// Reads the file if it exists.
    pub fn open(path: &Path) -> Result<Self> {
        let seconds = match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| Error::BadFile(format!("{}: {e}", path.display())))?,
            Err(_) => Map::new(),
        };
        Ok(Self { path: path.to_owned(), seconds })
    }

    /// Runs `work` and adds its duration to stage `name`.
    pub fn measure<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        let seconds = self.get(name) + start.elapsed().as_secs_f64();
        self.seconds.insert(name.to_owned(), json!(seconds));
        write_json(&self.path, &Value::Object(self.seconds.clone()))?;
        Ok(result)
    }

    /// The seconds of a stage so far.
    pub fn get(&self, name: &str) -> f64 {
        self.seconds.get(name).and_then(Value::as_f64).unwrap_or(0.)
    }
}
