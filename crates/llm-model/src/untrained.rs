//! Detection of tokens that a model was never trained on, from the rows of its output layer.
//!
//! All rows of tokens that are never a target get the same gradient, so they become nearly equal, or weight decay makes them nearly
//! zero. Fine-tuning moves the row of a token away from the others: in SmolLM2-135M-Instruct, whose twelve unused special tokens have
//! a cosine similarity of 1.000 with each other, those of `<|im_start|>` and `<|im_end|>` with them are 0.993 and 0.991. So a single
//! threshold is not enough: a row must also be as near to the others as they are to each other.

/// Rows with a larger cosine similarity are candidates.
const MIN_COSINE: f32 = 0.95;

/// A row is trained if it is this many times as far from the similar rows as they are from each other.
const MIN_RATIO: f32 = 3.;

/// Distances of rows of length 1 below this are rounding errors of a 16-bit or 8-bit file.
const ROUNDING: f32 = 1e-3;

/// A row with a norm below this share of the typical norm was only decayed.
const MIN_NORM: f32 = 0.1;

/// Whether row `at` of `rows` was probably never trained; `typical_norm` is the median norm of rows of the vocabulary.
pub(crate) fn is_untrained(rows: &[Vec<f32>], at: usize, typical_norm: f32) -> bool {
    let norm = dot(&rows[at], &rows[at]).sqrt();
    if norm <= MIN_NORM * typical_norm {
        return true;
    }
    let similar: Vec<usize> =
        (0..rows.len()).filter(|&i| i != at && cosine(&rows[i], &rows[at]) > MIN_COSINE).collect();
    let nearest = |i: usize| {
        let others = similar.iter().filter(|&&j| j != i);
        others.map(|&j| distance(&rows[i], &rows[j])).fold(f32::INFINITY, f32::min)
    };
    match similar.as_slice() {
        [] => false,
        [_] => true, // two similar rows: nothing to compare their distance with
        _ => nearest(at) <= MIN_RATIO * median(similar.iter().map(|&i| nearest(i))).max(ROUNDING),
    }
}

/// The median norm of rows.
pub(crate) fn typical_norm(rows: &[Vec<f32>]) -> f32 {
    median(rows.iter().map(|row| dot(row, row).sqrt()))
}

fn median(numbers: impl Iterator<Item = f32>) -> f32 {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_by(f32::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The distance of two rows scaled to length 1.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    (2. - 2. * cosine(a, b)).max(0.).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with a common direction of weight `common` and a direction of their own of weight `own`.
    fn rows(weights: &[(f32, f32)]) -> Vec<Vec<f32>> {
        let row = |(i, &(common, own)): (usize, &(f32, f32))| {
            let mut row = vec![0.; weights.len() + 1];
            (row[0], row[i + 1]) = (common, own);
            row
        };
        weights.iter().enumerate().map(row).collect()
    }

    fn untrained(rows: &[Vec<f32>]) -> Vec<usize> {
        (0..rows.len()).filter(|&at| is_untrained(rows, at, 1.)).collect()
    }

    #[test]
    fn equal_rows_are_untrained_and_a_row_that_moved_away_is_not() {
        // As in SmolLM2-135M-Instruct: cosine 0.991 with equal rows.
        assert_eq!(untrained(&rows(&[(1., 0.), (1., 0.), (1., 0.), (1., 0.), (1., 0.135)])), [0, 1, 2, 3]);
        // A short training leaves noise of the initialisation in all rows.
        assert_eq!(untrained(&rows(&[(1., 0.1), (1., 0.12), (1., 0.08), (0.2, 1.)])), [0, 1, 2]);
        assert_eq!(untrained(&rows(&[(1., 0.), (1., 0.1)])), [0, 1], "two similar rows");
        assert_eq!(untrained(&rows(&[(0., 1.), (0., 1.), (0., 1.)])), [] as [usize; 0]);
    }

    #[test]
    fn a_row_that_was_only_decayed_is_untrained() {
        let mut rows = rows(&[(0., 1.), (0., 0.9), (0., 0.04)]);
        assert_eq!(untrained(&rows), [2]);
        rows[1] = vec![0.; 4];
        assert_eq!(untrained(&rows), [1, 2]);
    }
}
