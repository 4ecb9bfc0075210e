//! One row of the report: a metric with its sample size, its confidence interval and its baselines.

use llm_eval::stats::{cluster_bootstrap, paired_ratio};
use llm_synthetic::SplitKey;
use serde::{Deserialize, Serialize};

/// The unit of a metric, which decides how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    /// A fraction, printed as a percentage.
    Share,
    /// Printed with three decimals.
    Number,
    /// Printed with one decimal.
    Rough,
    /// Printed as a whole number.
    Count,
}

impl Unit {
    pub fn show(self, x: f64) -> String {
        let text = match self {
            Self::Share => format!("{:.1} %", 100. * x),
            Self::Number => format!("{x:.3}"),
            Self::Rough => format!("{x:.1}"),
            Self::Count => format!("{x:.0}"),
        };
        // A small negative number is rounded to "-0".
        match text.strip_prefix('-') {
            Some(zero) if !zero.contains(|c: char| ('1'..='9').contains(&c)) => zero.to_owned(),
            _ => text,
        }
    }
}

/// A row of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Metric {
    /// The name, equal for all seeds.
    pub name: String,
    pub unit: Unit,
    pub value: f64,
    /// The number of test items, and of the clusters (facts, themes, sentence frames) they belong to; (0, 0) if not a mean.
    pub items: (usize, usize),
    /// The 95 % interval, from a bootstrap over those clusters.
    pub interval: Option<(f64, f64)>,
    /// Baselines and other values to compare with, by name.
    #[serde(alias = "beside")]
    pub references: Vec<(String, f64)>,
}

impl Metric {
    /// A metric without an interval.
    pub fn plain(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, items: (0, 0), interval: None, references: Vec::new() }
    }

    /// The mean of one value per item. Items with the same key form one cluster of the bootstrap.
    pub fn mean(name: impl Into<String>, unit: Unit, values: &[f64], keys: &[&SplitKey]) -> Self {
        let (clusters, count) = cluster_numbers(keys);
        let interval = cluster_bootstrap(values, &clusters, 0).ok().map(|i| (i.low, i.high));
        let items = (values.len(), count);
        Self { items, interval, ..Self::plain(name, unit, mean(values)) }
    }

    /// The mean gain divided by the mean of the largest possible gain.
    pub fn ratio(name: impl Into<String>, gain: &[f64], possible: &[f64], keys: &[&SplitKey]) -> Self {
        let (clusters, count) = cluster_numbers(keys);
        let interval = paired_ratio(gain, possible, &clusters, 0).ok().map(|i| (i.low, i.high));
        let items = (gain.len(), count);
        Self { items, interval, ..Self::plain(name, Unit::Share, mean(gain) / mean(possible)) }
    }

    /// Adds a baseline or another value to compare with.
    pub fn reference(mut self, name: impl Into<String>, value: f64) -> Self {
        self.references.push((name.into(), value));
        self
    }
}

/// A cluster number for each key, and the number of clusters.
fn cluster_numbers(keys: &[&SplitKey]) -> (Vec<usize>, usize) {
    let mut known: Vec<&SplitKey> = keys.to_vec();
    known.sort_unstable();
    known.dedup();
    (keys.iter().map(|key| known.binary_search(key).unwrap_or(0)).collect(), known.len())
}

/// The mean; 0 for an empty slice.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// 1 for each `true`, 0 for each `false`.
pub(super) fn scores(right: impl IntoIterator<Item = bool>) -> Vec<f64> {
    right.into_iter().map(|r| f64::from(u8::from(r))).collect()
}

/// The metrics as a Markdown table.
pub(super) fn table(metrics: &[Metric]) -> String {
    let mut text =
        "| metric | value | 95 % interval | n (clusters) | baselines and references |\n|---|---|---|---|---|\n"
            .to_owned();
    for metric in metrics {
        let Metric { name, unit, value, items, interval, references } = metric;
        let interval =
            interval.map_or_else(String::new, |(low, high)| format!("{} to {}", unit.show(low), unit.show(high)));
        let items = match items {
            (0, _) => String::new(),
            (n, clusters) => format!("{n} ({clusters})"),
        };
        let references: Vec<String> = references.iter().map(|(name, x)| format!("{name} {}", unit.show(*x))).collect();
        text += &format!("| {name} | {} | {interval} | {items} | {} |\n", unit.show(*value), references.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_sign() {
        for (unit, zero, below) in [
            (Unit::Share, "0.0 %", "-5.0 %"),
            (Unit::Number, "0.000", "-0.050"),
            (Unit::Rough, "0.0", "-0.1"),
            (Unit::Count, "0", "-1"),
        ] {
            for x in [0., -0., -1e-9] {
                assert_eq!(unit.show(x), zero);
            }
            assert_eq!(unit.show(if unit == Unit::Count { -0.9 } else { -0.0500001 }), below);
        }
        assert_eq!(Unit::Rough.show(f64::NAN), "NaN");
    }

    #[test]
    fn the_interval_of_a_metric_is_over_clusters() {
        let (a, b) = (SplitKey::new("theme", "a"), SplitKey::new("theme", "b"));
        let metric = Metric::mean("x", Unit::Share, &[1., 1., 0., 0.], &[&a, &a, &b, &b]).reference("chance", 0.5);
        assert_eq!((metric.value, metric.items), (0.5, (4, 2)));
        assert_eq!(metric.interval, Some((0., 1.)), "two clusters that disagree give the full range");
        let text = table(&[metric]);
        assert!(text.contains("| x | 50.0 % | 0.0 % to 100.0 % | 4 (2) | chance 50.0 % |"), "{text}");
        let ratio = Metric::ratio("gain", &[1., 3.], &[2., 6.], &[&a, &b]);
        assert_eq!((ratio.value, ratio.interval), (0.5, Some((0.5, 0.5))));
        assert_eq!(Metric::mean("y", Unit::Number, &[1.], &[&a]).interval, None);
    }
}
