//! Strengths of checkpoints by the Bradley-Terry model (Bradley and Terry 1952).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The strength of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strength {
    /// The checkpoint.
    pub checkpoint: String,
    /// Pairs that it won, lost and tied.
    pub wins: usize,
    /// See `wins`.
    pub losses: usize,
    /// See `wins`.
    pub ties: usize,
    /// The log-strength in nats, with the mean 0 over the checkpoints. None: there is no finite estimate.
    pub strength: Option<f64>,
    /// `1000 + 400 / ln 10 · strength`.
    pub elo: Option<f64>,
    /// The 95 % interval of `elo`, by bootstrap over the items.
    pub interval: Option<(f64, f64)>,
}

/// The strengths of all checkpoints, the strongest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Strengths {
    /// The checkpoints.
    pub checkpoints: Vec<Strength>,
    /// Bootstrap samples, and those of them without a finite estimate, which are not in the intervals.
    pub samples: usize,
    /// See `samples`.
    pub without_estimate: usize,
}

/// A compared pair: the indices of two checkpoints, and what the first one won: 1, 0, or 1/2 for a tie.
pub(super) type Game = (usize, usize, f64);

/// The log-strengths `θ` of the Bradley-Terry model `P(i beats j) = σ(θ_i - θ_j)` that maximise the likelihood, with the mean 0.
/// `wins[i][j]` is how often i won against j; a tie counts as half a win of each. None: there is no finite maximum, because some
/// contestants never lost against the others, never won, or never met them.
///
/// ```
/// let theta = llm_feedback::report::bradley_terry(&[vec![0., 7.], vec![3., 0.]]).unwrap(); // 6 wins, 2 losses, 2 ties
/// assert!((theta[0] - theta[1] - (0.7_f64 / 0.3).ln()).abs() < 1e-9);
/// ```
pub fn bradley_terry(wins: &[Vec<f64>]) -> Option<Vec<f64>> {
    let count = wins.len();
    if !is_connected(wins) {
        return None;
    }
    // The minorisation-maximisation algorithm of Hunter 2004, "MM algorithms for generalized Bradley-Terry models".
    let mut strengths = vec![1.; count];
    for _ in 0..100_000 {
        let mut change: f64 = 0.;
        for i in 0..count {
            let won: f64 = (0..count).filter(|&j| j != i).map(|j| wins[i][j]).sum();
            let met = |j: usize| (wins[i][j] + wins[j][i]) / (strengths[i] + strengths[j]);
            let met: f64 = (0..count).filter(|&j| j != i).map(met).sum();
            if met > 0. {
                let new: f64 = won / met;
                change = change.max((new / strengths[i]).ln().abs());
                strengths[i] = new;
            }
        }
        if change < 1e-12 {
            break;
        }
    }
    let logs: Vec<f64> = strengths.iter().map(|strength: &f64| strength.ln()).collect();
    let mean = logs.iter().sum::<f64>() / count.max(1) as f64;
    Some(logs.into_iter().map(|log| log - mean).collect())
}

/// Whether each contestant has won against each other one, directly or through others: then the maximum is finite and unique
/// (Ford 1957).
fn is_connected(wins: &[Vec<f64>]) -> bool {
    let count = wins.len();
    let mut reaches: Vec<Vec<bool>> =
        (0..count).map(|i| (0..count).map(|j| i == j || wins[i][j] > 0.).collect()).collect();
    for via in 0..count {
        for from in 0..count {
            for to in 0..count {
                reaches[from][to] |= reaches[from][via] && reaches[via][to];
            }
        }
    }
    reaches.iter().flatten().all(|&reached| reached)
}

fn table(count: usize, games: impl IntoIterator<Item = Game>) -> Vec<Vec<f64>> {
    let mut wins = vec![vec![0.; count]; count];
    for (one, other, won) in games {
        wins[one][other] += won;
        wins[other][one] += 1. - won;
    }
    wins
}

