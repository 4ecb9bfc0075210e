//! Scores that tell what kind a head is: the head detector of `TransformerLens` (`detect_head`, with `error_measure="mul"`).

use llm_tokenizer::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How much of the attention of a head follows a pattern: the weight at the places of the pattern over the whole weight, from 0 to
/// 1 (Olsson et al. 2022, arXiv 2209.11895, for the kinds of heads).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HeadScores {
    /// The token before.
    pub previous_token: f64,
    /// Earlier occurrences of the same token.
    pub duplicate_token: f64,
    /// Tokens after earlier occurrences of the same token.
    pub induction: f64,
    /// The mean weight on the first token, over all queries but the first.
    pub first_token: f64,
}

impl HeadScores {
    /// The scores of the weights `rows`, `(t, t)` in row-major order, in the text `ids`. With `skip_first` the weights on the first
    /// token count for no pattern and not for the whole (`exclude_bos`).
    pub fn of(rows: &[f32], ids: &[u32], skip_first: bool) -> Self {
        let (mut scores, mut whole) = (Self::default(), 0.);
        for (query, row) in rows.chunks(ids.len().max(1)).enumerate() {
            if query > 0 {
                scores.first_token += f64::from(row[0]) / (ids.len() - 1) as f64;
            }
            for key in usize::from(skip_first)..=query {
                let weight = f64::from(row[key]);
                whole += weight;
                if key + 1 == query {
                    scores.previous_token += weight;
                }
                if key < query && ids[key] == ids[query] {
                    scores.duplicate_token += weight;
                }
                if key > 0 && ids[key - 1] == ids[query] {
                    scores.induction += weight;
                }
            }
        }
        for score in [&mut scores.previous_token, &mut scores.duplicate_token, &mut scores.induction] {
            *score /= if whole > 0. { whole } else { 1. };
        }
        scores
    }
}

/// The most random tokens of [`repeated_tokens`], which are then repeated.
const RANDOM_TOKENS: usize = 50;

/// A sequence of at most `max` tokens for [`HeadScores`]: the beginning-of-sequence token if the tokenizer has one, then random tokens
/// twice. A text that repeats nothing says nothing about induction heads; this does, and needs no language. Always the same.
pub fn repeated_tokens(tokenizer: &Tokenizer, max: usize) -> Vec<u32> {
    let special = tokenizer.special_ids();
    let ordinary: Vec<u32> =
        (0..tokenizer.vocab_size() as u32).filter(|id| special.binary_search(id).is_err()).collect();
    let mut ids: Vec<u32> = tokenizer.bos_id().into_iter().collect();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let count = if ordinary.is_empty() { 0 } else { RANDOM_TOKENS.min(max.saturating_sub(ids.len()) / 2) };
    let random: Vec<u32> = (0..count).map(|_| ordinary[rng.random_range(0..ordinary.len())]).collect();
    ids.extend_from_slice(&random);
    ids.extend_from_slice(&random);
    ids
}
