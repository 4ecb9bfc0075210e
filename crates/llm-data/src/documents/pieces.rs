//! The pieces of a stream of bytes between separators.

use std::io::BufRead;

use memchr::memmem::Finder;

/// Cuts a stream at each separator. One piece is in memory.
pub(super) struct Pieces<'a> {
    input: Box<dyn BufRead>,
    separator: Finder<'a>,
    buffer: Vec<u8>,
    /// The part of `buffer` before this position was returned.
    start: usize,
    /// The bytes of `buffer` before this position contain no start of a separator.
    searched: usize,
    ended: bool,
}

impl<'a> Pieces<'a> {
    pub fn new(input: Box<dyn BufRead>, separator: &'a [u8]) -> Self {
        let separator = Finder::new(separator);
        Self { input, separator, buffer: Vec::new(), start: 0, searched: 0, ended: false }
    }

    /// The next piece, without the separator. White space after the last separator is no piece.
    pub fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let length = self.separator.needle().len();
        while !self.ended {
            if let Some(at) = self.separator.find(&self.buffer[self.searched..]) {
                let end = self.searched + at;
                let piece = self.buffer[self.start..end].to_vec();
                (self.start, self.searched) = (end + length, end + length);
                return Ok(Some(piece));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = (self.buffer.len() + 1).saturating_sub(length);
            let read = self.input.fill_buf()?;
            self.ended = read.is_empty();
            self.buffer.extend_from_slice(read);
            let read = read.len();
            self.input.consume(read);
        }
        let last = std::mem::take(&mut self.buffer);
        Ok((!last.trim_ascii().is_empty()).then_some(last))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_those_of_a_split_in_memory(
            text in "[ab<>|\n]{0,200}",
            separator in "[ab<>|]{1,4}",
            buffer in 1_usize..9,
        ) {
            let input = BufReader::with_capacity(buffer, Cursor::new(text.clone().into_bytes()));
            let mut pieces = Pieces::new(Box::new(input), separator.as_bytes());
            let mut found = Vec::new();
            while let Some(piece) = pieces.next().unwrap() {
                found.push(String::from_utf8(piece).unwrap());
            }
            let mut expected: Vec<&str> = text.split(&separator).collect();
            if expected.last().is_some_and(|last| last.trim().is_empty()) {
                expected.pop();
            }
            prop_assert_eq!(found, expected);
        }
    }
}
