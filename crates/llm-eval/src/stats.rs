//! 95 % confidence intervals of shares, of means over clustered items, and of means over seeds.
//!
//! - A share of `n` independent items: [`wilson`] (Wilson 1927; recommended for small `n` by Brown et al. 2001).
//! - A mean over items in clusters (several replies to one prompt, several pairs of one ranking): [`cluster_bootstrap`], which
//!   resamples whole clusters (Cameron, Gelbach and Miller 2008, section II).
//! - Two systems on the same items: [`paired_difference`] and [`paired_ratio`], which resample both systems together.
//! - A metric over several seeds: [`Spread`], with Student's t.
//!
//! ```
//! use llm_eval::stats::wilson;
//!
//! let interval = wilson(52, 60); // 86.7 %
//! assert!((interval.low - 0.758).abs() < 0.001 && (interval.high - 0.931).abs() < 0.001);
//! ```

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Result};

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Number of bootstrap samples.
const DRAWS: usize = 2000;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `x` is in the interval, ends included.
    pub fn contains(&self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }
}

/// The Wilson score interval of the share `successes / n` of independent items; 0 to 1 if `n` is 0.
pub fn wilson(successes: usize, n: usize) -> Interval {
    wilson_of_sum(successes as f64, n)
}

/// [`wilson`] for scores of 1 (correct), 0 (wrong) and 0.5 (tie).
pub fn wilson_of(scores: &[f64]) -> Interval {
    wilson_of_sum(scores.iter().sum(), scores.len())
}

fn wilson_of_sum(successes: f64, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0., high: 1. };
    }
    let n = n as f64;
    let share = successes / n;
    let centre = share + Z * Z / (2. * n);
    let half = Z * (share * (1. - share) / n + Z * Z / (4. * n * n)).sqrt();
    let scale = 1. + Z * Z / n;
    Interval { low: ((centre - half) / scale).max(0.), high: ((centre + half) / scale).min(1.) }
}

/// The interval of the mean of `scores` from 0 to 1; score `i` belongs to cluster `clusters[i]`, and those of a cluster depend on each
/// other.
///
/// It is [`wilson_of`] if every cluster has one score, and [`cluster_bootstrap`] if not. If all clusters have the same mean, or there is
/// only one, a bootstrap has no width: then it is Wilson's, with a cluster as one item. The lengths must be equal.
pub fn share_interval(scores: &[f64], clusters: &[usize], seed: u64) -> Result<Interval> {
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (score, cluster) in scores.iter().zip(clusters) {
        let (sum, count) = sums.entry(*cluster).or_default();
        (*sum, *count) = (*sum + score, *count + 1.);
    }
    if scores.len() == clusters.len() && sums.len() == scores.len() {
        return Ok(wilson_of(scores));
    }
    let means: Vec<f64> = sums.into_values().map(|(sum, count)| sum / count).collect();
    match means.iter().all(|mean| *mean == means[0]) {
        true if scores.len() == clusters.len() => Ok(wilson_of(&means)),
        _ => cluster_bootstrap(scores, clusters, seed),
    }
}

/// The bootstrap interval of the mean of `values`; item `i` belongs to cluster `clusters[i]`.
///
/// Each of 2,000 bootstrap samples draws clusters with replacement, as many as there are, and takes the mean over their items. The
/// interval is from the 2.5th to the 97.5th percentile. The same seed gives the same interval. It is an error if the lengths
/// differ or there are fewer than two clusters.
pub fn cluster_bootstrap(values: &[f64], clusters: &[usize], seed: u64) -> Result<Interval> {
    bootstrap([values], clusters, seed, |[mean]| mean)
}

/// [`cluster_bootstrap`] of `mean(a) - mean(b)`; `a[i]` and `b[i]` belong to the same item.
pub fn paired_difference(a: &[f64], b: &[f64], clusters: &[usize], seed: u64) -> Result<Interval> {
    bootstrap([a, b], clusters, seed, |[a, b]| a - b)
}

/// [`cluster_bootstrap`] of `mean(a) / mean(b)`; `a[i]` and `b[i]` belong to the same item.
///
/// It is an error if the mean of `b` is 0 in a bootstrap sample. Example: gain `a` as a share of the largest possible gain `b`.
pub fn paired_ratio(a: &[f64], b: &[f64], clusters: &[usize], seed: u64) -> Result<Interval> {
    bootstrap([a, b], clusters, seed, |[a, b]| a / b)
}

