//! How well the scores of a reward model agree with rankings that it was not trained on: accuracy, calibration, and the bias towards
//! longer answers, with intervals over prompts.

use llm_eval::stats::{Interval, share_interval};
use llm_model::Model;

use super::data::EncodedRanking;
use crate::Result;
use crate::rewards::model::{score_rows, total};

/// A pair that was ranked.
struct Judged {
    /// The prompt, to count whole prompts in intervals.
    prompt: usize,
    /// The column of scores: 0 for the reward, `1 + h` for head `h`.
    column: usize,
    /// The score of the better answer minus that of the worse one.
    margin: f64,
    /// The tokens of the better answer minus those of the worse one.
    longer: isize,
}

/// Scores of the answers of rankings, and the pairs among them.
pub(super) struct Quality {
    /// The reward of each answer.
    pub scores: Vec<f64>,
    pairs: Vec<Judged>,
}

/// The pairs whose predicted probability of the preferred answer is in one range.
#[derive(Debug, PartialEq)]
pub(super) struct Bin {
    pub low: f64,
    pub high: f64,
    pub pairs: usize,
    /// Mean of `σ(|margin|)`.
    pub predicted: f64,
    /// Share of the pairs in which the answer with the higher score is the better one.
    pub observed: f64,
}

/// The ranges of the predicted probability.
const EDGES: [f64; 6] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.];

impl Quality {
    /// Scores the answers, `batch_size` prompts at a time.
    pub fn measure(model: &Model, rankings: &[EncodedRanking], batch_size: usize, pad: u32) -> Result<Self> {
        let (mut scores, mut pairs) = (Vec::new(), Vec::new());
        for (batch, chunk) in rankings.chunks(batch_size).enumerate() {
            let rows: Vec<Vec<u32>> = chunk.iter().flat_map(|ranking| ranking.rows.iter().cloned()).collect();
            let heads = score_rows(model, &rows, pad)?; // (rows, heads)
            let rewards = total(model, &heads)?.to_vec1::<f32>()?;
            let heads = heads.to_vec2::<f32>()?;
            let mut first = 0;
            for (at, ranking) in chunk.iter().enumerate() {
                let score = |column: usize, answer: usize| match column {
                    0 => f64::from(rewards[first + answer]),
                    head => f64::from(heads[first + answer][head - 1]),
                };
                for (column, order) in &ranking.orders {
                    pairs.extend(order.pairs.iter().map(|&(better, worse)| Judged {
                        prompt: batch * batch_size + at,
                        column: *column,
                        margin: score(*column, better) - score(*column, worse),
                        longer: ranking.rows[better].len() as isize - ranking.rows[worse].len() as isize,
                    }));
                }
                first += ranking.rows.len();
            }
            scores.extend(rewards.into_iter().map(f64::from));
        }
        Ok(Self { scores, pairs })
    }

    /// The share of pairs in which the better answer has the higher score; equal scores are wrong.
    pub fn accuracy(&self) -> f64 {
        mean(self.pairs.iter().map(Judged::is_right))
    }

    /// The mean margin.
    pub fn margin(&self) -> f64 {
        mean(self.pairs.iter().map(|pair| pair.margin))
    }

    /// Predicted probabilities and frequencies.
    pub fn calibration(&self) -> Vec<Bin> {
        let within = |low: f64, high: f64| {
            let is_in = move |p: f64| p >= low && (p < high || high == 1.);
            let chosen: Vec<&Judged> = self.pairs.iter().filter(|pair| is_in(pair.probability())).collect();
            Bin {
                low,
                high,
                pairs: chosen.len(),
                predicted: mean(chosen.iter().map(|pair| pair.probability())),
                observed: mean(chosen.iter().map(|pair| pair.is_right())),
            }
        };
        EDGES.windows(2).map(|edges| within(edges[0], edges[1])).collect()
    }

    /// The metrics of an evaluation, none if no pair is ranked. `heads` are the names of the heads.
    pub fn metrics(&self, heads: &[&str], seed: u64) -> Vec<(String, f64)> {
        if self.pairs.is_empty() {
            return Vec::new();
        }
        let named = |name: &str, value: f64| (name.to_owned(), value);
        let mut metrics = vec![named("eval_accuracy", self.accuracy()), named("eval_margin", self.margin())];
        let of = |pairs: &[&Judged], value: fn(&Judged) -> f64| {
            let values: Vec<f64> = pairs.iter().map(|pair| value(pair)).collect();
            let prompts: Vec<usize> = pairs.iter().map(|pair| pair.prompt).collect();
            let interval = share_interval(&values, &prompts, seed).ok();
            (mean(values.iter().copied()), interval)
        };
        let mut ends = |name: &str, interval: Option<Interval>| {
            if let Some(Interval { low, high }) = interval {
                metrics.extend([(format!("{name}_low"), low), (format!("{name}_high"), high)]);
            }
        };
        let all: Vec<&Judged> = self.pairs.iter().collect();
        ends("eval_accuracy", of(&all, Judged::is_right).1);
        let uneven: Vec<&Judged> = self.pairs.iter().filter(|pair| pair.longer != 0).collect();
        if !uneven.is_empty() {
            let (by_score, interval) = of(&uneven, Judged::longer_scores_higher);
            ends("eval_longer_preferred", interval);
            let of_labels = mean(uneven.iter().map(|pair| f64::from(u8::from(pair.longer > 0))));
            metrics.extend([named("eval_longer_preferred", by_score), named("eval_longer_labelled", of_labels)]);
        }
        metrics.push(named("eval_calibration_error", calibration_error(&self.calibration())));
        for (column, head) in (1..).zip(heads) {
            let of_head = self.pairs.iter().filter(|pair| pair.column == column);
            let right: Vec<f64> = of_head.map(Judged::is_right).collect();
            if !right.is_empty() {
                metrics.push((format!("eval_accuracy/{head}"), mean(right.into_iter())));
            }
        }
        metrics
    }

