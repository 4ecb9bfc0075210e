//! The formulas of reinforcement learning for language models. PPO: rewards with KL penalty, advantages, whitening (Schulman et al. 2017, arXiv 1707.06347;
//! Ziegler et al. 2019, arXiv 1909.08593). The losses are in [`crate::loss`].
//!
//! Symbols: r reward, V value, A advantage, γ discount, λ parameter of the generalised advantage estimate. All lists have one
//! entry per token of a reply.

mod groups;

use serde::{Deserialize, Serialize};

pub use groups::{ScaleRewards, are_equal, group_advantages, leave_one_out_advantages, sample_std};

/// The generalised advantage estimates `A` of one reply and its returns `A + V` (Schulman et al. 2016, arXiv 1506.02438).
///
/// `rewards` and `values` contain the tokens of the reply only, no padding. The value after the last token is 0.
///
/// ```
/// let (advantages, returns) = llm_train::rl::gae(&[0., 0., 1.], &[0.5, 0.4, 0.3], 1., 0.95);
/// assert!((advantages[0] - 0.43675).abs() < 1e-9 && (returns[0] - 0.93675).abs() < 1e-9);
/// ```
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> (Vec<f64>, Vec<f64>) {
    let mut advantages = vec![0.; rewards.len()];
    let (mut next_value, mut next_advantage) = (0., 0.);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, returns)
}

/// Divides by the standard deviation, and subtracts the mean if `shift_mean`. The variance is the population variance plus
/// 1e-8. `x` must not contain padding.
pub fn whiten(x: &mut [f64], shift_mean: bool) {
    if x.is_empty() {
        return;
    }
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let scale = (variance + 1e-8).sqrt().recip();
    for x in x {
        *x = (*x - mean) * scale + if shift_mean { 0. } else { mean };
    }
}

/// `1 - Var(return - value) / Var(return)`: 1 for a perfect critic, 0 for a constant one.
///
/// If all returns are equal it is 1 if the values differ from them by a constant, else 0, as in scikit-learn's
/// `explained_variance_score`.
pub fn explained_variance(returns: &[f64], values: &[f64]) -> f64 {
    let variance = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
        x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len().max(1) as f64
    };
    let errors: Vec<f64> = returns.iter().zip(values).map(|(r, v)| r - v).collect();
    // Values are computed in f32: ignore differences within its rounding error.
    let rounding = |x: &[f64]| x.iter().fold(0f64, |top, x| top.max(x.abs())).powi(2) * 1e-12;
    let (of_errors, of_returns) = (variance(&errors), variance(returns));
    match of_returns > rounding(returns) {
        true => 1. - of_errors / of_returns,
        false => f64::from(u8::from(of_errors <= rounding(returns).max(rounding(values)))),
    }
}

/// The estimate `log π - log ref` of `KL(π ‖ ref)` from one sample of π: unbiased, but of high variance; it can be negative (Schulman
/// 2020, "Approximating KL Divergence").
pub fn k1(logp: f64, ref_logp: f64) -> f64 {
    logp - ref_logp
}

/// The estimate `(log π - log ref)² / 2`: biased, of low variance and never negative. The gradient of its mean is that of
/// `KL(π ‖ ref)`, so it serves as a term of a loss.
pub fn k2(logp: f64, ref_logp: f64) -> f64 {
    (logp - ref_logp).powi(2) / 2.
}

/// The estimate `ref/π - 1 - log(ref/π)`: unbiased, of low variance and never negative.
///
/// It serves to measure, and as a term of a loss. As a penalty in the reward it does not regularise: it punishes a token that has
/// become rare, which makes it rarer. So [`token_rewards`] uses [`k1`].
pub fn k3(logp: f64, ref_logp: f64) -> f64 {
    let log_ratio = ref_logp - logp;
    log_ratio.exp_m1() - log_ratio
}

