//! Log-probabilities of tokens: `log_softmax` of the logits of the model, before temperature and all other processing.

use crate::TokenLogprobs;

/// The log-probability of token `id` and those of the `top` most likely tokens, for logits `(vocab,)`. Equal logits give equal
/// numbers; among them the lower id comes first.
pub(crate) fn token_logprobs(logits: &[f32], id: u32, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if top < ids.len() {
        ids.select_nth_unstable_by(top, order);
        ids.truncate(top);
    }
    ids.sort_unstable_by(order);
    TokenLogprobs { logprob: logprob(id), top: ids.into_iter().map(|id| (id, logprob(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_the_logarithm_of_the_softmax() {
        // Probabilities 1/8, 1/2, 1/8, 1/4 with a common factor.
        let logits: Vec<f32> = [1f32, 4., 1., 2.].iter().map(|weight| weight.ln() + 30.).collect();
        let logprobs = token_logprobs(&logits, 3, 3);
        assert!((f64::from(logprobs.logprob) - 0.25f64.ln()).abs() < 1e-5);
        assert_eq!(logprobs.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert_eq!(logprobs.top[1].1, logprobs.logprob, "the same number");
        let total: f32 = token_logprobs(&logits, 0, 9).top.iter().map(|top| top.1.exp()).sum();
        assert!((total - 1.).abs() < 1e-5);
        assert!(token_logprobs(&logits, 0, 0).top.is_empty());
    }
}
