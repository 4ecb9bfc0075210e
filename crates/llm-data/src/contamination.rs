//! Contamination: training texts that occur in validation texts, also with other text around them.

use std::collections::{BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

use crate::overlap::{NGrams, hash_words, words};

/// How much of a validation text is training text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contamination {
    /// Its words.
    pub words: usize,
    /// Those in an n-gram of [`NGrams::LENGTH`] words of a training text, or in a whole shorter training text.
    pub repeated: usize,
    /// Whether it contains a whole training text of fewer words.
    pub contains_short_text: bool,
}

/// Shorter training texts occur by chance.
const SHORTEST: usize = 4;
/// Words that occur in more training texts are a template (an instruction, a greeting) and not counted.
const TEMPLATE: u32 = 8;

impl Contamination {
    /// Compares each validation text with all training texts. Case, punctuation and line breaks do not matter. Memory is
    /// proportional to the validation texts.
    pub fn of<T: AsRef<str> + Sync, V: AsRef<str> + Sync>(train: &[T], validation: &[V]) -> Vec<Self> {
        let length = |text: &T| words(text.as_ref()).len();
        let mut lengths: BTreeSet<usize> =
            train.par_iter().map(length).filter(|n| (SHORTEST..NGrams::LENGTH).contains(n)).collect();
        lengths.insert(NGrams::LENGTH);
        let validation: Vec<Vec<String>> = validation.par_iter().map(|text| words(text.as_ref())).collect();
        let windows = |words: &Vec<String>| -> Vec<u64> {
            lengths.iter().flat_map(|&n| words.windows(n).map(hash_words)).collect()
        };
        let wanted: HashSet<u64> = validation.par_iter().flat_map_iter(windows).collect();
        let counts = train
            .par_iter()
            .map(|text| of_training_text(text.as_ref(), &wanted))
            .fold(HashMap::new, |mut counts: HashMap<u64, u32>, found| {
                found.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
                counts
            })
            .reduce(HashMap::new, |mut all, counts| {
                counts.into_iter().for_each(|(hash, n)| *all.entry(hash).or_default() += n);
                all
            });
        let is_repeated = |words: &[String]| counts.get(&hash_words(words)).is_some_and(|&n| n <= TEMPLATE);
        validation.par_iter().map(|words| Self::of_words(words, &lengths, is_repeated)).collect()
    }

    fn of_words(words: &[String], lengths: &BTreeSet<usize>, is_repeated: impl Fn(&[String]) -> bool) -> Self {
        let (mut repeated, mut contains_short_text) = (vec![false; words.len()], false);
        for &n in lengths {
            for (start, window) in words.windows(n).enumerate() {
                if is_repeated(window) {
                    repeated[start..start + n].fill(true);
                    contains_short_text |= n < NGrams::LENGTH;
                }
            }
        }
        Self { words: words.len(), repeated: repeated.iter().filter(|&&r| r).count(), contains_short_text }
    }

    /// Whether the text is a training text with other text around it: it contains a whole short one, or at least half of its
    /// words are repeated.
    pub fn is_training_text(self) -> bool {
        self.contains_short_text || self.repeated > 0 && 2 * self.repeated >= self.words
    }
}

/// The hashes of a training text that are wanted, each once: of all n-grams, or of the whole text if it is shorter.
fn of_training_text(text: &str, wanted: &HashSet<u64>) -> HashSet<u64> {
    let words = words(text);
    let hashes: Vec<u64> = match words.len() {
        n if n >= NGrams::LENGTH => words.windows(NGrams::LENGTH).map(hash_words).collect(),
        n if n >= SHORTEST => vec![hash_words(&words)],
        _ => Vec::new(),
    };
    hashes.into_iter().filter(|hash| wanted.contains(hash)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "The first of many long sentences that a model reads, word by word, until it knows them all.";
    const SHORT: &str = "Name a red fruit. An apple.";

    fn of(text: &str) -> Contamination {
        Contamination::of(&[LONG, SHORT, "yes"], &[text])[0]
    }

    #[test]
    fn a_training_text_is_found_with_other_text_around_it() {
        for text in [
            LONG.to_owned(),
            format!("Hello! {}", LONG.to_uppercase()),
            format!("A few other words. {} {SHORT}", LONG.replace(' ', "\n")),
            SHORT.to_owned(),
            format!("Good morning to you, my friend, how are you on this day? {SHORT} And what else is there?"),
        ] {
            assert!(of(&text).is_training_text(), "{text}");
        }
        let joined = of(&format!("{SHORT} New words. {LONG}"));
        assert_eq!(joined, Contamination { words: 26, repeated: 24, contains_short_text: true });
    }

    #[test]
    fn a_text_that_shares_a_few_words_is_not_a_training_text() {
        for text in
            ["", "yes", "Name a red fruit. A cherry.", "The first of many long sentences that a model reads, word by"]
        {
            assert_eq!(of(text).repeated, 0, "{text}");
        }
        // 18 of 38 words are repeated.
        let long = format!("{LONG} {}", "other ".repeat(20));
        assert_eq!(of(&long), Contamination { words: 38, repeated: 18, contains_short_text: false });
        assert!(!of(&long).is_training_text());
    }

    #[test]
    fn a_template_of_many_training_texts_is_not_counted() {
        let template =
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
        let train = |n: usize| (0..n).map(|i| format!("{template} Add {i} and {i}.")).collect::<Vec<_>>();
        let validation = [format!("{template} Subtract.")];
        assert!(Contamination::of(&train(8), &validation)[0].is_training_text());
        assert_eq!(Contamination::of(&train(9), &validation)[0].repeated, 0);
    }
}
