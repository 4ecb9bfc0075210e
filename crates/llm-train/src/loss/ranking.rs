//! Losses of a reward model on ranked answers.

use candle_core::{Device, Tensor};

use crate::{Error, Result};

/// `-log σ(x)` of each element, computed without overflow. Its gradient is exact everywhere, also at 0.
pub fn neg_log_sigmoid(x: &Tensor) -> Result<Tensor> {
    // m + log(exp(-m) + exp(-x - m)) with m = max(-x, 0). The gradient does not depend on m, so none flows through it: `relu` and `abs`
    // have no gradient at 0.
    let m = x.detach().neg()?.relu()?;
    let sum = (m.neg()?.exp()? + (x.neg()? - &m)?.exp()?)?;
    Ok((m + sum.log()?)?)
}

/// The Bradley-Terry loss of each pair: `-log σ(chosen - rejected - margin)`. All tensors are `(n,)` (Bradley and Terry 1952).
pub fn bradley_terry(chosen: &Tensor, rejected: &Tensor, margin: &Tensor) -> Result<Tensor> {
    neg_log_sigmoid(&((chosen - rejected)? - margin)?)
}

/// The loss of each tie: `½ softplus(d) + ½ softplus(-d)` for the difference `d` of two scores, half a win for each side. All
/// tensors are `(n,)`. It is `ln 2` for equal scores, its minimum.
pub fn tie(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let difference = (first - second)?;
    // softplus(d) + softplus(-d) = 2 · -log σ(d) + d
    Ok((neg_log_sigmoid(&difference)? + (difference * 0.5)?)?)
}

/// The ranking of the answers to one prompt, as indices into the scores of all answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparisons {
    /// Groups of tied answers, best group first; each group has at least one answer.
    pub groups: Vec<Vec<usize>>,
    /// Pairs (better, worse).
    pub pairs: Vec<(usize, usize)>,
    /// Pairs that are tied and part of the loss.
    pub ties: Vec<(usize, usize)>,
    /// The margin of the pairs; 0: none.
    pub margin: f64,
}

/// [`k_way_with_ties`] of rankings without ties: `pairs[prompt]` are index pairs (better, worse) into `scores` `(n,)`, and
/// `margins[prompt]` is the margin of that prompt.
pub fn k_way(scores: &Tensor, pairs: &[Vec<(usize, usize)>], margins: &[f64], centering: f64) -> Result<Tensor> {
    if pairs.len() != margins.len() {
        return Err(Error::BadRequest(format!("{} margins for {} prompts", margins.len(), pairs.len())));
    }
    let of = |(pairs, &margin): (&Vec<_>, &f64)| Comparisons { pairs: pairs.clone(), margin, ..Comparisons::default() };
    k_way_with_ties(scores, &pairs.iter().zip(margins).map(of).collect::<Vec<_>>(), centering)
}

/// The K-way ranking loss of InstructGPT (Ouyang et al. 2022, arXiv 2203.02155, equation 1), a scalar.
///
/// The loss of the reward recipe. For each pair of answers to a prompt it is
/// `-log σ(better - worse - margin) + centering · (better + worse)²`: [`bradley_terry`], or [`tie`], and a penalty. It is
/// averaged over the pairs of each prompt, then over prompts. `scores` `(n,)` are the scores of the answers to all prompts.
pub fn k_way_with_ties(scores: &Tensor, prompts: &[Comparisons], centering: f64) -> Result<Tensor> {
    let (strict, tied) = (weighted(prompts, |prompt| &prompt.pairs), weighted(prompts, |prompt| &prompt.ties));
    if strict.is_empty() && tied.is_empty() {
        return Err(no_pair());
    }
    let mut loss = Tensor::zeros((), scores.dtype(), scores.device())?;
    if !strict.is_empty() {
        let margins: Vec<f64> = strict.iter().map(|pair| pair.margin).collect();
        let (better, worse) =
            (pick(scores, strict.iter().map(|p| p.first))?, pick(scores, strict.iter().map(|p| p.second))?);
        let losses = bradley_terry(&better, &worse, &like(scores, margins)?)?;
        loss = (loss + sum(&losses, &better, &worse, &strict, centering)?)?;
    }
    if !tied.is_empty() {
        let (first, second) =
            (pick(scores, tied.iter().map(|p| p.first))?, pick(scores, tied.iter().map(|p| p.second))?);
        loss = (loss + sum(&tie(&first, &second)?, &first, &second, &tied, centering)?)?;
    }
    Ok(loss)
}

