//! Losses of preferences between whole answers: DPO and its variants, ORPO, `SimPO` and KTO.
//!
//! All tensors are `(n,)`, with one entry per pair or answer. The log-probability of an answer, in nats, is the sum over its tokens, its
//! end token included; "per token" means divided by their number. The log-ratio of an answer is its log-probability under the policy
//! minus that under the reference.

use candle_core::{Device, Tensor};

use super::neg_log_sigmoid;
use crate::{Error, Result};

/// The DPO loss of each pair, `-(1 - ε)·log σ(β·d) - ε·log σ(-β·d)`, where `d` is the log-ratio of the chosen answer minus that of the
/// rejected one (Rafailov et al. 2023, arXiv 2305.18290, equation 7). `label_smoothing` is `ε`, the share of pairs that are ranked the
/// wrong way round (conservative DPO, Mitchell 2023); 0 is DPO.
///
/// With log-ratios per token it is the length-normalised DPO of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124; TRL's `sigmoid_norm`).
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// // The log-ratios are +1 and -2.
/// let loss = llm_train::loss::dpo(&Tensor::new(&[3f64], &Device::Cpu)?, 0.1, 0.)?;
/// assert!((loss.to_vec1::<f64>()?[0] - 0.554355).abs() < 1e-6);
/// # Ok::<(), llm_train::Error>(())
/// ```
pub fn dpo(difference: &Tensor, beta: f64, label_smoothing: f64) -> Result<Tensor> {
    let logits = (difference * beta)?;
    let right = (neg_log_sigmoid(&logits)? * (1. - label_smoothing))?;
    if label_smoothing == 0. {
        return Ok(right);
    }
    Ok((right + (neg_log_sigmoid(&logits.neg()?)? * label_smoothing)?)?)
}

/// The robust DPO loss of each pair, an unbiased estimate of [`dpo`] on pairs without noise if a share `label_smoothing` of them, below
/// 0.5, is ranked the wrong way round (Chowdhury et al. 2024, arXiv 2403.00409, equation 12). See [`dpo`] for `difference`.
pub fn robust_dpo(difference: &Tensor, beta: f64, label_smoothing: f64) -> Result<Tensor> {
    let logits = (difference * beta)?;
    let right = (neg_log_sigmoid(&logits)? * (1. - label_smoothing))?;
    let wrong = (neg_log_sigmoid(&logits.neg()?)? * label_smoothing)?;
    Ok(((right - wrong)? / (1. - 2. * label_smoothing))?)
}

/// The hinge loss of each pair, `max(0, 1 - β·d)` (`SLiC`, Zhao et al. 2023, arXiv 2305.10425, on DPO's reward). See [`dpo`] for
/// `difference`.
pub fn hinge(difference: &Tensor, beta: f64) -> Result<Tensor> {
    Ok((1. - (difference * beta)?)?.relu()?)
}

/// The IPO loss of each pair, `(d - 1 / (2β))²` (Azar et al. 2023, arXiv 2310.12036, equation 17), where `difference` `d` is that of the
/// log-ratios per token: the target does not depend on the length of the answers, as in TRL.
pub fn ipo(difference: &Tensor, beta: f64) -> Result<Tensor> {
    Ok((difference - 1. / (2. * beta))?.sqr()?)
}

/// The odds ratio term of ORPO, `-log σ(log odds(chosen) - log odds(rejected))` of each pair, with `odds(p) = p / (1 - p)` for `p = exp(x)`
/// (Hong et al. 2024, arXiv 2403.07691, equations 4 to 7). `chosen` and `rejected` are log-probabilities per token. The loss of ORPO is
/// the cross-entropy of the chosen answer, `-chosen`, plus a multiple of this.
pub fn odds_ratio(chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
    neg_log_sigmoid(&(log_odds(chosen)? - log_odds(rejected)?)?)
}

/// `log(p / (1 - p))` for `x = log p`.
fn log_odds(x: &Tensor) -> Result<Tensor> {
    // An answer that is certain has infinite odds.
    let below_one = x.clamp(f64::from(f32::MIN), -1e-6)?;
    Ok((x - (1. - below_one.exp()?)?.log()?)?)
}

/// The `SimPO` loss of each pair, `-log σ(β·(chosen - rejected) - γ)` (Meng et al. 2024, arXiv 2405.14734, equation 6). `chosen` and
/// `rejected` are log-probabilities per token; there is no reference.
pub fn simpo(chosen: &Tensor, rejected: &Tensor, beta: f64, gamma: f64) -> Result<Tensor> {
    neg_log_sigmoid(&(((chosen - rejected)? * beta)? - gamma)?)
}