/// The reward of each token of a reply: `-kl_coef · k1`, plus `score` at the last token.
pub fn token_rewards(logprobs: &[f64], ref_logprobs: &[f64], score: f64, kl_coef: f64) -> Vec<f64> {
    let penalty = |(&logp, &reference)| -kl_coef * k1(logp, reference);
    let mut rewards: Vec<f64> = logprobs.iter().zip(ref_logprobs).map(penalty).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// The reward of a whole reply: `score - kl_coef · Σ (logp - ref_logp)`, the sum of [`token_rewards`].
pub fn sequence_reward(logprobs: &[f64], ref_logprobs: &[f64], score: f64, kl_coef: f64) -> f64 {
    score - kl_coef * logprobs.iter().zip(ref_logprobs).map(|(logp, reference)| logp - reference).sum::<f64>()
}

/// How the score of a reply without an end token changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingEos {
    /// The score stays.
    None,
    /// This penalty is subtracted from the score.
    Subtract(f64),
    /// This value replaces the score.
    Replace(f64),
}

impl MissingEos {
    /// The score after the penalty.
    pub fn apply(self, score: f64, has_eos: bool) -> f64 {
        match self {
            _ if has_eos => score,
            Self::None => score,
            Self::Subtract(penalty) => score - penalty,
            Self::Replace(value) => value,
        }
    }
}