/// The mean Plackett-Luce loss of rankings with ties ([`plackett_luce_with_ties`]), with the penalty of [`k_way_with_ties`]; a scalar.
/// `scores` `(n,)` are the scores of the answers to all prompts. Margins do not apply.
pub fn list_wise(scores: &Tensor, prompts: &[Comparisons], centering: f64) -> Result<Tensor> {
    let mut loss = Tensor::zeros((), scores.dtype(), scores.device())?;
    for prompt in prompts {
        let of_prompt = plackett_luce_with_ties(scores, &prompt.groups)?;
        loss = (loss + (of_prompt / prompts.len() as f64)?)?;
    }
    let pairs = weighted(prompts, |prompt| &prompt.pairs);
    if centering == 0. || pairs.is_empty() {
        return Ok(loss);
    }
    let (better, worse) = (pick(scores, pairs.iter().map(|p| p.first))?, pick(scores, pairs.iter().map(|p| p.second))?);
    let none = better.zeros_like()?;
    Ok((loss + sum(&none, &better, &worse, &pairs, centering)?)?)
}

/// A pair of indices with its share of the loss.
struct Pair {
    first: usize,
    second: usize,
    share: f64,
    margin: f64,
}

/// The pairs of all prompts. Each prompt has the same share, spread over all its pairs and ties.
fn weighted<'a>(prompts: &'a [Comparisons], of: impl Fn(&'a Comparisons) -> &'a Vec<(usize, usize)>) -> Vec<Pair> {
    let mut all = Vec::new();
    for prompt in prompts {
        let share = 1. / ((prompt.pairs.len() + prompt.ties.len()) * prompts.len()) as f64;
        all.extend(of(prompt).iter().map(|&(first, second)| Pair { first, second, share, margin: prompt.margin }));
    }
    all
}

/// The weighted sum of these losses `(pairs,)`, each with the penalty on the sum of its scores.
fn sum(losses: &Tensor, first: &Tensor, second: &Tensor, pairs: &[Pair], centering: f64) -> Result<Tensor> {
    let off_center = ((first + second)?.sqr()? * centering)?;
    let shares = like(losses, pairs.iter().map(|pair| pair.share).collect())?;
    Ok(((losses + off_center)? * shares)?.sum_all()?)
}

/// The scores at these indices.
fn pick(scores: &Tensor, index: impl Iterator<Item = usize>) -> Result<Tensor> {
    let index: Vec<u32> = index.map(|at| at as u32).collect();
    let n = index.len();
    Ok(scores.index_select(&Tensor::from_vec(index, n, scores.device())?, 0)?)
}

/// Numbers in the dtype and on the device of `other`.
fn like(other: &Tensor, numbers: Vec<f64>) -> Result<Tensor> {
    let n = numbers.len();
    Ok(Tensor::from_vec(numbers, n, &Device::Cpu)?.to_dtype(other.dtype())?.to_device(other.device())?)
}

fn no_pair() -> Error {
    Error::BadRequest("no answer is ranked above another; a ranking needs at least two answers".to_owned())
}

/// The Plackett-Luce loss of one ranking, a scalar: the negative log-probability of the order of `scores` `(k,)`, best first
/// (Plackett 1975).
pub fn plackett_luce(scores: &Tensor) -> Result<Tensor> {
    let groups: Vec<Vec<usize>> = (0..scores.dim(0)?).map(|at| vec![at]).collect();
    plackett_luce_with_ties(scores, &groups)
}

/// [`plackett_luce`] of a ranking with ties: `groups` are indices into `scores` `(n,)`, best group first. Each answer of a group is
/// chosen among the answers of its group and of all later groups (Breslow 1974, for tied events in survival analysis).
pub fn plackett_luce_with_ties(scores: &Tensor, groups: &[Vec<usize>]) -> Result<Tensor> {
    let mut loss = Tensor::zeros((), scores.dtype(), scores.device())?;
    for (at, group) in groups.iter().enumerate() {
        let rest: Vec<usize> = groups[at..].iter().flatten().copied().collect();
        if rest.len() < 2 {
            break; // the last answer is certain
        }
        let logits = pick(scores, rest.into_iter())?.unsqueeze(0)?;
        for chosen in 0..group.len() {
            loss = (loss + llm_kernels::cross_entropy(&logits, &[chosen as i64])?.squeeze(0)?)?;
        }
    }
    Ok(loss)
}

