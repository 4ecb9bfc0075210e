//! The losses of GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3), Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) and DAPO (Yu et al.
//! 2025, arXiv 2503.14476).
//!
//! ```text
//! loss = Σᵢ Σₜ wᵢ · ( -min(ρ·Aᵢ, clip(ρ, 1-ε_low, 1+ε_high)·Aᵢ) + β·ρ·k3 )      ρ = π(oᵢₜ) / π_old(oᵢₜ)
//! k3   = π_ref/π - ln(π_ref/π) - 1
//! ```
//!
//! The three differ in the weight `wᵢ` of a token ([`token_weights`]). k3 alone has the gradient of `KL(π_ref ‖ π)`, and off-policy it is
//! biased; its product with ρ has the value and the gradient of `KL(π ‖ π_ref)` in expectation, so that β regularises as in RLHF.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::scalar;
use crate::Result;

/// How the losses of tokens are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The mean over replies of the mean over the tokens of a reply: a token of a long reply counts less.
    Grpo,
    /// The sum over tokens divided by replies and token limit: no weight depends on the length of a reply.
    DrGrpo,
    /// The mean over all tokens: a long reply counts more.
    Dapo,
    /// RLOO: a reply is one action; [`super::rloo_loss`].
    Rloo,
}

/// The weight `wᵢ` of each token of reply i, for replies with `lengths` trained tokens: all replies of an optimizer step, so that
/// micro-batches add up to the loss of the whole. Of [`LossType::Rloo`] it is the weight of a reply. A reply of 0 tokens counts as a reply.
pub fn token_weights(loss_type: LossType, lengths: &[usize], max_new_tokens: usize) -> Vec<f64> {
    let (replies, tokens) = (lengths.len().max(1) as f64, lengths.iter().sum::<usize>().max(1) as f64);
    let weight = |&length: &usize| match loss_type {
        LossType::Grpo => 1. / (replies * length.max(1) as f64),
        LossType::DrGrpo => 1. / (replies * max_new_tokens as f64),
        LossType::Dapo => 1. / tokens,
        LossType::Rloo => 1. / replies,
    };
    lengths.iter().map(weight).collect()
}

/// The range of the probability ratio: from `1 - low` to `1 + high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipRange {
    /// ε for advantages below 0.
    pub low: f64,
    /// ε for advantages above 0.
    pub high: f64,
}

/// The loss of a micro-batch and what is logged of it.
#[derive(Debug)]
pub struct GrpoLoss {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// The probability ratios, `(n,)`.
    pub ratios: Tensor,
    /// The number of ratios below the range with an advantage below 0: they have no gradient.
    pub low_clipped: f64,
    /// The number of ratios above the range with an advantage above 0: they have no gradient.
    pub high_clipped: f64,
    /// The sum of `ρ·k3` over the tokens; 0 without a reference.
    pub kl_sum: f64,
}

/// The loss of tokens, all tensors `(n,)`. `reference` is the log-probability under the reference and β. Log-ratios are clamped to ±20.
pub fn grpo_loss(
    logprobs: &Tensor,
    old_logprobs: &Tensor,
    advantages: &Tensor,
    weights: &Tensor,
    clip: ClipRange,
    reference: Option<(&Tensor, f64)>,
) -> Result<GrpoLoss> {
    let ratios = (logprobs - old_logprobs)?.clamp(-20., 20.)?.exp()?;
    let mut loss = clipped_surrogate(&ratios, advantages, clip)?;
    let mut kl_sum = 0.;
    if let Some((ref_logprobs, beta)) = reference {
        let log_ratio = (ref_logprobs - logprobs)?.clamp(-20., 20.)?; // ln(π_ref/π)
        let k3 = ((log_ratio.exp()? - &log_ratio)? - 1.)?;
        let kl = (k3 * &ratios)?;
        kl_sum = scalar(&kl.sum_all()?)?;
        loss = (loss + (kl * beta)?)?;
    }
    let loss = (loss * weights)?.sum_all()?;
    let (low_clipped, high_clipped) = clipped(&ratios, advantages, clip)?;
    Ok(GrpoLoss { loss, ratios: ratios.detach(), low_clipped, high_clipped, kl_sum })
}

/// `-min(ρ·A, clip(ρ)·A)`, elementwise. On a tie the gradient flows through the unclipped branch.
pub(super) fn clipped_surrogate(ratios: &Tensor, advantages: &Tensor, clip: ClipRange) -> Result<Tensor> {
    let unclipped = (ratios * advantages)?;
    let clipped = (ratios.clamp(1. - clip.low, 1. + clip.high)? * advantages)?;
    Ok(clipped.lt(&unclipped)?.where_cond(&clipped, &unclipped)?.neg()?)
}

