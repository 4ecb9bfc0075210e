//! Advantages of replies relative to the other replies to the same prompt, without a critic: GRPO (Shao et al. 2024, arXiv 2402.03300),
//! Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) and RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

use serde::{Deserialize, Serialize};

/// What the rewards of a group are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group plus 1e-4: GRPO.
    Group,
    /// Nothing: Dr. GRPO, because the division weights questions by how hard they are.
    None,
}

/// Whether the rewards of a group are equal, up to 1e-6: such a group says nothing about its replies.
pub fn are_equal(rewards: &[f64]) -> bool {
    let (low, high) = rewards.iter().fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(*r), high.max(*r)));
    high - low <= 1e-6
}

/// The sample standard deviation (divided by `n - 1`); 0 for fewer than two numbers.
pub fn sample_std(numbers: &[f64]) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n.max(1.);
    (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.).max(1.)).sqrt()
}

/// The advantages of GRPO for the replies to one prompt: `(r - mean) / (std + 1e-4)`, or `r - mean` without scaling. Equal rewards have
/// advantages of exactly 0.
///
/// ```
/// use llm_train::rl::{ScaleRewards, group_advantages};
///
/// let advantages = group_advantages(&[1., 0., 0., 0.], ScaleRewards::Group);
/// assert!((advantages[0] - 1.49970).abs() < 1e-5 && (advantages[1] + 0.49990).abs() < 1e-5);
/// ```
pub fn group_advantages(rewards: &[f64], scale: ScaleRewards) -> Vec<f64> {
    if are_equal(rewards) {
        return vec![0.; rewards.len()];
    }
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let divisor = match scale {
        ScaleRewards::Group => sample_std(rewards) + 1e-4,
        ScaleRewards::None => 1.,
    };
    rewards.iter().map(|r| (r - mean) / divisor).collect()
}

/// The advantages of RLOO for the replies to one prompt: each reward minus the mean of the others. Equal rewards have advantages of
/// exactly 0.
pub fn leave_one_out_advantages(rewards: &[f64]) -> Vec<f64> {
    if are_equal(rewards) {
        return vec![0.; rewards.len()];
    }
    let (sum, others) = (rewards.iter().sum::<f64>(), rewards.len() as f64 - 1.);
    rewards.iter().map(|r| r - (sum - r) / others).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_near(x: &[f64], expected: &[f64]) {
        assert!(x.len() == expected.len() && x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{x:?}");
    }

    #[test]
    fn advantages_have_golden_values() {
        let rewards = [1., 0., 0., 0.];
        assert_near(&group_advantages(&rewards, ScaleRewards::Group), &[1.49970, -0.49990, -0.49990, -0.49990]);
        assert_near(&group_advantages(&rewards, ScaleRewards::None), &[0.75, -0.25, -0.25, -0.25]);
        assert_near(&leave_one_out_advantages(&rewards), &[1., -1. / 3., -1. / 3., -1. / 3.]);
    }

    #[test]
    fn equal_rewards_have_advantages_of_zero() {
        for rewards in [vec![0.; 4], vec![3.7; 8], vec![0.1 + 0.2, 0.3, 0.3], vec![5.], Vec::new()] {
            assert!(are_equal(&rewards));
            let none = vec![0.; rewards.len()];
            assert_eq!(group_advantages(&rewards, ScaleRewards::Group), none);
            assert_eq!(group_advantages(&rewards, ScaleRewards::None), none);
            assert_eq!(leave_one_out_advantages(&rewards), none);
        }
        assert!(!are_equal(&[0., 1e-3]));
    }

    proptest! {
        /// The mean of a group is 0; with scaling its deviation is 1 but for the 1e-4; RLOO is `n / (n - 1)` times the centred reward.
        #[test]
        fn advantages_are_centred(rewards in prop::collection::vec(-3.0..3.0f64, 2..10)) {
            let n = rewards.len() as f64;
            let (scaled, plain) =
                (group_advantages(&rewards, ScaleRewards::Group), group_advantages(&rewards, ScaleRewards::None));
            let one_out = leave_one_out_advantages(&rewards);
            for advantages in [&scaled, &plain, &one_out] {
                prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-9);
            }
            let std = sample_std(&rewards);
            if !are_equal(&rewards) {
                prop_assert!((sample_std(&scaled) - std / (std + 1e-4)).abs() < 1e-9);
            }
            for (plain, one_out) in plain.iter().zip(&one_out) {
                prop_assert!((plain * n / (n - 1.) - one_out).abs() < 1e-9);
            }
        }
    }
}