    /// The accuracy with its interval in words, from [`Self::metrics`].
    pub fn summary(&self, metrics: &[(String, f64)]) -> String {
        let percent = |wanted: &str| metrics.iter().find(|(name, _)| name == wanted).map(|(_, value)| 100. * value);
        let interval = match (percent("eval_accuracy_low"), percent("eval_accuracy_high")) {
            (Some(low), Some(high)) => format!(" ({low:.1} to {high:.1} %)"),
            _ => String::new(),
        };
        format!("{:.1} %{interval} of the validation pairs ranked correctly", 100. * self.accuracy())
    }

    /// The calibration as a table, for the samples of the run.
    pub fn table(&self) -> String {
        let mut text =
            "Calibration: probability of the answer with the higher score, and how often it was ranked higher\n\
                        probability   pairs   mean probability   observed\n"
                .to_owned();
        for Bin { low, high, pairs, predicted, observed } in self.calibration() {
            text.push_str(&format!("{low:.1} to {high:.1}   {pairs:>7}   {predicted:>16.3}   {observed:>8.3}\n"));
        }
        text
    }
}

impl Judged {
    fn is_right(&self) -> f64 {
        f64::from(u8::from(self.margin > 0.))
    }

    /// The predicted probability that the answer with the higher score is the better one.
    fn probability(&self) -> f64 {
        1. / (1. + (-self.margin.abs()).exp())
    }

    fn longer_scores_higher(&self) -> f64 {
        f64::from(u8::from(self.margin * self.longer as f64 > 0.))
    }
}

/// The expected calibration error: the mean over pairs of the difference of their bin (Guo et al. 2017, arXiv 1706.04599).
fn calibration_error(bins: &[Bin]) -> f64 {
    let pairs: usize = bins.iter().map(|bin| bin.pairs).sum();
    let off = |bin: &Bin| bin.pairs as f64 * (bin.predicted - bin.observed).abs();
    bins.iter().map(off).sum::<f64>() / pairs.max(1) as f64
}

/// The mean; 0 of none.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: usize, column: usize, margin: f64, longer: isize) -> Judged {
        Judged { prompt, column, margin, longer }
    }

    /// σ(±0.2) = 0.549834 (two pairs, one right), σ(2) = 0.880797 (right), σ(3) = 0.952574 (right), σ(0) = 0.5 (wrong).
    #[test]
    fn metrics_match_hand_computed_values() {
        let pairs =
            vec![pair(0, 0, 0.2, 3), pair(0, 1, -0.2, 2), pair(1, 0, 2., -1), pair(2, 0, 3., 0), pair(3, 2, 0., 5)];
        let quality = Quality { scores: vec![], pairs };
        let metrics = quality.metrics(&["accuracy", "safety"], 1);
        let metric = |name: &str| metrics.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}")).1;
        let low_bin = (2. * 0.549834 + 0.5) / 3.;
        for (name, expected) in [
            ("eval_accuracy", 0.6),
            ("eval_margin", 1.),
            ("eval_longer_preferred", 0.25),
            ("eval_longer_labelled", 0.75),
            ("eval_accuracy/accuracy", 0.),
            ("eval_accuracy/safety", 0.),
            ("eval_calibration_error", (3. * (low_bin - 1. / 3.) + (1. - 0.880797) + (1. - 0.952574)) / 5.),
        ] {
            assert!((metric(name) - expected).abs() < 1e-5, "{name}: {} is not {expected}", metric(name));
        }
        assert!(metric("eval_accuracy_low") < 0.6 && metric("eval_accuracy_high") > 0.6);
        assert!(quality.table().contains("0.5 to 0.6         3              0.533      0.333"), "{}", quality.table());
        let one = Quality { scores: vec![], pairs: vec![pair(0, 0, 1., 0)] };
        let metrics = one.metrics(&[], 1);
        assert!(metrics.iter().all(|(_, value)| value.is_finite()));
        let low = metrics.iter().find(|(name, _)| name == "eval_accuracy_low").unwrap().1;
        assert!((0.1..0.5).contains(&low), "one pair says little: {low}");
        assert!(Quality { scores: vec![1.], pairs: vec![] }.metrics(&[], 1).is_empty());
    }
}
