//! JSON records as a stream: one object per line (JSONL), or objects that span several lines. Files that are one array, or an
//! object with an array of records in the key `data`, are passed on to `array`.

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::Value;

use super::array::{self, not_json};
use super::{Each, Limit, text_of_record};
use crate::error::Place;
use crate::source;
use crate::{Error, Result};

/// Calls `each` with every record of a JSON file.
pub(super) fn for_each(path: &Path, limit: Limit, each: &mut Each) -> Result<()> {
    let mut input = source::open(path)?;
    if !array::may_start(input.fill_buf().map_err(Error::io(path))?) {
        return for_each_line(path, input, limit, each);
    }
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(Error::io(path))?;
    match array::start(&bytes) {
        Some(start) => array::for_each(path, &bytes, start, limit, each),
        None => for_each_line(path, Box::new(bytes.as_slice()), limit, each),
    }
}

fn for_each_line(path: &Path, input: Box<dyn BufRead + '_>, limit: Limit, each: &mut Each) -> Result<()> {
    let mut lines = Lines { input, returned: VecDeque::new(), number: 0, limit };
    while let Some(line) = lines.next().map_err(Error::io(path))? {
        let place = Place::line(path, line.number);
        if let Err(message) = limit.check(line.length) {
            each(place, Err(message))?;
            continue;
        }
        match line.record() {
            Parsed::Blank => {}
            Parsed::Record(record) => each(place, record)?,
            Parsed::Unfinished(message) => {
                let joined = lines.join(line).map_err(Error::io(path))?;
                each(place, joined.ok_or(message))?;
            }
        }
    }
    Ok(())
}

/// The lines of a file.
struct Lines<'a> {
    input: Box<dyn BufRead + 'a>,
    /// Lines that were read already.
    returned: VecDeque<Line>,
    /// Number of lines read from `input`.
    number: usize,
    limit: Limit,
}

/// A line with its number, counted from 1. `length` is larger than `bytes` if the line is too long to be read.
struct Line {
    number: usize,
    bytes: Vec<u8>,
    length: usize,
}

enum Parsed {
    Blank,
    Record(Result<Value, String>),
    /// The line is the beginning of a value; the text is the error if no other line ends it.
    Unfinished(String),
}

impl Line {
    fn record(&self) -> Parsed {
        let text = match text_of_record(&self.bytes) {
            Ok(text) if text.trim().is_empty() => return Parsed::Blank,
            Ok(text) => text.trim_end(),
            Err(message) => return Parsed::Record(Err(message)),
        };
        match serde_json::from_str(text) {
            Ok(value) => Parsed::Record(Ok(value)),
            Err(error) if error.is_eof() => Parsed::Unfinished(not_json(&error)),
            Err(error) => Parsed::Record(Err(not_json(&error))),
        }
    }
}

impl Lines<'_> {
    fn next(&mut self) -> std::io::Result<Option<Line>> {
        if let Some(line) = self.returned.pop_front() {
            return Ok(Some(line));
        }
        let limit = self.limit.bytes();
        let mut bytes = Vec::new();
        let mut length = self.input.by_ref().take(limit.saturating_add(1) as u64).read_until(b'\n', &mut bytes)?;
        if length == 0 {
            return Ok(None);
        }
        if length > limit && !bytes.ends_with(b"\n") {
            length += self.input.skip_until(b'\n')?;
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, bytes, length }))
    }

    /// The value that begins with the unfinished line `first`. If there is none, the following lines are records of their own.
    fn join(&mut self, first: Line) -> std::io::Result<Option<Value>> {
        let mut scan = Scan::default();
        let (mut all, mut taken) = (first.bytes, Vec::new());
        scan.add(&all);
        while scan.may_go_on() {
            let Some(line) = self.next()? else { break };
            // No comma between two values: the first one was cut.
            let begins = line.bytes.trim_ascii_start().first();
            if begins == Some(&b'{') && all.trim_ascii_end().ends_with(b"}") {
                self.returned.push_front(line);
                break;
            }
            scan.add(&line.bytes);
            all.extend_from_slice(&line.bytes);
            taken.push(line);
            if scan.depth == 0
                && let Ok(value) = serde_json::from_slice(&all)
            {
                return Ok(Some(value));
            }
        }
        taken.into_iter().rev().for_each(|line| self.returned.push_front(line));
        Ok(None)
    }
}

/// Counts the brackets of a JSON text that are open.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A bracket was closed that was not open.
    wrong: bool,
}

impl Scan {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => match self.depth.checked_sub(1) {
                    Some(depth) => self.depth = depth,
                    None => self.wrong = true,
                },
                _ => {}
            }
        }
    }

    /// Whether another line can end the value: brackets are open, and no string, which cannot contain a line end.
    fn may_go_on(&self) -> bool {
        self.depth > 0 && !self.in_string && !self.wrong
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read_as;

    #[test]
    fn a_broken_line_does_not_end_the_reading() {
        let content = "{\"x\": 1}\n{\"x\": \"cut\n{\"x\": 2}\n{\"x\": [\n{\"x\": 3}\nnot json\n{\"x\": 4} {\n{\"x\":\n5}\n{\"x\": \n";
        let read = read_as("data.jsonl", content.as_bytes()).unwrap();
        let shown: Vec<String> = read
            .into_iter()
            .map(|(line, record)| match record {
                Ok(value) => format!("{line} {}", value["x"]),
                Err(message) => format!("{line} {message}"),
            })
            .collect();
        assert_eq!(
            shown.iter().map(|line| line.chars().take(30).collect::<String>()).collect::<Vec<_>>(),
            [
                "1 1",
                "2 not JSON: EOF while parsing ",
                "3 2",
                "4 not JSON: EOF while parsing ",
                "5 3",
                "6 not JSON: expected ident, at",
                "7 not JSON: trailing character",
                "8 5",
                "10 not JSON: EOF while parsing",
            ]
        );
    }

    #[test]
    fn long_lines_nul_bytes_and_invalid_utf_8_are_named_and_skipped() {
        let long = format!("{{\"x\": \"{}\"}}\n", "a".repeat(50 << 20));
        let content =
            [&b"{\"x\": 1}\n"[..], long.as_bytes(), b"{\"x\": \"\0\"}\n{\"x\": \"\xff\"}\n{\"x\": 2}"].concat();
        let read = read_as("data.jsonl", &content).unwrap();
        let wrong: Vec<String> =
            read.iter().filter_map(|(line, record)| Some(format!("{line}: {}", record.as_ref().err()?))).collect();
        assert_eq!(
            wrong,
            [
                "2: the row has 52428810 bytes; it must have at most 33554432; split it",
                "3: byte 8 is NUL; the file is damaged, or is UTF-16 text that must be converted",
                "4: byte 8 is not UTF-8; convert the file to UTF-8 first",
            ]
        );
        assert_eq!(read.len(), 5, "the other rows are read");
    }
}