/// The numbers of ratios below and above the range whose advantage points away from it.
pub(super) fn clipped(ratios: &Tensor, advantages: &Tensor, clip: ClipRange) -> Result<(f64, f64)> {
    let count = |outside: Tensor, away: Tensor| -> Result<f64> {
        scalar(&(outside * away)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sum_all()?)
    };
    let low = count(ratios.lt(1. - clip.low)?, advantages.lt(0.)?)?;
    let high = count(ratios.gt(1. + clip.high)?, advantages.gt(0.)?)?;
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::loss::tests::assert_gradient;

    const CLIP: ClipRange = ClipRange { low: 0.2, high: 0.28 };

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    #[test]
    fn weights_add_up_to_the_mean_of_each_kind() {
        let lengths = [1, 3, 0];
        let total = |loss_type| -> f64 {
            token_weights(loss_type, &lengths, 8).iter().zip(lengths).map(|(w, n)| w * n as f64).sum()
        };
        assert!((total(LossType::Grpo) - 2. / 3.).abs() < 1e-12, "the empty reply counts as one with loss 0");
        assert!((total(LossType::DrGrpo) - 4. / 24.).abs() < 1e-12);
        assert!((total(LossType::Dapo) - 1.).abs() < 1e-12);
        assert_eq!(token_weights(LossType::Rloo, &lengths, 8), [1. / 3.; 3]);
        assert_eq!(token_weights(LossType::Dapo, &[0, 0], 8), [1., 1.], "no division by 0");
    }

    /// At ratio 1 the loss of a group is 0, and its gradient is that of `-A · log π`.
    #[test]
    fn the_first_step_has_a_loss_of_zero_and_a_gradient() {
        let logprobs = Var::new(&[-1., -2., -0.5], &Device::Cpu).unwrap();
        let (advantages, weights) = (tensor(&[1.5, -0.5, -1.]), tensor(&[0.2; 3]));
        let found = grpo_loss(&logprobs, &logprobs.detach(), &advantages, &weights, CLIP, None).unwrap();
        assert!(scalar(&found.loss).unwrap().abs() < 1e-12);
        assert_eq!((found.low_clipped, found.high_clipped, found.kl_sum), (0., 0., 0.));
        let grads = found.loss.backward().unwrap();
        let grads = grads.get(&logprobs).unwrap().to_vec1::<f64>().unwrap();
        assert!(grads.iter().zip([-0.3, 0.1, 0.2]).all(|(a, b)| (a - b).abs() < 1e-12), "{grads:?}");
    }

    #[test]
    fn only_ratios_that_leave_the_range_in_the_direction_of_the_advantage_are_clipped() {
        for (advantage, ratio, loss, counts) in [
            (1., 1.5f64, -1.28, (0., 1.)),
            (1., 0.5, -0.5, (0., 0.)),
            (-1., 1.5, 1.5, (0., 0.)),
            (-1., 0.5, 0.8, (1., 0.)),
        ] {
            let logprob = Var::new(&[ratio.ln()], &Device::Cpu).unwrap();
            let found = grpo_loss(&logprob, &tensor(&[0.]), &tensor(&[advantage]), &tensor(&[1.]), CLIP, None).unwrap();
            assert!((scalar(&found.loss).unwrap() - loss).abs() < 1e-12, "{advantage} {ratio}");
            assert_eq!((found.low_clipped, found.high_clipped), counts);
            let grads = found.loss.backward().unwrap();
            let moves = grads.get(&logprob).is_some_and(|g| g.to_vec1::<f64>().unwrap()[0] != 0.);
            assert_eq!(moves, counts == (0., 0.));
        }
    }

    /// Over all tokens of a distribution the gradient of `π · ρ · k3` with a fixed π is that of the reverse KL divergence, which is
    /// `π · (ln(π/π_ref) - KL)` for logits; without ρ it is `π - π_ref`.
    #[test]
    fn the_penalty_has_the_gradient_of_the_reverse_kl_divergence() {
        let (logits, reference) = (Var::new(&[0.4, -1., 0.9], &Device::Cpu).unwrap(), [0.2f64, 0.3, 0.5]);
        let logprobs = candle_nn::ops::log_softmax(&logits, 0).unwrap();
        let p: Vec<f64> = logprobs.exp().unwrap().to_vec1().unwrap();
        let ref_logprobs = tensor(&reference.map(f64::ln));
        let found =
            grpo_loss(&logprobs, &logprobs.detach(), &tensor(&[0.; 3]), &tensor(&p), CLIP, Some((&ref_logprobs, 1.)))
                .unwrap();
        let kl: f64 = p.iter().zip(reference).map(|(p, r)| p * (p / r).ln()).sum();
        assert!((scalar(&found.loss).unwrap() - kl).abs() < 1e-12);
        let grads = found.loss.backward().unwrap().get(&logits).unwrap().to_vec1::<f64>().unwrap();
        for ((grad, p), r) in grads.iter().zip(&p).zip(reference) {
            assert!((grad - p * ((p / r).ln() - kl)).abs() < 1e-9, "{grads:?}");
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (advantages, weights) = (tensor(&[1.3, -0.8, 0.4, -1.9]), tensor(&[0.25, 0.1, 0.4, 0.3]));
        let (old, reference) = (tensor(&[-1., -1.4, -0.6, -2.]), tensor(&[-1.2, -1.1, -0.9, -1.6]));
        let clipped = std::cell::Cell::new(0.);
        for seed in 0..10 {
            let near: Vec<f64> = [-1., -1.4, -0.6, -2.]
                .iter()
                .enumerate()
                .map(|(i, old)| 0.5 * (f64::from(seed * 7) + i as f64 * 3.) * 0.61 % 1. - 0.5 + old)
                .collect();
            for reference in [None, Some((&reference, 0.3))] {
                assert_gradient("grpo_loss", &near, |x| {
                    let found = grpo_loss(x, &old, &advantages, &weights, CLIP, reference)?;
                    clipped.set(clipped.get() + found.low_clipped + found.high_clipped);
                    Ok(found.loss)
                });
            }
        }
        assert!(clipped.get() > 20., "both branches must be taken: {}", clipped.get());
    }
}
