//! Warnings about validation text that is also training text, for texts that fit into memory.

use llm_data::{Contamination, Duplicates, ItemKeys, NGrams, SplitKey};
use rayon::prelude::*;

/// Texts of more bytes are not compared.
const MOST_BYTES: usize = 16 << 20;

/// The texts of both splits, as long as they are short.
#[derive(Debug, Default)]
pub(super) struct Sample {
    train: Vec<String>,
    validation: Vec<String>,
    bytes: usize,
}

impl Sample {
    pub fn add(&mut self, is_validation: bool, text: String) {
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > MOST_BYTES {
            (self.train, self.validation) = (Vec::new(), Vec::new());
        } else if is_validation {
            self.validation.push(text);
        } else {
            self.train.push(text);
        }
    }

    /// Logs how much of the validation text is training text; returns whether all of it is. `None`: the texts are too long.
    pub fn check(&self) -> Option<bool> {
        if self.bytes > MOST_BYTES {
            let most = MOST_BYTES >> 20;
            tracing::info!(
                "more than {most} MB of text: validation lines that are also in training documents are not looked for; \
                 `llm-train clean` finds documents that are nearly the same"
            );
            return None;
        }
        Some(warn_about_repeats(&self.train, &self.validation))
    }
}

/// The key of a text without a prompt: a document or a line.
fn text_keys(text: &str) -> ItemKeys {
    SplitKey::of([text]).into()
}

/// Logs how many validation lines are also training lines; returns whether all are.
fn warn_about_repeats(train: &[String], validation: &[String]) -> bool {
    let lines = |documents: &[String]| -> Vec<ItemKeys> {
        let lines = documents.par_iter().flat_map_iter(|document| document.lines());
        lines.filter(|line| !line.trim().is_empty()).map(text_keys).collect()
    };
    let tested = lines(validation);
    let (all, repeated) = (tested.len(), Duplicates::across(lines(train), tested).exact);
    // Tolerate some repeats: headings occur in many texts.
    if repeated * 10 > all {
        tracing::warn!("{repeated} of {all} validation lines are also in the training text");
    }
    let (found, words) = repeated_words(train, validation);
    if found * 10 > words && repeated * 10 <= all {
        let n = NGrams::LENGTH;
        tracing::warn!("{found} of {words} validation words are in sequences of {n} words of the training text");
    }
    repeated == all
}

/// The number of validation words in long n-grams of the training text, and of all validation words: finds lines that are
/// training lines joined or cut in another way.
fn repeated_words(train: &[String], validation: &[String]) -> (usize, usize) {
    let found = Contamination::of(train, validation);
    (found.iter().map(|c| c.repeated).sum(), found.iter().map(|c| c.words).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_text_that_is_joined_training_lines_is_counted() {
        let lines: Vec<String> = (0..20).map(|i| format!("Line {i} has a few words of its own, {}.", i * i)).collect();
        let train = [lines.join("\n")];
        let words = 20 * 10;
        assert_eq!(repeated_words(&train, &[lines.join(" ")]), (words, words));
        let documents = lines.iter().map(|line| format!("{line}\n")).collect::<Vec<_>>();
        assert_eq!(repeated_words(&documents, &[lines.join(" ")]), (words, words));
        assert_eq!(repeated_words(&train, &["Quite other words that are nowhere else.".to_owned()]), (0, 7));
    }

    #[test]
    fn long_texts_are_not_kept() {
        let mut sample = Sample::default();
        (0..4).for_each(|i| sample.add(i % 2 == 0, "x".repeat(MOST_BYTES / 4)));
        assert_eq!(sample.check(), Some(true));
        sample.add(false, "y".to_owned());
        assert_eq!((sample.check(), sample.train.len() + sample.validation.len()), (None, 0));
    }
}
