//! Reads the records of a JSON file: one object per line (JSONL), one array of objects, or objects that span several lines.

use std::path::Path;

use serde_json::{Deserializer, Value};

use crate::files::read_text;
use crate::{Error, Result};

/// Calls `each` with every record of a file (may be compressed as `.gz`) and its line number, counted from 1. An error of `each`
/// becomes an error that names the file and the line.
pub(crate) fn for_each_record(path: &Path, each: &mut dyn FnMut(usize, Value) -> Result<(), String>) -> Result<()> {
    let text = read_text(path)?;
    let mut cursor = Cursor { text: &text, at: 0, line: 1, in_array: false };
    cursor.enter_array();
    while let Some((line, value)) = cursor.next_record().map_err(|(line, e)| at_line(path, line, e))? {
        each(line, value).map_err(|message| at_line(path, line, message))?;
    }
    Ok(())
}

fn at_line(path: &Path, line: usize, message: String) -> Error {
    Error::Line { path: path.into(), line, message }
}

/// A position in a text (`at`, in bytes) and its line number. `in_array`: the whole text is one array of records.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    in_array: bool,
}

impl Cursor<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest()[..bytes].matches('\n').count();
        self.at += bytes;
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start().len());
    }

    /// If the whole text is an array of records, moves to its first element. A list of messages is a record, not an array of
    /// records; so is the list on each line of a JSONL file.
    fn enter_array(&mut self) {
        self.skip_space();
        let whole = self.rest().trim_end();
        if !(whole.starts_with('[') && whole.ends_with(']')) {
            return;
        }
        let first_line = whole.lines().next().unwrap_or_default();
        let one_list_per_line =
            first_line.len() < whole.len() && serde_json::from_str::<Vec<Value>>(first_line).is_ok();
        let first = Deserializer::from_str(&whole[1..]).into_iter::<Value>().next();
        let is_message = |value: &Value| ["role", "from"].iter().any(|key| value.get(key).is_some());
        let is_message_list = matches!(&first, Some(Ok(value)) if is_message(value));
        if !(one_list_per_line || is_message_list) {
            self.advance(1);
            self.in_array = true;
        }
    }

    /// The next record and its line number, or `None` at the end. An error is (line number, message).
    fn next_record(&mut self) -> Result<Option<(usize, Value)>, (usize, String)> {
        self.skip_space();
        if self.in_array && self.rest().starts_with(']') {
            self.advance(1);
            self.in_array = false;
            self.skip_space();
            if !self.rest().is_empty() {
                return Err((self.line, "not JSON: unexpected text after the array".to_owned()));
            }
        }
        if self.rest().is_empty() {
            return Ok(None);
        }
        let line = self.line;
        let value = if self.in_array { self.element()? } else { self.record()? };
        Ok(Some((line, value)))
    }

    /// Parses a record on one line, or on several lines.
    fn record(&mut self) -> Result<Value, (usize, String)> {
        let line = self.rest().lines().next().unwrap_or_default();
        let (length, parsed) = (line.len(), serde_json::from_str(line));
        let error = match parsed {
            Ok(value) => {
                self.advance(length);
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.is_eof()
            && let Some((value, length)) = first_value(self.rest())
            && self.rest()[length..].lines().next().is_none_or(|rest| rest.trim().is_empty())
        {
            self.advance(length);
            return Ok(value);
        }
        Err((self.line, not_json(&error)))
    }

    /// Parses an element of the array and the comma after it.
    fn element(&mut self) -> Result<Value, (usize, String)> {
        let mut stream = Deserializer::from_str(self.rest()).into_iter::<Value>();
        let (value, length) = match stream.next() {
            Some(Ok(value)) => (value, stream.byte_offset()),
            Some(Err(error)) => return Err((self.line + error.line() - 1, not_json(&error))),
            None => return Err((self.line, "not JSON: the array does not end".to_owned())),
        };
        self.advance(length);
        self.skip_space();
        if self.rest().starts_with(',') {
            self.advance(1);
        } else if !self.rest().starts_with(']') {
            return Err((self.line, "not JSON: a comma or the end of the array is missing".to_owned()));
        }
        Ok(value)
    }
}

/// The JSON value at the start of a text, and its length.
fn first_value(text: &str) -> Option<(Value, usize)> {
    let mut stream = Deserializer::from_str(text).into_iter::<Value>();
    let value = stream.next()?.ok()?;
    Some((value, stream.byte_offset()))
}

fn not_json(error: &serde_json::Error) -> String {
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or_default();
    format!("not JSON: {what}, at column {}; write one JSON object per line", error.column())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(content: &str) -> Result<Vec<(usize, Value)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, content).unwrap();
        let mut all = Vec::new();
        for_each_record(&path, &mut |line, value| {
            all.push((line, value));
            Ok(())
        })?;
        Ok(all)
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
            ("{\"x\": \"\u{0}\"}", "line 1: not JSON: control character"),
            ("{\"x\": \"\\ud800\"}", "line 1: not JSON"),
        ] {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("data.json"), "{message}");
        }
    }
}
