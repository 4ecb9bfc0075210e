//! A simulated annotator that ranks by the Plackett-Luce model (Plackett 1975). Each pair of answers follows the Bradley-Terry
//! model (Bradley and Terry 1952).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The largest allowed `beta` and bias. At this value the noise never changes a ranking.
const MAX_VALUE: f64 = 1e6;

/// Ranks answers by their utility, with noise and biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Annotator {
    /// Inverse temperature: answer a is preferred to answer b with probability `σ(beta · (u_a - u_b))`. 0 means random rankings.
    pub beta: f64,
    /// Length bias: utility added per 100 characters of an answer.
    pub length_bias: f64,
    /// Position bias: utility added to the first answer.
    pub position_bias: f64,
    /// The same seed gives the same rankings.
    pub seed: u64,
}

impl Default for Annotator {
    fn default() -> Self {
        Self { beta: 3., length_bias: 0., position_bias: 0., seed: 42 }
    }
}

impl Annotator {
    /// Checks the values; the error names the key, its value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let numbers = [
            ("beta", self.beta, 0., MAX_VALUE),
            ("length_bias", self.length_bias, -MAX_VALUE, MAX_VALUE),
            ("position_bias", self.position_bias, -MAX_VALUE, MAX_VALUE),
        ];
        match numbers.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            None => Ok(()),
            Some((key, value, low, high)) => Err(Error::Setting { key, value, low, high }),
        }
    }

    /// The utilities plus the biases of this annotator, one per answer. Rankings are drawn from these.
    pub fn effective_utilities(&self, utilities: &[f64], texts: &[&str]) -> Vec<f64> {
        let effective = |(i, (&utility, text)): (usize, (&f64, &&str))| {
            let length = self.length_bias * text.chars().count() as f64 / 100.;
            utility + length + if i == 0 { self.position_bias } else { 0. }
        };
        utilities.iter().zip(texts).enumerate().map(effective).collect()
    }

    /// The highest expected accuracy of a predictor of this annotator's pairs: the mean of `max(p, 1 - p)` over all pairs of each
    /// group, where `p` is the [`preference_probability`] of their [`Self::effective_utilities`]. `groups` contains the utilities
    /// and the texts of the answers to each question.
    pub fn noise_ceiling(&self, groups: &[(Vec<f64>, Vec<&str>)]) -> f64 {
        let (mut sum, mut count) = (0., 0.);
        for (utilities, texts) in groups {
            let effective = self.effective_utilities(utilities, texts);
            for (i, &a) in effective.iter().enumerate() {
                for &b in &effective[i + 1..] {
                    let p = preference_probability(self.beta, a, b);
                    sum += p.max(1. - p);
                    count += 1.;
                }
            }
        }
        sum / f64::max(count, 1.)
    }

    /// Ranks the answers: returns their indices, best first. The noise depends only on the seed and on `id`, the name of the
    /// question. An error if the number of utilities and texts differs, or a utility is not finite.
    pub fn rank(&self, id: &str, utilities: &[f64], texts: &[&str]) -> Result<Vec<usize>> {
        self.validate()?;
        if utilities.len() != texts.len() || utilities.iter().any(|u| !u.is_finite()) {
            return Err(Error::Utilities { utilities: utilities.len(), answers: texts.len() });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(
            id.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)),
        );
        // Sorting by utility plus Gumbel noise samples from the Plackett-Luce model (Yellott 1977).
        let mut noisy: Vec<(usize, f64)> = Vec::with_capacity(texts.len());
        for (i, utility) in self.effective_utilities(utilities, texts).into_iter().enumerate() {
            let uniform = rng.random::<f64>().max(f64::MIN_POSITIVE);
            noisy.push((i, self.beta * utility - (-uniform.ln()).ln()));
        }
        noisy.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(noisy.into_iter().map(|(i, _)| i).collect())
    }
}

