//! What changes in answers with the temperature.

use std::collections::HashSet;

use llm_cli::Failure;
use llm_eval::stats::{Interval, share_interval, wilson};
use serde::Serialize;

use crate::generate::SEED;

/// The titles of [`Level::cells`].
pub(super) const TITLES: [&str; 8] = [
    "temperature",
    "distinct-1",
    "distinct-2",
    "entropy, nats",
    "repeated, %",
    "right, % (95 % interval)",
    "tokens",
    "cut off, %",
];

/// One answer.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Answer {
    /// The text, without special tokens.
    pub(super) text: String,
    /// Whether it is the right answer, if there is one.
    pub(super) right: Option<bool>,
    /// The number of tokens, with the end token.
    pub(super) tokens: usize,
    /// Whether the limit of tokens ended it.
    pub(super) cut_off: bool,
    /// The negative log-probability of each token under the distribution that it was sampled from, in nats.
    #[serde(skip)]
    pub(super) surprises: Vec<f64>,
}

/// The answers at one temperature and their measures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Level {
    pub(super) temperature: f64,
    /// The share of different words among those of all answers to a question, mean over the questions (Li et al. 2016, arXiv
    /// 1510.03055).
    pub(super) distinct_1: f64,
    /// The same for pairs of neighbouring words.
    pub(super) distinct_2: f64,
    /// The entropy of the distribution that a token is sampled from, in nats: the mean surprise of the sampled tokens, which
    /// estimates it without bias.
    pub(super) entropy: f64,
    /// The share of sequences of four words that occurred before in the same answer (Welleck et al. 2020, arXiv 1908.04319).
    pub(super) repeated: f64,
    /// The share of right answers, if the right ones are known, and its interval: Wilson's over the answers to one question, a
    /// bootstrap over several questions. None if one answer is all there is.
    pub(super) right: Option<(f64, Option<Interval>)>,
    /// The mean number of tokens of an answer.
    pub(super) tokens: f64,
    /// The share of answers that the limit of tokens ended.
    pub(super) cut_off: f64,
    /// The answers to each question.
    pub(super) answers: Vec<Vec<Answer>>,
}

impl Level {
    /// Measures the answers to each question at one temperature.
    pub(super) fn of(temperature: f64, answers: Vec<Vec<Answer>>) -> Result<Self, Failure> {
        let all = || answers.iter().flatten();
        let count = all().count().max(1) as f64;
        let mean = |value: &dyn Fn(&Answer) -> f64| all().map(value).sum::<f64>() / count;
        let distinct = |n: usize| {
            answers.iter().map(|of_question| distinct(of_question, n)).sum::<f64>() / answers.len().max(1) as f64
        };
        let surprises: Vec<f64> = all().flat_map(|answer| answer.surprises.iter().copied()).collect();
        let entropy = surprises.iter().sum::<f64>() / surprises.len().max(1) as f64;
        Ok(Self {
            temperature,
            distinct_1: distinct(1),
            distinct_2: distinct(2),
            entropy: if temperature == 0. { 0. } else { entropy.max(0.) }, // not -0.0
            repeated: mean(&|answer| repeated(&answer.text)),
            right: right(temperature, &answers)?,
            tokens: mean(&|answer| answer.tokens as f64),
            cut_off: mean(&|answer| f64::from(u8::from(answer.cut_off))),
            answers,
        })
    }

    /// A row of the table.
    pub(super) fn cells(&self) -> [String; 8] {
        let right = match self.right {
            None => "-".to_owned(),
            Some((share, None)) => format!("{:.0}", 100. * share),
            Some((share, Some(interval))) => {
                format!("{:.0} ({:.0} to {:.0})", 100. * share, 100. * interval.low, 100. * interval.high)
            }
        };
        [
            self.temperature.to_string(),
            format!("{:.2}", self.distinct_1),
            format!("{:.2}", self.distinct_2),
            format!("{:.2}", self.entropy),
            format!("{:.1}", 100. * self.repeated),
            right,
            format!("{:.1}", self.tokens),
            format!("{:.0}", 100. * self.cut_off),
        ]
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_lowercase).collect()
}

