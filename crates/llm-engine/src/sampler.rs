//! Sampling of the next token from its logits: temperature, then top-k, then top-p (nucleus sampling, Holtzman et al.
//! 2020, arXiv 1904.09751), then one draw.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divisor of the logits, 0 or more; 0: greedy decoding.
    pub temperature: f64,
    /// Sample from the k most likely tokens only; 0: all.
    pub top_k: usize,
    /// Sample from the smallest set of tokens with at least this total probability, in (0, 1]; 1: all.
    pub top_p: f64,
    /// Random seed; the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1., top_k: 0, top_p: 1., seed: 42 }
    }
}

impl Sampling {
    /// Checks the ranges of the parameters.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.) {
            let (name, value) = ("temperature", self.temperature);
            return Err(Error::InvalidOption { name, value, expected: "0 or more" });
        }
        if !(self.top_p > 0. && self.top_p <= 1.) {
            let (name, value) = ("top_p", self.top_p);
            return Err(Error::InvalidOption { name, value, expected: "greater than 0 and at most 1" });
        }
        Ok(())
    }
}

/// Samples a token id from `logits` `(vocab,)`. At temperature 0, ties go to the lowest id. NaN logits are an error.
pub fn sample(logits: &[f32], sampling: &Sampling, rng: &mut ChaCha8Rng) -> Result<u32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !top.is_finite() || logits.iter().any(|l| l.is_nan()) {
        return Err(Error::LogitsNotFinite);
    }
    if sampling.temperature == 0. {
        return Ok(logits.iter().position(|&l| l == top).unwrap_or(0) as u32);
    }
    let weight = |logit: f32| (f64::from(logit - top) / sampling.temperature).exp();
    let mut choices: Vec<(u32, f64)> = logits.iter().enumerate().map(|(id, &l)| (id as u32, weight(l))).collect();
    if sampling.top_k > 0 && sampling.top_k < choices.len() || sampling.top_p < 1. {
        choices.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: ties keep the lower id first
        if sampling.top_k > 0 {
            choices.truncate(sampling.top_k);
        }
        let total: f64 = choices.iter().map(|c| c.1).sum();
        let mut sum = 0.;
        let kept = choices.iter().take_while(|c| {
            let below = sum < sampling.top_p * total;
            sum += c.1;
            below
        });
        let kept = kept.count().max(1);
        choices.truncate(kept);
    }
    let mut remaining = rng.random::<f64>() * choices.iter().map(|c| c.1).sum::<f64>();
    for &(id, weight) in &choices {
        remaining -= weight;
        if remaining < 0. {
            return Ok(id);
        }
    }
    // Only reached through rounding: take the last token with a positive probability.
    Ok(choices.iter().rev().find(|c| c.1 > 0.).map_or(0, |c| c.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const LOGITS: [f32; 4] = [0., 2., 1., 2.];

    fn frequencies(sampling: &Sampling) -> [f64; 4] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut counts = [0.; 4];
        for _ in 0..20_000 {
            counts[sample(&LOGITS, sampling, &mut rng).unwrap() as usize] += 1. / 20_000.;
        }
        counts
    }

    #[test]
    fn temperature_zero_picks_the_first_of_the_most_likely_tokens() {
        let sampling = Sampling { temperature: 0., ..Sampling::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        assert!((0..100).all(|_| sample(&LOGITS, &sampling, &mut rng).unwrap() == 1));
    }

    #[test]
    fn frequencies_follow_the_softmax_at_each_temperature() {
        for temperature in [0.5, 1., 1.5] {
            let weights = LOGITS.map(|l| (f64::from(l) / temperature).exp());
            let total: f64 = weights.iter().sum();
            let observed = frequencies(&Sampling { temperature, ..Sampling::default() });
            for (observed, weight) in observed.iter().zip(weights) {
                // four standard errors for 20,000 draws
                assert!(
                    (observed - weight / total).abs() < 4. * (0.25f64 / 20_000.).sqrt(),
                    "{temperature}: {observed}"
                );
            }
        }
    }

    #[test]
    fn top_k_and_top_p_keep_only_the_most_likely_tokens() {
        let observed = frequencies(&Sampling { top_k: 2, ..Sampling::default() });
        assert!(observed[0] == 0. && observed[2] == 0. && (observed[1] - 0.5).abs() < 0.02);
        let observed = frequencies(&Sampling { top_k: 1, ..Sampling::default() });
        assert!(observed[0] + observed[2] + observed[3] == 0.);
        // The two most likely tokens have 0.79 together: top_p 0.7 keeps both, 0.85 the third as well, never the last.
        assert_eq!(frequencies(&Sampling { top_p: 0.7, ..Sampling::default() })[2], 0.);
        let observed = frequencies(&Sampling { top_p: 0.85, ..Sampling::default() });
        assert!(observed[2] > 0.1 && observed[0] == 0.);
        let observed = frequencies(&Sampling { top_p: 1e-9, ..Sampling::default() });
        assert!(observed[0] + observed[2] + observed[3] == 0.);
    }

    #[test]
    fn masked_tokens_are_never_sampled_and_invalid_values_are_rejected() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let logits = [f32::NEG_INFINITY, 0., f32::NEG_INFINITY];
        let hot = Sampling { temperature: 100., ..Sampling::default() };
        assert!((0..1000).all(|_| sample(&logits, &hot, &mut rng).unwrap() == 1));
        let error = sample(&[f32::NAN, 0.], &hot, &mut rng).unwrap_err();
        assert!(matches!(error, Error::LogitsNotFinite) && !error.is_callers_fault(), "{error}");
        assert!(Sampling { temperature: -1., ..hot }.validate().is_err());
        assert!(Sampling { top_p: 0., ..hot }.validate().is_err());
    }
}
