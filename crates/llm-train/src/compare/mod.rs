//! The win rate of two models: both answer the same prompts, and a reward or people say which answer is better.
//!
//! A tie is half a win. The answers of a comparison are in a random order for the reward and for people, so that a judge who prefers the
//! first one prefers neither model.

mod answers;
mod votes;

use std::fmt;
use std::path::PathBuf;

use candle_core::Device;
use llm_eval::stats::{Interval, share_interval};
use serde::{Deserialize, Serialize};

use self::answers::{Contestant, Replies, replies_of};
use crate::data::DataOptions;
use crate::limits::check_rewards;
use crate::limits::keys::{COUNT, COUNT_OR_NONE, Keys, Real, SEED};
use crate::rewards::{Answer, Prompt, RewardTable};
use crate::run::rng;
use crate::{Error, Recipe, Result};

/// The recipe of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRecipe {
    /// Seed for sampling and for the order of the answers.
    pub seed: u64,
    /// Prompts, spread evenly over the data; 0: all.
    pub prompts: usize,
    /// Answers of each model to each prompt.
    pub answers: usize,
    /// Temperature of sampling; 0: the most likely tokens.
    pub temperature: f64,
    /// Token limit of an answer.
    pub max_new_tokens: usize,
    /// Answers that are sampled and scored at once; it changes no answer.
    pub batch_size: usize,
    /// Two rewards that differ by at most this are a tie.
    pub tie_margin: f64,
    /// The sources of the reward; empty: the reward models of `--reward`.
    pub rewards: Vec<RewardTable>,
    /// How the data file is read.
    pub data: DataOptions,
}

impl Default for CompareRecipe {
    /// The built-in recipe.
    fn default() -> Self {
        crate::recipe::default()
    }
}

impl Recipe for CompareRecipe {
    const STAGE: &'static str = "compare";

    fn check(&self, table: &str) -> Result<()> {
        Keys { table }
            .whole("seed", self.seed, SEED)?
            .whole("prompts", self.prompts, COUNT_OR_NONE)?
            .whole("answers", self.answers, 1..=1000)?
            .real("temperature", self.temperature, Real::NotNegative)?
            .whole("max_new_tokens", self.max_new_tokens, COUNT)?
            .whole("batch_size", self.batch_size, COUNT)?
            .real("tie_margin", self.tie_margin, Real::NotNegative)?;
        check_rewards(&self.rewards, table)
    }
}

/// The inputs of [`compare`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct CompareInputs {
    /// Folder of a model, or of an adapter in PEFT's format; give it twice: the win rate is that of the second one; on the command line also
    /// org/name of the Hugging Face hub.
    #[cfg_attr(feature = "cli", arg(long, required = true, value_name = "DIR"))]
    pub model: Vec<PathBuf>,
    /// Prompts [default: none, with --feedback: the votes on answers that are in the database].
    #[cfg_attr(feature = "cli", arg(long, required_unless_present = "feedback", value_name = "FILE"))]
    pub data: Option<PathBuf>,
    /// Folders of reward models; the recipe's tables `[[rewards]]` say how they are used [default: the mean of their scores].
    #[cfg_attr(feature = "cli", arg(long, num_args = 1.., value_name = "DIR"))]
    pub reward: Vec<PathBuf>,
    /// Database of judgements: people decide. The answers are added as items for `llm-train feedback`, and the votes are counted; run the
    /// command again when there are more.
    #[cfg_attr(feature = "cli", arg(long, conflicts_with = "reward", value_name = "FILE"))]
    pub feedback: Option<PathBuf>,
    /// File to write, with a JSON line for each pair of answers; must not exist [default: none].
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub out: Option<PathBuf>,
}

/// The result of [`compare`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first and the second model.
    pub models: [String; 2],
    /// Comparisons of two answers that the second model won.
    pub wins: usize,
    /// Comparisons without a winner.
    pub ties: usize,
    /// Comparisons that the first model won.
    pub losses: usize,
    /// Pairs of equal answers: ties of a reward; people do not get them.
    pub equal: usize,
    /// Pairs of answers that nobody has judged, or that were skipped or flagged.
    pub open: usize,
    /// The share of the comparisons that the second model won, with a tie as half; `None` without comparisons.
    pub win_rate: Option<f64>,
    /// Its 95 % interval: Wilson, or with several comparisons of a prompt by bootstrap over prompts.
    pub interval: Option<Interval>,
    /// The mean reward of each model; `None` if people decide.
    pub rewards: Option<[f64; 2]>,
    /// The share of the comparisons with a winner that the longer answer won; `None` if there are none.
    pub longer_wins: Option<f64>,
}

