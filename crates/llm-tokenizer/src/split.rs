//! Pre-tokenization: cuts a text into pieces that are encoded separately. The patterns of published tokenizers, and a search for
//! their matches that is faster than a backtracking regular expression.

use regex_automata::meta::{Cache, Regex};
use regex_automata::{Anchored, Input};

/// GPT-2: words with the blank before them, numbers, other characters, blanks.
pub(crate) const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// GPT-4 (cl100k) and Llama 3: at most three digits are a piece, line ends are pieces of their own.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// [`LLAMA3`] with at most two digits.
pub(crate) const DIGITS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2 and 3: [`LLAMA3`] with one digit.
pub(crate) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// `Whitespace` of the `tokenizers` crate: words and runs of punctuation, without the blanks between them.
const WORDS: &str = r"\w+|[^\w\s]+";

/// The end of the patterns above: blanks without the last one before a word, which belongs to the word.
const BLANKS: &str = r"|\s+(?!\S)|\s+";
/// The index of the pattern of [`BLANKS`] in [`Splitter::regex`].
const BLANKS_INDEX: usize = 1;
/// Memory of the automaton, in bytes. Text in many scripts has many states.
const AUTOMATON_BYTES: usize = 8 << 20;

/// Finds the pieces of a text.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// The pattern without [`BLANKS`], and `\s+`.
    regex: Regex,
    /// Whether each digit is a piece of its own, cut before the pattern is applied.
    digits: bool,
    /// Whether a match must begin where the one before ends: the pattern matches at every character.
    gapless: bool,
}

/// Working memory of [`Splitter::for_each`], one for each thread.
pub(crate) type SplitterCache = Cache;

impl Splitter {
    /// The pieces of one of the byte-level patterns of this file; `None` for another pattern.
    pub(crate) fn byte_level(pattern: &str, digits: bool) -> Option<Self> {
        let known = [GPT2, LLAMA3, DIGITS2, QWEN2].into_iter().find(|known| *known == pattern)?;
        let head = known.strip_suffix(BLANKS)?;
        Self::new(&[head, r"\s+"], digits, true)
    }

    /// Words and punctuation, without blanks.
    pub(crate) fn words() -> Option<Self> {
        Self::new(&[WORDS], false, false)
    }

    fn new(patterns: &[&str], digits: bool, gapless: bool) -> Option<Self> {
        let config = Regex::config().hybrid_cache_capacity(AUTOMATON_BYTES);
        let regex = Regex::builder().configure(config).build_many(patterns).ok()?;
        Some(Self { regex, digits, gapless })
    }

    /// Working memory for [`Splitter::for_each`].
    pub(crate) fn cache(&self) -> SplitterCache {
        self.regex.create_cache()
    }

    /// Calls `each` for the pieces of a text, in their order.
    pub(crate) fn for_each<'t>(&self, cache: &mut SplitterCache, text: &'t str, each: &mut impl FnMut(&'t str)) {
        if !self.digits {
            return self.for_each_match(cache, text, each);
        }
        let mut begin = 0;
        for (at, digit) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
            self.for_each_match(cache, &text[begin..at], each);
            begin = at + digit.len_utf8();
            each(&text[at..begin]);
        }
        self.for_each_match(cache, &text[begin..], each);
    }

    fn for_each_match<'t>(&self, cache: &mut SplitterCache, text: &'t str, each: &mut impl FnMut(&'t str)) {
        let anchored = if self.gapless { Anchored::Yes } else { Anchored::No };
        let mut input = Input::new(text).anchored(anchored);
        let mut at = 0;
        while at < text.len() {
            input.set_start(at);
            let Some(found) = self.regex.search_with(cache, &input) else { break };
            let piece = &text[found.range()];
            let mut end = found.end();
            if found.pattern().as_usize() == BLANKS_INDEX && end < text.len() {
                // `\s+(?!\S)`: the last blank belongs to the word after it, unless it is the only one.
                let last = piece.chars().next_back().map_or(0, char::len_utf8);
                end -= if last < piece.len() { last } else { 0 };
            }
            each(&text[found.start()..end]);
            at = end;
        }
        if self.gapless && at < text.len() {
            each(&text[at..]);
        }
    }
}

