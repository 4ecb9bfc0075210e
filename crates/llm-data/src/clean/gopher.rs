//! The rules of quality and repetition of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A), with the numerators, denominators
//! and order of datatrove, which made `FineWeb`.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::ngrams::{hash_text, window_hash};
use super::words::{is_punctuation, is_terminal, length, lines, words};

/// Limits on words and lines. A document outside one of them is removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GopherQuality {
    /// Least number of words that are not only punctuation, default 50.
    pub min_words: usize,
    /// Largest number of these words, default 100,000.
    pub max_words: usize,
    /// Least mean length of these words, in characters, default 3.
    pub min_mean_word_length: f64,
    /// Largest mean length of these words, default 10.
    pub max_mean_word_length: f64,
    /// Largest number of `#`, and of ellipses, per word, default 0.1.
    pub max_symbols_per_word: f64,
    /// Largest share of lines that start with a bullet, default 0.9.
    pub max_bullet_lines: f64,
    /// Largest share of lines that end with an ellipsis, default 0.3.
    pub max_ellipsis_lines: f64,
    /// Least share of words with a letter, default 0.8.
    pub min_alphabetic_words: f64,
    /// Least number of different words of `the be to of and that have with`, default 2.
    pub min_stop_words: usize,
}

impl Default for GopherQuality {
    fn default() -> Self {
        Self {
            min_words: 50,
            max_words: 100_000,
            min_mean_word_length: 3.,
            max_mean_word_length: 10.,
            max_symbols_per_word: 0.1,
            max_bullet_lines: 0.9,
            max_ellipsis_lines: 0.3,
            min_alphabetic_words: 0.8,
            min_stop_words: 2,
        }
    }
}

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

impl GopherQuality {
    /// The rule that a text breaks, if any.
    pub(super) fn broken_rule(&self, text: &str) -> Option<&'static str> {
        let words = words(text);
        let is_symbol = |word: &&str| word.chars().all(|c| is_punctuation(c) || is_terminal(c));
        let plain: Vec<&str> = words.iter().copied().filter(|word| !is_symbol(word)).collect();
        let mean = plain.iter().map(|word| length(word)).sum::<usize>() as f64 / plain.len() as f64;
        let per_word = |count: usize| count as f64 / words.len() as f64;
        let lines = lines(text);
        let share_of_lines =
            |is: &dyn Fn(&str) -> bool| lines.iter().filter(|line| is(line.trim())).count() as f64 / lines.len() as f64;
        let ellipses = || text.matches("...").count() + text.matches('…').count();
        let rules: [(&'static str, &dyn Fn() -> bool); 10] = [
            ("too few words", &|| plain.len() < self.min_words.max(1)),
            ("too many words", &|| plain.len() > self.max_words),
            ("words too short", &|| mean < self.min_mean_word_length),
            ("words too long", &|| mean > self.max_mean_word_length),
            ("too many hashes", &|| per_word(text.matches('#').count()) > self.max_symbols_per_word),
            ("too many ellipses", &|| per_word(ellipses()) > self.max_symbols_per_word),
            ("too many bullet lines", &|| share_of_lines(&|line| line.starts_with(['•', '-'])) > self.max_bullet_lines),
            ("too many lines that end with an ellipsis", &|| {
                share_of_lines(&|line| line.ends_with("...") || line.ends_with('…')) > self.max_ellipsis_lines
            }),
            ("too few words with a letter", &|| {
                per_word(words.iter().filter(|word| word.contains(char::is_alphabetic)).count())
                    < self.min_alphabetic_words
            }),
            ("too few stop words", &|| {
                STOP_WORDS.iter().filter(|stop| words.contains(stop)).count() < self.min_stop_words
            }),
        ];
        rules.into_iter().find(|(_, breaks)| breaks()).map(|(name, _)| name)
    }
}

/// Limits on repeated lines, paragraphs and n-grams. A document above one of them is removed.
///
/// The shares of characters have all characters of the text as denominator. Of repeated n-grams, the numerator is the characters of
/// their words, without spaces; of the most frequent n-gram, with the spaces in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GopherRepetition {
    /// Largest share of lines that repeat an earlier one, default 0.3.
    pub max_repeated_lines: f64,
    /// Largest share of paragraphs that repeat an earlier one, default 0.3.
    pub max_repeated_paragraphs: f64,
    /// Largest share of characters in repeated lines, default 0.2.
    pub max_repeated_line_characters: f64,
    /// Largest share of characters in repeated paragraphs, default 0.2.
    pub max_repeated_paragraph_characters: f64,
    /// Largest share of characters in the most frequent n-gram of 2, 3 and 4 words, default 0.2, 0.18, 0.16.
    pub max_top_ngram: [f64; 3],
    /// Largest share of characters in repeated n-grams of 5, 6, 7, 8, 9 and 10 words, default 0.15, 0.14, 0.13, 0.12, 0.11, 0.1.
    pub max_repeated_ngrams: [f64; 6],
}

