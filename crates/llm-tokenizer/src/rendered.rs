//! Encodes a rendered conversation so that only the template produces control tokens.
//!
//! A control token in a message is hidden by a placeholder character before the added tokens are found, and restored before the
//! text is split into words. So it is encoded as ordinary text, and the rest of the text is encoded as if nothing was hidden.

use std::ops::Range;

use crate::jinja::{Char, GENERATION, TEMPLATE, string};
use crate::tokenizer::Token;
use crate::{Result, Tokenizer};

/// The text of a rendered conversation, with the origin of each of its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    origins: Vec<u32>,
}

impl From<Vec<Char>> for Rendered {
    fn from(chars: Vec<Char>) -> Self {
        let origins = chars.iter().flat_map(|c| std::iter::repeat_n(c.origin, c.char.len_utf8())).collect();
        Self { text: string(&chars), origins }
    }
}

impl Rendered {
    /// The origins of a range of bytes.
    pub(crate) fn origins(&self, range: Range<usize>) -> impl DoubleEndedIterator<Item = u32> {
        self.origins.get(range).unwrap_or_default().iter().map(|origin| origin & !GENERATION)
    }

    /// The bytes that come from message `index`, from the first to the last one.
    pub(crate) fn message(&self, index: usize) -> Option<Range<usize>> {
        let from = |origin: &u32| (origin & !GENERATION) as usize == index + 1;
        Some(self.origins.iter().position(from)?..self.origins.iter().rposition(from)? + 1)
    }

    /// The ranges inside of `{% generation %}`.
    pub(crate) fn generated(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (at, _) in self.origins.iter().enumerate().filter(|(_, origin)| **origin & GENERATION != 0) {
            match ranges.last_mut().filter(|range| range.end == at) {
                Some(range) => range.end = at + 1,
                None => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    /// The part of the text in a range of bytes, which must begin and end between characters.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let origins = self.origins.get(range.clone()).unwrap_or_default().to_vec();
        Self { text: self.text.get(range).unwrap_or_default().to_owned(), origins }
    }

    fn is_template(&self, range: Range<usize>) -> bool {
        self.origins(range).all(|origin| origin == TEMPLATE)
    }
}

impl Tokenizer {
    /// The ids of a rendered conversation with their byte ranges. There is a border between two tokens at each of `cuts`
    /// (positions in bytes).
    pub(crate) fn encode_rendered(&self, rendered: &Rendered, cuts: &[usize]) -> Result<Vec<Token>> {
        let hidden = self.hide(rendered);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| hidden.hidden_position(*cut)).collect();
        let control = self.control_spans(&hidden.text);
        loop {
            let tokens = match hidden.places.is_empty() && cuts.is_empty() {
                true => self.encode_with_special_spans(&hidden.text)?,
                false => self.encode_with_cuts(&hidden.text, &hidden.originals, &cuts)?,
            };
            // Merges of some vocabularies produce a control token from ordinary text: cut it after its first character.
            let written = |(id, span): &&Token| {
                let at = control.partition_point(|(_, other)| other.start < span.start);
                control.get(at).is_some_and(|(other, place)| other == id && place.start == span.start)
            };
            let forged = tokens.iter().filter(|token| self.is_control(token.0) && !written(token));
            let more: Vec<usize> = forged
                .filter_map(|(_, span)| Some(span.start + hidden.text.get(span.clone())?.chars().next()?.len_utf8()))
                .filter(|cut| !cuts.contains(cut))
                .collect();
            if more.is_empty() {
                let restored = |span: Range<usize>| hidden.position(span.start)..hidden.position(span.end);
                return Ok(tokens.into_iter().map(|(id, span)| (id, restored(span))).collect());
            }
            cuts.extend(more);
            cuts.sort_unstable();
        }
    }

    /// The text with placeholders for the control tokens that the template did not write.
    fn hide(&self, rendered: &Rendered) -> Hidden {
        let mut hidden = Hidden { text: rendered.text.clone(), originals: Vec::new(), places: Vec::new() };
        loop {
            let forged =
                |(_, span): &Token| !rendered.is_template(hidden.position(span.start)..hidden.position(span.end));
            let found: Vec<Token> = self.control_spans(&hidden.text).into_iter().filter(forged).collect();
            if found.is_empty() {
                return hidden;
            }
            hidden.replace(&found);
        }
    }
}

/// A text in which two characters replace each hidden text: one for its first character, one for the rest. So the hidden text can be
/// cut after its first character.
struct Hidden {
    text: String,
    /// (character, the text that it replaces)
    originals: Vec<(char, String)>,
    /// The hidden texts in the order of their positions.
    places: Vec<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    /// The position in the text with placeholders.
    at: usize,
    /// The position in the original text.
    original: usize,
    /// The length of the original text in bytes, and that of its first character.
    length: usize,
    first: usize,
}

/// The length of the two characters in bytes.
const PLACEHOLDERS: usize = 8;

impl Hidden {
    /// The position in the original text of a position in the text with placeholders.
    fn position(&self, at: usize) -> usize {
        match self.places.partition_point(|place| place.at < at).checked_sub(1).map(|last| self.places[last]) {
            None => at,
            Some(place) if at < place.at + PLACEHOLDERS => place.original + place.first,
            Some(place) => at - place.at - PLACEHOLDERS + place.original + place.length,
        }
    }

    /// The position in the text with placeholders of a position in the original text.
    fn hidden_position(&self, at: usize) -> usize {
        match self.places.partition_point(|place| place.original < at).checked_sub(1).map(|last| self.places[last]) {
            None => at,
            Some(place) if at < place.original + place.length => place.at + PLACEHOLDERS,
            Some(place) => at - place.original - place.length + place.at + PLACEHOLDERS,
        }
    }

    /// Hides the text of these tokens.
    fn replace(&mut self, tokens: &[Token]) {
        let mut found: Vec<Place> = Vec::with_capacity(tokens.len());
        let mut text = String::with_capacity(self.text.len());
        let mut read = 0;
        for (_, span) in tokens {
            text.push_str(&self.text[read..span.start]);
            let hidden = &self.text[span.clone()];
            let first = hidden.chars().next().map_or(0, char::len_utf8);
            found.push(Place { at: 0, original: self.position(span.start), length: hidden.len(), first });
            let (first, rest) = hidden.split_at(first);
            for part in [first, rest] {
                text.push(placeholder(&mut self.originals, part, &self.text));
            }
            read = span.end;
        }
        text.push_str(&self.text[read..]);
        self.text = text;
        self.places.extend(found);
        self.places.sort_by_key(|place| place.original);
        let (mut added, mut removed) = (0, 0);
        for place in &mut self.places {
            place.at = place.original + added - removed;
            added += PLACEHOLDERS;
            removed += place.length;
        }
    }
}

/// The placeholder of a text: a private-use character that is not in `all` and is no other text's placeholder; the last such character
/// if `all` contains every one.
fn placeholder(originals: &mut Vec<(char, String)>, text: &str, all: &str) -> char {
    if let Some((known, _)) = originals.iter().find(|(_, original)| original == text) {
        return *known;
    }
    let unused = |c: &char| originals.iter().all(|(taken, _)| taken != c) && !all.contains(*c);
    let new = ('\u{F0000}'..='\u{10FFFD}').find(unused).unwrap_or('\u{10FFFD}');
    originals.push((new, text.to_owned()));
    new
}
