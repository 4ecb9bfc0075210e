//! Reading the bytes of blocks.

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

/// Reads the f16 at byte `at`, by shifting its bits into an f32.
#[inline(always)]
pub fn f16_to_f32(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23); // · 2^112
    // The largest exponent means infinity or NaN, in f16 as in f32.
    let largest_exponent = if bits & 0x7c00 == 0x7c00 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(magnitude.to_bits() | largest_exponent | ((bits & 0x8000) << 16))
}