/// The cross-entropy of choosing answer `best` by the softmax of `scores` `(k,)`, a scalar.
pub fn best_of_n(scores: &Tensor, best: usize) -> Result<Tensor> {
    let logits = scores.unsqueeze(0)?;
    Ok(llm_kernels::cross_entropy(&logits, &[best as i64])?.squeeze(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{scalar, tests::assert_gradient};

    fn tensor(data: &[f64]) -> Tensor {
        Tensor::new(data, &Device::Cpu).unwrap()
    }

    fn value(loss: Result<Tensor>) -> f64 {
        scalar(&loss.unwrap()).unwrap()
    }

    /// `½ ln(1 + e^d) + ½ ln(1 + e^-d)`: ln 2 at 0, 0.813262 at 1.
    #[test]
    fn g8_a_tie_has_golden_values_and_is_symmetric() {
        let of = |a: f64, b: f64| value(Ok(tie(&tensor(&[a]), &tensor(&[b])).unwrap().squeeze(0).unwrap()));
        assert!((of(0.3, 0.3) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((of(1., 0.) - 0.813262).abs() < 1e-6 && (of(0., 1.) - of(1., 0.)).abs() < 1e-12);
        assert!((of(800., 0.) - 400.).abs() < 1e-9, "without overflow");
    }

    /// Three pairs of which one is tied: `C(3, 2)` in all. d = 2, 1.5 and a tie of 0.5.
    #[test]
    fn g8_ties_count_as_pairs_of_their_prompt() {
        let softplus = |x: f64| x.exp().ln_1p();
        let prompt = Comparisons { pairs: vec![(0, 1), (0, 2)], ties: vec![(1, 2)], ..Comparisons::default() };
        let scores = tensor(&[2., 0., 0.5]);
        let tied = f64::midpoint(softplus(0.5), softplus(-0.5));
        let expected = (softplus(-2.) + softplus(-1.5) + tied) / 3.;
        assert!((value(k_way_with_ties(&scores, std::slice::from_ref(&prompt), 0.)) - expected).abs() < 1e-12);
        let centered = expected + 0.1 * (4. + 6.25 + 0.25) / 3.;
        assert!((value(k_way_with_ties(&scores, &[prompt], 0.1)) - centered).abs() < 1e-12);
        // Only ties.
        let only = Comparisons { ties: vec![(1, 2)], ..Comparisons::default() };
        assert!((value(k_way_with_ties(&scores, &[only], 0.)) - tied).abs() < 1e-12);
    }

    /// Without ties the probability of the order; with them `ln Σ exp` over the group and all later answers, for each of the group.
    #[test]
    fn g8_plackett_luce_has_golden_values_with_and_without_ties() {
        let scores = tensor(&[0., 2., -1., 1.]);
        let strict: Vec<Vec<usize>> = [1, 3, 0, 2].map(|at| vec![at]).to_vec();
        assert!((value(plackett_luce_with_ties(&scores, &strict)) - 1.161057).abs() < 1e-6);
        let log_sum = |scores: &[f64]| scores.iter().map(|s| s.exp()).sum::<f64>().ln();
        let tied = vec![vec![1], vec![3, 0], vec![2]];
        let expected = log_sum(&[2., 1., 0., -1.]) - 2. + 2. * log_sum(&[1., 0., -1.]) - 1.;
        assert!((value(plackett_luce_with_ties(&scores, &tied)) - expected).abs() < 1e-6);
        let prompt = |groups: &[Vec<usize>], pairs: &[(usize, usize)]| Comparisons {
            groups: groups.to_vec(),
            pairs: pairs.to_vec(),
            ..Comparisons::default()
        };
        let two = [prompt(&strict, &[(1, 3)]), prompt(&tied, &[])];
        let mean = f64::midpoint(1.161057, expected);
        assert!((value(list_wise(&scores, &two, 0.)) - mean).abs() < 1e-6);
        assert!((value(list_wise(&scores, &two, 0.1)) - mean - 0.1 * 9. / 2.).abs() < 1e-6);
    }

    #[test]
    fn g11_gradients_match_finite_differences() {
        let prompts = [
            Comparisons { pairs: vec![(0, 1)], ties: vec![(2, 1)], margin: 0.3, groups: vec![vec![0], vec![1, 2]] },
            Comparisons { ties: vec![(3, 0)], groups: vec![vec![3, 0], vec![1]], ..Comparisons::default() },
        ];
        for seed in 0..10 {
            let at: Vec<f64> = (0..4).map(|i| f64::from(seed * 7 + i * 3) * 0.61 % 2. - 1.03).collect();
            assert_gradient("k_way_with_ties", &at, |x| k_way_with_ties(x, &prompts, 0.1));
            assert_gradient("list_wise", &at, |x| list_wise(x, &prompts, 0.1));
        }
    }
}
