//! Prefetching of memory that a loop reads soon.

/// Prefetches the elements into the caches, on x86-64. On other machines it does nothing.
#[inline(always)]
pub fn prefetch<T>(elements: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(elements)).step_by(64) {
        // SAFETY: a prefetch neither reads nor writes, and the address is inside the slice.
        #[allow(unsafe_code)]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(elements.as_ptr().cast::<i8>().add(line));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = elements;
}
