//! Results that are written once, by tasks next to each other, into memory that nobody cleared before.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::matmul::Rounded;

/// `n` numbers, which `write` writes.
///
/// # Safety
/// `write` writes every number, unless it panics.
#[allow(unsafe_code)]
pub unsafe fn written<T>(n: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut numbers = Vec::with_capacity(n);
    write(&mut numbers.spare_capacity_mut()[..n]);
    // SAFETY: there is room for `n` numbers, and the caller says that all of them were written.
    unsafe { numbers.set_len(n) };
    numbers
}

/// Memory that tasks write at the same time, each at places of its own.
pub struct Places<'a, T> {
    data: *mut MaybeUninit<T>,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Places<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Places<'_, T> {}

// SAFETY: numbers are written through `write` alone, whose callers take care that no two of them write the same.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Places<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Places<'_, T> {}

impl<'a, T: Rounded> Places<'a, T> {
    pub fn new(data: &'a mut [MaybeUninit<T>]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// Writes numbers, rounded, from place `start` on.
    ///
    /// # Safety
    /// Nobody writes one of these places at the same time.
    #[inline]
    #[allow(unsafe_code)]
    pub unsafe fn write(self, start: usize, numbers: &[f32]) {
        assert!(numbers.len() <= self.len && start <= self.len - numbers.len(), "numbers reach beyond their memory");
        // SAFETY: the places lie within the slice that is borrowed, as was just asserted, and the caller says that nobody else
        // writes them; nothing is read.
        let to = unsafe { std::slice::from_raw_parts_mut(self.data.add(start), numbers.len()) };
        T::round(numbers, to);
    }
}
