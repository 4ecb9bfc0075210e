//! Losses: cross-entropy, KL divergence, mean squared error, and the losses for ranked answers.

use candle_core::{DType, Device, Tensor};
use llm_kernels::IGNORE_INDEX;

use crate::{Error, Result};

/// The mean cross-entropy of `logits` `(n, vocab)` and `labels` in nats, a scalar. Labels of -100 are ignored.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// let logits = Tensor::zeros((2, 8), DType::F32, &Device::Cpu)?;
/// let loss = llm_train::loss::cross_entropy(&logits, &[3, -100])?;
/// assert!((loss.to_scalar::<f32>()? - 8f32.ln()).abs() < 1e-6);
/// # Ok::<(), llm_train::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let counted = labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1);
    Ok((llm_kernels::cross_entropy(logits, labels)?.sum_all()? / counted as f64)?)
}

/// The mean over rows of `T² · KL(softmax(teacher / T) ‖ softmax(student / T))` in nats, a scalar (Hinton et al. 2015,
/// arXiv 1503.02531). `student` and `teacher` are logits `(n, vocab)`. The factor `T²` keeps the scale of the gradient.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let kl = llm_kernels::kl_divergence(student, teacher, temperature)?;
    Ok((kl.mean_all()? * (temperature * temperature))?)
}

/// The mean squared error, a scalar.
pub fn mse(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((prediction - target)?.sqr()?.mean_all()?)
}

/// `-log σ(x)` of each element, computed without overflow.
pub fn neg_log_sigmoid(x: &Tensor) -> Result<Tensor> {
    // max(-x, 0) + log(1 + exp(-|x|))
    Ok((x.neg()?.relu()? + (x.abs()?.neg()?.exp()? + 1.)?.log()?)?)
}

/// The Bradley-Terry loss: the mean over pairs of `-log σ(chosen - rejected - margin)`, a scalar. Scores are `(n,)` (Bradley and
/// Terry 1952).
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margin: f64) -> Result<Tensor> {
    Ok(neg_log_sigmoid(&((chosen - rejected)? - margin)?)?.mean_all()?)
}

/// The K-way ranking loss of InstructGPT (Ouyang et al. 2022, arXiv 2203.02155, equation 1), a scalar.
///
/// For each pair of answers to a prompt the loss is `-log σ(better - worse - margin) + centering · (better + worse)²`. It is
/// averaged over the pairs of each prompt, then over prompts. `scores` `(n,)` are the scores of the answers to all prompts;
/// `pairs[prompt]` are index pairs (better, worse) into `scores`; `margins[prompt]` is the margin of that prompt (0: none).
pub fn k_way(scores: &Tensor, pairs: &[Vec<(usize, usize)>], margins: &[f64], centering: f64) -> Result<Tensor> {
    if pairs.len() != margins.len() {
        return Err(Error::Input(format!("{} margins for {} prompts", margins.len(), pairs.len())));
    }
    let (mut better, mut worse, mut weight, mut margin) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (prompt, &prompt_margin) in pairs.iter().zip(margins) {
        for &(b, w) in prompt {
            better.push(b as u32);
            worse.push(w as u32);
            weight.push(1. / (prompt.len() * pairs.len()) as f64);
            margin.push(prompt_margin);
        }
    }
    if better.is_empty() {
        return Err(Error::Input("no answer is ranked above another; a ranking needs at least two answers".to_owned()));
    }
    let pick = |index: Vec<u32>| -> Result<Tensor> {
        let n = index.len();
        Ok(scores.index_select(&Tensor::from_vec(index, n, &Device::Cpu)?, 0)?)
    };
    let (better, worse) = (pick(better)?, pick(worse)?);
    let n = weight.len();
    let like_scores = |values: Vec<f64>| Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(scores.dtype());
    let (weight, margin) = (like_scores(weight)?, like_scores(margin)?);
    let ranking = neg_log_sigmoid(&((&better - &worse)? - margin)?)?;
    let off_center = ((better + worse)?.sqr()? * centering)?;
    Ok(((ranking + off_center)? * weight)?.sum_all()?)
}

/// The Plackett-Luce loss of one ranking, a scalar: the negative log-probability of the order of `scores` `(k,)`, best first
/// (Plackett 1975).
pub fn plackett_luce(scores: &Tensor) -> Result<Tensor> {
    let k = scores.dim(0)?;
    let mut loss = Tensor::zeros((), scores.dtype(), scores.device())?;
    for i in 0..k {
        loss = (loss + best_of_n(&scores.narrow(0, i, k - i)?, 0)?)?;
    }
    Ok(loss)
}

