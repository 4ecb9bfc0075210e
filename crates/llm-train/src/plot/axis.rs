//! Ticks of an axis and their labels.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// An axis from `low` to `high` with given ticks; both are positive if it is logarithmic.
pub(super) struct Scale {
    pub low: f64,
    pub high: f64,
    pub log: bool,
    pub ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, pixels: (i32, i32)) -> i32 {
        let share = match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        pixels.0 + (share * f64::from(pixels.1 - pixels.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// About `most` round numbers from `low` to `high`, with a step of 1, 2 or 5 times a power of ten; whole numbers if `whole`.
pub(super) fn ticks(low: f64, high: f64, most: usize, whole: bool) -> Vec<f64> {
    let least = (high - low) / most.max(1) as f64;
    if !(least > 0. && least.is_finite()) {
        return vec![low];
    }
    let power = 10f64.powf(least.log10().floor());
    let step = [1., 2., 5., 10.].map(|n| n * power).into_iter().find(|&step| step >= least * (1. - 1e-9));
    let step = step.unwrap_or(10. * power).max(if whole { 1. } else { 0. });
    let slack = 1e-9 * (high - low);
    let (first, last) = (((low - slack) / step).ceil() as i64, ((high + slack) / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The ticks of a logarithmic axis: powers of ten; if there are fewer than 4 also 2 and 5 times these, then all multiples, then
/// [`ticks`].
pub(super) fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let of = |factors: &[f64]| {
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        all.filter(|&tick| tick >= low * (1. - 1e-9) && tick <= high * (1. + 1e-9)).collect::<Vec<_>>()
    };
    let all = [of(&[1.]), of(&[1., 2., 5.]), of(&[1., 2., 3., 4., 5., 6., 7., 8., 9.])];
    all.into_iter().find(|ticks| ticks.len() >= 4).unwrap_or_else(|| ticks(low, high, 6, false))
}

/// The label of a tick, with as few decimals as possible, at most six.
pub(super) fn label(tick: f64) -> String {
    let size = tick.abs();
    if size != 0. && !(1e-4..1e7).contains(&size) {
        return format!("{tick:.0e}");
    }
    let text = format!("{tick:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(ticks(0., 1200., 6, true), [0., 200., 400., 600., 800., 1000., 1200.]);
        assert_eq!(ticks(0., 3., 10, true), [0., 1., 2., 3.]);
        assert_eq!(ticks(0.13, 0.39, 3, false), [2. * 0.1, 3. * 0.1]);
        assert_eq!(ticks(2., 2., 5, false), [2.]);
        assert_eq!(log_ticks(0.001, 900.), [0.001, 0.01, 0.1, 1., 10., 100.]);
        assert_eq!(log_ticks(0.8, 12.), [1., 2., 5., 10.]);
        assert_eq!(log_ticks(2., 6.), [2., 3., 4., 5., 6.]);
        assert!(log_ticks(2.1, 2.4).len() >= 3, "{:?}", log_ticks(2.1, 2.4));
    }

    #[test]
    fn labels_have_no_trailing_zeros() {
        let labels = [0., 5., 400., 0.25, 0.1 + 0.2, -1.5, -0., 1e-7, 3e9].map(label);
        assert_eq!(labels, ["0", "5", "400", "0.25", "0.3", "-1.5", "0", "1e-7", "3e9"]);
    }
}
