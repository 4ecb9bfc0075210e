//! The formulas of PPO for language models: advantages, whitening, clipped losses, KL penalty (Schulman et al. 2017, arXiv
//! 1707.06347; Ziegler et al. 2019, arXiv 1909.08593).
//!
//! Symbols: r reward, V value, A advantage, γ discount, λ parameter of the generalised advantage estimate. All lists have one
//! entry per token of a reply.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;

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

/// Estimators of `KL(π ‖ ref)` from one token sampled from π (Schulman 2020, "Approximating KL Divergence").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KlEstimator {
    /// `logp - ref_logp`: unbiased; the reward uses this one.
    K1,
    /// `(logp - ref_logp)² / 2`: as a loss it has the gradient of `KL(π ‖ ref)`.
    K2,
    /// `exp(ref_logp - logp) - 1 - (ref_logp - logp)`: unbiased and not negative; for losses and metrics, not for rewards.
    K3,
}

impl KlEstimator {
    /// The estimate for one token.
    pub fn estimate(self, logp: f64, ref_logp: f64) -> f64 {
        let difference = logp - ref_logp;
        match self {
            Self::K1 => difference,
            Self::K2 => difference * difference / 2.,
            Self::K3 => (-difference).exp() - 1. + difference,
        }
    }
}

/// The reward of each token of a reply: `-kl_coef · (logp - ref_logp)`, plus `score` at the last token.
pub fn token_rewards(logprobs: &[f64], ref_logprobs: &[f64], score: f64, kl_coef: f64) -> Vec<f64> {
    let penalty = |(&logp, &reference)| -kl_coef * KlEstimator::K1.estimate(logp, reference);
    let mut rewards: Vec<f64> = logprobs.iter().zip(ref_logprobs).map(penalty).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
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

/// A clipped loss of a minibatch.
#[derive(Debug)]
pub struct ClippedLoss {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// The share of entries where the clipped branch is larger.
    pub clip_fraction: f64,
}

/// The clipped policy loss (Schulman et al. 2017, equation 7): the mean of `max(-A·ratio, -A·clip(ratio, 1-ε, 1+ε))` with
/// `ratio = exp(logprob - old_logprob)`. The exponent is clamped to ±20. All tensors are `(n,)`, one entry per reply token.
pub fn policy_loss(logprobs: &Tensor, old_logprobs: &Tensor, advantages: &Tensor, clip: f64) -> Result<ClippedLoss> {
    let ratio = (logprobs - old_logprobs)?.clamp(-20., 20.)?.exp()?;
    let unclipped = (advantages.neg()? * &ratio)?;
    let clipped = (advantages.neg()? * ratio.clamp(1. - clip, 1. + clip)?)?;
    max_of_branches(&unclipped, &clipped)
}

/// The clipped value loss: half the mean of `max((V-R)², (clip(V, V_old-c, V_old+c)-R)²)` for returns `R`. All tensors are
/// `(n,)`.
pub fn value_loss(values: &Tensor, old_values: &Tensor, returns: &Tensor, clip: f64) -> Result<ClippedLoss> {
    let near_old = (old_values + (values - old_values)?.clamp(-clip, clip)?)?;
    let mut clipped = max_of_branches(&(values - returns)?.sqr()?, &(near_old - returns)?.sqr()?)?;
    clipped.loss = (clipped.loss * 0.5)?;
    Ok(clipped)
}

/// The mean of the elementwise maximum of both branches.
fn max_of_branches(unclipped: &Tensor, clipped: &Tensor) -> Result<ClippedLoss> {
    let above = clipped.gt(unclipped)?; // (n,)
    // On a tie the gradient flows through the unclipped branch.
    let loss = above.where_cond(clipped, unclipped)?.mean_all()?;
    let clip_fraction = crate::loss::scalar(&above.to_dtype(candle_core::DType::F64)?.mean_all()?)?;
    Ok(ClippedLoss { loss, clip_fraction })
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
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::loss::scalar;
    use crate::loss::tests::assert_gradient;

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

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

    proptest! {
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

        #[test]
        fn value_loss_is_at_least_the_unclipped_loss(v in -3.0..3.0f64, old in -3.0..3.0f64, r in -3.0..3.0f64) {
            let clipped = scalar(&value_loss(&tensor(&[v]), &tensor(&[old]), &tensor(&[r]), 0.2).unwrap().loss).unwrap();
            let plain = 0.5 * (v - r).powi(2);
            prop_assert!(clipped >= plain - 1e-12);
            if (v - old).abs() < 0.2 {
                prop_assert!((clipped - plain).abs() < 1e-12);
            }
        }

        #[test]
        fn k3_is_never_negative(logp in -9.0..0.0f64, reference in -9.0..0.0f64) {
            prop_assert!(KlEstimator::K3.estimate(logp, reference) >= 0.);
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
    fn kl_estimates_average_to_the_kl() {
        let (p, r) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.3, 0.5]);
        let mean = |k: KlEstimator| -> f64 { p.iter().zip(r).map(|(p, r)| p * k.estimate(p.ln(), r.ln())).sum() };
        assert!((mean(KlEstimator::K1) - 0.274887).abs() < 1e-6);
        assert!((mean(KlEstimator::K3) - 0.274887).abs() < 1e-6);
        assert!((mean(KlEstimator::K2) - 0.293856).abs() < 1e-6);
        assert!(KlEstimator::K1.estimate(0.2f64.ln(), 0.5f64.ln()) < 0.);
    }

    #[test]
    fn the_policy_loss_clips_only_ratios_beyond_the_range() {
        for (advantage, ratio, expected, moves) in
            [(1., 1.5f64, -1.2, false), (1., 0.5, -0.5, true), (-1., 1.5, 1.5, true), (-1., 0.5, 0.8, false)]
        {
            let logp = Var::new(&[ratio.ln()], &Device::Cpu).unwrap();
            let clipped = policy_loss(&logp, &tensor(&[0.]), &tensor(&[advantage]), 0.2).unwrap();
            assert!((scalar(&clipped.loss).unwrap() - expected).abs() < 1e-9, "A {advantage}, ratio {ratio}");
            let grads = clipped.loss.backward().unwrap();
            let grad = grads.get(&logp).map_or(0., |g| g.to_vec1::<f64>().unwrap()[0]);
            assert_eq!(grad != 0., moves, "A {advantage}, ratio {ratio}");
            assert_eq!(clipped.clip_fraction, if moves { 0. } else { 1. });
        }
    }

    /// The four cases above as one batch: (-1.2 - 0.5 + 1.5 + 0.8) / 4.
    #[test]
    fn the_policy_loss_and_its_clip_fraction_are_means_over_tokens() {
        let ratios = [1.5f64, 0.5, 1.5, 0.5].map(f64::ln);
        let clipped = policy_loss(&tensor(&ratios), &tensor(&[0.; 4]), &tensor(&[1., 1., -1., -1.]), 0.2).unwrap();
        assert_near(&[scalar(&clipped.loss).unwrap(), clipped.clip_fraction], &[0.15, 0.5]);
    }

    #[test]
    fn the_log_ratio_is_clamped_to_20_in_both_directions() {
        for (difference, advantage, expected) in [(100., -1., 20f64.exp()), (-100., 1., -(-20f64).exp())] {
            let loss = policy_loss(&tensor(&[difference]), &tensor(&[0.]), &tensor(&[advantage]), 0.2).unwrap().loss;
            assert!((scalar(&loss).unwrap() / expected - 1.).abs() < 1e-9, "{difference}");
        }
    }

    /// Old values are 0, c is 0.2. Clipped from above and below: (0.2 - 2)² and (-0.2 + 3)². Outside the clip range, but the
    /// unclipped error is larger: (1 - 0.3)². Inside: (0.1 - 1)².
    #[test]
    fn the_value_loss_is_half_the_mean_of_the_larger_squared_errors() {
        let (values, returns) = (tensor(&[1., -1., 1., 0.1]), tensor(&[2., -3., 0.3, 1.]));
        let clipped = value_loss(&values, &tensor(&[0.; 4]), &returns, 0.2).unwrap();
        let expected = (3.24 + 7.84 + 0.49 + 0.81) / 8.;
        assert_near(&[scalar(&clipped.loss).unwrap(), clipped.clip_fraction], &[expected, 0.5]);
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

    /// Compares the gradients of both clipped losses, and of the policy loss with entropy bonus, with finite differences in f64.
    #[test]
    fn gradients_match_finite_differences() {
        let (advantages, returns) = (tensor(&[1.3, -0.8, 0.4, -1.9]), tensor(&[0.5, -1., 0.9, 0.]));
        let (old, old_values) = (tensor(&[-1., -1.4, -0.6, -2.]), tensor(&[0.1, -0.3, 0.6, -0.2]));
        let clipped = std::cell::Cell::new(0.);
        let counted = |loss: ClippedLoss| {
            clipped.set(clipped.get() + loss.clip_fraction);
            Ok(loss.loss)
        };
        for seed in 0..10 {
            let offsets: Vec<f64> = (0..4).map(|i| f64::from(seed * 7 + i * 3) * 0.61 % 2. - 1.03).collect();
            let near: Vec<f64> = offsets.iter().zip([-1., -1.4, -0.6, -2.]).map(|(x, old)| 0.5 * x + old).collect();
            assert_gradient("policy_loss", &near, |x| counted(policy_loss(x, &old, &advantages, 0.2)?));
            assert_gradient("value_loss", &offsets, |x| counted(value_loss(x, &old_values, &returns, 0.2)?));
            let logits: Vec<f64> = offsets.iter().flat_map(|x| [*x, 0.3, -x * x]).collect();
            assert_gradient("policy_loss with an entropy bonus", &logits, |x| {
                let logits = x.reshape((4, 3))?;
                let (logprobs, entropies) = llm_kernels::token_logprobs_and_entropies(&logits, &[0, 2, 1, 0], 0.7)?;
                let loss = policy_loss(&logprobs, &old, &advantages, 0.2)?.loss;
                Ok((loss - (entropies.mean_all()? * 0.3)?)?)
            });
        }
        assert!(clipped.get() > 20., "both branches must be taken: {}", clipped.get());
    }
}