/// The percentile interval of a statistic of the columns' means; resamples whole clusters.
fn bootstrap<const N: usize>(
    columns: [&[f64]; N],
    clusters: &[usize],
    seed: u64,
    statistic: impl Fn([f64; N]) -> f64,
) -> Result<Interval> {
    if let Some(column) = columns.iter().find(|column| column.len() != clusters.len()) {
        let (values, clusters) = (column.len(), clusters.len());
        return Err(Error::Lengths { values, clusters });
    }
    let mut sums: BTreeMap<usize, ([f64; N], usize)> = BTreeMap::new();
    for (i, &cluster) in clusters.iter().enumerate() {
        let (sum, count) = sums.entry(cluster).or_insert(([0.; N], 0));
        *count += 1;
        for (sum, column) in sum.iter_mut().zip(columns) {
            *sum += column[i];
        }
    }
    let sums: Vec<([f64; N], usize)> = sums.into_values().collect();
    if sums.len() < 2 {
        return Err(Error::TooFew { statistic: "a bootstrap", n: sums.len(), unit: "clusters" });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draws = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let (mut total, mut items) = ([0.; N], 0);
        for _ in 0..sums.len() {
            let (sum, count) = &sums[rng.random_range(0..sums.len())];
            items += count;
            for (total, sum) in total.iter_mut().zip(sum) {
                *total += sum;
            }
        }
        draws.push(statistic(total.map(|sum| sum / items as f64)));
    }
    if draws.iter().any(|draw| !draw.is_finite()) {
        return Err(Error::StatisticNotFinite);
    }
    draws.sort_by(f64::total_cmp);
    Ok(Interval { low: quantile(&draws, 0.025), high: quantile(&draws, 0.975) })
}

/// The quantile of sorted values, with linear interpolation.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// A metric over several runs with different seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The number of runs.
    pub n: usize,
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation (divided by `n - 1`).
    pub std: f64,
    /// The interval of the mean from Student's t with `n - 1` degrees of freedom.
    pub interval: Interval,
}

impl Spread {
    /// The spread of the values; it is an error if there are fewer than two.
    ///
    /// ```
    /// let spread = llm_eval::stats::Spread::of(&[1., 2., 3.])?;
    /// assert_eq!((spread.mean, spread.std), (2., 1.));
    /// assert!((spread.interval.high - 4.484).abs() < 0.001); // 2 + 4.303 / √3
    /// # Ok::<(), llm_eval::Error>(())
    /// ```
    pub fn of(values: &[f64]) -> Result<Self> {
        let n = values.len();
        let too_few = Error::TooFew { statistic: "the spread", n, unit: "values" };
        if n < 2 {
            return Err(too_few);
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
        let t = StudentsT::new(0., 1., (n - 1) as f64).map_err(|_| too_few)?;
        let half = t.inverse_cdf(0.975) * std / (n as f64).sqrt();
        Ok(Self { n, mean, std, interval: Interval { low: mean - half, high: mean + half } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_interval(interval: Interval, low: f64, high: f64, tolerance: f64) {
        let near = (interval.low - low).abs() < tolerance && (interval.high - high).abs() < tolerance;
        assert!(near, "{interval:?} is not {low}..{high}");
    }

    /// Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    #[test]
    fn wilson_matches_published_values() {
        assert_interval(wilson(81, 263), 0.2553, 0.3662, 5e-5);
        assert_interval(wilson(15, 148), 0.0624, 0.1605, 5e-5);
        assert_interval(wilson(0, 20), 0., 0.1611, 5e-5);
        assert_interval(wilson(1, 29), 0.0061, 0.1718, 5e-5);
        assert_interval(wilson(52, 60), 0.758, 0.931, 5e-4);
        assert_eq!(wilson(0, 0), Interval { low: 0., high: 1. });
        assert_eq!(wilson(7, 7).high, 1.);
        assert_eq!(wilson_of(&[1., 1., 0., 0.5, 0.5]), wilson(3, 5));
    }

    #[test]
    fn a_share_has_an_interval_with_a_width_however_its_items_are_clustered() {
        let of = |scores: &[f64], clusters: &[usize]| share_interval(scores, clusters, 1).unwrap();
        let mixed = [1., 0., 1., 1.];
        assert_eq!(of(&mixed, &[4, 3, 2, 1]), wilson(3, 4), "every item is a cluster");
        assert_eq!(of(&mixed, &[1, 1, 2, 2]), cluster_bootstrap(&mixed, &[1, 1, 2, 2], 1).unwrap());
        assert_eq!(of(&[1.; 6], &[1, 1, 2, 2, 3, 3]), wilson(3, 3), "equal clusters: a bootstrap has no width");
        assert_eq!(of(&[0.5; 4], &[7; 4]), wilson_of(&[0.5]), "one cluster is one item");
        assert_eq!(of(&[], &[]), wilson(0, 0));
        assert!(matches!(share_interval(&[1.], &[], 1), Err(Error::Lengths { .. })));
    }

    /// The exact coverage, from the binomial distribution.
    #[test]
    fn wilson_covers_the_true_share_in_about_95_percent_of_samples() {
        let n = 60;
        let mut coverages = Vec::new();
        for percent in (5..=95).step_by(5) {
            let p = f64::from(percent) / 100.;
            let (mut mass, mut covered) = ((1. - p).powi(n), 0.);
            for k in 0..=n {
                if wilson(k as usize, n as usize).contains(p) {
                    covered += mass;
                }
                mass *= f64::from(n - k) / f64::from(k + 1) * p / (1. - p);
            }
            assert!(covered > 0.92 && covered < 0.985, "{p}: {covered}");
            coverages.push(covered);
        }
        let mean = coverages.iter().sum::<f64>() / coverages.len() as f64;
        assert!((mean - 0.95).abs() < 0.006, "{mean}");
    }

    #[test]
    fn the_bootstrap_of_two_clusters_matches_hand_computed_values() {
        // Means of the bootstrap samples: 0 and 4 with probability 1/4 each, else 4/3.
        let interval = cluster_bootstrap(&[0., 0., 4.], &[7, 7, 3], 1).unwrap();
        assert_eq!(interval, Interval { low: 0., high: 4. });
        let same = cluster_bootstrap(&[2.; 6], &[0, 0, 1, 1, 2, 2], 1).unwrap();
        assert_eq!(same, Interval { low: 2., high: 2. });
    }

    #[test]
    fn many_clusters_give_the_normal_interval() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let each: Vec<usize> = (0..400).collect();
        let half = Z * 0.5 / 20.;
        assert_interval(cluster_bootstrap(&values, &each, 3).unwrap(), 0.5 - half, 0.5 + half, 0.006);
        // Each value four times in one cluster: the interval must not shrink.
        let fourfold: Vec<f64> = values.iter().flat_map(|&x| [x; 4]).collect();
        let clusters: Vec<usize> = (0..1600).map(|i| i / 4).collect();
        assert_interval(cluster_bootstrap(&fourfold, &clusters, 3).unwrap(), 0.5 - half, 0.5 + half, 0.006);
    }

    #[test]
    fn the_bootstrap_is_deterministic_and_rejects_invalid_input() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i * 37 % 11)).collect();
        let clusters: Vec<usize> = (0..50).map(|i| i / 3).collect();
        let of = |seed| cluster_bootstrap(&values, &clusters, seed).unwrap();
        assert_eq!(of(5), of(5));
        assert_ne!(of(5), of(6));
        for (values, clusters) in
            [(&[][..], &[][..]), (&[1., 2.], &[4, 4]), (&[1.], &[0, 1]), (&[f64::NAN, 1.], &[0, 1])]
        {
            assert!(cluster_bootstrap(values, clusters, 0).is_err());
        }
        assert!(paired_ratio(&[1., 2.], &[0., 0.], &[0, 1], 0).is_err());
    }