/// One comparison: the prompt, the score of the second answer (1, 0 or 0.5), and the lengths of both.
struct Outcome {
    prompt: usize,
    score: f64,
    lengths: [usize; 2],
}

impl Comparison {
    fn of(models: [String; 2], outcomes: &[Outcome], seed: u64) -> Self {
        let scores: Vec<f64> = outcomes.iter().map(|outcome| outcome.score).collect();
        let prompts: Vec<usize> = outcomes.iter().map(|outcome| outcome.prompt).collect();
        let count = |score: f64| scores.iter().filter(|&&other| other == score).count();
        let decided: Vec<&Outcome> =
            outcomes.iter().filter(|o| o.score != 0.5 && o.lengths[0] != o.lengths[1]).collect();
        let longer = decided.iter().filter(|o| (o.score == 1.) == (o.lengths[1] > o.lengths[0])).count();
        let some = |value: f64, of: usize| (of > 0).then_some(value);
        Self {
            models,
            wins: count(1.),
            ties: count(0.5),
            losses: count(0.),
            equal: 0,
            open: 0,
            win_rate: some(scores.iter().sum::<f64>() / scores.len() as f64, scores.len()),
            // The lists have equal lengths, so there is an interval.
            interval: share_interval(&scores, &prompts, seed).ok().filter(|_| !scores.is_empty()),
            rewards: None,
            longer_wins: some(longer as f64 / decided.len() as f64, decided.len()),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.models;
        writeln!(f, "{second} against {first}: {} wins, {} ties, {} losses", self.wins, self.ties, self.losses)?;
        match (self.win_rate, self.interval) {
            (Some(rate), Some(Interval { low, high })) => writeln!(
                f,
                "win rate {:.1} % (95 % interval {:.1} to {:.1}); a tie is half a win",
                100. * rate,
                100. * low,
                100. * high
            )?,
            _ => writeln!(f, "no comparisons yet")?,
        }
        if let Some([a, b]) = self.rewards {
            writeln!(f, "mean reward {a:.4} and {b:.4}")?;
        }
        if let Some(share) = self.longer_wins {
            writeln!(f, "the longer answer won {:.1} % of the comparisons with a winner", 100. * share)?;
        }
        if self.equal > 0 {
            writeln!(f, "{} pairs of answers are equal", self.equal)?;
        }
        if self.open > 0 {
            writeln!(f, "{} pairs of answers are not judged", self.open)?;
        }
        Ok(())
    }
}

/// A pair of answers to one prompt.
struct Pair<'a> {
    prompt: usize,
    /// The number of the answer of its prompt.
    number: usize,
    /// The answers of the first and the second model.
    sides: [&'a Replies; 2],
    /// Whether the answer of the second model comes first.
    exchanged: bool,
}

impl Pair<'_> {
    fn texts(&self) -> [&str; 2] {
        self.sides.map(|side| side.text(self.prompt, self.number))
    }

    fn is_equal(&self) -> bool {
        let [a, b] = self.texts();
        a.trim() == b.trim()
    }
}

