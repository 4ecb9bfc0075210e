//! Words, lines and sentences as the rules of quality count them, and the normalised text that duplicates are looked for in.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use unicode_segmentation::UnicodeSegmentation;

/// The words and punctuation marks of a text: the segments between word boundaries (UAX #29) that are not white space.
pub(super) fn words(text: &str) -> Vec<&str> {
    text.split_word_bounds().map(str::trim).filter(|word| !word.is_empty()).collect()
}

/// The number of sentences (UAX #29).
pub(super) fn sentences(text: &str) -> usize {
    text.split_sentence_bounds().filter(|sentence| !sentence.trim().is_empty()).count()
}

/// The lines of a text, without their ends; the ends are those of `str.splitlines` of Python.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) {
        lines.push(&rest[..at]);
        let length = if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The number of characters (Unicode scalar values).
pub(super) fn length(text: &str) -> usize {
    match text.is_ascii() {
        true => text.len(),
        false => text.chars().count(),
    }
}

/// Whether a character is a punctuation mark or a control character, as in the text normaliser of `CCNet` (Wenzek et al. 2020, arXiv
/// 1911.00359): these become spaces when texts are compared.
pub(super) fn is_punctuation(c: char) -> bool {
    match c {
        '\t' | '\n' => false,
        c if c.is_ascii() => c.is_ascii_punctuation() || c.is_ascii_control(),
        '\u{80}'..='\u{9f}' => true,
        _ => "—”％１〈、━【「」，】；“《„’∶´．（–？！：～«〉》）。…►»".contains(c),
    }
}

/// Whether a character ends a sentence: the property `Sentence_Terminal` (UAX #44), and three marks of Khmer.
pub(super) fn is_terminal(c: char) -> bool {
    matches!(
        c,
        '.' | '?' | '!' | '\u{589}' | '\u{61d}'..='\u{61f}' | '\u{6d4}' | '\u{700}'..='\u{702}' | '\u{7f9}'
        | '\u{837}' | '\u{839}' | '\u{83d}'..='\u{83e}' | '\u{964}'..='\u{965}' | '\u{104a}'..='\u{104b}' | '\u{1362}'
        | '\u{1367}'..='\u{1368}' | '\u{166e}' | '\u{1735}'..='\u{1736}' | '\u{17d4}'..='\u{17d6}'
        | '\u{17d9}'..='\u{17da}' | '\u{1803}' | '\u{1809}' | '\u{1944}'..='\u{1945}' | '\u{1aa8}'..='\u{1aab}'
        | '\u{1b4e}'..='\u{1b4f}' | '\u{1b5a}'..='\u{1b5b}' | '\u{1b5e}'..='\u{1b5f}' | '\u{1b7d}'..='\u{1b7f}'
        | '\u{1c3b}'..='\u{1c3c}' | '\u{1c7e}'..='\u{1c7f}' | '\u{2024}' | '\u{203c}'..='\u{203d}'
        | '\u{2047}'..='\u{2049}' | '\u{2cf9}'..='\u{2cfb}' | '\u{2e2e}' | '\u{2e3c}' | '\u{2e53}'..='\u{2e54}'
        | '\u{2e60}'..='\u{2e61}' | '\u{3002}' | '\u{a4ff}' | '\u{a60e}'..='\u{a60f}' | '\u{a6f3}' | '\u{a6f7}'
        | '\u{a876}'..='\u{a877}' | '\u{a8ce}'..='\u{a8cf}' | '\u{a92f}' | '\u{a9c8}'..='\u{a9c9}'
        | '\u{aa5d}'..='\u{aa5f}' | '\u{aaf0}'..='\u{aaf1}' | '\u{abeb}' | '\u{fe12}' | '\u{fe15}'..='\u{fe16}'
        | '\u{fe52}' | '\u{fe56}'..='\u{fe57}' | '\u{ff01}' | '\u{ff0e}' | '\u{ff1f}' | '\u{ff61}'
        | '\u{10a56}'..='\u{10a57}' | '\u{10f55}'..='\u{10f59}' | '\u{10f86}'..='\u{10f89}'
        | '\u{11047}'..='\u{11048}' | '\u{110be}'..='\u{110c1}' | '\u{11141}'..='\u{11143}'
        | '\u{111c5}'..='\u{111c6}' | '\u{111cd}' | '\u{111de}'..='\u{111df}' | '\u{11238}'..='\u{11239}'
        | '\u{1123b}'..='\u{1123c}' | '\u{112a9}' | '\u{113d4}'..='\u{113d5}' | '\u{1144b}'..='\u{1144c}'
        | '\u{115c2}'..='\u{115c3}' | '\u{115c9}'..='\u{115d7}' | '\u{11641}'..='\u{11642}'
        | '\u{1173c}'..='\u{1173e}' | '\u{11944}' | '\u{11946}' | '\u{11a42}'..='\u{11a43}'
        | '\u{11a9b}'..='\u{11a9c}' | '\u{11c41}'..='\u{11c42}' | '\u{11ef7}'..='\u{11ef8}'
        | '\u{11f43}'..='\u{11f44}' | '\u{16a6e}'..='\u{16a6f}' | '\u{16af5}' | '\u{16b37}'..='\u{16b38}'
        | '\u{16b44}' | '\u{16d6e}'..='\u{16d6f}' | '\u{16e98}' | '\u{1bc9f}' | '\u{1da88}'
    )
}

