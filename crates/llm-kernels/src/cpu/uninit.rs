//! Uninitialised output that parallel tasks fill through disjoint writers.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::rounding::Rounded;

/// A vector of `n` elements, initialised by `write`.
///
/// # Safety
/// `write` writes every element, unless it panics.
#[allow(unsafe_code)]
pub unsafe fn uninit_vec<T>(n: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(n);
    write(&mut values.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is at least `n`, and the caller guarantees that all elements were written.
    unsafe { values.set_len(n) };
    values
}

/// A slice that several tasks write at the same time, each at its own indices.
pub struct DisjointWriter<'a, T> {
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
