//! The event file of `TensorBoard`: records of protocol buffers (`tensorflow/core/util/event.proto`), each with checksums
//! (`tensorflow/core/lib/io/record_writer.h`).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The folder of the event files in a run.
pub(super) const FOLDER: &str = "tensorboard";

/// An event file, open for appending.
#[derive(Debug)]
pub(super) struct EventFile {
    file: fs::File,
    path: PathBuf,
}

impl EventFile {
    /// Replaces the event files of the run in `dir` by one with these lines of its metrics, each with the seconds since 1970 at
    /// which it was written. The new file has another name and begins with a start of the session at step 0, so that a running
    /// `TensorBoard` forgets what it read from the old one.
    pub fn create<'l>(dir: &Path, lines: impl Iterator<Item = (f64, &'l Map<String, Value>)>) -> Result<Self> {
        let folder = dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let mut number = now() as u64;
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Readers order the files of a folder by name.
            if let Some(old) =
                name.strip_prefix("events.out.tfevents.").and_then(|n| n.split('.').next()?.parse::<u64>().ok())
            {
                number = number.max(old + 1);
                fs::remove_file(entry.path()).map_err(Error::io(&entry.path()))?;
            }
        }
        let path = folder.join(format!("events.out.tfevents.{number:010}.llm-train"));
        let file = fs::File::create_new(&path).map_err(Error::io(&path))?;
        let events = Self { file, path };
        let start = now();
        events.write(&event(start, 0, &field(3, b"brain.Event:2")))?;
        events.write(&event(start, 0, &field(7, &number_field(1, 1))))?; // session_log: START
        for (time, line) in lines {
            events.append(time, line)?;
        }
        Ok(events)
    }

    /// Appends the numbers of a line of the metrics.
    pub fn append(&self, time: f64, line: &Map<String, Value>) -> Result<()> {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let mut summary = Vec::new();
        for (name, value) in numbers(line) {
            let mut scalar = field(1, name.as_bytes()); // tag
            scalar.push(2 << 3 | 5); // simple_value
            scalar.extend((value as f32).to_le_bytes());
            summary.extend(field(1, &scalar));
        }
        self.write(&event(time, step, &field(5, &summary)))
    }

    fn write(&self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(event);
        record.extend(masked_crc(event).to_le_bytes());
        (&self.file).write_all(&record).map_err(Error::io(&self.path))
    }
}

/// The metrics of a line that are numbers, without step and time.
pub(super) fn numbers(line: &Map<String, Value>) -> impl Iterator<Item = (&str, f64)> {
    let is_metric = |name: &str| !["step", "elapsed_s"].contains(&name);
    line.iter().filter_map(move |(name, value)| Some((name.as_str(), value.as_f64().filter(|_| is_metric(name))?)))
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |time| time.as_secs_f64())
}

/// The message `Event` with wall time, step and another field.
fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.to_le_bytes());
    event.extend(number_field(2, step));
    event.extend(what);
    event
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

fn number_field(number: u8, value: u64) -> Vec<u8> {
    let mut field = vec![number << 3];
    field.extend(varint(value));
    field
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn masked_crc(bytes: &[u8]) -> u32 {
    Crc::<u32>::new(&CRC_32_ISCSI).checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The bytes that `tensorboard.summary.writer.record_writer.RecordWriter` of tensorboard 2.21 writes for
    /// `Event(wall_time=1.5, step=300, summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.25)]))`.
    const GOLDEN: &str = "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed";

    #[test]
    fn a_record_has_the_bytes_of_tensorboard() {
        let dir = tempfile::tempdir().unwrap();
        let line = json!({"step": 300, "loss": 0.25, "tokens_per_expert": [1, 2], "elapsed_s": 7.0});
        let line = line.as_object().unwrap();
        let events = EventFile::create(dir.path(), [(1.5, line)].into_iter()).unwrap();
        let bytes = fs::read(&events.path).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(hex.ends_with(GOLDEN), "{hex}");
        // A second start replaces the file, by one with a later name.
        let again = EventFile::create(dir.path(), [].into_iter()).unwrap();
        assert!(again.path > events.path && !events.path.exists());
    }
}
