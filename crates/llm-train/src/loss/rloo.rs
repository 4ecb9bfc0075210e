//! The loss of RLOO (Ahmadian et al. 2024, arXiv 2402.14740): REINFORCE with a reply as one action, and with the clipped ratio of PPO if
//! a batch is used more than once.
//!
//! ```text
//! loss = -Σᵢ wᵢ · min(ρᵢ·Aᵢ, clip(ρᵢ, 1-ε_low, 1+ε_high)·Aᵢ)      ρᵢ = π(oᵢ) / π_old(oᵢ) = exp Σₜ ln π(oᵢₜ)/π_old(oᵢₜ)
//! ```
//!
//! The KL penalty is part of the reward (k1, [`crate::rl::sequence_reward`]), the baseline of a reply the mean reward of the others
//! ([`crate::rl::leave_one_out_advantages`]).

use candle_core::Tensor;

use super::grpo::{ClipRange, GrpoLoss, clipped, clipped_surrogate};
use crate::Result;

/// The loss of replies with `lengths` tokens each, at least 1. Log-probabilities are `(n,)`, the tokens of all replies one after the other;
/// `advantages` and `weights` are `(replies,)`, and so are the ratios of the result. Log-ratios of replies are clamped to ±20.
pub fn rloo_loss(
    logprobs: &Tensor,
    old_logprobs: &Tensor,
    lengths: &[usize],
    advantages: &Tensor,
    weights: &Tensor,
    clip: ClipRange,
) -> Result<GrpoLoss> {
    let log_ratios = (logprobs - old_logprobs)?;
    let mut at = 0;
    let sum = |&length: &usize| {
        at += length;
        log_ratios.narrow(0, at - length, length)?.sum_all()
    };
    let sums: Vec<Tensor> = lengths.iter().map(sum).collect::<candle_core::Result<_>>()?;
    let ratios = Tensor::stack(&sums, 0)?.clamp(-20., 20.)?.exp()?; // (replies,)
    let loss = (clipped_surrogate(&ratios, advantages, clip)? * weights)?.sum_all()?;
    let (low_clipped, high_clipped) = clipped(&ratios, advantages, clip)?;
    Ok(GrpoLoss { loss, ratios: ratios.detach(), low_clipped, high_clipped, kl_sum: 0. })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::loss::scalar;
    use crate::loss::tests::assert_gradient;

    const CLIP: ClipRange = ClipRange { low: 0.2, high: 0.2 };

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    /// The first gradient is that of `-A · log π(reply)`: every token of a reply has the same one, however long the reply is.
    #[test]
    fn the_first_step_is_reinforce_with_a_baseline() {
        let logprobs = Var::new(&[-1., -2., -0.5], &Device::Cpu).unwrap();
        let found =
            rloo_loss(&logprobs, &logprobs.detach(), &[2, 1], &tensor(&[1., -3.]), &tensor(&[0.5; 2]), CLIP).unwrap();
        assert!((scalar(&found.loss).unwrap() - 1.).abs() < 1e-12);
        let grads = found.loss.backward().unwrap().get(&logprobs).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(grads, [-0.5, -0.5, 1.5]);
    }

    /// Ratios of tokens of 1.15 each are in the range; their product, 1.3225, is not.
    #[test]
    fn the_ratio_is_that_of_the_whole_reply() {
        let step = 1.15f64.ln();
        let found = rloo_loss(
            &tensor(&[step, step, step]),
            &tensor(&[0.; 3]),
            &[2, 1],
            &tensor(&[1., 1.]),
            &tensor(&[0.5; 2]),
            CLIP,
        )
        .unwrap();
        assert!((scalar(&found.loss).unwrap() + 2.35 / 2.).abs() < 1e-12);
        assert_eq!((found.low_clipped, found.high_clipped), (0., 1.));
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (old, advantages, weights) = (tensor(&[-1., -1.4, -0.6]), tensor(&[1.3, -0.8]), tensor(&[0.25, 0.6]));
        for seed in 0..10 {
            let offsets = (0..3).map(|i| (f64::from(seed * 7 + i * 3) * 0.61) % 0.6 - 0.3);
            let near: Vec<f64> = offsets.zip([-1., -1.4, -0.6]).map(|(x, old)| x + old).collect();
            assert_gradient("rloo_loss", &near, |x| Ok(rloo_loss(x, &old, &[2, 1], &advantages, &weights, CLIP)?.loss));
        }
    }
}
