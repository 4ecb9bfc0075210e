//! JSON files of a model folder.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// Writes `bytes` to `path` atomically: a reader or a crash sees the old or the new file, never a partial one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    llm_files::write_atomic(path, |out| out.write_all(bytes)).map_err(Error::io(path))
}

/// Maximum size of a JSON file, in bytes. Parsed JSON can take a hundred times the memory of its text.
const MAX_JSON_BYTES: u64 = 16 << 20;

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if bytes > MAX_JSON_BYTES {
        let message = format!("the file has {bytes} bytes; the maximum is {MAX_JSON_BYTES}");
        return Err(Error::config(path.display().to_string(), message));
    }
    parse_json(path)
}

pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.into(), source })
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json { path: path.into(), source })?;
    write_atomic(path, format!("{text}\n").as_bytes())
}