impl Default for GopherRepetition {
    fn default() -> Self {
        Self {
            max_repeated_lines: 0.3,
            max_repeated_paragraphs: 0.3,
            max_repeated_line_characters: 0.2,
            max_repeated_paragraph_characters: 0.2,
            max_top_ngram: [0.2, 0.18, 0.16],
            max_repeated_ngrams: [0.15, 0.14, 0.13, 0.12, 0.11, 0.1],
        }
    }
}

const TOP_NGRAM: [&str; 3] = ["top 2-gram", "top 3-gram", "top 4-gram"];
const REPEATED_NGRAMS: [&str; 6] = [
    "repeated 5-grams",
    "repeated 6-grams",
    "repeated 7-grams",
    "repeated 8-grams",
    "repeated 9-grams",
    "repeated 10-grams",
];

impl GopherRepetition {
    /// The rule that a text breaks, if any. The text is not empty.
    pub(super) fn broken_rule(&self, text: &str) -> Option<&'static str> {
        let characters = length(text) as f64;
        let (share, repeated) = repeated_parts(&split(text.trim(), 2));
        if share > self.max_repeated_paragraphs {
            return Some("repeated paragraphs");
        }
        if repeated as f64 / characters > self.max_repeated_paragraph_characters {
            return Some("characters in repeated paragraphs");
        }
        let (share, repeated) = repeated_parts(&split(text, 1));
        if share > self.max_repeated_lines {
            return Some("repeated lines");
        }
        if repeated as f64 / characters > self.max_repeated_line_characters {
            return Some("characters in repeated lines");
        }
        let words: Vec<Word> = words(text).into_iter().map(Word::new).collect();
        for (index, limit) in self.max_top_ngram.iter().enumerate() {
            if top_ngram(&words, index + 2) as f64 / characters > *limit {
                return Some(TOP_NGRAM[index]);
            }
        }
        for (index, limit) in self.max_repeated_ngrams.iter().enumerate() {
            if repeated_ngrams(&words, index + 5) as f64 / characters > *limit {
                return Some(REPEATED_NGRAMS[index]);
            }
        }
        None
    }
}

/// The parts of a text between at least `count` line ends.
fn split(text: &str, count: usize) -> Vec<&str> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = text[at..].find('\n') {
        let begin = at + found;
        at = begin + text[begin..].bytes().take_while(|&byte| byte == b'\n').count();
        if at - begin >= count {
            parts.push(&text[start..begin]);
            start = at;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The share of the parts that repeat an earlier one, and their characters.
pub(super) fn repeated_parts(parts: &[&str]) -> (f64, usize) {
    let mut seen = HashSet::new();
    let repeated = parts.iter().filter(|part| !seen.insert(**part));
    let (count, characters) = repeated.fold((0, 0), |(count, sum), part| (count + 1, sum + length(part)));
    (f64::from(count) / parts.len() as f64, characters)
}

/// The hash and the length of a word.
#[derive(Debug, Clone, Copy)]
struct Word {
    hash: u64,
    length: usize,
}

impl Word {
    fn new(word: &str) -> Self {
        Self { hash: hash_text(word), length: length(word) }
    }
}

fn hash(window: &[Word]) -> u64 {
    window_hash(window.iter().map(|word| word.hash))
}

fn characters(window: &[Word]) -> usize {
    window.iter().map(|word| word.length).sum()
}

/// The characters of all occurrences of the most frequent n-gram, the first of them if there are several, with spaces between words.
fn top_ngram(words: &[Word], n: usize) -> usize {
    let mut counts: HashMap<u64, (usize, usize)> = HashMap::new();
    for (at, window) in words.windows(n).enumerate() {
        counts.entry(hash(window)).or_insert((0, at)).0 += 1;
    }
    let top = counts.values().max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first)));
    top.map_or(0, |&(count, first)| count * (characters(&words[first..first + n]) + n - 1))
}

/// The characters of the n-grams that repeat an earlier one; the search goes on after it.
fn repeated_ngrams(words: &[Word], n: usize) -> usize {
    let (mut seen, mut repeated, mut at) = (HashSet::new(), 0, 0);
    while at + n <= words.len() {
        let window = &words[at..at + n];
        if seen.insert(hash(window)) {
            at += 1;
        } else {
            repeated += characters(window);
            at += n;
        }
    }
    repeated
}