/// Cuts a text into parts of about `bytes` bytes, at places where all patterns of this file cut, so that the parts can be counted in
/// parallel: between a letter and a blank before another letter. A text without such a place stays whole.
pub(crate) fn safe_parts(text: &str, bytes: usize) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while rest.len() > bytes {
        let letters = rest.as_bytes()[bytes..]
            .windows(3)
            .position(|three| three[0].is_ascii_alphabetic() && three[1] == b' ' && three[2].is_ascii_alphabetic());
        let Some(at) = letters else { break };
        let (part, after) = rest.split_at(bytes + at + 1);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use tokenizers::utils::SysRegex;

    use super::*;

    /// The pieces of the backtracking regular expression of the `tokenizers` crate.
    fn expected<'t>(pattern: &str, text: &'t str) -> Vec<&'t str> {
        SysRegex::new(pattern).unwrap().find_iter(text).map(|(start, end)| &text[start..end]).collect()
    }

    fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        splitter.for_each(&mut splitter.cache(), text, &mut |piece| pieces.push(piece));
        pieces
    }

    #[test]
    fn the_pieces_are_those_of_the_regular_expression() {
        let texts = [
            "",
            " ",
            "  ",
            "\n",
            "a",
            " a",
            "  a",
            "a  ",
            "a \n b",
            "a\n\n\n    b",
            "\r\n\r\n x",
            "I'm he'LL they'Re 'x",
            "12345 6 78",
            "x=1;\n\n  y = 22,\t3;",
            "a\u{a0}\u{3000}b",
            "日本語 1２３ ٤٥٦",
            "e\u{301}é ß ﬁ ſ 'ſ",
            "🐈‍⬛!?  …\n…",
            "\t\t\tif x:\n\t\t\t\ty",
        ];
        for pattern in [GPT2, LLAMA3, DIGITS2, QWEN2] {
            let splitter = Splitter::byte_level(pattern, false).unwrap();
            for text in texts {
                assert_eq!(pieces(&splitter, text), expected(pattern, text), "{pattern}: {text:?}");
            }
        }
        assert!(Splitter::byte_level(r"\w+", false).is_none());
    }

    #[test]
    fn every_character_is_in_the_same_class_as_in_the_regular_expression() {
        // The other patterns have the same classes. No characters are assigned between these ranges.
        let (splitter, regex) = (Splitter::byte_level(LLAMA3, false).unwrap(), SysRegex::new(LLAMA3).unwrap());
        let (mut cache, mut different, mut ends) = (splitter.cache(), Vec::new(), Vec::new());
        for c in (0..0x4_0000).chain(0xe_0000..0xe_1000).filter_map(char::from_u32) {
            let text = format!("a{c}1{c} {c}'{c}");
            ends.clear();
            let mut at = 0;
            splitter.for_each(&mut cache, &text, &mut |piece| {
                at += piece.len();
                ends.push(at);
            });
            if !regex.find_iter(&text).map(|(_, end)| end).eq(ends.iter().copied()) {
                different.push(c);
            }
        }
        let some = &different[..different.len().min(20)];
        assert!(different.is_empty(), "{} characters differ, such as {some:?}", different.len());
    }

    #[test]
    fn digits_are_pieces_before_the_pattern_is_applied() {
        let splitter = Splitter::byte_level(GPT2, true).unwrap();
        assert_eq!(pieces(&splitter, "ab  12 c"), ["ab", "  ", "1", "2", " c"]);
    }

    #[test]
    fn words_leave_out_blanks() {
        assert_eq!(pieces(&Splitter::words().unwrap(), " Hello, world!\n"), ["Hello", ",", "world", "!"]);
    }

    #[test]
    fn the_parts_of_a_text_have_the_same_pieces() {
        let text = "fn  main() {\n    one two;\n}\n\n  three 4 four, five six 1 2 3".repeat(20);
        for pattern in [GPT2, LLAMA3] {
            let splitter = Splitter::byte_level(pattern, false).unwrap();
            let parts = safe_parts(&text, 50);
            assert!(parts.len() > 10 && parts.concat() == text);
            let joined: Vec<&str> = parts.iter().flat_map(|part| pieces(&splitter, part)).collect();
            assert_eq!(joined, pieces(&splitter, &text));
        }
        assert_eq!(safe_parts("aaaaaaaa", 2), ["aaaaaaaa"]);
    }
}
