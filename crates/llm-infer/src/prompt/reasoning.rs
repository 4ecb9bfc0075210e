//! Chain of thought (Wei et al. 2022; zero-shot: Kojima et al. 2022): the instruction, and the answer in what the model wrote.

use clap::ValueEnum;
use llm_cli::Failure;
use regex::Regex;
use serde::Deserialize;

/// What is shown of an answer with reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Think {
    /// The whole text
    Shown,
    /// The answer only
    Hidden,
}

/// Follows the question for models whose chat template has no reasoning of its own.
pub(super) const INSTRUCTION: &str =
    "Think step by step. Then write the answer on a last line that begins with \"Answer:\".";

/// The end of the reasoning of models that write it between tags.
const CLOSE: &str = "</think>";
const OPEN: &str = "<think>";

/// The text after the reasoning between tags; the whole text if it has no tags. Empty if the reasoning did not end.
pub(crate) fn without_reasoning(text: &str) -> &str {
    match text.rsplit_once(CLOSE) {
        Some((_, answer)) => answer.trim_start(),
        None if text.trim_start().starts_with(OPEN) => "",
        None => text,
    }
}

/// Finds the answer in what a model wrote.
#[derive(Debug, Clone)]
pub(crate) struct AnswerPattern {
    patterns: Vec<Regex>,
    is_default: bool,
}

impl AnswerPattern {
    /// The pattern of `--answer`; by default the usual marks: a line `Answer: X` or `#### X`, `\boxed{X}`, "the answer is X".
    pub(crate) fn new(pattern: Option<&str>) -> Result<Self, Failure> {
        let usual = [
            r"\\boxed\{([^{}]*)\}",
            r"(?m)^####[ \t]*(.+)$",
            r"(?im)\banswer(?:[ \t]+is)?\**[ \t]*:[ \t]*(.+)$",
            r"(?im)\bthe answer is[ \t]+(.+)$",
        ];
        let sources = pattern.map_or_else(|| usual.to_vec(), |pattern| vec![pattern]);
        let patterns = sources.into_iter().map(|source| {
            Regex::new(source).map_err(|e| {
                let reason = e.to_string();
                let reason = reason.lines().last().unwrap_or_default().trim().to_owned();
                Failure::input(format!("--answer is not a regular expression: {reason}"))
            })
        });
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()?, is_default: pattern.is_none() })
    }

    /// Whether it is the pattern of the usual marks.
    pub(crate) fn is_default(&self) -> bool {
        self.is_default
    }

    /// The last match after the reasoning, or its first group if the pattern has one.
    pub(crate) fn find(&self, text: &str) -> Option<String> {
        let text = without_reasoning(text);
        let matches = self.patterns.iter().flat_map(|pattern| pattern.captures_iter(text));
        let found =
            matches.filter_map(|found| found.get(1).or_else(|| found.get(0))).max_by_key(regex::Match::start)?;
        let trimmed = found.as_str().trim();
        let answer = if self.is_default { unmarked(trimmed) } else { trimmed };
        Some(answer.to_owned()).filter(|answer| !answer.is_empty())
    }
}

/// A usual answer without marks of Markdown, a point at the end, and a mark that is written twice.
fn unmarked(answer: &str) -> &str {
    answer.trim_matches('*').trim().trim_start_matches("Answer:").trim_end_matches('.').trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_follows_the_usual_marks() {
        let pattern = AnswerPattern::new(None).unwrap();
        for (text, expected) in [
            ("3 + 4 = 7.\nAnswer: 7", Some("7")),
            ("Answer: 6. No.\n**Final answer:** 7.", Some("7")),
            ("so\n#### 1,200\n", Some("1,200")),
            (r"thus \boxed{x + 1}.", Some("x + 1")),
            ("I think the answer is Paris.", Some("Paris")),
            ("<think>Answer: 3</think>\nThe answer is: 4", Some("4")),
            ("Answer: 3</think>Answer: 5", Some("5")),
            ("<think>Answer: 3", None),
            ("seven", None),
            ("Answer:", None),
            ("Answer: Answer: 14", Some("14")),
        ] {
            assert_eq!(pattern.find(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_pattern_of_the_user_takes_its_last_match() {
        let number = AnswerPattern::new(Some(r"-?\d+")).unwrap();
        assert_eq!(number.find("3 plus 4 is 7.").as_deref(), Some("7"));
        assert_eq!(number.find("none"), None);
        let group = AnswerPattern::new(Some(r"is (\w+)")).unwrap();
        assert_eq!(group.find("this is red and that is blue").as_deref(), Some("blue"));
        let error = AnswerPattern::new(Some("(")).unwrap_err().to_string();
        assert!(error.starts_with("--answer is not a regular expression: "), "{error}");
    }

    #[test]
    fn reasoning_between_tags_is_removed() {
        assert_eq!(without_reasoning("<think>a</think>\n\nb"), "b");
        assert_eq!(without_reasoning("a</think>b"), "b", "the template may have written the begin");
        assert_eq!(without_reasoning("<think>a"), "");
        assert_eq!(without_reasoning("a b"), "a b");
    }
}
