//! Agreement of judges: Krippendorff's alpha and Cohen's kappa.

use std::collections::BTreeMap;

/// Krippendorff's alpha for ordinal data (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). Each unit has the values
/// that its judges gave; units with fewer than two values are not used. 1 is perfect agreement, 0 that of chance. None: there is no
/// unit with two values, or all values are equal.
///
/// ```
/// let alpha = llm_feedback::report::krippendorff_alpha(&[vec![1., 1.], vec![2., 2.], vec![3., 2.], vec![1., 2.]]);
/// assert!((alpha.unwrap() - 0.5375).abs() < 1e-4);
/// ```
pub fn krippendorff_alpha(units: &[Vec<f64>]) -> Option<f64> {
    let used: Vec<&Vec<f64>> = units.iter().filter(|unit| unit.len() >= 2).collect();
    let mut values: Vec<f64> = used.iter().copied().flatten().copied().collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let place = |value: f64| values.binary_search_by(|other| other.total_cmp(&value)).unwrap_or(0);
    // Coincidences of two values in a unit, each unit with the weight 1 / (m - 1) for m values.
    let mut observed: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut counts = vec![0.; values.len()];
    for unit in &used {
        for (at, &one) in unit.iter().enumerate() {
            counts[place(one)] += 1.;
            for &other in &unit[at + 1..] {
                let (one, other) = (place(one), place(other));
                *observed.entry((one.min(other), one.max(other))).or_default() += 2. / (unit.len() as f64 - 1.);
            }
        }
    }
    // Squared ordinal distance: the values between the two, with half of the two themselves.
    let distance = |low: usize, high: usize| {
        let between: f64 = counts[low..=high].iter().sum();
        (between - f64::midpoint(counts[low], counts[high])).powi(2)
    };
    let total: f64 = counts.iter().sum();
    let seen: f64 = observed.iter().map(|(&(low, high), &times)| times * distance(low, high)).sum();
    let mut expected = 0.;
    for low in 0..values.len() {
        for high in low + 1..values.len() {
            expected += 2. * counts[low] * counts[high] * distance(low, high);
        }
    }
    (expected > 0.).then(|| 1. - (total - 1.) * seen / expected)
}

/// Cohen's kappa of two judges (Cohen 1960): pairs of categories, one from each judge. None: no pairs, or both always gave the same
/// category.
pub fn cohen_kappa(pairs: &[(i8, i8)]) -> Option<f64> {
    let count = pairs.len() as f64;
    let (mut first, mut second): (BTreeMap<i8, f64>, BTreeMap<i8, f64>) = Default::default();
    for (one, other) in pairs {
        *first.entry(*one).or_default() += 1. / count;
        *second.entry(*other).or_default() += 1. / count;
    }
    let agreed = pairs.iter().filter(|(one, other)| one == other).count() as f64 / count;
    let chance: f64 = first.iter().map(|(category, share)| share * second.get(category).unwrap_or(&0.)).sum();
    (!pairs.is_empty() && chance < 1.).then(|| (agreed - chance) / (1. - chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f64 = f64::NAN;

    /// The values of each unit, of a table with a row for each judge.
    fn units(rows: &[&[f64]]) -> Vec<Vec<f64>> {
        let unit = |at: usize| rows.iter().map(|row| row[at]).filter(|value| !value.is_nan()).collect();
        (0..rows[0].len()).map(unit).collect()
    }

    /// The example of Krippendorff 2011, section C, of 4 judges and 12 units, for which he gives .815; more digits, and the random
    /// tables with half ranks, are from the Python package `krippendorff` 0.9.0 (`level_of_measurement="ordinal"`).
    #[test]
    fn alpha_is_that_of_published_examples_and_of_the_python_package() {
        let tables: [(&[&[f64]], f64); 4] = [
            (
                &[
                    &[1., 2., 3., 3., 2., 1., 4., 1., 2., NONE, NONE, NONE],
                    &[1., 2., 3., 3., 2., 2., 4., 1., 2., 5., NONE, 3.],
                    &[NONE, 3., 3., 3., 2., 3., 4., 2., 2., 5., 1., NONE],
                    &[1., 2., 3., 3., 2., 4., 4., 1., 2., 5., 1., NONE],
                ],
                0.815_387_503_754_881_4,
            ),
            (
                &[
                    &[3., 2., 2.5, 3., 2., 2.5, 3., 1.],
                    &[0.5, NONE, 1., NONE, NONE, 0.5, 1.5, 2.5],
                    &[0.5, 2.5, 0.5, 1.5, NONE, NONE, 1.5, 1.],
                ],
                -0.242_796_157_950_907_03,
            ),
            (
                &[
                    &[1.5, 3., 0.5, 2., 2., 0.5, NONE, 3.],
                    &[1.5, 3., 2., 3., NONE, 2., NONE, NONE],
                    &[2., 1., 2.5, 3., 1., 2., 0.5, 1.],
                ],
                -0.131_310_667_772_303_7,
            ),
            (&[&[1., 2., 3.], &[1., 2., 3.]], 1.),
        ];
        for (rows, expected) in tables {
            let found = krippendorff_alpha(&units(rows)).unwrap();
            assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        }
        for undefined in [vec![], vec![vec![1.], vec![2.]], vec![vec![1., 1.], vec![1., 1.]]] {
            assert_eq!(krippendorff_alpha(&undefined), None);
        }
    }

    /// The value is that of `sklearn.metrics.cohen_kappa_score`.
    #[test]
    fn kappa_is_that_of_scikit_learn() {
        let pairs = [(1, 1), (1, 0), (0, 0), (-1, -1), (-1, 1), (1, 1), (0, 0), (1, 1), (-1, -1), (0, -1)];
        assert!((cohen_kappa(&pairs).unwrap() - 0.545_454_545_454_545_4).abs() < 1e-12);
        assert_eq!(cohen_kappa(&[(1, 1), (-1, -1)]), Some(1.));
        assert_eq!((cohen_kappa(&[]), cohen_kappa(&[(1, 1)])), (None, None));
    }
}
