//! Loops over rows on all threads.

use rayon::prelude::*;

/// Rows of `n` elements per task: enough to outweigh the cost of scheduling it.
pub fn rows_per_task(n: usize) -> usize {
    (16384 / n.max(1)).max(1)
}

/// `n` zeros. All threads together clear a large vector.
pub fn zeros(n: usize) -> Vec<f32> {
    const LARGE: usize = 1 << 16;
    if n < LARGE { vec![0.; n] } else { rayon::iter::repeat_n(0., n).with_min_len(LARGE / 2).collect() }
}
