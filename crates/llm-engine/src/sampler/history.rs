//! The tokens of prompt and answer, for the penalties of repetitions.

use std::collections::HashMap;

use super::candidates::Candidates;
use super::repetition::repeated_sequences;
use crate::Sampling;

/// The tokens so far, with the counts that the penalties need.
#[derive(Debug, Clone)]
pub struct History {
    ids: Vec<u32>,
    /// Number of tokens of the prompt.
    prompt: usize,
    /// How often each token occurs in the window: in prompt and answer, and in the answer.
    counts: HashMap<u32, (u32, u32)>,
    /// The window of the counts; none: all tokens.
    window: Option<usize>,
    /// For each token, whether the text of a breaker ends in it; empty without breakers.
    breaks: Vec<bool>,
}

/// The texts that repeated sequences do not reach over, as bytes, and the bytes of each token.
#[derive(Debug, Clone, Copy)]
pub struct Breakers<'a> {
    pub texts: &'a [String],
    pub token_texts: &'a [Vec<u8>],
}

impl History {
    /// Whether a sampler needs the tokens.
    pub fn is_needed(sampling: &Sampling) -> bool {
        let penalties = [sampling.presence_penalty, sampling.frequency_penalty, sampling.dry_multiplier];
        sampling.repetition_penalty != 1. || penalties.iter().any(|penalty| *penalty != 0.)
    }

    /// The history of an answer that has no token yet.
    pub fn new(sampling: &Sampling) -> Self {
        let window = Some(sampling.penalty_window).filter(|window| *window > 0);
        Self { ids: Vec::new(), prompt: 0, counts: HashMap::new(), window, breaks: Vec::new() }
    }

    /// Adds the tokens of the prompt.
    pub fn start(&mut self, prompt: &[u32], breakers: Option<Breakers>) {
        self.prompt = prompt.len();
        prompt.iter().for_each(|&id| self.push(id, breakers));
    }

    /// Adds a token.
    pub fn push(&mut self, id: u32, breakers: Option<Breakers>) {
        self.ids.push(id);
        self.count(self.ids.len() - 1, true);
        if let Some(left) = self.window.and_then(|window| (self.ids.len() - 1).checked_sub(window)) {
            self.count(left, false);
        }
        if let Some(breakers) = breakers {
            let breaks =
                breakers.texts.iter().any(|text| ends_in_last(text.as_bytes(), &self.ids, breakers.token_texts));
            self.breaks.push(breaks);
        }
    }

    /// Removes the last tokens of the answer.
    pub fn rollback(&mut self, tokens: usize) {
        for _ in 0..tokens.min(self.ids.len() - self.prompt) {
            self.count(self.ids.len() - 1, false);
            if let Some(back) = self.window.and_then(|window| (self.ids.len() - 1).checked_sub(window)) {
                self.count(back, true);
            }
            self.ids.pop();
            self.breaks.truncate(self.ids.len());
        }
    }

    /// Counts the token at a position, or takes it back.
    fn count(&mut self, at: usize, add: bool) {
        let change = |n: &mut u32| *n = if add { *n + 1 } else { n.saturating_sub(1) };
        let (all, answer) = self.counts.entry(self.ids[at]).or_default();
        change(all);
        if at >= self.prompt {
            change(answer);
        }
        if *all == 0 {
            self.counts.remove(&self.ids[at]);
        }
    }

    /// Repetition, presence and frequency penalties (Keskar et al. 2019, CTRL; the API of `OpenAI`).
    pub fn penalize(&self, sampling: &Sampling, candidates: &mut Candidates) {
        let repetition = sampling.repetition_penalty as f32;
        let (presence, frequency) = (sampling.presence_penalty as f32, sampling.frequency_penalty as f32);
        for (&id, &(_, answer)) in &self.counts {
            if let Some(logit) = candidates.get_mut(id) {
                *logit = if *logit <= 0. { *logit * repetition } else { *logit / repetition };
                if answer > 0 {
                    *logit -= presence + frequency * answer as f32;
                }
            }
        }
    }

    /// The penalty `multiplier · base^(length - allowed)` of each token that would continue a repeated sequence (DRY).
    pub fn penalize_sequences(&self, sampling: &Sampling, candidates: &mut Candidates) {
        let window = match sampling.dry_window {
            0 => self.ids.len(),
            window => window.min(self.ids.len()),
        };
        let recent = &self.ids[self.ids.len() - window..];
        let breaker = self.breaks.iter().rposition(|breaks| *breaks);
        let longest = breaker.map_or(window, |at| self.ids.len() - 1 - at);
        let allowed = sampling.dry_allowed_length;
        if longest < allowed {
            return;
        }
        // The largest exponent whose power is finite in f32.
        let most = 88.72 / sampling.dry_base.ln();
        for (id, length) in repeated_sequences(recent, longest, allowed) {
            let exponent = ((length - allowed) as f64).min(most);
            let penalty = sampling.dry_multiplier * sampling.dry_base.powf(exponent);
            if let Some(logit) = candidates.get_mut(id) {
                *logit -= penalty as f32;
            }
        }
    }
}

/// Whether the text of the tokens has an occurrence of `text` that ends in the last token.
fn ends_in_last(text: &[u8], ids: &[u32], token_texts: &[Vec<u8>]) -> bool {
    let bytes = |id: u32| token_texts.get(id as usize).map_or(&[][..], Vec::as_slice);
    let Some((&last, before)) = ids.split_last() else { return false };
    let last = bytes(last);
    // The bytes before the last token that an occurrence can start with.
    let mut tail: Vec<u8> = Vec::new();
    for &id in before.iter().rev() {
        if tail.len() + 1 >= text.len() {
            break;
        }
        tail.splice(..0, bytes(id).iter().copied());
    }
    let start = tail.len().saturating_sub(text.len() - 1);
    tail.drain(..start);
    tail.extend(last);
    !last.is_empty() && tail.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(history: &History) -> Vec<(u32, (u32, u32))> {
        let mut counts: Vec<_> = history.counts.iter().map(|(id, counts)| (*id, *counts)).collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn a_window_forgets_old_tokens_and_rollback_brings_them_back() {
        let sampling = Sampling { penalty_window: 3, ..Sampling::default() };
        let mut history = History::new(&sampling);
        history.start(&[1, 1, 2], None);
        assert_eq!(counts(&history), [(1, (2, 0)), (2, (1, 0))]);
        let start = history.clone();
        [2, 3, 1, 3].iter().for_each(|&id| history.push(id, None));
        assert_eq!(counts(&history), [(1, (1, 1)), (3, (2, 2))]);
        history.rollback(2);
        assert_eq!(counts(&history), [(2, (2, 1)), (3, (1, 1))]);
        history.rollback(9);
        assert_eq!((counts(&history), &history.ids), (counts(&start), &start.ids));
    }

    #[test]
    fn a_breaker_may_reach_over_tokens_and_is_found_once() {
        let token_texts = [&b"one"[..], b" us", b"er:", b" x", b"\n", b""].map(<[u8]>::to_vec);
        let texts = ["user:".to_owned(), "\n".to_owned()];
        let mut history = History::new(&Sampling::default());
        history.start(&[0, 1, 2, 3, 5, 4, 3, 9], Some(Breakers { texts: &texts, token_texts: &token_texts }));
        assert_eq!(history.breaks, [false, false, true, false, false, true, false, false]);
        history.rollback(1); // never removes the prompt
        assert_eq!(history.breaks.len(), 8);
    }
}
