//! The rules of C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2) and of `FineWeb` (Penedo et al. 2024, arXiv 2406.17557,
//! section 3.6) for pages of the web, as datatrove applies them.

use serde::{Deserialize, Serialize};

use super::gopher::repeated_parts;
use super::words::{is_terminal, length, lines, sentences, words};

/// The rules of C4. They remove lines, and documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a rule that can be off")]
pub struct C4 {
    /// Whether lines must end with one of `. ? ! " '` and not with `...`, default true. `FineWeb` has it off.
    pub terminal_punctuation: bool,
    /// Least number of sentences in the lines that remain, default 5.
    pub min_sentences: usize,
    /// Least number of words of a line, default 3.
    pub min_line_words: usize,
    /// Largest number of characters of a word of a line, default 1,000.
    pub max_word_length: usize,
    /// Whether to remove the marks of citations `[1]`, `[edit]` and `[citation needed]`, default true.
    pub remove_citations: bool,
    /// Whether to remove documents with "lorem ipsum", default true.
    pub lorem_ipsum: bool,
    /// Whether to remove lines with "javascript", default true.
    pub javascript: bool,
    /// Whether to remove documents with `{`, default true. This removes all program code.
    pub curly_bracket: bool,
    /// Whether to remove lines about cookies and terms of use, default true.
    pub policy: bool,
}

impl Default for C4 {
    fn default() -> Self {
        Self {
            terminal_punctuation: true,
            min_sentences: 5,
            min_line_words: 3,
            max_word_length: 1000,
            remove_citations: true,
            lorem_ipsum: true,
            javascript: true,
            curly_bracket: true,
            policy: true,
        }
    }
}

const POLICY: [&str; 6] =
    ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"];

impl C4 {
    /// The lines that remain, or the rule that the document breaks.
    pub(super) fn kept_lines(&self, text: &str) -> Result<String, &'static str> {
        let (mut kept, mut count) = (Vec::new(), 0);
        for line in lines(text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.iter().any(|word| length(word) > self.max_word_length) {
                continue;
            }
            let line = match self.remove_citations {
                true => without_citations(line.trim()),
                false => line.trim().to_owned(),
            };
            let ends = line.ends_with(['.', '?', '!', '"', '\'']) && !line.ends_with("...");
            if self.terminal_punctuation && !ends || words.len() < self.min_line_words {
                continue;
            }
            let lower = line.to_lowercase();
            if self.lorem_ipsum && lower.contains("lorem ipsum") {
                return Err("lorem ipsum");
            }
            if self.javascript && lower.contains("javascript") {
                continue;
            }
            if self.curly_bracket && line.contains('{') {
                return Err("curly bracket");
            }
            if self.policy && POLICY.iter().any(|phrase| lower.contains(phrase)) {
                continue;
            }
            count += sentences(&line);
            kept.push(line);
        }
        let text = kept.join("\n").trim().to_owned();
        match count < self.min_sentences || text.is_empty() {
            true => Err("too few sentences"),
            false => Ok(text),
        }
    }
}

/// A line without `[1]`, `[]`, `[edit]` and `[citation needed]`.
fn without_citations(line: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(line.len()), line);
    while let Some((before, after)) = rest.split_once('[') {
        kept.push_str(before);
        let mark = after
            .split_once(']')
            .filter(|(inside, _)| inside.chars().all(char::is_numeric) || ["edit", "citation needed"].contains(inside));
        rest = match mark {
            Some((_, rest)) => rest,
            None => {
                kept.push('[');
                after
            }
        };
    }
    kept + rest
}

/// The rules of `FineWeb`. Blank lines do not count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fineweb {
    /// Least share of lines that end with a mark that ends a sentence, default 0.12.
    pub min_terminal_lines: f64,
    /// Largest share of short lines, default 0.67.
    pub max_short_lines: f64,
    /// Largest number of characters of a short line, default 30.
    pub short_line_length: usize,
    /// Largest share of characters in lines that repeat an earlier one, default 0.01.
    pub max_repeated_line_characters: f64,
    /// Largest number of line ends per word, default 0.3.
    pub max_line_ends_per_word: f64,
}

impl Default for Fineweb {
    fn default() -> Self {
        Self {
            min_terminal_lines: 0.12,
            max_short_lines: 0.67,
            short_line_length: 30,
            max_repeated_line_characters: 0.01,
            max_line_ends_per_word: 0.3,
        }
    }
}

impl Fineweb {
    /// The rule that a text breaks, if any. The text is not empty.
    pub(super) fn broken_rule(&self, text: &str) -> Option<&'static str> {
        let lines: Vec<&str> = text.split('\n').filter(|line| !line.trim().is_empty()).collect();
        let share =
            |is: &dyn Fn(&str) -> bool| lines.iter().filter(|line| is(line)).count() as f64 / lines.len() as f64;
        if share(&|line| line.ends_with(is_terminal)) < self.min_terminal_lines {
            return Some("too few lines that end a sentence");
        }
        if share(&|line| length(line) <= self.short_line_length) > self.max_short_lines {
            return Some("too many short lines");
        }
        let line_ends = text.matches('\n').count();
        let (_, repeated) = repeated_parts(&lines);
        if repeated as f64 / (length(text) - line_ends) as f64 > self.max_repeated_line_characters {
            return Some("characters in repeated lines");
        }
        (line_ends as f64 / words(text).len() as f64 > self.max_line_ends_per_word).then_some("too many line ends")
    }
}