/// The KTO loss of each answer: `1 - σ(β·(r - z0))` of a desirable one and `1 - σ(β·(z0 - r))` of another, where `log_ratio` is `r`
/// (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8, without its weights). `z0`, an estimate of the KL divergence between policy and
/// reference, has no gradient.
pub fn kto(log_ratio: &Tensor, desirable: &[bool], z0: f64, beta: f64) -> Result<Tensor> {
    let n = log_ratio.dim(0)?;
    if desirable.len() != n {
        return Err(Error::BadRequest(format!("{} labels for {n} answers", desirable.len())));
    }
    let signs: Vec<f32> = desirable.iter().map(|&good| if good { 1. } else { -1. }).collect();
    let signs = Tensor::from_vec(signs, n, &Device::Cpu)?.to_dtype(log_ratio.dtype())?.to_device(log_ratio.device())?;
    // 1 - σ(x) = exp(log σ(-x)), without overflow.
    let x = (((log_ratio - z0)? * beta)? * signs)?;
    Ok(neg_log_sigmoid(&x.neg()?)?.neg()?.exp()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::loss::tests::assert_gradient;

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    fn assert_near(loss: Result<Tensor>, expected: &[f64]) {
        let found = loss.unwrap().to_vec1::<f64>().unwrap();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
        assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, not {expected:?}");
    }

    #[test]
    fn a_policy_that_is_the_reference_has_the_known_losses() {
        let zero = tensor(&[0.]);
        assert_near(dpo(&zero, 0.1, 0.), &[std::f64::consts::LN_2]);
        assert_near(dpo(&zero, 0.1, 0.3), &[std::f64::consts::LN_2]);
        assert_near(robust_dpo(&zero, 0.1, 0.2), &[std::f64::consts::LN_2]);
        assert_near(hinge(&zero, 0.1), &[1.]);
        assert_near(ipo(&zero, 0.1), &[25.]);
        assert_near(kto(&tensor(&[0., 0.]), &[true, false], 0., 0.1), &[0.5, 0.5]);
    }

    /// The chosen and rejected log-probabilities of torchtune's test of its DPO loss.
    #[test]
    fn dpo_has_the_golden_values() {
        let (chosen, rejected) = ([-0.5, -10., -1.], [-0.1, -30., -21.]);
        let (ref_chosen, ref_rejected) = ([-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1]);
        let difference: Vec<f64> =
            (0..3).map(|i| (chosen[i] - ref_chosen[i]) - (rejected[i] - ref_rejected[i])).collect();
        assert_near(dpo(&tensor(&difference), 0.1, 0.), &[std::f64::consts::LN_2, 0.313262, 0.126928]);
        // Log-ratios +1 and -2, and the same with the answers exchanged.
        assert_near(dpo(&tensor(&[3., -3.]), 0.1, 0.), &[0.554355, 0.854355]);
        assert_near(dpo(&tensor(&[3.]), 0.1, 0.1), &[0.584355]);
        assert_near(robust_dpo(&tensor(&[3.]), 0.1, 0.1), &[0.516855]);
        assert_near(ipo(&tensor(&[3.]), 0.1), &[4.]);
        assert_near(hinge(&tensor(&[3., 30., -3.]), 0.1), &[0.7, 0., 1.3]);
    }

    /// With a share ε of pairs exchanged, the mean robust loss is the loss of the right pairs.
    #[test]
    fn the_robust_loss_is_unbiased_and_the_conservative_one_is_not() {
        let (right, exchanged, noise) = (tensor(&[3.]), tensor(&[-3.]), 0.2);
        let value = |loss: Result<Tensor>| loss.unwrap().to_vec1::<f64>().unwrap()[0];
        let clean = value(dpo(&right, 0.1, 0.));
        let mean = |f: &dyn Fn(&Tensor) -> f64| (1. - noise) * f(&right) + noise * f(&exchanged);
        assert!((mean(&|x| value(robust_dpo(x, 0.1, noise))) - clean).abs() < 1e-9);
        assert!((mean(&|x| value(dpo(x, 0.1, noise))) - clean).abs() > 0.01);
    }

    #[test]
    fn losses_without_a_reference_and_kto_have_the_golden_values() {
        let (chosen, rejected) = (tensor(&[-0.5]), tensor(&[-1.]));
        let odds = (log_odds(&chosen).unwrap() - log_odds(&rejected).unwrap()).unwrap();
        assert_near(Ok(odds), &[0.974077]);
        assert_near(odds_ratio(&chosen, &rejected), &[0.320300]);
        let orpo = (chosen.neg().unwrap() + (odds_ratio(&chosen, &rejected).unwrap() * 0.1).unwrap()).unwrap();
        assert_near(Ok(orpo), &[0.532030]);
        assert_near(simpo(&chosen, &rejected, 2., 0.5), &[0.474077]);
        assert_near(kto(&tensor(&[1., -2.]), &[true, false], 0.5, 0.1), &[0.487503, 0.437823]);
        // A large z0 punishes good answers, a small one bad answers.
        let large = kto(&tensor(&[1., 1.]), &[true, false], 5., 0.1).unwrap().to_vec1::<f64>().unwrap();
        assert!(large[0] > 0.5 && large[1] < 0.5, "{large:?}");
        assert!(kto(&tensor(&[1.]), &[true, false], 0., 0.1).is_err());
    }

    #[test]
    fn losses_are_finite_at_extreme_log_probabilities() {
        let far = tensor(&[-4000., 4000., 0.]);
        let certain = (tensor(&[0., -1e-9, -900.]), tensor(&[-900., 0., -900.]));
        for loss in [
            dpo(&far, 0.5, 0.1),
            robust_dpo(&far, 0.5, 0.1),
            hinge(&far, 0.5),
            ipo(&far, 0.5),
            odds_ratio(&certain.0, &certain.1),
            simpo(&far, &far.neg().unwrap(), 2., 1.),
            kto(&far, &[true, false, true], 3., 0.5),
        ] {
            let loss = loss.unwrap().to_vec1::<f64>().unwrap();
            assert!(loss.iter().all(|x| x.is_finite()), "{loss:?}");
        }
    }

    /// `-β/2` for the chosen answer and `β/2` for the rejected one (arXiv 2305.18290, section 4, with equal rewards).
    #[test]
    fn the_first_gradient_is_half_of_beta() {
        let at = Var::new(&[0f64, 0.], &Device::Cpu).unwrap();
        let difference = (at.narrow(0, 0, 1).unwrap() - at.narrow(0, 1, 1).unwrap()).unwrap();
        // The robust loss is steeper by 1 / (1 - 2ε).
        for (loss, slope) in [(dpo(&difference, 0.1, 0.), 0.05), (robust_dpo(&difference, 0.1, 0.1), 0.0625)] {
            let grads = loss.unwrap().backward().unwrap();
            let found = grads.get(&at).unwrap().to_vec1::<f64>().unwrap();
            assert!((found[0] + slope).abs() < 1e-12 && (found[1] - slope).abs() < 1e-12, "{found:?}");
        }
    }

    /// Compares the gradient of every loss with central finite differences in f64, at ten random inputs and where the policy is the
    /// reference.
    #[test]
    fn gradients_match_finite_differences() {
        type Loss<'a> = (&'a str, Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>);
        let difference = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok((a - b)?) };
        let losses: Vec<Loss> = vec![
            ("dpo", Box::new(move |a, b| dpo(&difference(a, b)?, 0.7, 0.))),
            ("conservative dpo", Box::new(move |a, b| dpo(&difference(a, b)?, 0.7, 0.2))),
            ("robust_dpo", Box::new(move |a, b| robust_dpo(&difference(a, b)?, 0.7, 0.2))),
            ("hinge", Box::new(move |a, b| hinge(&difference(a, b)?, 0.7))),
            ("ipo", Box::new(move |a, b| ipo(&difference(a, b)?, 0.7))),
            ("odds_ratio", Box::new(|a, b| odds_ratio(&(a - 1.2)?, &(b - 1.2)?))),
            ("simpo", Box::new(|a, b| simpo(a, b, 2., 0.5))),
            ("kto", Box::new(|a, b| kto(&Tensor::cat(&[a, b], 0)?, &[true, false, true, false], 0.3, 0.7))),
        ];
        for (name, loss) in losses {
            for seed in 0..11 {
                let random = |i: i32| f64::from(seed * 7 + i * 3) * 0.61 % 2. - 1.03;
                let at: Vec<f64> = (0..4).map(|i| if seed == 10 { -0.4 } else { random(i) }).collect();
                assert_gradient(name, &at, |x| {
                    let weights = tensor(&[0.3, 1.7, 0.3, 1.7]);
                    let loss = loss(&x.narrow(0, 0, 2)?, &x.narrow(0, 2, 2)?)?;
                    Ok((&loss * weights.narrow(0, 0, loss.dim(0)?)?)?.sum_all()?)
                });
            }
        }
    }
}
