//! How far two annotators agree.

use crate::{Error, Result};

/// The share of pairs that two rankings of the same answers order alike; (Kendall's tau is `2 · share - 1`).
///
/// Both are lists of indices, best first. Two people who guess agree on half of the pairs.
pub fn agreement(one: &[usize], other: &[usize]) -> Result<f64> {
    let sorted = |order: &[usize]| {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        sorted
    };
    if one.len() < 2 || sorted(one) != sorted(other) || sorted(one).windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::Input(format!("{one:?} and {other:?} do not rank the same answers, two at least")));
    }
    let place = |item: usize| other.iter().position(|&x| x == item);
    let (mut alike, mut all) = (0., 0.);
    for (at, &better) in one.iter().enumerate() {
        for &worse in &one[at + 1..] {
            alike += f64::from(u8::from(place(better) < place(worse)));
            all += 1.;
        }
    }
    Ok(alike / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_runs_from_nothing_to_everything() {
        assert_eq!(agreement(&[0, 1, 2], &[0, 1, 2]).unwrap(), 1.);
        assert_eq!(agreement(&[0, 1, 2], &[2, 1, 0]).unwrap(), 0.);
        assert_eq!(agreement(&[0, 1, 2, 3], &[1, 0, 2, 3]).unwrap(), 5. / 6.);
        assert!(agreement(&[0, 1], &[0, 2]).is_err() && agreement(&[0], &[0]).is_err());
        assert!(agreement(&[0, 0], &[0, 0]).is_err());
    }
}
