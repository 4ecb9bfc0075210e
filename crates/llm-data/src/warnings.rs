//! Problems in a file that are not errors, but that the user should know before training on it.

use std::collections::BTreeSet;

use crate::Error;
use crate::split::Duplicates;

/// Rows that are left out because they cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broken {
    /// Their number.
    pub count: usize,
    /// File, line and reason of the first ones.
    pub first: Vec<String>,
}

impl Broken {
    /// Number of rows in `first`.
    const SHOWN: usize = 3;

    pub(crate) fn push(&mut self, error: Error) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(error.to_string());
        }
    }
}

/// Counts of suspicious records in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings {
    /// All records.
    pub records: usize,
    /// Records left out because they cannot be read.
    pub broken: Broken,
    /// Duplicates of earlier records.
    pub duplicates: Duplicates,
    /// Conversations with an empty assistant message.
    pub empty_answers: usize,
    /// Conversations without a user message before the first answer.
    pub without_question: usize,
    /// Rankings without their empty answers, or left out if fewer than two answers remain.
    pub empty_ranked: usize,
    /// Labelled answers left out because they are empty.
    pub empty_labelled: usize,
    /// Rankings left out because all answers are equal.
    pub equal_answers: usize,
    /// Rankings left out because the conversations differ before the last message.
    pub different_prompts: usize,
    /// Rankings left out because all answers are tied.
    pub ties: usize,
    /// Keys of records and messages that were not read.
    pub ignored_keys: BTreeSet<String>,
}

impl Warnings {
    /// One line per kind of problem that occurs.
    pub fn lines(&self) -> Vec<String> {
        let n = self.records;
        let counted = [
            (self.duplicates.exact, "are duplicates of an earlier one (same prompt and answer)"),
            (self.duplicates.same_prompt, "have the prompt of an earlier one but another answer"),
            (self.empty_answers, "have an empty answer: the model learns to end its turn immediately"),
            (self.without_question, "have no user message before the first answer"),
            (self.empty_ranked, "have an empty answer, which is left out; a ranking needs two answers that are not"),
            (self.empty_labelled, "are left out: their answer is empty"),
            (self.equal_answers, "are left out: their answers are equal"),
            (self.different_prompts, "are left out: their answers belong to different prompts"),
            (self.ties, "are left out: all of their answers are tied"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        let mut lines: Vec<String> = counted.map(|(count, what)| format!("{count} of {n} records {what}")).collect();
        if self.broken.count > 0 {
            let (count, first) = (self.broken.count, self.broken.first.join("; "));
            let more = if count > self.broken.first.len() { "; …" } else { "" };
            let message =
                format!("{count} of {n} records are broken and left out (--strict refuses them): {first}{more}");
            lines.insert(0, message);
        }
        if !self.ignored_keys.is_empty() {
            let shown: Vec<String> = self.ignored_keys.iter().take(8).map(|key| format!("\"{key}\"")).collect();
            let more = match self.ignored_keys.len() - shown.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            lines.push(format!("the keys {}{more} are not read", shown.join(", ")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_gives_one_line_and_clean_data_gives_none() {
        assert_eq!(Warnings { records: 9, ..Warnings::default() }.lines(), Vec::<String>::new());
        let duplicates = Duplicates { exact: 2, same_prompt: 1 };
        let ignored_keys = (0..10).map(|i| i.to_string()).collect();
        let warnings = Warnings { records: 9, duplicates, ties: 3, ignored_keys, ..Warnings::default() };
        let lines = warnings.lines();
        assert_eq!(lines[0], "2 of 9 records are duplicates of an earlier one (same prompt and answer)");
        assert_eq!(lines[2], "3 of 9 records are left out: all of their answers are tied");
        assert!(lines[3].ends_with("\"7\" and 2 more are not read"), "{}", lines[3]);
        assert_eq!(lines.len(), 4);
    }
}