/// The cross-entropy of choosing answer `best` by the softmax of `scores` `(k,)`, a scalar.
pub fn best_of_n(scores: &Tensor, best: usize) -> Result<Tensor> {
    let logits = scores.unsqueeze(0)?;
    Ok(llm_kernels::cross_entropy(&logits, &[best as i64])?.squeeze(0)?)
}

/// The value of a scalar tensor as f64.
pub(crate) fn scalar(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::Var;

    use super::*;

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    fn rows(data: &[[f64; 3]]) -> Tensor {
        Tensor::new(data.concat(), &Device::Cpu).unwrap().reshape(((), 3)).unwrap()
    }

    fn assert_near(x: &Tensor, expected: f64) {
        let x = scalar(x).unwrap();
        assert!((x - expected).abs() < 1e-5, "{x} is not {expected}");
    }

    #[test]
    fn ranking_losses_have_golden_values() {
        let all = |k: usize| vec![(0..k).flat_map(|i| (i + 1..k).map(move |j| (i, j))).collect::<Vec<_>>()];
        assert_near(&bradley_terry(&tensor(&[3.]), &tensor(&[3.]), 0.).unwrap(), 2f64.ln());
        let scores = tensor(&[2., 1., 0., -1.]);
        assert_near(&k_way(&scores, &all(4), &[0.], 0.).unwrap(), 0.207038);
        assert_near(&plackett_luce(&scores).unwrap(), 1.161057);
        // log(1 + exp(-1.5) + exp(-2)) + log(1 + exp(-0.5)): gaps that differ tell the remaining answers from the first ones.
        assert_near(&plackett_luce(&tensor(&[2., 0.5, 0.])).unwrap(), 0.780433);
        let zeros = tensor(&[0.; 4]);
        assert_near(&k_way(&zeros, &all(4), &[0.], 0.).unwrap(), std::f64::consts::LN_2);
        assert_near(&plackett_luce(&zeros).unwrap(), 3.178054);
        assert_near(&best_of_n(&zeros, 2).unwrap(), 4f64.ln());
        assert_near(&best_of_n(&scores, 2).unwrap(), 2.440190); // log(e² + e + 1 + 1/e) - 0
        assert_eq!(all(4)[0].len(), 6);
        let (two, pair) = (tensor(&[1.5, -0.5]), bradley_terry(&tensor(&[1.5]), &tensor(&[-0.5]), 0.).unwrap());
        assert_near(&k_way(&two, &all(2), &[0.], 0.).unwrap(), scalar(&pair).unwrap());
    }

    #[test]
    fn only_centering_depends_on_a_constant_added_to_all_scores() {
        let pairs = vec![vec![(0, 1), (0, 2), (1, 2)], vec![(4, 3)]];
        let scores = tensor(&[0.3, -0.2, 0.9, 0.1, 0.5]);
        let shifted = (&scores + 10.).unwrap();
        let plain = |s: &Tensor| scalar(&k_way(s, &pairs, &[0.; 2], 0.).unwrap()).unwrap();
        assert!((plain(&scores) - plain(&shifted)).abs() < 1e-12);
        let centered = |s: &Tensor| scalar(&k_way(s, &pairs, &[0.; 2], 0.01).unwrap()).unwrap();
        assert!(centered(&shifted) > centered(&scores) + 1.);
        assert!(k_way(&scores, &[vec![]], &[0.], 0.).is_err());
    }

    #[test]
    fn a_margin_applies_to_the_pairs_of_its_prompt() {
        // log(1 + exp(-(2 - 0.5))) and log(1 + exp(-(1 - 0))).
        let (with, without) = (0.2014133, 0.3132617);
        let (scores, pairs) = (tensor(&[1.5, -0.5, 1., 0.]), vec![vec![(0, 1)], vec![(2, 3)]]);
        assert_near(&k_way(&scores, &pairs, &[0.5, 0.], 0.).unwrap(), f64::midpoint(with, without));
        assert_near(&bradley_terry(&tensor(&[1.5]), &tensor(&[-0.5]), 0.5).unwrap(), with);
        assert!(k_way(&scores, &pairs, &[0.5], 0.).is_err());
    }

    /// Prompts with three pairs and one pair: differences 1, 2, 1 and 1.5 minus the margin 1; sums 1, 0, -1 and 2.5.
    #[test]
    fn k_way_averages_over_the_pairs_of_a_prompt_and_then_over_prompts() {
        let loss = |difference: f64| (-difference).exp().ln_1p();
        let first = (2. * loss(1.) + loss(2.)) / 3. + 0.1 * 2. / 3.;
        let second = loss(0.5) + 0.1 * 6.25;
        let (scores, pairs) = (tensor(&[1., 0., -1., 0.5, 2.]), vec![vec![(0, 1), (0, 2), (1, 2)], vec![(4, 3)]]);
        assert_near(&k_way(&scores, &pairs, &[0., 1.], 0.1).unwrap(), f64::midpoint(first, second));
    }

    #[test]
    fn losses_of_pairs_and_of_rows_are_means() {
        // log(1 + exp(-2)) and log(1 + exp(-1)).
        let pairs = bradley_terry(&tensor(&[1.5, 1.]), &tensor(&[-0.5, 0.]), 0.).unwrap();
        assert_near(&pairs, f64::midpoint(0.1269280, 0.3132617));
        let (teacher, student) = (rows(&[[2., 1., 0.], [0., 1., 2.]]), rows(&[[0., 1., 0.], [0., 1., 2.]]));
        assert_near(&distillation(&student, &teacher, 1.).unwrap(), 0.474321 / 2.);
    }

    #[test]
    fn neg_log_sigmoid_is_linear_for_large_negative_inputs() {
        assert_near(&neg_log_sigmoid(&tensor(&[800.])).unwrap().squeeze(0).unwrap(), 0.);
        assert_near(&neg_log_sigmoid(&tensor(&[-800.])).unwrap().squeeze(0).unwrap(), 800.);
    }

    #[test]
    fn distillation_has_golden_values() {
        let (teacher, student) = (rows(&[[2., 1., 0.]]), rows(&[[0., 1., 0.]]));
        for (temperature, expected) in [(1., 0.474321), (2., 0.482350), (4., 0.469541)] {
            assert_near(&distillation(&student, &teacher, temperature).unwrap(), expected);
        }
        assert_near(&distillation(&teacher, &student, 1.).unwrap(), 0.432278);
        assert_near(&distillation(&teacher, &teacher, 3.).unwrap(), 0.);
        assert_near(&distillation(&(&student + 5.).unwrap(), &(&teacher - 7.).unwrap(), 1.).unwrap(), 0.474321);
    }

    #[test]
    fn mse_and_cross_entropy_match_closed_forms() {
        assert_near(&mse(&tensor(&[1., 2., 5.]), &tensor(&[1., 0., 2.])).unwrap(), 13. / 3.);
        let logits = rows(&[[0., 1., 2.], [5., 5., 5.], [9., 0., 0.]]);
        let first = (1. + 1f64.exp() + 2f64.exp()).ln() - 1.;
        assert_near(&cross_entropy(&logits, &[1, 0, IGNORE_INDEX]).unwrap(), f64::midpoint(first, 3f64.ln()));
        assert_near(&cross_entropy(&logits, &[IGNORE_INDEX; 3]).unwrap(), 0.);
    }

    type Loss<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

    /// Compares the gradient of every loss with central finite differences in f64.
    #[test]
    fn gradients_match_finite_differences() {
        let target = tensor(&[0.2, -0.4, 0.1, 0.9]);
        let teacher = target.reshape((2, 2)).unwrap();
        let losses: Vec<(&str, Loss)> = vec![
            ("mse", Box::new(|x| mse(x, &target))),
            ("neg_log_sigmoid", Box::new(|x| Ok((neg_log_sigmoid(x)? * &target)?.sum_all()?))),
            ("k_way", Box::new(|x| k_way(x, &[vec![(0, 1), (2, 0)], vec![(3, 1)]], &[0.5, 0.], 0.1))),
            ("plackett_luce", Box::new(plackett_luce)),
            ("best_of_n", Box::new(|x| best_of_n(x, 2))),
            ("bradley_terry", Box::new(|x| bradley_terry(&x.narrow(0, 0, 2)?, &x.narrow(0, 2, 2)?, 0.3))),
            ("cross_entropy", Box::new(|x| cross_entropy(&x.reshape((2, 2))?, &[1, 0]))),
            ("distillation", Box::new(|x| distillation(&x.reshape((2, 2))?, &teacher, 2.))),
        ];
        for (name, loss) in losses {
            for seed in 0..10 {
                let at: Vec<f64> = (0..4).map(|i| f64::from(seed * 7 + i * 3) * 0.61 % 2. - 1.03).collect();
                assert_gradient(name, &at, &loss);
            }
        }
    }

    /// Compares the gradient of `loss` at a point with central finite differences in f64.
    pub(crate) fn assert_gradient(name: &str, at: &[f64], loss: impl Fn(&Tensor) -> Result<Tensor>) {
        let var = Var::new(at, &Device::Cpu).unwrap();
        let grads = loss(&var).unwrap().backward().unwrap();
        let grad = grads.get(&var).unwrap().to_vec1::<f64>().unwrap();
        for i in 0..at.len() {
            let moved = |by: f64| {
                let mut x = at.to_vec();
                x[i] += by;
                scalar(&loss(&tensor(&x)).unwrap()).unwrap()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((grad[i] - expected).abs() < 1e-6, "{name}: {} is not {expected}", grad[i]);
        }
    }
}
