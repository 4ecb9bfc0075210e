//! `MinHash` signatures (Broder 1997) of sets of word n-grams, cut into bands for locality-sensitive hashing (Leskovec, Rajaraman and
//! Ullman, Mining of Massive Datasets, section 3.4).

use super::ngrams::{hash_text, mix, window_hash};
use super::words::{simple_words, simplify};

/// The set of the n-grams of `n` words of a text after normalisation: their hashes, sorted. A text with fewer words is one n-gram; one
/// without words is the empty set.
pub(super) fn shingles(text: &str, n: usize) -> Vec<u64> {
    let simple = simplify(text);
    let words: Vec<u64> = simple_words(&simple).into_iter().map(hash_text).collect();
    let mut shingles: Vec<u64> = match words.len() {
        0 => Vec::new(),
        short if short < n => vec![window_hash(words)],
        _ => words.windows(n).map(|window| window_hash(window.iter().copied())).collect(),
    };
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The Jaccard similarity of two sets, each sorted: common elements over all elements.
pub(super) fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut at, mut common) = (0, 0);
    for x in a {
        while b.get(at).is_some_and(|y| y < x) {
            at += 1;
        }
        common += usize::from(b.get(at) == Some(x));
    }
    common as f64 / (a.len() + b.len() - common).max(1) as f64
}

/// Computes the keys of bands.
#[derive(Debug, Clone)]
pub(super) struct MinHash {
    /// A permutation for each value of a signature: `x * factor + offset` modulo 2⁶⁴, with an odd factor.
    permutations: Vec<(u64, u64)>,
    rows: usize,
}

impl MinHash {
    pub fn new(bands: usize, rows: usize) -> Self {
        let number = |index: usize| mix((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let permutations = (0..bands * rows).map(|i| (number(2 * i) | 1, number(2 * i + 1))).collect();
        Self { permutations, rows }
    }

    /// A key for each band: that of two sets is the same if their least values are the same under all permutations of the band, with
    /// the probability s^rows for the similarity s.
    pub fn keys(&self, shingles: &[u64]) -> Vec<u64> {
        let mut least = vec![u64::MAX; self.permutations.len()];
        // Several elements at once, so that the least values are loaded and stored less often.
        let mut chunks = shingles.chunks_exact(4);
        for chunk in &mut chunks {
            for (least, &(factor, offset)) in least.iter_mut().zip(&self.permutations) {
                let value = |x: u64| x.wrapping_mul(factor).wrapping_add(offset);
                *least = (*least).min(value(chunk[0]).min(value(chunk[1]))).min(value(chunk[2]).min(value(chunk[3])));
            }
        }
        for &x in chunks.remainder() {
            for (least, &(factor, offset)) in least.iter_mut().zip(&self.permutations) {
                *least = (*least).min(x.wrapping_mul(factor).wrapping_add(offset));
            }
        }
        least.chunks(self.rows).map(|band| window_hash(band.iter().copied())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_is_that_of_the_sets() {
        assert_eq!(jaccard(&[1, 2, 3, 4], &[2, 4, 6]), 0.4);
        assert_eq!(jaccard(&[], &[]), 0.);
        assert_eq!(jaccard(&[7], &[7]), 1.);
        let text = "The quick brown fox jumps over the lazy dog.";
        assert_eq!(shingles(text, 5).len(), 5);
        assert_eq!(shingles(text, 5), shingles("the QUICK brown fox, jumps over the lazy dog", 5));
        assert_eq!((shingles("Two words", 5).len(), shingles("?!", 5).len()), (1, 0));
        assert_ne!(shingles("two words", 5), shingles("words two", 5));
    }

    /// P = 1 - (1 - s^rows)^bands (Leskovec et al.), for sets with the similarity s.
    #[test]
    fn pairs_share_a_band_as_often_as_the_formula_says() {
        let hash = MinHash::new(40, 5);
        for (common, expected) in [(75, 0.961), (50, 0.152), (60, 0.441)] {
            // Two sets of 100 elements with `common` common ones.
            let similarity = f64::from(common) / f64::from(200 - common);
            let formula = 1. - (1. - similarity.powi(5)).powi(40);
            assert!((formula - expected).abs() < 0.005, "{common}: {formula}");
            let found = (0..2000_u64).filter(|trial| {
                let element = |i: u64| mix(trial << 32 | i);
                let a: Vec<u64> = (0..100).map(element).collect();
                let b: Vec<u64> = (0..100).map(|i| element(if i < common as u64 { i } else { i + 1000 })).collect();
                hash.keys(&a).iter().zip(hash.keys(&b)).any(|(a, b)| *a == b)
            });
            // Binomial with 2,000 trials: four standard deviations are at most 0.045.
            let share = found.count() as f64 / 2000.;
            assert!((share - formula).abs() < 0.045, "{common}: {share} instead of {formula}");
        }
    }
}
