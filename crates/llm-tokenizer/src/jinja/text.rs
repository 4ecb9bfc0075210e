//! Strings of a template: characters with their origin, and the string methods of Python.

use std::cmp::Ordering;
use std::sync::Arc;

/// The origin of what the template itself writes.
pub(crate) const TEMPLATE: u32 = 0;
/// A bit of the origin: the character is inside `{% generation %}`.
pub(crate) const GENERATION: u32 = 1 << 31;

/// A character, and which input it comes from. Origins are ignored by comparisons.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Char {
    pub(crate) char: char,
    /// [`TEMPLATE`], or the number that the caller gave to the text that this character was part of.
    pub(crate) origin: u32,
}

impl PartialEq for Char {
    fn eq(&self, other: &Self) -> bool {
        self.char == other.char
    }
}

/// A string. Like a string of Python it is a sequence of characters, not of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    chars: Arc<[Char]>,
    /// Whether it is HTML (the result of `safe` or `escape`): adding another text to it escapes this text.
    markup: bool,
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.chars == other.chars
    }
}

impl Text {
    /// A text whose characters all have this origin.
    pub(crate) fn new(text: &str, origin: u32) -> Self {
        Self { chars: text.chars().map(|char| Char { char, origin }).collect(), markup: false }
    }

    /// A text of the template itself.
    pub(super) fn template(text: &str) -> Self {
        Self::new(text, TEMPLATE)
    }

    pub(super) fn chars(&self) -> &[Char] {
        &self.chars
    }

    /// The text as HTML.
    pub(super) fn into_markup(self) -> Self {
        Self { markup: true, ..self }
    }

    /// The text with the characters of HTML replaced, unless it is HTML.
    pub(super) fn escaped(&self) -> Self {
        if self.markup {
            return self.clone();
        }
        let mut out = Vec::with_capacity(self.chars.len());
        for c in self.chars.iter() {
            let escaped = match c.char {
                '&' => "&amp;",
                '<' => "&lt;",
                '>' => "&gt;",
                '\'' => "&#39;",
                '"' => "&#34;",
                _ => {
                    out.push(*c);
                    continue;
                }
            };
            out.extend(escaped.chars().map(|char| Char { char, origin: c.origin }));
        }
        Self::from(out).into_markup()
    }

    /// `self + other`
    pub(super) fn plus(&self, other: &Self) -> Self {
        if self.markup || other.markup {
            return Self::from([self.escaped().chars(), other.escaped().chars()].concat()).into_markup();
        }
        [self.chars(), other.chars()].concat().into()
    }

    pub(super) fn order(&self, other: &Self) -> Ordering {
        self.chars.iter().map(|c| c.char).cmp(other.chars.iter().map(|c| c.char))
    }

    /// Whether the text is this one.
    pub(super) fn is(&self, text: &str) -> bool {
        self.chars.iter().map(|c| c.char).eq(text.chars())
    }

    pub(super) fn string(&self) -> String {
        string(&self.chars)
    }
}

impl From<Vec<Char>> for Text {
    fn from(chars: Vec<Char>) -> Self {
        Self { chars: chars.into(), markup: false }
    }
}

impl From<&[Char]> for Text {
    fn from(chars: &[Char]) -> Self {
        Self { chars: chars.into(), markup: false }
    }
}

/// The characters without their origins.
pub(crate) fn string(chars: &[Char]) -> String {
    chars.iter().map(|c| c.char).collect()
}

/// Python's `str.isspace`: the white space of Unicode, and the four information separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The position of `needle` in `text` at or after `from`.
pub(super) fn find(text: &[Char], needle: &[Char], from: usize) -> Option<usize> {
    let Some(first) = needle.first() else { return (from <= text.len()).then_some(from) };
    let last = text.len().checked_sub(needle.len())?;
    (from..=last).find(|&at| text[at] == *first && text[at..].starts_with(needle))
}

/// The last position of `needle` in `text[..end]`.
pub(super) fn rfind(text: &[Char], needle: &[Char]) -> Option<usize> {
    (0..=text.len().checked_sub(needle.len())?).rev().find(|&at| text[at..].starts_with(needle))
}

/// Removes the characters in `set` (white space if there is none) from the left or right end.
pub(super) fn strip<'a>(mut text: &'a [Char], set: Option<&[Char]>, left: bool, right: bool) -> &'a [Char] {
    let removed = |c: &Char| set.map_or_else(|| is_space(c.char), |set| set.contains(c));
    while let Some((_, rest)) = text.split_first().filter(|(first, _)| left && removed(first)) {
        text = rest;
    }
    while let Some((_, rest)) = text.split_last().filter(|(last, _)| right && removed(last)) {
        text = rest;
    }
    text
}

/// Splits at each `separator`, at most `limit` times, from the left.
pub(super) fn split<'a>(text: &'a [Char], separator: &[Char], limit: usize) -> Vec<&'a [Char]> {
    let (mut parts, mut at) = (Vec::new(), 0);
    while let Some(next) = find(text, separator, at).filter(|_| parts.len() < limit) {
        parts.push(&text[at..next]);
        at = next + separator.len();
    }
    parts.push(&text[at..]);
    parts
}

