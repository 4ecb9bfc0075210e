//! Reading the bytes of blocks.

use crate::cpu::rounding::f16_bits_to_f32;

/// The dot product of signed bytes.
#[inline(always)]
pub fn integer_dot<const N: usize>(a: &[i8; N], b: &[i8; N]) -> i32 {
    let mut sum = 0;
    for i in 0..N {
        sum += i32::from(a[i]) * i32::from(b[i]);
    }
    sum
}

/// `N` bytes of a block, from `at` on.
#[inline(always)]
pub fn read_bytes<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut copy = [0; N];
    copy.copy_from_slice(&block[at..at + N]);
    copy
}

/// Reads the f16 at byte `at`.
#[inline(always)]
pub fn f16_to_f32(block: &[u8], at: usize) -> f32 {
    f16_bits_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}
