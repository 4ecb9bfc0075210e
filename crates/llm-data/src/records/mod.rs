//! The records of data files: JSON, CSV and Parquet, plain or compressed, one file or a folder of them.
//!
//! Files are read as streams, but for JSON arrays, which are read as a whole.

mod array;
mod lines;
mod parquet;
mod table;

use std::path::Path;

use serde_json::Value;

use crate::error::Place;
use crate::source::{Format, data_files, format};
use crate::{Error, Result};

/// The longest record of [`Limit::Rows`], in bytes: more than any model reads.
pub(crate) const MAX_ROW: usize = 32 << 20;

/// The longest record that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// [`MAX_ROW`], for rows that are one example each.
    Rows,
    /// Any length, for documents.
    None,
}

impl Limit {
    fn bytes(self) -> usize {
        match self {
            Self::Rows => MAX_ROW,
            Self::None => usize::MAX,
        }
    }

    /// An error for a record of this length if it is too long.
    fn check(self, bytes: usize) -> Result<(), String> {
        match bytes > self.bytes() {
            true => Err(format!("the row has {bytes} bytes; it must have at most {MAX_ROW}; split it")),
            false => Ok(()),
        }
    }
}

/// What receives the records: the place of each, and the record or what is wrong with it. An error ends the reading.
pub(crate) type Each<'a> = dyn FnMut(Place, Result<Value, String>) -> Result<()> + 'a;

/// Calls `each` with every record of a file, or of all data files of a folder, sorted by path. A record that cannot be read does
/// not end the reading, unless nothing after it can be read, as in a JSON array.
pub(crate) fn for_each_record(path: &Path, limit: Limit, each: &mut Each) -> Result<()> {
    for file in data_files(path, false)? {
        for_each_record_of_file(&file, limit, None, each)?;
    }
    Ok(())
}

/// Calls `each` with every record of a file. `column`: the only one that is needed, to read no other of a Parquet file.
pub(crate) fn for_each_record_of_file(path: &Path, limit: Limit, column: Option<&str>, each: &mut Each) -> Result<()> {
    match format(path) {
        Format::Json => lines::for_each(path, limit, each),
        Format::Table(delimiter) => table::for_each(path, delimiter, limit, each),
        Format::Parquet => parquet::for_each(path, column, each),
        Format::Text | Format::Markdown | Format::Html => {
            let message = "is plain text, which has no rows; to train on it use `llm-train prepare` and --text, or write each \
                           text as a line {\"text\": …} of a .jsonl file";
            Err(Error::unusable(path, message))
        }
    }
}

/// Calls `each` with every record; one that cannot be read is an error.
pub(crate) fn for_each_valid_record(
    path: &Path,
    limit: Limit,
    each: &mut dyn FnMut(&Place, Value) -> Result<(), String>,
) -> Result<()> {
    for_each_record(path, limit, &mut |place, record| {
        record.and_then(|value| each(&place, value)).map_err(|message| Error::Record { place, message })
    })
}

