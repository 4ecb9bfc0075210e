//! Word n-grams that two texts have in common, to detect contamination.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// The set of all n-grams of [`NGrams::LENGTH`] words of some texts. Words are lower case; punctuation is ignored.
#[derive(Debug, Clone, Default)]
pub struct NGrams(HashSet<u64>);

impl NGrams {
    /// The number of words, as in the contamination check of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C).
    pub const LENGTH: usize = 13;

    /// The n-grams of these texts.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(texts.into_iter().flat_map(hashes).collect())
    }

    /// Whether the text has an n-gram of the set.
    pub fn overlap(&self, text: &str) -> bool {
        hashes(text).iter().any(|hash| self.0.contains(hash))
    }
}

fn hashes(text: &str) -> Vec<u64> {
    words(text).windows(NGrams::LENGTH).map(hash_words).collect()
}

/// The words of a text in lower case, without punctuation.
pub(crate) fn words(text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || "+-=".contains(c);
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// A hash of these words and their number.
pub(crate) fn hash_words(words: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirteen_words_in_a_row_overlap_and_twelve_do_not() {
        let text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";
        let known = NGrams::of([text]);
        assert!(known.overlap("ONE, two: three four five six seven eight nine ten eleven twelve thirteen!"));
        assert!(!known.overlap("one two three four five six seven eight nine ten eleven twelve"));
        assert!(!known.overlap("one two three four five six and seven eight nine ten eleven twelve thirteen"));
    }
}
