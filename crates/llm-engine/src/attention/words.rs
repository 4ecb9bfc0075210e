//! The words of a text and their tokens: attention is shown between words, and models attend between tokens.

use std::ops::Range;

use llm_tokenizer::Tokenizer;

use crate::{Error, Result};

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The word without blanks; a special token as it is written in the vocabulary.
    pub text: String,
    /// Its tokens.
    pub tokens: Range<usize>,
}

/// The tokens and words of a text.
///
/// A word is a run of letters, digits and marks, with apostrophes inside, or a run of other characters without blanks; a special
/// token is one word. A token belongs to the word of its first character that is not a blank; blanks belong to the next word, but a
/// line break is a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The text of each token; empty for a token that ends within a character, whose text is that of the next token.
    pub tokens: Vec<String>,
    /// The words in order; each token is in one of them.
    pub words: Vec<Word>,
}

impl Words {
    /// The words of the text that `ids` are decoded to.
    ///
    /// # Errors
    /// The ids cannot be decoded.
    pub fn of(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self> {
        let special = tokenizer.special_ids();
        let (mut tokens, mut words) = (Vec::new(), Vec::new());
        let mut start = 0;
        while start < ids.len() {
            if special.binary_search(&ids[start]).is_ok() {
                let text = tokenizer.token(ids[start]).unwrap_or_default();
                words.push(Word { text: text.clone(), tokens: start..start + 1 });
                tokens.push(text);
                start += 1;
                continue;
            }
            let length = ids[start..].iter().take_while(|id| special.binary_search(id).is_err()).count();
            let pieces = pieces(tokenizer, &ids[start..start + length])?;
            words.extend(words_of(&pieces, start));
            tokens.extend(pieces);
            start += length;
        }
        Ok(Self { tokens, words })
    }

    /// The index of a word: `it`, or `it:2` for its second occurrence.
    ///
    /// # Errors
    /// The text does not contain the word, or contains it more than once and the occurrence is not given.
    pub fn find(&self, name: &str) -> Result<usize> {
        let places = |text: &str| -> Vec<usize> {
            self.words.iter().enumerate().filter(|(_, word)| word.text == text).map(|(at, _)| at).collect()
        };
        let found = places(name);
        match found[..] {
            [at] => return Ok(at),
            [] => {}
            _ => return Err(Error::AmbiguousWord { word: name.to_owned(), count: found.len() }),
        }
        if let Some((text, number)) = name.rsplit_once(':')
            && let Ok(number) = number.parse::<usize>()
        {
            let found = places(text);
            if let Some(&at) = number.checked_sub(1).and_then(|index| found.get(index)) {
                return Ok(at);
            }
            if !found.is_empty() {
                return Err(Error::NoSuchOccurrence { word: text.to_owned(), number, count: found.len() });
            }
        }
        let mut words: Vec<&str> = Vec::new();
        for word in &self.words {
            if !words.contains(&word.text.as_str()) {
                words.push(&word.text);
            }
        }
        Err(Error::NoSuchWord { word: name.to_owned(), words: words.join(" ") })
    }

    /// The weights on words from the weights on tokens, `(tokens,)` to `(words,)`: their sums (Clark et al. 2019, arXiv 1906.04341).
    pub fn sums(&self, weights: &[f32]) -> Vec<f32> {
        self.words.iter().map(|word| weights[word.tokens.clone()].iter().sum()).collect()
    }
}

/// The text of each token.
fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<String>> {
    let mut decoder = tokenizer.stream();
    let mut pieces: Vec<String> =
        ids.iter().map(|&id| Ok(decoder.push(id)?.unwrap_or_default())).collect::<Result<_>>()?;
    if let (Some(last), Some(rest)) = (pieces.last_mut(), decoder.finish()?) {
        last.push_str(&rest);
    }
    Ok(pieces)
}

/// The words of consecutive tokens, the first of which has the index `start`.
fn words_of(pieces: &[String], start: usize) -> Vec<Word> {
    let text = pieces.concat();
    let runs = runs(&text);
    let mut words: Vec<(Option<usize>, Word)> = Vec::new(); // with the run
    let (mut at, mut waiting) = (0, 0);
    for (token, piece) in pieces.iter().enumerate() {
        let begin = at;
        at += piece.len();
        if token + 1 < pieces.len() && piece.chars().all(|c| c.is_whitespace() && c != '\n') {
            waiting += 1;
            continue;
        }
        let first = piece.find(|c: char| !c.is_whitespace()).map(|offset| begin + offset);
        let run = first.and_then(|first| runs.iter().position(|run| run.contains(&first)));
        let tokens = start + token - waiting..start + token + 1;
        waiting = 0;
        match words.last_mut() {
            Some((last, word)) if piece.is_empty() || (run.is_some() && *last == run) => word.tokens.end = tokens.end,
            _ => words.push((run, Word { text: blank_name(piece), tokens })),
        }
    }
    // The text of a word: its run, and those that start within its last token.
    let mut next = 0;
    for at in 0..words.len() {
        let Some(run) = words[at].0 else { continue };
        let end = words[at + 1..].iter().find_map(|(run, _)| *run).unwrap_or(runs.len());
        words[at].1.text = runs[run.max(next)..end].iter().map(|run| &text[run.clone()]).collect();
        next = end;
    }
    words.into_iter().map(|(_, word)| word).collect()
}

/// A name for a token of blanks only.
fn blank_name(piece: &str) -> String {
    piece
        .chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => '⇥',
            ' ' => '␣',
            other => other,
        })
        .collect()
}

/// The byte ranges of the runs of word characters and of other characters, without blanks.
fn runs(text: &str) -> Vec<Range<usize>> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let in_word = |at: usize| {
        let is = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|(_, c)| is_word_char(*c));
        let c = chars[at].1;
        is_word_char(c) || (matches!(c, '\'' | '’') && is(at.checked_sub(1)) && is(Some(at + 1)))
    };
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (at, &(offset, c)) in chars.iter().enumerate() {
        if c.is_whitespace() {
            continue;
        }
        let (kind, end) = (in_word(at), offset + c.len_utf8());
        match runs.last_mut() {
            Some((last, run)) if *last == kind && run.end == offset => run.end = end,
            _ => runs.push((kind, offset..end)),
        }
    }
    runs.into_iter().map(|(_, run)| run).collect()
}

/// Whether a character is a part of words: a letter, a digit, `_`, or a mark that combines with a letter.
fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || matches!(c, '\u{300}'..='\u{36f}' | '\u{200d}')
}
