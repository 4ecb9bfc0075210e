//! Shares with confidence intervals.

use serde::Serialize;

/// A share of pairs or judgements, with a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// The share, from 0 to 1.
    pub share: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
    /// The number of pairs or judgements.
    pub count: usize,
}

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl Share {
    /// The share of clusters of trials: `(successes, trials)` of each cluster, such as the pairs of one judgement. None without trials.
    ///
    /// The interval is Wilson's (Wilson 1927) with the effective number of trials of clustered data, `p (1 - p) / se²`, where `se` is
    /// the standard error of the ratio (Korn and Graubard 1998). With one trial in each cluster it is Wilson's interval.
    pub fn of(clusters: &[(usize, usize)]) -> Option<Self> {
        let successes: usize = clusters.iter().map(|cluster| cluster.0).sum();
        let count: usize = clusters.iter().map(|cluster| cluster.1).sum();
        if count == 0 {
            return None;
        }
        let trials = count as f64;
        let p = successes as f64 / trials;
        let squares: f64 = clusters.iter().map(|(x, n)| (*x as f64 - p * *n as f64).powi(2)).sum();
        let variance = squares / trials.powi(2);
        let n = match variance > 0. {
            true => (p * (1. - p) / variance).min(trials),
            false => clusters.iter().filter(|cluster| cluster.1 > 0).count() as f64,
        };
        let middle = (p + Z * Z / (2. * n)) / (1. + Z * Z / n);
        let half = Z / (1. + Z * Z / n) * (p * (1. - p) / n + Z * Z / (4. * n * n)).sqrt();
        Some(Self { share: p, low: (middle - half).max(0.), high: (middle + half).min(1.), count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wilson's interval of 15 in 20 is .5313 to .8881 (`scipy.stats.binomtest(15, 20).proportion_ci(method="wilson")`).
    #[test]
    fn a_share_of_single_trials_has_wilsons_interval() {
        let mut clusters = vec![(1, 1); 15];
        clusters.extend([(0, 1); 5]);
        let share = Share::of(&clusters).unwrap();
        assert_eq!((share.share, share.count), (0.75, 20));
        assert!((share.low - 0.531_299).abs() < 1e-5 && (share.high - 0.888_138).abs() < 1e-5, "{share:?}");
        let all = Share::of(&[(1, 1); 10]).unwrap();
        assert!(all.high > 1. - 1e-12 && (all.low - 0.722_467).abs() < 1e-5, "{all:?}");
        assert_eq!(Share::of(&[]), None);
    }

    /// Three pairs that always agree say as much as one.
    #[test]
    fn pairs_of_one_judgement_do_not_count_as_independent() {
        let one: Vec<(usize, usize)> = (0..20).map(|at| (usize::from(at < 15), 1)).collect();
        let three: Vec<(usize, usize)> = one.iter().map(|(x, n)| (3 * x, 3 * n)).collect();
        let (one, three) = (Share::of(&one).unwrap(), Share::of(&three).unwrap());
        assert!((one.low - three.low).abs() < 1e-12 && (one.high - three.high).abs() < 1e-12);
        assert_eq!((one.count, three.count), (20, 60));
    }
}