/// The strengths from the games of each item. `samples` bootstrap samples of the items give the intervals.
pub(super) fn strengths(names: &[String], items: &[Vec<Game>], samples: usize, seed: u64) -> Strengths {
    let count = names.len();
    let estimate = bradley_terry(&table(count, items.iter().flatten().copied()));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut drawn, mut without_estimate) = (vec![Vec::new(); count], 0);
    let draw = estimate.is_some() && !items.is_empty();
    for _ in 0..if draw { samples } else { 0 } {
        let sample = (0..items.len()).flat_map(|_| items[rng.random_range(0..items.len())].iter().copied());
        match bradley_terry(&table(count, sample)) {
            Some(theta) => theta.into_iter().zip(&mut drawn).for_each(|(theta, all)| all.push(theta)),
            None => without_estimate += 1,
        }
    }
    let elo = |theta: f64| 1000. + 400. / std::f64::consts::LN_10 * theta;
    let interval = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * (values.len() as f64 - 1.)).round() as usize).copied();
        Some((elo(at(0.025)?), elo(at(0.975)?)))
    };
    let mut checkpoints: Vec<Strength> = (0..count)
        .map(|i| {
            let games = items.iter().flatten();
            let of = |result: f64| {
                let matches =
                    |game: &&Game| (game.0 == i && game.2 == result) || (game.1 == i && 1. - game.2 == result);
                games.clone().filter(matches).count()
            };
            let strength = estimate.as_ref().map(|theta| theta[i]);
            Strength {
                checkpoint: names[i].clone(),
                wins: of(1.),
                losses: of(0.),
                ties: of(0.5),
                strength,
                elo: strength.map(elo),
                interval: interval(&mut drawn[i]),
            }
        })
        .collect();
    let order = |one: &Strength| one.strength.unwrap_or(f64::NEG_INFINITY);
    checkpoints.sort_by(|a, b| order(b).total_cmp(&order(a)).then_with(|| a.checkpoint.cmp(&b.checkpoint)));
    Strengths { checkpoints, samples: if draw { samples } else { 0 }, without_estimate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_as_half_a_win_of_each() {
        let games: Vec<Vec<Game>> =
            [1., 1., 1., 1., 1., 1., 0., 0., 0.5, 0.5].iter().map(|&won| vec![(0, 1, won)]).collect();
        let found = strengths(&["a".to_owned(), "b".to_owned()], &games, 1000, 42);
        let [a, b] = &found.checkpoints[..] else { panic!("two") };
        assert_eq!((a.checkpoint.as_str(), a.wins, a.losses, a.ties, b.wins), ("a", 6, 2, 2, 2));
        let difference = a.strength.unwrap() - b.strength.unwrap();
        assert!((difference - 0.847_298).abs() < 1e-6, "{difference}");
        assert!((a.elo.unwrap() - b.elo.unwrap() - 147.19).abs() < 0.01);
        let (low, high) = a.interval.unwrap();
        assert!(low < a.elo.unwrap() && a.elo.unwrap() < high, "{found:?}");
        assert!(found.samples == 1000 && found.without_estimate < 100);
        assert_eq!(found, strengths(&["a".to_owned(), "b".to_owned()], &games, 1000, 42), "the same seed");
    }

    /// At the maximum of the likelihood the expected wins are those that were seen.
    #[test]
    fn expected_wins_are_the_wins_that_were_seen() {
        let wins = vec![vec![0., 5., 8.5, 1.], vec![3., 0., 4., 2.], vec![1.5, 6., 0., 0.5], vec![0., 1., 7.5, 0.]];
        let theta = bradley_terry(&wins).unwrap();
        for i in 0..4 {
            let seen: f64 = wins[i].iter().sum();
            let expected = |j: usize| (wins[i][j] + wins[j][i]) / (1. + (theta[j] - theta[i]).exp());
            let expected: f64 = (0..4).filter(|&j| j != i).map(expected).sum();
            assert!((seen - expected).abs() < 1e-8, "{seen} {expected}");
        }
        assert!(theta.iter().sum::<f64>().abs() < 1e-9);
    }

    #[test]
    fn there_is_no_strength_without_a_finite_estimate() {
        assert_eq!(bradley_terry(&[vec![0., 5.], vec![0., 0.]]), None, "never lost");
        assert_eq!(bradley_terry(&[vec![0.; 3], vec![0.; 3], vec![0.; 3]]), None, "never met");
        let found = strengths(&["a".to_owned(), "b".to_owned()], &[vec![(0, 1, 1.)]], 100, 1);
        assert!(found.checkpoints.iter().all(|one| one.elo.is_none() && one.interval.is_none()));
    }

    /// The interval must have the true difference in 95 of 100 data sets.
    #[test]
    fn bootstrap_intervals_cover_the_true_strength() {
        let names = ["a".to_owned(), "b".to_owned()];
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let truth = 1000. + 400. / std::f64::consts::LN_10 * 0.4;
        let covered = (0..200).filter(|_| {
            let p = 1. / (1. + (-0.8_f64).exp());
            let games: Vec<Vec<Game>> =
                (0..100).map(|_| vec![(0, 1, f64::from(u8::from(rng.random::<f64>() < p)))]).collect();
            let found = strengths(&names, &games, 200, 9);
            let a = found.checkpoints.iter().find(|one| one.checkpoint == "a").unwrap();
            a.interval.is_some_and(|(low, high)| (low..=high).contains(&truth))
        });
        // 95 % of 200 with 4 standard errors.
        assert!((178..=200).contains(&covered.count()));
    }
}