/// The probability `σ(beta · (a - b))` that an annotator prefers an answer of utility `a` to one of utility `b` (Bradley-Terry).
pub fn preference_probability(beta: f64, a: f64, b: f64) -> f64 {
    1. / (1. + (-beta * (a - b)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = ["short", "a much longer answer", "middle long"];

    fn first_beats_second(annotator: &Annotator, utilities: &[f64]) -> f64 {
        let n = 20_000;
        let wins = (0..n).filter(|i| {
            let order = annotator.rank(&format!("{i}"), utilities, &TEXTS).unwrap();
            order.iter().position(|&x| x == 0) < order.iter().position(|&x| x == 1)
        });
        wins.count() as f64 / f64::from(n)
    }

    #[test]
    fn every_pair_of_a_ranking_follows_the_bradley_terry_model() {
        for (beta, a, b) in [(1., 0.5, 0.2), (3., 1., 0.), (0., 5., 1.)] {
            let annotator = Annotator { beta, ..Annotator::default() };
            let expected = preference_probability(beta, a, b);
            // The utility of the third answer does not matter. 4 standard errors of 20,000 draws are 0.014.
            for third in [-2., 0.4, 3.] {
                let seen = first_beats_second(&annotator, &[a, b, third]);
                assert!((seen - expected).abs() < 0.014, "beta {beta}: {seen}, not {expected}");
            }
        }
    }

    #[test]
    fn a_bias_raises_the_rank_of_the_answers_it_favours() {
        let fair = Annotator::default();
        let even = first_beats_second(&fair, &[1., 1., 1.]);
        assert!((even - 0.5).abs() < 0.014, "{even}");
        assert!(first_beats_second(&Annotator { position_bias: 0.3, ..fair.clone() }, &[1., 1., 1.]) > 0.65);
        assert!(first_beats_second(&Annotator { length_bias: 2., ..fair }, &[1., 1., 1.]) < 0.35);
    }

    #[test]
    fn rankings_are_reproducible_and_invalid_utilities_are_errors() {
        let annotator = Annotator::default();
        let rank = |id: &str| annotator.rank(id, &[0.1, 0.2, 0.3], &TEXTS).unwrap();
        assert_eq!(rank("a"), rank("a"));
        assert!((0..50).map(|i| rank(&i.to_string())).any(|order| order != rank("a")));
        assert!(annotator.rank("a", &[0.1], &TEXTS).is_err());
        assert!(annotator.rank("a", &[0.1, f64::NAN, 0.], &TEXTS).is_err());
    }

    #[test]
    fn values_out_of_range_are_errors() {
        let fair = Annotator::default();
        for (key, bad) in [
            ("beta", Annotator { beta: f64::NAN, ..fair.clone() }),
            ("beta", Annotator { beta: -3., ..fair.clone() }),
            ("length_bias", Annotator { length_bias: f64::INFINITY, ..fair.clone() }),
            ("position_bias", Annotator { position_bias: f64::NAN, ..fair.clone() }),
        ] {
            let message = bad.rank("a", &[0.1, 0.2, 0.3], &TEXTS).unwrap_err().to_string();
            assert!(message.starts_with(key) && message.contains("must be a number from"), "{message}");
        }
        fair.validate().unwrap();
    }

    #[test]
    fn the_noise_ceiling_is_the_accuracy_of_the_true_utilities() {
        let annotator = Annotator { beta: 1.5, ..Annotator::default() };
        let utilities = [1., 0.4, 0.];
        let (mut right, mut all) = (0., 0.);
        for i in 0..20_000 {
            let order = annotator.rank(&i.to_string(), &utilities, &TEXTS).unwrap();
            for (at, &better) in order.iter().enumerate() {
                for &worse in &order[at + 1..] {
                    right += f64::from(u8::from(utilities[better] > utilities[worse]));
                    all += 1.;
                }
            }
        }
        let ceiling = annotator.noise_ceiling(&[(utilities.to_vec(), TEXTS.to_vec())]);
        assert!((right / all - ceiling).abs() < 0.01, "{} against {ceiling}", right / all);
        let random = Annotator { beta: 0., ..annotator };
        assert_eq!(random.noise_ceiling(&[(vec![1., 2.], vec!["a", "b"])]), 0.5);
    }

    /// With β = ln 3 a difference of 1 gives odds of 3 to 1, of 2 odds of 9 to 1.
    #[test]
    fn the_noise_ceiling_of_a_biased_annotator_is_that_of_its_effective_utilities() {
        let fair = Annotator { beta: 3_f64.ln(), ..Annotator::default() };
        let first = Annotator { position_bias: 1., ..fair.clone() };
        let long = Annotator { length_bias: 2., ..fair.clone() };
        let fifty = "x".repeat(50);
        let ceiling = |annotator: &Annotator, utilities: [f64; 2], texts: [&str; 2]| {
            annotator.noise_ceiling(&[(utilities.to_vec(), texts.to_vec())])
        };
        for (annotator, utilities, texts, expected) in [
            (&fair, [1., 0.], ["", ""], 0.75),
            (&first, [1., 0.], ["", ""], 0.9),
            (&first, [0., 1.], ["", ""], 0.5),
            (&first, [0., 2.], ["", ""], 0.75),
            (&long, [1., 0.], [fifty.as_str(), ""], 0.9),
            (&long, [1., 0.], ["", fifty.as_str()], 0.5),
        ] {
            let found = ceiling(annotator, utilities, texts);
            assert!((found - expected).abs() < 1e-12, "{annotator:?} {utilities:?}: {found}");
        }
        // The mean over all pairs: 3 pairs with odds 3, 9 and 3, and one with odds 1.
        let found = fair.noise_ceiling(&[(vec![2., 1., 0.], vec![""; 3]), (vec![5., 5.], vec![""; 2])]);
        assert!((found - (0.75 + 0.9 + 0.75 + 0.5) / 4.).abs() < 1e-12, "{found}");
    }
}
