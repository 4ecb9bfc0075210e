//! The order in which the rows of several datasets are drawn: each has its share at every time.

use crate::{Error, Result};

/// A sequence of sources in which source i has a share `w_i` of the first n rows for every n, up to less than one row.
///
/// R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980): with k sources the deviation is at most
/// `1 - 1 / (2k - 2)`. Taking the source that is furthest below its share has no such bound for three or more.
#[derive(Debug, Clone)]
pub(crate) struct Mixture {
    shares: Vec<f64>,
    /// Rows of each source among the first `done` rows.
    counts: Vec<u64>,
    done: u64,
}

/// Rounding errors of shares times counts.
const ROUNDING: f64 = 1e-6;

impl Mixture {
    /// A mixture with these weights, which need not add up to 1. An error if one is negative or not finite, or if all are 0.
    pub fn new(weights: &[f64]) -> Result<Self> {
        let sum: f64 = weights.iter().sum();
        if !(sum > 0. && sum.is_finite() && weights.iter().all(|weight| *weight >= 0.)) {
            return Err(Error::Weights { weights: weights.to_vec() });
        }
        let shares = weights.iter().map(|weight| weight / sum).collect();
        Ok(Self { shares, counts: vec![0; weights.len()], done: 0 })
    }

    /// The shares, which add up to 1.
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// Goes to a row. Takes time proportional to the number of rows passed over.
    pub fn seek(&mut self, row: u64) {
        if row < self.done {
            self.counts.fill(0);
            self.done = 0;
        }
        if let [count] = self.counts.as_mut_slice() {
            (*count, self.done) = (row, row);
        }
        while self.done < row {
            self.next_row();
        }
    }

    /// The source of the next row, and the number of the rows of this source before it.
    pub fn next_row(&mut self) -> (usize, u64) {
        let rows = (self.done + 1) as f64;
        let used = self.shares.iter().filter(|share| **share > 0.).count();
        let bound = 1. / (2 * used.max(2) - 2) as f64;
        let missing = |source: usize| self.shares[source] * rows - self.counts[source] as f64;
        // The rows after which a source would be too far below its share.
        let time_left = |source: usize| (1. - bound - missing(source)) / self.shares[source];
        let allowed = |source: &usize| self.shares[*source] > 0. && missing(*source) >= bound - ROUNDING;
        let all = 0..self.shares.len();
        let chosen = all.clone().filter(allowed).min_by(|a, b| time_left(*a).total_cmp(&time_left(*b)));
        let chosen = chosen.or_else(|| all.max_by(|a, b| missing(*a).total_cmp(&missing(*b)))).unwrap_or(0);
        self.done += 1;
        self.counts[chosen] += 1;
        (chosen, self.counts[chosen] - 1)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The largest deviation from the shares in the first rows.
    fn deviation(weights: &[f64], rows: u64) -> f64 {
        let mut mixture = Mixture::new(weights).unwrap();
        let mut largest = 0_f64;
        for n in 1..=rows {
            mixture.next_row();
            let differences = mixture.shares.iter().zip(&mixture.counts).map(|(w, &c)| (w * n as f64 - c as f64).abs());
            largest = differences.fold(largest, f64::max);
        }
        largest
    }

    #[test]
    fn every_prefix_has_the_shares_up_to_less_than_one_row() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for case in 0..300 {
            let sources = case % 12 + 1;
            let weights: Vec<f64> = (0..sources).map(|_| rng.random::<f64>().powi(4) + 1e-6).collect();
            let found = deviation(&weights, 4000);
            let bound = if sources == 1 { 0. } else { 1. - 1. / f64::from(2 * sources - 2) };
            assert!(found <= bound + 1e-5, "{found} is above {bound}: {weights:?}");
        }
        for weights in [&[0.001, 0.999][..], &[1., 0., 3.], &[1e-9, 1.], &[1.; 40]] {
            assert!(deviation(weights, 20_000) < 1., "{weights:?}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_way_to_it() {
        let mut mixture = Mixture::new(&[0.2, 0.7, 0.1]).unwrap();
        let rows: Vec<_> = (0..1000).map(|_| mixture.next_row()).collect();
        for row in [999, 0, 500, 501, 20] {
            mixture.seek(row);
            assert_eq!(mixture.next_row(), rows[row as usize]);
        }
        let mut single = Mixture::new(&[3.]).unwrap();
        single.seek(u64::MAX / 2);
        assert_eq!(single.next_row(), (0, u64::MAX / 2));
    }

    #[test]
    fn a_source_without_weight_is_never_drawn_and_impossible_weights_are_errors() {
        let mut mixture = Mixture::new(&[1., 0., 2.]).unwrap();
        assert!((0..3000).all(|_| mixture.next_row().0 != 1));
        for weights in [&[][..], &[0., 0.], &[1., -1.], &[f64::NAN], &[f64::INFINITY, 1.]] {
            assert!(Mixture::new(weights).is_err(), "{weights:?}");
        }
    }
}
