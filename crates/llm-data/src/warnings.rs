//! What a reader noticed that is no error, but that a person should know before training on it.

use std::collections::BTreeSet;

use crate::split::Duplicates;

/// Counts over the records of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings {
    /// Records that were read.
    pub records: usize,
    /// Records that repeat earlier ones.
    pub duplicates: Duplicates,
    /// Conversations with an answer that has no words.
    pub empty_answers: usize,
    /// Conversations that begin with the assistant's turn.
    pub without_question: usize,
    /// Rankings left out because their answers are the same.
    pub equal_answers: usize,
    /// Rankings left out because their dialogues differ before the last turn.
    pub different_prompts: usize,
    /// Rankings left out because all of their answers tie.
    pub ties: usize,
    /// Keys of records and of messages that were not read.
    pub ignored_keys: BTreeSet<String>,
}

impl Warnings {
    /// One line for each thing that was noticed.
    pub fn lines(&self) -> Vec<String> {
        let n = self.records;
        let counted = [
            (self.duplicates.exact, "repeat an earlier one: same prompt, same answer"),
            (self.duplicates.same_prompt, "have the prompt of an earlier one and another answer"),
            (self.empty_answers, "have an empty answer: the model learns to end its turn at once"),
            (self.without_question, "begin with an answer, without anything that was asked"),
            (self.equal_answers, "are left out: their answers are the same"),
            (self.different_prompts, "are left out: their answers belong to different prompts"),
            (self.ties, "are left out: all of their answers tie"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        let mut lines: Vec<String> = counted.map(|(count, what)| format!("{count} of {n} records {what}")).collect();
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
    fn each_remark_is_a_line_and_nothing_is_said_of_plain_data() {
        assert_eq!(Warnings { records: 9, ..Warnings::default() }.lines(), Vec::<String>::new());
        let duplicates = Duplicates { exact: 2, same_prompt: 1 };
        let ignored_keys = (0..10).map(|i| i.to_string()).collect();
        let warnings = Warnings { records: 9, duplicates, ties: 3, ignored_keys, ..Warnings::default() };
        let lines = warnings.lines();
        assert_eq!(lines[0], "2 of 9 records repeat an earlier one: same prompt, same answer");
        assert_eq!(lines[2], "3 of 9 records are left out: all of their answers tie");
        assert!(lines[3].ends_with("\"7\" and 2 more are not read"), "{}", lines[3]);
        assert_eq!(lines.len(), 4);
    }
}