    /// Items of a cluster share an offset. Resampling clusters gives about 95 % coverage; resampling items does not (negative
    /// control).
    #[test]
    fn resampling_clusters_gives_correct_coverage() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut noise = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.; // variance 1
        let (rounds, clusters, size) = (200, 30, 5);
        let (mut by_cluster, mut by_item) = (0, 0);
        for round in 0..rounds {
            let (mut values, mut of_cluster) = (Vec::new(), Vec::new());
            for cluster in 0..clusters {
                let offset = noise();
                for _ in 0..size {
                    values.push(offset + 0.5 * noise());
                    of_cluster.push(cluster);
                }
            }
            let items: Vec<usize> = (0..values.len()).collect();
            let covers = |clusters: &[usize]| cluster_bootstrap(&values, clusters, round).unwrap().contains(0.);
            by_cluster += u32::from(covers(&of_cluster));
            by_item += u32::from(covers(&items));
        }
        let share = |n: u32| f64::from(n) / rounds as f64;
        assert!((0.88..=0.99).contains(&share(by_cluster)), "{}", share(by_cluster));
        assert!(share(by_item) < 0.8, "{}", share(by_item));
    }

    /// Items vary much, the two systems differ little: only the paired interval excludes 0.
    #[test]
    fn a_paired_interval_is_narrower_than_two_separate_ones() {
        let b: Vec<f64> = (0..60).map(|i| f64::from(i * 41 % 60)).collect();
        let a: Vec<f64> = b.iter().enumerate().map(|(i, x)| 1.1 * x + 0.3 + 0.1 * f64::from(i as u32 % 3)).collect();
        let each: Vec<usize> = (0..60).collect();
        let difference = paired_difference(&a, &b, &each, 1).unwrap();
        assert!(difference.low > 2.5 && difference.high < 4.5, "{difference:?}");
        let (single_a, single_b) = (cluster_bootstrap(&a, &each, 1).unwrap(), cluster_bootstrap(&b, &each, 1).unwrap());
        assert!(single_a.low < single_b.high);
        let double: Vec<f64> = b.iter().map(|x| 2. * x).collect();
        assert_interval(paired_ratio(&double, &b, &each, 1).unwrap(), 2., 2., 1e-12);
    }

    /// Quantiles of Student's t: 12.706 (1 degree of freedom) and 4.303 (2).
    #[test]
    fn the_spread_matches_tables_of_students_t() {
        let two = Spread::of(&[1., 3.]).unwrap();
        assert_eq!((two.n, two.mean), (2, 2.));
        assert_interval(two.interval, 2. - 12.706, 2. + 12.706, 1e-3);
        let three = Spread::of(&[0.90, 0.92, 0.97]).unwrap();
        assert!((three.std - 0.036056).abs() < 1e-6);
        assert_interval(three.interval, 0.93 - 4.303 * 0.036056 / 1.732051, 0.93 + 4.303 * 0.036056 / 1.732051, 1e-4);
        assert!(Spread::of(&[1.]).is_err());
    }
}
