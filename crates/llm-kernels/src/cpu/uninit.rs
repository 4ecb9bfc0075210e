//! Uninitialised output that parallel tasks fill through disjoint writers.
//!
//! Operations use the safe functions [`par_rows`], [`rounded`] and [`write_heads`]; [`uninit_vec`] and [`DisjointWriter`]
//! are for other modules of `cpu`.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rayon::prelude::*;

use super::rounding::Rounded;
use super::rows::rows_per_task;

/// Rows of `width` elements, as many as in `rows · width = len`, on all threads: `fill(state, row index, row)` computes a
/// row in f32, which is then rounded to `T`. Each task has its own `state`, initially `init()`; the second result is the
/// states in the order of the rows.
pub fn par_rows<T: Rounded, S: Send>(
    len: usize,
    width: usize,
    init: impl Fn() -> S + Sync,
    fill: impl Fn(&mut S, usize, &mut [f32]) + Sync,
) -> (Vec<T>, Vec<S>) {
    let width = width.max(1);
    assert!(len.is_multiple_of(width), "the output consists of whole rows");
    let rows = rows_per_task(width);
    let task = |(task, out): (usize, &mut [MaybeUninit<T>])| {
        let (mut state, mut row) = (init(), vec![0f32; width]);
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            fill(&mut state, task * rows + i, &mut row);
            T::round_slice(&row, out);
        }
        state
    };
    let mut states = Vec::new();
    // SAFETY: the output consists of whole rows, as asserted; the tasks cover all of them, and `round_slice` writes every
    // element of a row.
    #[allow(unsafe_code)]
    let values =
        unsafe { uninit_vec(len, |out| states = out.par_chunks_mut(rows * width).enumerate().map(task).collect()) };
    (values, states)
}

/// The values rounded to `T`, on all threads.
pub fn rounded<T: Rounded>(values: &[f32]) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let task = |(to, from): (&mut [_], _)| T::round_slice(from, to);
    // SAFETY: both slices have the same length, and `round_slice` writes every element.
    #[allow(unsafe_code)]
    unsafe {
        uninit_vec(values.len(), |to| to.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(task))
    }
}

/// A tensor `(tokens, heads, width)` of sequences with the given numbers of tokens, one after the other. `fill` receives a
/// writer for each sequence and head, in the order `(sequence, head)`, and passes them to its tasks. Panics if a writer did
/// not write all its rows.
pub fn write_heads<T: Rounded>(
    lengths: &[usize],
    heads: usize,
    width: usize,
    fill: impl FnOnce(Vec<HeadWriter<T>>),
) -> Vec<T> {
    let rows: usize = lengths.iter().sum();
    let complete = AtomicUsize::new(0);
    let write = |out: &mut [MaybeUninit<T>]| {
        let out = DisjointWriter::new(out);
        let (mut writers, mut first) = (Vec::with_capacity(lengths.len() * heads), 0);
        for &length in lengths {
            let rows_left = if width == 0 { 0 } else { length };
            writers.extend((0..heads).map(|head| HeadWriter {
                out,
                at: (first * heads + head) * width,
                stride: heads * width,
                width,
                rows_left,
                complete: &complete,
            }));
            first += length;
        }
        let expected = writers.iter().filter(|writer| writer.rows_left > 0).count();
        fill(writers);
        assert_eq!(complete.load(SeqCst), expected, "a head of the output is incomplete");
    };
    // SAFETY: the writers cover all rows of all heads, and as asserted each of them has written its rows.
    #[allow(unsafe_code)]
    unsafe {
        uninit_vec(rows * heads * width, write)
    }
}

/// Writes the rows `(tokens, width)` of one head of one sequence, in order.
pub struct HeadWriter<'a, T> {
    out: DisjointWriter<'a, T>,
    /// The index of the next row.
    at: usize,
    /// Elements from one row to the next.
    stride: usize,
    width: usize,
    rows_left: usize,
    /// The number of writers that have written all their rows.
    complete: &'a AtomicUsize,
}

