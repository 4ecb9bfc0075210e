//! One figure of a report, with what a reader needs to judge it.

use llm_data::world::SplitKey;
use serde::{Deserialize, Serialize};

use crate::stats::{cluster_bootstrap, paired_ratio};

/// What a figure is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    /// A share, shown in per cent.
    Share,
    /// A number with three decimals.
    Number,
    /// A number with one decimal.
    Rough,
    /// A whole number.
    Count,
}

impl Unit {
    pub fn show(self, x: f64) -> String {
        match self {
            Self::Share => format!("{:.1} %", 100. * x),
            Self::Number => format!("{x:.3}"),
            Self::Rough => format!("{x:.1}"),
            Self::Count => format!("{x:.0}"),
        }
    }
}

/// A row of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    /// What is measured; the same for every seed.
    pub name: String,
    pub unit: Unit,
    pub value: f64,
    /// The number of items that were tested, and of the units (facts, themes, frames) that they are about; 0: neither.
    pub items: (usize, usize),
    /// The 95 % interval, by a bootstrap over those units.
    pub interval: Option<(f64, f64)>,
    /// What is to be compared with it, by name.
    pub beside: Vec<(String, f64)>,
}

impl Figure {
    /// A figure without an interval.
    pub fn plain(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, items: (0, 0), interval: None, beside: Vec::new() }
    }

    /// The mean of one value for each item; items with the same key are not independent.
    pub fn mean(name: impl Into<String>, unit: Unit, values: &[f64], keys: &[&SplitKey]) -> Self {
        let (clusters, units) = numbered(keys);
        let interval = cluster_bootstrap(values, &clusters, 0).ok().map(|i| (i.low, i.high));
        let items = (values.len(), units);
        Self { items, interval, ..Self::plain(name, unit, mean(values)) }
    }

    /// The mean gain as a share of the mean possible gain.
    pub fn ratio(name: impl Into<String>, gain: &[f64], possible: &[f64], keys: &[&SplitKey]) -> Self {
        let (clusters, units) = numbered(keys);
        let interval = paired_ratio(gain, possible, &clusters, 0).ok().map(|i| (i.low, i.high));
        let items = (gain.len(), units);
        Self { items, interval, ..Self::plain(name, Unit::Share, mean(gain) / mean(possible)) }
    }

    /// Adds something to compare with.
    pub fn beside(mut self, name: impl Into<String>, value: f64) -> Self {
        self.beside.push((name.into(), value));
        self
    }
}

/// The keys as numbers, and how many different ones there are.
fn numbered(keys: &[&SplitKey]) -> (Vec<usize>, usize) {
    let mut known: Vec<&SplitKey> = keys.to_vec();
    known.sort_unstable();
    known.dedup();
    (keys.iter().map(|key| known.binary_search(key).unwrap_or(0)).collect(), known.len())
}

/// The mean; of nothing 0.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// 1 for each true, 0 for each false.
pub(super) fn scores(right: impl IntoIterator<Item = bool>) -> Vec<f64> {
    right.into_iter().map(|r| f64::from(u8::from(r))).collect()
}

/// The figures as a Markdown table.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut text = "| figure | value | 95 % interval | n (units) | beside it |\n|---|---|---|---|---|\n".to_owned();
    for figure in figures {
        let Figure { name, unit, value, items, interval, beside } = figure;
        let interval =
            interval.map_or_else(String::new, |(low, high)| format!("{} to {}", unit.show(low), unit.show(high)));
        let items = match items {
            (0, _) => String::new(),
            (n, units) => format!("{n} ({units})"),
        };
        let beside: Vec<String> = beside.iter().map(|(name, x)| format!("{name} {}", unit.show(*x))).collect();
        text += &format!("| {name} | {} | {interval} | {items} | {} |\n", unit.show(*value), beside.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_counts_items_and_units_and_its_interval_is_over_units() {
        let (a, b) = (SplitKey::new("theme", "a"), SplitKey::new("theme", "b"));
        let figure = Figure::mean("x", Unit::Share, &[1., 1., 0., 0.], &[&a, &a, &b, &b]).beside("chance", 0.5);
        assert_eq!((figure.value, figure.items), (0.5, (4, 2)));
        assert_eq!(figure.interval, Some((0., 1.)), "two units that disagree tell nothing");
        let text = table(&[figure]);
        assert!(text.contains("| x | 50.0 % | 0.0 % to 100.0 % | 4 (2) | chance 50.0 % |"), "{text}");
        let ratio = Figure::ratio("gain", &[1., 3.], &[2., 6.], &[&a, &b]);
        assert_eq!((ratio.value, ratio.interval), (0.5, Some((0.5, 0.5))));
        assert_eq!(Figure::mean("y", Unit::Number, &[1.], &[&a]).interval, None);
    }
}
