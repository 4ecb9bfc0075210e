//! Best-of-n: sample n replies and keep the one with the highest reward model score. It needs no training and is the baseline
//! for a trained policy at the same KL divergence (Stiennon et al. 2020, arXiv 2009.01325; Nakano et al. 2021, arXiv 2112.09332;
//! Gao et al. 2023, arXiv 2210.10760).

use crate::{Error, Result};

/// A sampled reply: its reward model score and its true utility.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredReply {
    /// The reward model's score.
    pub score: f64,
    /// The true utility.
    pub utility: f64,
}

/// `ln n - (n - 1) / n`: the KL divergence in nats per reply of best-of-n from its policy if all replies are distinct (Stiennon
/// et al. 2020, appendix G.3), and an upper bound otherwise (Beirami et al. 2024, arXiv 2401.01879).
///
/// ```
/// assert_eq!(llm_train::best_of::kl_bound(1), 0.);
/// assert!((llm_train::best_of::kl_bound(4) - 0.636294).abs() < 1e-6);
/// ```
pub fn kl_bound(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.ln() - (n - 1.) / n
}

/// The largest n from 1 to `most` with [`kl_bound`]` <= kl`.
pub fn n_at_kl(kl: f64, most: usize) -> usize {
    (2..=most).take_while(|&n| kl_bound(n) <= kl).last().unwrap_or(1)
}

/// The expected score and utility of the best of `n` replies, as means over prompts.
///
/// `prompts` contains the replies sampled for each prompt, at least `n` each. The estimate averages over all subsets of n replies
/// (Nakano et al. 2021): of N replies in ascending order of score the i-th is the best of n with probability
/// `C(i-1, n-1) / C(N, n)`. Replies with equal scores have equal probabilities.
///
/// ```
/// use llm_train::best_of::{ScoredReply, expected_best};
///
/// let replies = [(1., 10.), (3., 0.), (2., 6.)].map(|(score, utility)| ScoredReply { score, utility });
/// let best = expected_best(&[replies.to_vec()], 2)?; // best scores of the three pairs: 3, 2, 3
/// assert!((best.score - 8. / 3.).abs() < 1e-12 && (best.utility - 2.).abs() < 1e-12);
/// # Ok::<(), llm_train::Error>(())
/// ```
pub fn expected_best(prompts: &[Vec<ScoredReply>], n: usize) -> Result<ScoredReply> {
    let fewest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    if n == 0 || fewest < n {
        return Err(Error::BadRequest(format!(
            "best of {n}: there are {} prompts with at least {fewest} replies each; n must be from 1 to the number of replies",
            prompts.len()
        )));
    }
    if prompts.iter().flatten().any(|reply| reply.score.is_nan()) {
        return Err(Error::Internal(format!("best of {n}: a score is NaN; the reward model is damaged")));
    }
    let mut mean = ScoredReply { score: 0., utility: 0. };
    for replies in prompts {
        let best = best_of_one_prompt(replies, n);
        mean.score += best.score / prompts.len() as f64;
        mean.utility += best.utility / prompts.len() as f64;
    }
    Ok(mean)
}

fn best_of_one_prompt(replies: &[ScoredReply], n: usize) -> ScoredReply {
    let mut sorted = replies.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score)); // descending
    let all = sorted.len() as f64;
    let mut best = ScoredReply { score: 0., utility: 0. };
    let mut chance = n as f64 / all; // probability that the reply of this rank is the best of n
    let mut rank = all;
    for equals in sorted.chunk_by(|a, b| a.score == b.score) {
        let mut chance_of_equals = 0.;
        for _ in equals {
            chance_of_equals += chance;
            chance *= (rank - n as f64) / (rank - 1.).max(1.);
            rank -= 1.;
        }
        let utility = equals.iter().map(|reply| reply.utility).sum::<f64>() / equals.len() as f64;
        best.score += chance_of_equals * equals[0].score;
        best.utility += chance_of_equals * utility;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(replies: &[(f64, f64)]) -> Vec<ScoredReply> {
        replies.iter().map(|&(score, utility)| ScoredReply { score, utility }).collect()
    }

    /// The mean over all subsets of n replies, by enumeration.
    fn by_enumeration(replies: &[ScoredReply], n: usize) -> ScoredReply {
        let (mut sum, mut count) = (ScoredReply { score: 0., utility: 0. }, 0.);
        for subset in 0u32..1 << replies.len() {
            if subset.count_ones() as usize != n {
                continue;
            }
            let chosen: Vec<&ScoredReply> =
                (0..replies.len()).filter(|i| subset >> i & 1 == 1).map(|i| &replies[i]).collect();
            let top = chosen.iter().map(|reply| reply.score).fold(f64::NEG_INFINITY, f64::max);
            let best: Vec<f64> = chosen.iter().filter(|reply| reply.score == top).map(|reply| reply.utility).collect();
            sum.score += top;
            sum.utility += best.iter().sum::<f64>() / best.len() as f64;
            count += 1.;
        }
        ScoredReply { score: sum.score / count, utility: sum.utility / count }
    }

    #[test]
    fn the_estimate_is_the_mean_over_all_subsets() {
        let prompts = [
            scored(&[(0.3, 1.), (-1., 7.), (2., -3.), (0.9, 0.5), (1.1, 2.), (-0.2, 4.)]),
            scored(&[(1., 1.), (1., 5.), (0., 2.), (1., -3.), (0., 8.), (2., 4.)]),
            scored(&[(4., 0.); 6]),
        ];
        for n in 1..=6 {
            for replies in &prompts {
                let (found, expected) =
                    (expected_best(std::slice::from_ref(replies), n).unwrap(), by_enumeration(replies, n));
                assert!((found.score - expected.score).abs() < 1e-12, "{n}: {found:?} is not {expected:?}");
                assert!((found.utility - expected.utility).abs() < 1e-12, "{n}: {found:?} is not {expected:?}");
            }
            let each: f64 = prompts.iter().map(|replies| by_enumeration(replies, n).utility).sum();
            assert!((expected_best(&prompts, n).unwrap().utility - each / 3.).abs() < 1e-12);
        }
        assert!(expected_best(&prompts, 7).is_err() && expected_best(&prompts, 0).is_err());
        assert!(expected_best(&[], 1).is_err() && expected_best(&[scored(&[(f64::NAN, 0.)])], 1).is_err());
    }

    /// For scores uniform in [0, 1] the best of n has the density `n xⁿ⁻¹`.
    #[test]
    fn the_kl_bound_is_exact_for_uniform_scores() {
        for n in [1, 2, 4, 16] {
            let steps = 200_000;
            let density = |x: f64| n as f64 * x.powi(n as i32 - 1);
            let at = |i: i32| density((f64::from(i) + 0.5) / f64::from(steps));
            let kl: f64 = (0..steps).map(|i| at(i) * at(i).max(1e-300).ln() / f64::from(steps)).sum();
            assert!((kl_bound(n) - kl).abs() < 1e-5, "{n}: {} is not {kl}", kl_bound(n));
        }
    }

    #[test]
    fn n_at_kl_stays_within_the_kl() {
        for (kl, n) in [(0., 1), (0.1, 1), (0.2, 2), (kl_bound(7), 7), (1.5, 11), (1e9, 64), (f64::NAN, 1)] {
            assert_eq!(n_at_kl(kl, 64), n, "{kl}");
        }
    }
}