impl<T: Rounded> HeadWriter<'_, T> {
    /// Rounds the next rows `(n, width)` to `T` and writes them. Panics if there are more rows than tokens.
    pub fn append(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.width.max(1)) {
            assert!(self.rows_left > 0, "a head has no more rows");
            // SAFETY: only this writer has the rows of this head of this sequence, and it writes each once.
            #[allow(unsafe_code)]
            unsafe {
                self.out.write(self.at, row);
            }
            self.at += self.stride;
            self.rows_left -= 1;
            if self.rows_left == 0 {
                self.complete.fetch_add(1, SeqCst);
            }
        }
    }
}

/// A vector of `n` elements, initialised by `write`.
///
/// # Safety
/// `write` writes every element, unless it panics.
#[allow(unsafe_code)]
pub(super) unsafe fn uninit_vec<T>(n: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(n);
    write(&mut values.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is at least `n`, and the caller guarantees that all elements were written.
    unsafe { values.set_len(n) };
    values
}

/// A slice that several tasks write at the same time, each at its own indices.
pub(super) struct DisjointWriter<'a, T> {
    data: *mut MaybeUninit<T>,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for DisjointWriter<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DisjointWriter<'_, T> {}

// SAFETY: elements are written only through `write`, whose callers guarantee that no two tasks write the same one.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for DisjointWriter<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for DisjointWriter<'_, T> {}

impl<'a, T: Rounded> DisjointWriter<'a, T> {
    pub fn new(data: &'a mut [MaybeUninit<T>]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// Rounds `values` to `T` and writes them from index `start` on.
    ///
    /// # Safety
    /// No other task writes one of these elements at the same time.
    #[inline]
    #[allow(unsafe_code)]
    pub unsafe fn write(self, start: usize, values: &[f32]) {
        assert!(values.len() <= self.len && start <= self.len - values.len(), "values are out of bounds");
        // SAFETY: the elements are inside the borrowed slice, as asserted above, and the caller guarantees that no
        // other task writes them. Nothing is read.
        let to = unsafe { std::slice::from_raw_parts_mut(self.data.add(start), values.len()) };
        T::round_slice(values, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_states_are_in_order() {
        for (rows, width) in [(0, 5), (1, 1), (40_000, 3), (7, 20_000)] {
            let fill = |seen: &mut Vec<usize>, i: usize, row: &mut [f32]| {
                seen.push(i);
                row.iter_mut().enumerate().for_each(|(j, x)| *x = (i * width + j) as f32);
            };
            let (values, states) = par_rows::<f32, _>(rows * width, width, Vec::new, fill);
            assert!(values.iter().enumerate().all(|(i, &x)| x == i as f32) && values.len() == rows * width);
            assert!(states.concat().into_iter().eq(0..rows));
        }
        assert_eq!(rounded::<f32>(&vec![1.5; 40_000]), vec![1.5; 40_000]);
    }

    #[test]
    fn each_head_of_each_sequence_has_its_rows() {
        let values = write_heads::<f32>(&[2, 0, 3], 2, 1, |writers| {
            writers.into_par_iter().enumerate().for_each(|(i, mut writer)| {
                let rows = [[10., 11.].as_slice(), &[20., 21.], &[], &[], &[30., 31., 32.], &[40., 41., 42.]];
                rows[i].iter().for_each(|&row| writer.append(&[row]));
            });
        });
        assert_eq!(values, [10., 20., 11., 21., 30., 40., 31., 41., 32., 42.]);
        assert!(
            [(&[2, 3][..], 0), (&[], 3)]
                .iter()
                .all(|&(lengths, width)| write_heads::<f32>(lengths, 2, width, |_| ()).is_empty())
        );
    }

    #[test]
    #[should_panic(expected = "incomplete")]
    fn a_head_without_all_rows_panics() {
        write_heads::<f32>(&[2], 2, 3, |mut writers| {
            writers[0].append(&[0.; 6]);
            writers[1].append(&[0.; 3]);
        });
    }

    #[test]
    #[should_panic(expected = "no more rows")]
    fn more_rows_than_tokens_panic() {
        write_heads::<f32>(&[1], 1, 3, |mut writers| writers[0].append(&[0.; 6]));
    }
}