/// Splits at each `separator`, at most `limit` times, from the right.
pub(super) fn rsplit<'a>(mut text: &'a [Char], separator: &[Char], limit: usize) -> Vec<&'a [Char]> {
    let mut parts = Vec::new();
    while let Some(at) = rfind(text, separator).filter(|_| parts.len() < limit) {
        parts.push(&text[at + separator.len()..]);
        text = &text[..at];
    }
    parts.push(text);
    parts.reverse();
    parts
}

/// Splits at white space, at most `limit` times, without empty parts.
pub(super) fn words(mut text: &[Char], limit: usize) -> Vec<&[Char]> {
    let mut parts = Vec::new();
    loop {
        text = strip(text, None, true, false);
        if text.is_empty() {
            return parts;
        }
        if parts.len() == limit {
            parts.push(strip(text, None, false, true));
            return parts;
        }
        let end = text.iter().position(|c| is_space(c.char)).unwrap_or(text.len());
        parts.push(&text[..end]);
        text = &text[end..];
    }
}

/// The lines, without their ends unless `keep` is set.
pub(super) fn lines(text: &[Char], keep: bool) -> Vec<&[Char]> {
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < text.len() {
        if ends.contains(&text[at].char) {
            let pair = text[at].char == '\r' && text.get(at + 1).is_some_and(|c| c.char == '\n');
            let next = at + 1 + usize::from(pair);
            parts.push(&text[start..if keep { next } else { at }]);
            (start, at) = (next, next);
        } else {
            at += 1;
        }
    }
    parts.extend((start < text.len()).then(|| &text[start..]));
    parts
}

/// Replaces the first `limit` occurrences of `old`.
pub(super) fn replace(text: &[Char], old: &[Char], new: &[Char], limit: usize) -> Vec<Char> {
    let mut out = Vec::with_capacity(text.len());
    let (mut at, mut count) = (0, 0);
    while let Some(next) = find(text, old, at).filter(|_| count < limit) {
        out.extend_from_slice(&text[at..next]);
        out.extend_from_slice(new);
        at = next + old.len();
        count += 1;
        if old.is_empty() {
            let Some(c) = text.get(next) else { break };
            out.push(*c);
            at = next + 1;
        }
    }
    out.extend_from_slice(text.get(at..).unwrap_or_default());
    out
}

/// Each character in another case; the new characters have the origin of the old one.
pub(super) fn in_case(text: &[Char], upper: bool) -> Vec<Char> {
    let mut out = Vec::with_capacity(text.len());
    for Char { char, origin } in text {
        let with_origin = |char| Char { char, origin: *origin };
        match upper {
            true => out.extend(char.to_uppercase().map(with_origin)),
            false => out.extend(char.to_lowercase().map(with_origin)),
        }
    }
    out
}

/// Upper case for the first letter, lower case for the others.
pub(super) fn capitalize(text: &[Char]) -> Vec<Char> {
    let (first, rest) = text.split_at(text.len().min(1));
    [in_case(first, true), in_case(rest, false)].concat()
}

/// [`capitalize`] for each word; `starts` says which character begins a word after another character.
pub(super) fn title(text: &[Char], starts: impl Fn(char) -> bool) -> Vec<Char> {
    let (mut out, mut begin) = (Vec::with_capacity(text.len()), true);
    for c in text {
        out.extend(in_case(std::slice::from_ref(c), begin));
        begin = starts(c.char);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<Char> {
        Text::template(text).chars.to_vec()
    }

    fn strings(parts: &[&[Char]]) -> Vec<String> {
        parts.iter().map(|part| string(part)).collect()
    }

    #[test]
    fn splitting_is_that_of_python() {
        assert_eq!(strings(&split(&chars("a,b,,c"), &chars(","), 2)), ["a", "b", ",c"]);
        assert_eq!(strings(&rsplit(&chars("a,b,,c"), &chars(","), 2)), ["a,b", "", "c"]);
        assert_eq!(strings(&words(&chars("  a b  c  "), 1)), ["a", "b  c"]);
        assert_eq!(strings(&words(&chars(" a  b "), usize::MAX)), ["a", "b"]);
        assert_eq!(strings(&lines(&chars("a\r\nb\n\nc"), false)), ["a", "b", "", "c"]);
        assert_eq!(strings(&lines(&chars("a\r\nb\n"), true)), ["a\r\n", "b\n"]);
    }

    #[test]
    fn replacing_is_that_of_python() {
        for (text, old, new, limit, expected) in [
            ("aXbX", "X", "yy", usize::MAX, "ayybyy"),
            ("aXbX", "X", "", 1, "abX"),
            ("ab", "", "-", usize::MAX, "-a-b-"),
            ("ab", "", "-", 2, "-a-b"),
            ("", "", "-", usize::MAX, "-"),
        ] {
            assert_eq!(string(&replace(&chars(text), &chars(old), &chars(new), limit)), expected, "{text} {old}");
        }
    }
}