/// A text without what does not make a difference between two copies: lower case, numbers as `0`, punctuation and white space as one
/// space, no diacritics (`FineWeb`, Penedo et al. 2024, arXiv 2406.17557, the normalisation before shingles).
pub(super) fn simplify(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut simple = String::with_capacity(lower.len());
    let mut rest = lower.chars().peekable();
    while let Some(c) = rest.next() {
        if is_digit(c) {
            while rest.next_if(|c| is_digit(*c)).is_some() {}
            let mut after = rest.clone();
            if after.next().is_some_and(|c| ".,،٫⎖⎗⎘".contains(c)) && after.peek().is_some_and(|c| is_digit(*c))
            {
                rest = after;
                while rest.next_if(|c| is_digit(*c)).is_some() {}
            }
            simple.push('0');
        } else if c.is_whitespace() || is_punctuation(c) {
            if !simple.is_empty() && !simple.ends_with(' ') {
                simple.push(' ');
            }
        } else {
            simple.push(c);
        }
    }
    simple.truncate(simple.trim_end().len());
    match simple.is_ascii() {
        true => simple,
        false => simple.nfd().filter(|c| c.general_category() != GeneralCategory::NonspacingMark).collect(),
    }
}

/// The words of a text from [`simplify`].
pub(super) fn simple_words(simple: &str) -> Vec<&str> {
    match simple.is_ascii() {
        true => simple.split_ascii_whitespace().collect(),
        false => words(simple),
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || !c.is_ascii() && c.is_numeric() && c.general_category() == GeneralCategory::DecimalNumber
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_marks_are_words_of_their_own() {
        assert_eq!(words("Don't stop, ok?\n(3.5)"), ["Don't", "stop", ",", "ok", "?", "(", "3.5", ")"]);
        assert_eq!(words("你好。"), ["你", "好", "。"]);
        assert_eq!(sentences("One. Two! Is it three? Yes"), 4);
        assert_eq!(sentences(" "), 0);
    }

    #[test]
    fn lines_end_where_those_of_python_do() {
        assert_eq!(lines("a\r\nb\rc\n\nd\u{c}e\u{2028}f\n"), ["a", "b", "c", "", "d", "e", "f"]);
        assert_eq!(lines(""), Vec::<&str>::new());
    }

    /// The expected texts are those of `simplify_text` of datatrove 0.10.
    #[test]
    fn texts_that_differ_in_form_only_become_the_same() {
        for (text, simple) in [
            ("  The Café—costs 1,250.75 €!\n", "the cafe costs 0 0 €"),
            ("3.14 and 3.1.4, ３٣ or x2", "0 and 0 0 0 or x0"),
            ("ÀÉÎ\tna\u{308}ive", "aei naive"),
            ("!?.,", ""),
            ("हिन्दी में", "हिनदी म"),
        ] {
            assert_eq!(simplify(text), simple, "{text}");
        }
    }
}
