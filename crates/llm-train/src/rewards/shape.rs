//! Rewards of the form of a reply: its length, repetitions, and tags of reasoning.

use std::collections::HashSet;

/// The penalty of DAPO for long replies (Yu et al. 2025, arXiv 2503.14476, equation 13): 0 up to `max_tokens - cache_tokens`, from
/// there it falls to -1 at `max_tokens`.
///
/// ```
/// use llm_train::rewards::soft_overlong;
/// assert_eq!([50, 90, 110].map(|tokens| soft_overlong(tokens, 100, 20)), [0., -0.5, -1.]);
/// ```
pub fn soft_overlong(tokens: usize, max_tokens: usize, cache_tokens: usize) -> f64 {
    let free = max_tokens.saturating_sub(cache_tokens);
    match tokens {
        tokens if tokens <= free => 0.,
        tokens if tokens <= max_tokens => -((tokens - free) as f64) / cache_tokens.max(1) as f64,
        _ => -1.,
    }
}

/// The cosine reward (Yeo et al. 2025, arXiv 2502.03373): a right reply gets 1 if it is short and 0.5 from `max_tokens` on, a wrong
/// one -1 if it is short and -0.5 from `max_tokens` on.
///
/// ```
/// use llm_train::rewards::cosine;
/// assert!((cosine(25, 100, true) - 0.92678).abs() < 1e-5);
/// assert!((cosine(25, 100, false) + 0.92678).abs() < 1e-5);
/// ```
pub fn cosine(tokens: usize, max_tokens: usize, right: bool) -> f64 {
    let progress = tokens.min(max_tokens) as f64 / max_tokens.max(1) as f64;
    let size = 0.5 + 0.25 * (1. + (std::f64::consts::PI * progress).cos());
    if right { size } else { -size }
}

/// The penalty of repeated n-grams: `distinct / all - 1`, from -1 to 0; 0 for a reply that is shorter than one n-gram (TRL,
/// `get_repetition_penalty_reward`).
///
/// ```
/// use llm_train::rewards::repetition;
/// assert!((repetition(&[1, 2, 1, 2, 1, 2], 2) + 0.6).abs() < 1e-12);
/// ```
pub fn repetition(ids: &[u32], ngram: usize) -> f64 {
    if ngram == 0 || ids.len() < ngram {
        return 0.;
    }
    let all = ids.len() - ngram + 1;
    let distinct = ids.windows(ngram).collect::<HashSet<_>>().len();
    distinct as f64 / all as f64 - 1.
}

/// Whether a text begins with `<think>`, has it once, and has `</think>` after it (TRL, `think_format_reward`).
///
/// ```
/// use llm_train::rewards::has_think_format;
/// assert!(has_think_format("<think>\nTwo and two.\n</think>\n4"));
/// assert!(!has_think_format("4"));
/// ```
pub fn has_think_format(text: &str) -> bool {
    text.strip_prefix("<think>").is_some_and(|rest| !rest.contains("<think>") && rest.contains("</think>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the tests of TRL (`tests/test_rewards.py`).
    #[test]
    fn rewards_of_the_form_match_published_numbers() {
        for (ids, ngram, expected) in [
            (vec![5; 5], 2, -0.75),
            (vec![1, 2, 1, 2, 1, 2], 2, -0.6),
            (vec![1, 2, 3, 1, 2, 3], 2, -0.4),
            (vec![1, 2, 3, 1, 2, 3], 3, -0.25),
            (vec![1, 2, 3], 2, 0.),
            (vec![1], 2, 0.),
            (vec![], 3, 0.),
        ] {
            assert!((repetition(&ids, ngram) - expected).abs() < 1e-12, "{ids:?}, {ngram}");
        }
        for (tokens, expected) in [(0, 0.), (50, 0.), (80, 0.), (81, -0.05), (90, -0.5), (100, -1.), (110, -1.)] {
            assert_eq!(soft_overlong(tokens, 100, 20), expected, "{tokens}");
        }
        assert_eq!([100, 101].map(|tokens| soft_overlong(tokens, 100, 0)), [0., -1.], "without a cache");
        for (tokens, expected) in [(0, 1.), (25, 0.92678), (50, 0.75), (75, 0.57322), (100, 0.5), (200, 0.5)] {
            assert!((cosine(tokens, 100, true) - expected).abs() < 1e-5, "{tokens}");
            assert!((cosine(tokens, 100, false) + expected).abs() < 1e-5, "{tokens}");
        }
    }

    #[test]
    fn the_think_format_is_one_block_at_the_start() {
        for (text, expected) in [
            ("<think>a</think>b", true),
            ("<think>\na\n\nb</think>", true),
            ("<think></think>", true),
            (" <think>a</think>b", false),
            ("a<think>b</think>", false),
            ("<think>a", false),
            ("a</think>b", false),
            ("<think><think>a</think>", false),
            ("<think>a</think><think>b</think>", false),
            ("", false),
        ] {
            assert_eq!(has_think_format(text), expected, "{text}");
        }
    }
}
