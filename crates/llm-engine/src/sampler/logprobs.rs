//! Log-probabilities of tokens.

use llm_kernels::logit_range;

use super::candidates::{Candidates, Scratch};
use crate::request::TokenLogprobs;
use crate::{Error, Result};

impl TokenLogprobs {
    /// Those of token `id` and of the `top` most likely tokens by one row of logits `(vocab,)`: `log_softmax`. Of equal tokens the lower id is
    /// first. The value of a token is the same number wherever it is.
    pub fn of(logits: &[f32], id: u32, top: usize) -> Result<Self> {
        if id as usize >= logits.len() {
            return Err(Error::TokenOutsideVocabulary { name: "token", id, vocab_size: logits.len() });
        }
        if !logit_range(logits).is_some_and(|(_, high)| high.is_finite()) {
            return Err(Error::LogitsNotFinite);
        }
        Ok(of_row(&mut logits.to_vec(), id as usize, top, &mut Scratch::default()))
    }
}

/// [`TokenLogprobs::of`] for a checked row, which is overwritten, and an id in it.
pub fn of_row(logits: &mut [f32], id: usize, top: usize, scratch: &mut Scratch) -> TokenLogprobs {
    let logit = logits[id];
    let mut candidates = Candidates::new(logits, scratch);
    let scale = Scale::of(&mut candidates);
    TokenLogprobs { logprob: scale.logprob(logit), top: most_likely(&mut candidates, scale, top) }
}

/// What a log-probability needs besides the logit.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    max: f32,
    log_sum: f64,
}

impl Scale {
    /// That of all candidates.
    pub fn of(candidates: &mut Candidates) -> Self {
        Self { max: candidates.max(), log_sum: candidates.weigh().ln() }
    }

    pub fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }
}

/// The `count` most likely candidates, the most likely first. Leaves out the others.
pub fn most_likely(candidates: &mut Candidates, scale: Scale, count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    candidates.keep_best(count);
    let mut best: Vec<(u32, f32)> = (0..candidates.len()).map(|i| (candidates.id(i), candidates.logits()[i])).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: of equal ones the lower id is first
    best.into_iter().map(|(id, logit)| (id, scale.logprob(logit))).collect()
}
