//! JSON records in one array, or in the array of the key `data` of one object. The file is read as a whole.

use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};

use super::{Each, Limit, text_of_record};
use crate::error::Place;
use crate::{Error, Result};

/// Whether a file with this beginning may contain an array of records.
pub(super) fn may_start(beginning: &[u8]) -> bool {
    beginning.trim_ascii_start().starts_with(b"[") || data_array(&String::from_utf8_lossy(beginning)).is_some()
}

/// The position after the bracket that opens the array of records, if the file has one. A list of messages is a record, not an array
/// of records; so is the list on each line of a JSONL file.
pub(super) fn start(bytes: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(bytes).ok()?;
    let begin = text.len() - text.trim_start().len();
    let whole = text[begin..].trim_end();
    if !whole.starts_with('[') {
        return data_array(text);
    }
    let first_line = whole.lines().next().unwrap_or_default();
    let one_list_per_line = first_line.len() < whole.len() && serde_json::from_str::<Vec<Value>>(first_line).is_ok();
    let first = Deserializer::from_str(&whole[1..]).into_iter::<Value>().next();
    let is_message_list = matches!(&first, Some(Ok(value)) if is_message(value));
    (whole.ends_with(']') && !one_list_per_line && !is_message_list).then_some(begin + 1)
}

fn is_message(value: &Value) -> bool {
    ["role", "from"].iter().any(|key| value.get(key).is_some())
}

/// The position after the bracket of `{…, "data": [` if objects follow that are not messages. The text may be cut anywhere.
fn data_array(text: &str) -> Option<usize> {
    let after = |at: usize, mark: char| {
        let rest = text[at..].trim_start();
        rest.strip_prefix(mark).map(|rest| text.len() - rest.len())
    };
    let mut at = after(0, '{')?;
    loop {
        let mut key = Deserializer::from_str(&text[at..]).into_iter::<String>();
        let name = key.next()?.ok()?;
        at = after(at + key.byte_offset(), ':')?;
        if name == "data" {
            let start = after(at, '[')?;
            after(start, '{')?;
            let first = Deserializer::from_str(&text[start..]).into_iter::<Value>().next();
            return (!matches!(&first, Some(Ok(value)) if is_message(value))).then_some(start);
        }
        let mut value = Deserializer::from_str(&text[at..]).into_iter::<IgnoredAny>();
        value.next()?.ok()?;
        at = after(at + value.byte_offset(), ',')?;
    }
}

/// Calls `each` with every element of the array that begins at `start`.
pub(super) fn for_each(path: &Path, bytes: &[u8], start: usize, limit: Limit, each: &mut Each) -> Result<()> {
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let checked = text_of_record(line);
        checked.map_err(|message| Error::Record { place: Place::line(path, index + 1), message })?;
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default(); // every line was checked
    let mut cursor = Cursor { text, at: 0, line: 1 };
    cursor.advance(start);
    loop {
        let at_line = |(line, message)| Error::Record { place: Place::line(path, line), message };
        let Some((line, length, value)) = cursor.element().map_err(at_line)? else { return Ok(()) };
        each(Place::line(path, line), limit.check(length).map(|()| value))?;
    }
}

/// A position in a text (`at`, in bytes) and its line number.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: usize,
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

    /// The line number, the length and the value of the next element, or `None` at the end of the array. An error is (line number,
    /// message).
    #[allow(clippy::type_complexity, reason = "used once")]
    fn element(&mut self) -> Result<Option<(usize, usize, Value)>, (usize, String)> {
        self.skip_space();
        if self.rest().starts_with(']') {
            self.advance(1);
            self.skip_space();
            return match self.rest().is_empty() || self.text.trim_start().starts_with('{') {
                true => Ok(None),
                false => Err((self.line, "not JSON: unexpected text after the array".to_owned())),
            };
        }
        let line = self.line;
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
        Ok(Some((line, length, value)))
    }
}

/// The message of a syntax error, without the line number of the parsed text.
pub(super) fn not_json(error: &serde_json::Error) -> String {
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or_default();
    format!("not JSON: {what}, at column {}; write one JSON object per line", error.column())
}
