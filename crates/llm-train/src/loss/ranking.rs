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

/// The K-way ranking loss of InstructGPT (Ouyang et al. 2022, arXiv 2203.02155, equation 1), a scalar.
///
/// The loss of the reward recipe. For each pair of answers to a prompt it is
/// `-log σ(better - worse - margin) + centering · (better + worse)²`: [`bradley_terry`] and a penalty. It is
/// averaged over the pairs of each prompt, then over prompts. `scores` `(n,)` are the scores of the answers to all prompts;
/// `pairs[prompt]` are index pairs (better, worse) into `scores`; `margins[prompt]` is the margin of that prompt (0: none).
pub fn k_way(scores: &Tensor, pairs: &[Vec<(usize, usize)>], margins: &[f64], centering: f64) -> Result<Tensor> {
    if pairs.len() != margins.len() {
        return Err(Error::BadRequest(format!("{} margins for {} prompts", margins.len(), pairs.len())));
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
        return Err(Error::BadRequest(
            "no answer is ranked above another; a ranking needs at least two answers".to_owned(),
        ));
    }
    let pick = |index: Vec<u32>| -> Result<Tensor> {
        let n = index.len();
        Ok(scores.index_select(&Tensor::from_vec(index, n, scores.device())?, 0)?)
    };
    let (better, worse) = (pick(better)?, pick(worse)?);
    let n = weight.len();
    let like_scores = |values: Vec<f64>| {
        Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(scores.dtype())?.to_device(scores.device())
    };
    let (weight, margin) = (like_scores(weight)?, like_scores(margin)?);
    let ranking = bradley_terry(&better, &worse, &margin)?;
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
