//! Agreement between two annotators.

use crate::{Error, Result};

/// The share of pairs of answers that two rankings put in the same order. Kendall's tau is `2 · share - 1`.
///
/// Both rankings are lists of answer indices, best first. Random rankings agree on half of the pairs. Rankings of fewer than
/// two answers, or of different answers, are an error.
pub fn agreement(one: &[usize], other: &[usize]) -> Result<f64> {
    let sorted = |order: &[usize]| {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        sorted
    };
    if one.len() < 2 || sorted(one) != sorted(other) || sorted(one).windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::Rankings { one: one.to_vec(), other: other.to_vec() });
    }
    let rank = |item: usize| other.iter().position(|&x| x == item);
    let (mut agreeing, mut pairs) = (0., 0.);
    for (at, &better) in one.iter().enumerate() {
        for &worse in &one[at + 1..] {
            agreeing += f64::from(u8::from(rank(better) < rank(worse)));
            pairs += 1.;
        }
    }
    Ok(agreeing / pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_one_for_equal_rankings_and_zero_for_reversed_ones() {
        assert_eq!(agreement(&[0, 1, 2], &[0, 1, 2]).unwrap(), 1.);
        assert_eq!(agreement(&[0, 1, 2], &[2, 1, 0]).unwrap(), 0.);
        assert_eq!(agreement(&[0, 1, 2, 3], &[1, 0, 2, 3]).unwrap(), 5. / 6.);
        assert!(agreement(&[0, 1], &[0, 2]).is_err() && agreement(&[0], &[0]).is_err());
        assert!(agreement(&[0, 0], &[0, 0]).is_err());
    }
}