/// Compares two models. The same recipe, models and prompts give the same answers and, with a deterministic reward, the same result.
pub fn compare(recipe: &CompareRecipe, inputs: &CompareInputs, device: &Device) -> Result<Comparison> {
    recipe.validate()?;
    let [first, second] = inputs.model.as_slice() else {
        let count = inputs.model.len();
        return Err(Error::BadRequest(format!("--model is given {count} times; give the two models to compare")));
    };
    let names = [first, second].map(|dir| dir.display().to_string());
    if names[0] == names[1] {
        return Err(Error::BadRequest(format!("{}: is compared with itself; give two models", names[0])));
    }
    if let Some(out) = inputs.out.as_ref().filter(|out| out.exists()) {
        return Err(Error::BadRequest(format!("{}: already exists; choose another --out", out.display())));
    }
    let Some(data) = &inputs.data else {
        let Some(database) = &inputs.feedback else {
            return Err(Error::BadRequest("--data is missing; it must be a file of prompts".to_owned()));
        };
        return votes::count(database, &names, recipe.seed);
    };
    let contestants = [Contestant::open(first, device)?, Contestant::open(second, device)?];
    let prompts = answers::prompts(recipe, data, &contestants)?;
    let reward = match inputs.feedback {
        Some(_) => None,
        None => Some(answers::reward(recipe, inputs, &contestants, device)?),
    };
    let [a, b] = &contestants;
    let sides = [replies_of(recipe, a, &prompts)?, replies_of(recipe, b, &prompts)?];
    let pairs: Vec<Pair> = (0..prompts.len())
        .flat_map(|prompt| (0..recipe.answers).map(move |number| (prompt, number)))
        .map(|(prompt, number)| {
            let mut coin = rng(recipe.seed, 9, (prompt * recipe.answers + number) as u64);
            Pair { prompt, number, sides: [&sides[0], &sides[1]], exchanged: rand::RngExt::random(&mut coin) }
        })
        .collect();
    let (comparison, scores) = match (&inputs.feedback, reward) {
        (Some(database), _) => {
            votes::add(database, &names, &prompts, &pairs, recipe)?;
            (votes::count(database, &names, recipe.seed)?, None)
        }
        (None, Some(reward)) => {
            let scores = answers::scores(recipe, &reward, &prompts, &pairs)?;
            (judged(recipe, names, &pairs, &scores), Some(scores))
        }
        (None, None) => return Err(Error::Internal("compare: no judge".to_owned())),
    };
    if let Some(out) = &inputs.out {
        answers::write(out, &prompts, &pairs, scores.as_deref())?;
    }
    let equal = pairs.iter().filter(|pair| pair.is_equal()).count();
    Ok(Comparison { equal, ..comparison })
}

/// The result for the rewards of both answers of each pair.
fn judged(recipe: &CompareRecipe, names: [String; 2], pairs: &[Pair], scores: &[[f64; 2]]) -> Comparison {
    let outcome = |(pair, [a, b]): (&Pair, &[f64; 2])| Outcome {
        prompt: pair.prompt,
        score: match b - a {
            gap if gap.abs() <= recipe.tie_margin => 0.5,
            gap => f64::from(u8::from(gap > 0.)),
        },
        lengths: pair.texts().map(|text| text.chars().count()),
    };
    let outcomes: Vec<Outcome> = pairs.iter().zip(scores).map(outcome).collect();
    let mean = |side: usize| scores.iter().map(|both| both[side]).sum::<f64>() / scores.len() as f64;
    Comparison { rewards: Some([mean(0), mean(1)]), ..Comparison::of(names, &outcomes, recipe.seed) }
}

/// An answer for a reward.
fn answer_of<'a>(prompt: &'a Prompt, query: &'a [u32], reply: &'a answers::Reply) -> Answer<'a> {
    let answers::Reply { ids, text, finished } = reply;
    Answer { prompt: &prompt.messages, row: &prompt.row, query, response: ids, text, finished: *finished }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scores: &[(usize, f64)]) -> Comparison {
        let outcomes: Vec<Outcome> =
            scores.iter().map(|&(prompt, score)| Outcome { prompt, score, lengths: [1, 2] }).collect();
        Comparison::of(["a".to_owned(), "b".to_owned()], &outcomes, 1)
    }

    #[test]
    fn a_tie_is_half_a_win_and_the_interval_is_wilsons() {
        let mut scores: Vec<(usize, f64)> = (0..52).map(|i| (i, 1.)).collect();
        scores.extend((52..60).map(|i| (i, 0.)));
        let found = of(&scores);
        assert_eq!((found.wins, found.ties, found.losses), (52, 0, 8));
        let interval = found.interval.unwrap();
        // Wilson 1927 for 52 of 60.
        assert!((interval.low - 0.758).abs() < 0.001 && (interval.high - 0.931).abs() < 0.001, "{interval:?}");
        assert_eq!(of(&[(0, 0.5), (1, 1.), (2, 0.5), (3, 0.)]).win_rate, Some(0.5));
        assert_eq!(found.longer_wins, Some(52. / 60.));
        assert_eq!((of(&[]).win_rate, of(&[]).interval), (None, None));
    }

    #[test]
    fn several_comparisons_of_a_prompt_count_as_one_unit() {
        let independent: Vec<(usize, f64)> = (0..80).map(|i| (i, f64::from(u8::from(i % 4 != 0)))).collect();
        let clustered: Vec<(usize, f64)> =
            independent.iter().map(|&(i, _)| (i / 8, f64::from(u8::from(i / 8 % 4 != 0)))).collect();
        let width = |found: &Comparison| found.interval.map_or(0., |i| i.high - i.low);
        let (alone, together) = (of(&independent), of(&clustered));
        assert!(width(&together) > 2. * width(&alone), "{together:?} {alone:?}");
    }
}
