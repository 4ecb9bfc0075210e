//! Matrices whose columns are computed on all threads.

use std::ops::Range;

use rayon::prelude::*;

/// Some columns of one matrix: its index, the columns, and their part of each row.
type Part<'a> = (usize, Range<usize>, Vec<&'a mut [f32]>);

/// A task starts at a multiple of this many columns.
const ALIGN: usize = 16;

/// Matrices with `n` rows and the given numbers of columns, in one parallel loop: `fill(matrix, columns, rows)` writes some
/// columns of a matrix, given as their part of each row. `bytes` is what all calls of `fill` read.
pub fn par_columns(
    n: usize,
    widths: &[usize],
    bytes: usize,
    fill: impl Fn(usize, Range<usize>, &mut [&mut [f32]]) + Sync,
) -> Vec<Vec<f32>> {
    let columns: usize = widths.iter().sum();
    let per_task = columns.div_ceil(tasks(bytes)).next_multiple_of(ALIGN);
    let mut matrices: Vec<Vec<f32>> = widths.iter().map(|width| vec![0.; n * width]).collect();
    let mut tasks: Vec<Vec<Part>> = Vec::new();
    let mut free = 0; // columns that the last task may still get
    for (index, (matrix, &width)) in matrices.iter_mut().zip(widths).enumerate() {
        let mut rows: Vec<&mut [f32]> = matrix.chunks_mut(width.max(1)).collect();
        let mut start = 0;
        while start < width {
            if free == 0 {
                tasks.push(Vec::new());
                free = per_task;
            }
            let end = width.min(start + free);
            let parts = rows.iter_mut().map(|row| row.split_off_mut(..end - start).unwrap_or_default()).collect();
            if let Some(task) = tasks.last_mut() {
                task.push((index, start..end, parts));
            }
            (free, start) = (free - (end - start), end);
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|parts| {
        for (index, columns, mut rows) in parts {
            fill(index, columns, &mut rows);
        }
    });
    matrices
}

/// The number of tasks: one per thread, because the workers spin during decoding ([`crate::spin_workers`]); several per thread
/// if they would read so much that a thread which is interrupted delays the others.
fn tasks(bytes: usize) -> usize {
    const LARGE: usize = 1 << 21;
    let threads = rayon::current_num_threads();
    threads * (bytes / LARGE / threads).clamp(1, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_is_filled_once() {
        for (n, widths, bytes) in [
            (1, vec![1], 0),
            (3, vec![40, 0, 7, 130], 0),
            (2, vec![1000, 33], 100 << 20),
            (5, vec![], 0),
            (0, vec![3, 4], 0),
        ] {
            let found = par_columns(n, &widths, bytes, |matrix, columns, rows| {
                assert_eq!(rows.len(), n);
                for (i, row) in rows.iter_mut().enumerate() {
                    assert_eq!(row.len(), columns.len());
                    row.iter_mut()
                        .zip(columns.clone())
                        .for_each(|(x, j)| *x += (1000 * matrix + 10_000 * i + j) as f32);
                }
            });
            let expected = widths.iter().enumerate().map(|(matrix, &width)| -> Vec<f32> {
                (0..n * width).map(|at| (1000 * matrix + 10_000 * (at / width) + at % width) as f32).collect()
            });
            assert!(found.into_iter().eq(expected), "{n} {widths:?}");
        }
    }
}
