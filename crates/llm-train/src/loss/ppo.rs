//! The clipped losses of PPO (Schulman et al. 2017, arXiv 1707.06347).

use candle_core::{DType, Device, Tensor};

use super::scalar;
use crate::Result;

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
    let clip_fraction = scalar(&above.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.mean_all()?)?;
    Ok(ClippedLoss { loss, clip_fraction })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use proptest::prelude::*;

    use super::*;
    use crate::loss::tests::assert_gradient;

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    fn assert_near(x: &[f64], expected: &[f64]) {
        assert!(x.len() == expected.len() && x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{x:?}");
    }

    proptest! {
        #[test]
        fn value_loss_is_at_least_the_unclipped_loss(v in -3.0..3.0f64, old in -3.0..3.0f64, r in -3.0..3.0f64) {
            let clipped = scalar(&value_loss(&tensor(&[v]), &tensor(&[old]), &tensor(&[r]), 0.2).unwrap().loss).unwrap();
            let plain = 0.5 * (v - r).powi(2);
            prop_assert!(clipped >= plain - 1e-12);
            if (v - old).abs() < 0.2 {
                prop_assert!((clipped - plain).abs() < 1e-12);
            }
        }
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