/// The UTF-8 text of a record, or what is wrong with it.
fn text_of_record(bytes: &[u8]) -> Result<&str, String> {
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err(format!("byte {} is NUL; the file is damaged, or is UTF-16 text that must be converted", at + 1));
    }
    std::str::from_utf8(bytes)
        .map_err(|e| format!("byte {} is not UTF-8; convert the file to UTF-8 first", e.valid_up_to() + 1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The records of a file with this name and content, with their line numbers.
    #[allow(clippy::type_complexity, reason = "a record as `Each` receives it")]
    pub(super) fn read_as(name: &str, content: &[u8]) -> Result<Vec<(usize, Result<Value, String>)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut all = Vec::new();
        for_each_record(&path, Limit::Rows, &mut |place, record| {
            all.push((place.number, record));
            Ok(())
        })?;
        Ok(all)
    }

    fn read(content: &str) -> Result<Vec<(usize, Value)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, content).unwrap();
        let mut all = Vec::new();
        for_each_valid_record(&path, Limit::Rows, &mut |place, value| {
            all.push((place.number, value));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn the_array_in_the_key_data_has_the_records() {
        let (a, b) = (json!({"x": 1}), json!({"x": 2}));
        for content in [
            format!("{{\"version\": [1], \"data\": [{a},\n{b}], \"more\": 3}}"),
            format!("{{\"data\":[\n{a},{b}\n]\n}}\n"),
        ] {
            let values: Vec<Value> = read(&content).unwrap().into_iter().map(|(_, value)| value).collect();
            assert_eq!(values, [a.clone(), b.clone()], "{content}");
        }
        // These are records of their own.
        let messages = json!({"data": [{"role": "user", "content": "q"}]});
        let texts = json!({"data": ["q", "a"]});
        for record in [messages, texts] {
            assert_eq!(read(&format!("{record}\n{record}\n")).unwrap(), [(1, record.clone()), (2, record)]);
        }
    }

    #[test]
    fn an_array_with_a_broken_element_ends_the_reading() {
        let error = read_as("data.json", b"[{\"x\": 1},\n{\"x\": }]").unwrap_err().to_string();
        assert!(error.contains("data.json line 2: not JSON: expected value"), "{error}");
        for (wrong, message) in [("\0", "line 2: byte 8 is NUL"), ("\u{fffd}", "")] {
            let content = format!("[{{\"x\": 1}},\n{{\"x\": \"{wrong}\"}}]");
            let read = read_as("data.json", content.as_bytes());
            assert_eq!(read.is_err(), !message.is_empty(), "{content:?}");
            assert!(read.map_or_else(|e| e.to_string().contains(message), |rows| rows.len() == 2), "{content:?}");
        }
        assert!(read_as("data.json", b"[{\"x\": \"\xff\"}]").unwrap()[0].1.is_err());
    }

    #[test]
    fn jsonl_arrays_and_multi_line_records_give_the_same_records() {
        let (a, b) = (json!({"x": 1, "y": [1, {"z": "]"}]}), json!({"x": 2}));
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
        let files = [
            (format!("{a}\n{b}\n"), [1, 2]),
            (format!("\u{feff}{a}\r\n\r\n{b}"), [1, 3]),
            (format!("{}\n{}\n", pretty(&a), pretty(&b)), [1, 10]),
            (format!("[{a}, {b}]"), [1, 1]),
            (format!("[\n{a},\n{b}\n]\n"), [2, 3]),
            (pretty(&json!([a, b])), [2, 11]),
        ];
        for (content, lines) in files {
            assert_eq!(read(&content).unwrap(), [(lines[0], a.clone()), (lines[1], b.clone())], "{content}");
        }
        assert_eq!(read(" \n\r\n").unwrap(), []);
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn a_list_of_messages_is_one_record() {
        let list = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        let pretty = serde_json::to_string_pretty(&list).unwrap();
        assert_eq!(read(&list.to_string()).unwrap(), [(1, list.clone())]);
        assert_eq!(read(&pretty).unwrap(), [(1, list.clone())]);
        assert_eq!(read(&format!("{list}\n{list}\n")).unwrap(), [(1, list.clone()), (2, list.clone())]);
        assert_eq!(read(&format!("[{list},\n{list}]")).unwrap(), [(1, list.clone()), (2, list)]);
    }

    #[test]
    fn syntax_errors_name_the_line_and_column() {
        for (content, part) in [
            ("{\"x\": 1}\n{\"x\": \n", "line 2: not JSON: EOF while parsing a value"),
            ("{\"x\": \"cut\n{\"x\": 2}\n", "line 1: not JSON: EOF while parsing a string"),
            ("{\"x\": 1}\n{\"x\": 1} {\"x\": 2}\n", "line 2: not JSON: trailing characters, at column 10"),
            ("a,b\n1,2\n", "line 1: not JSON: expected value, at column 1; write one JSON object per line"),
            ("[{\"x\": 1},\n{\"x\" 2}]", "line 2: not JSON: expected `:`"),
            ("[{\"x\": 1}\n{\"x\": 2}]", "line 2: not JSON: a comma or the end of the array is missing"),
            ("[{\"x\": 1}", "line 1: not JSON"),
            ("{\"x\": \"\u{0}\"}", "line 1: byte 8 is NUL; the file is damaged"),
            ("{\"x\": \"\\ud800\"}", "line 1: not JSON"),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("data.json"), "{message}");
        }
    }
}