/// The adaptive KL coefficient (Ziegler et al. 2019, section 2.2): `kl_coef · (1 + e · episodes / horizon)` with
/// `e = clip(kl / target - 1, -0.2, 0.2)`. KL and target are in nats per sequence.
pub fn adapted_kl_coef(
    kl_coef: f64,
    kl_per_sequence: f64,
    target_per_sequence: f64,
    episodes: usize,
    horizon: f64,
) -> f64 {
    let error = (kl_per_sequence / target_per_sequence - 1.).clamp(-0.2, 0.2);
    kl_coef * (1. + error * episodes as f64 / horizon)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_near(x: &[f64], expected: &[f64]) {
        assert!(x.len() == expected.len() && x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{x:?}");
    }

    #[test]
    fn advantages_have_golden_values() {
        let (r, v) = ([0., 0., 1.], [0.5, 0.4, 0.3]);
        let (advantages, returns) = gae(&r, &v, 1., 0.95);
        assert_near(&advantages, &[0.43675, 0.565, 0.7]);
        assert_near(&returns, &[0.93675, 0.965, 1.]);
        let (advantages, returns) = gae(&r, &v, 1., 1.);
        assert_near(&advantages, &[0.5, 0.6, 0.7]);
        assert_near(&returns, &[1., 1., 1.]);
        assert_near(&gae(&r, &v, 1., 0.).0, &[-0.1, -0.1, 0.7]);
        let rewards = token_rewards(&[-1., -1., -1.], &[-2., -2., -2.], 1., 0.05);
        assert_near(&rewards, &[-0.05, -0.05, 0.95]);
        assert_near(&gae(&rewards, &v, 1., 0.95).0, &[0.294125, 0.4675, 0.65]);
    }

    /// `P = [0.5, 0.3, 0.2]`, `R = [0.2, 0.3, 0.5]`: the expectations under P of k1 and k3 are `KL(P ‖ R)`, that of k2 is not.
    #[test]
    fn k1_and_k3_are_unbiased_estimates_of_the_kl_divergence_and_k2_is_not() {
        let (p, r) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.3, 0.5]);
        let mean =
            |estimate: fn(f64, f64) -> f64| p.iter().zip(r).map(|(p, r)| p * estimate(p.ln(), r.ln())).sum::<f64>();
        let kl: f64 = p.iter().zip(r).map(|(p, r)| p * (p / r).ln()).sum();
        assert_near(&[mean(k1), mean(k3)], &[kl, kl]);
        assert!((kl - 0.274887).abs() < 1e-6 && (mean(k2) - 0.293856).abs() < 1e-6, "{kl}, {}", mean(k2));
        assert!(k1(p[2].ln(), r[2].ln()) < 0., "one sample of k1 can be negative");
    }

    proptest! {
        #[test]
        fn k2_and_k3_are_never_negative_and_0_for_equal_log_probabilities(logp in -30.0..0.0f64, other in -30.0..0.0f64) {
            prop_assert!(k2(logp, other) >= 0. && k3(logp, other) >= 0.);
            prop_assert!(k1(logp, logp) == 0. && k2(logp, logp) == 0. && k3(logp, logp) == 0.);
        }

        #[test]
        fn the_recursion_is_the_sum_of_discounted_errors(
            entries in prop::collection::vec((-2.0..2.0f64, -2.0..2.0f64), 1..12), gamma in 0.5..1.0f64, lambda in 0.0..1.0f64,
        ) {
            let (r, v): (Vec<f64>, Vec<f64>) = entries.into_iter().unzip();
            let next = |t: usize| v.get(t + 1).copied().unwrap_or(0.);
            let delta: Vec<f64> = (0..r.len()).map(|t| r[t] + gamma * next(t) - v[t]).collect();
            let (advantages, _) = gae(&r, &v, gamma, lambda);
            for (t, advantage) in advantages.iter().enumerate() {
                let sum: f64 = (t..r.len()).map(|k| (gamma * lambda).powi((k - t) as i32) * delta[k]).sum();
                prop_assert!((advantage - sum).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn explained_variance_matches_hand_computed_values() {
        let returns = [1., 2., 3., 4.]; // variance 5/4
        assert_near(&[explained_variance(&returns, &[1., 2., 3., 4.])], &[1.]);
        assert_near(&[explained_variance(&returns, &[11., 12., 13., 14.])], &[1.]); // a constant offset has no variance
        assert_near(&[explained_variance(&returns, &[7., 7., 7., 7.])], &[0.]);
        assert_near(&[explained_variance(&returns, &[1., 1., 3., 3.])], &[0.8]); // errors 0 1 0 1: 1/4 over 5/4
        assert_near(&[explained_variance(&returns, &[4., 3., 2., 1.])], &[-3.]); // errors -3 -1 1 3: 5 over 5/4
        assert_near(&[explained_variance(&[2., 2., 2.], &[2., 2., 2.])], &[1.]);
        assert_near(&[explained_variance(&[2., 2., 2.], &[1., 2., 3.])], &[0.]);
        assert_near(&[explained_variance(&[0., 0.], &[0., 0.])], &[1.]);
        // Differences of f32 rounding are no variance, in returns and in values.
        assert_near(&[explained_variance(&[2., 2. + 1e-9], &[0., 0.])], &[1.]);
        assert_near(&[explained_variance(&[0., 0.], &[2., 2. + 1e-9])], &[1.]);
    }

    #[test]
    fn whitened_values_have_mean_zero_and_variance_one() {
        let mut x = [1., 2., 3., 10.];
        whiten(&mut x, true);
        let mean = x.iter().sum::<f64>() / 4.;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4.;
        assert!(mean.abs() < 1e-9 && (variance - 1.).abs() < 1e-6);
        let mut x = [1., 2., 3., 10.];
        whiten(&mut x, false);
        assert!((x.iter().sum::<f64>() / 4. - 4.).abs() < 1e-9, "the mean is kept");
        let mut equal = [2.; 5];
        whiten(&mut equal, true);
        assert!(equal.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_error_of_the_kl_coefficient_is_clipped_at_a_fifth() {
        let adapted = |kl| adapted_kl_coef(0.15, kl, 6., 512, 1e4);
        for (kl, expected) in [(12., 0.151536), (1e6, 0.151536), (0., 0.148464), (6., 0.15), (6.6, 0.150768)] {
            assert!((adapted(kl) - expected).abs() < 1e-9, "KL {kl}");
        }
    }

    #[test]
    fn the_score_is_added_to_the_last_token_only() {
        for len in [1, 2, 5] {
            let (logp, reference) = (vec![-0.5; len], vec![-0.7; len]);
            let rewards = token_rewards(&logp, &reference, 3., 0.1);
            assert!((rewards.iter().sum::<f64>() - (3. - 0.1 * 0.2 * len as f64)).abs() < 1e-9);
            assert!(rewards[..len - 1].iter().all(|r| *r < 0.));
        }
        assert_eq!(MissingEos::Subtract(1.).apply(3., true), 3.);
        assert_eq!(MissingEos::Subtract(1.).apply(3., false), 2.);
        assert_eq!(MissingEos::Replace(-1.).apply(3., false), -1.);
        assert_eq!(MissingEos::None.apply(3., false), 3.);
    }
}