/// The share of different sequences of `n` words among those of all answers; 0 without any.
fn distinct(answers: &[Answer], n: usize) -> f64 {
    let (mut seen, mut total) = (HashSet::new(), 0usize);
    for answer in answers {
        for part in words(&answer.text).windows(n) {
            total += 1;
            seen.insert(part.to_vec());
        }
    }
    seen.len() as f64 / total.max(1) as f64
}

/// The share of sequences of four words that occurred before; 0 for fewer than four words.
fn repeated(text: &str) -> f64 {
    let words = words(text);
    let parts: Vec<&[String]> = words.windows(4).collect();
    let different: HashSet<&[String]> = parts.iter().copied().collect();
    (parts.len() - different.len()) as f64 / parts.len().max(1) as f64
}

fn right(temperature: f64, answers: &[Vec<Answer>]) -> Result<Option<(f64, Option<Interval>)>, Failure> {
    let (mut scores, mut clusters) = (Vec::new(), Vec::new());
    for (question, answers) in answers.iter().enumerate() {
        for right in answers.iter().filter_map(|answer| answer.right) {
            scores.push(f64::from(u8::from(right)));
            clusters.push(question);
        }
    }
    if scores.is_empty() {
        return Ok(None);
    }
    let correct = scores.iter().sum::<f64>();
    let questions = clusters.iter().collect::<HashSet<_>>().len();
    let interval = match questions {
        1 if temperature == 0. => None,
        1 => Some(wilson(correct as usize, scores.len())),
        _ => Some(share_interval(&scores, &clusters, SEED).map_err(|e| Failure::input(e.to_string()))?),
    };
    Ok(Some((correct / scores.len() as f64, interval)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(texts: &[&str], right: Option<bool>) -> Vec<Answer> {
        texts.iter().map(|text| Answer { text: (*text).to_owned(), right, ..Answer::default() }).collect()
    }

    #[test]
    fn distinct_and_repeated_words_are_counted() {
        let two = answers(&["the sea is blue", "The sea is deep"], None);
        assert_eq!(distinct(&two, 1), 5. / 8.);
        assert_eq!(distinct(&two, 2), 4. / 6.);
        assert_eq!(distinct(&answers(&["", "word"], None), 2), 0.);
        // a b c d | b c d a | c d a b | d a b c | a b c d
        assert_eq!(repeated("a b c d a b c D"), 1. / 5.);
        assert_eq!(repeated("a b c"), 0.);
    }

    #[test]
    fn the_entropy_is_the_mean_surprise_and_0_without_randomness() {
        let answer = Answer { surprises: vec![1., 2., 3.], ..Answer::default() };
        let longer = Answer { surprises: vec![6.], ..Answer::default() };
        assert_eq!(Level::of(1., vec![vec![answer.clone(), longer]]).unwrap().entropy, 3.);
        assert_eq!(Level::of(0., vec![vec![answer]]).unwrap().entropy, 0.);
    }

    #[test]
    fn the_share_of_right_answers_has_an_interval_where_there_is_chance() {
        let of = |temperature, all: Vec<Vec<Answer>>| Level::of(temperature, all).unwrap().right;
        assert_eq!(of(1., vec![answers(&["a"], None)]), None);
        assert_eq!(of(0., vec![answers(&["a", "a"], Some(true))]), Some((1., None)));
        let mut mixed = answers(&["a", "b", "c"], Some(true));
        mixed.extend(answers(&["d"], Some(false)));
        let (share, interval) = of(1., vec![mixed]).unwrap();
        assert_eq!((share, interval), (0.75, Some(wilson(3, 4))));
        let two = vec![answers(&["a", "b"], Some(true)), answers(&["c", "d"], Some(false))];
        let (share, interval) = of(1., two).unwrap();
        assert_eq!((share, interval), (0.5, Some(Interval { low: 0., high: 1. })), "the questions are the unit");
    }
}
