//! Rounding of f32 rows to the element type in which a fused operation saves tensors.

use std::mem::MaybeUninit;

use half::bf16;

/// f32, or a type that f32 is rounded to.
pub trait Rounded: Copy + Default + Send + Sync {
    /// Writes the nearest values.
    fn round_slice(values: &[f32], to: &mut [MaybeUninit<Self>]);

    /// Converts to f32.
    fn widen_slice(values: &[Self], to: &mut [f32]);
}

impl Rounded for f32 {
    fn round_slice(values: &[f32], to: &mut [MaybeUninit<Self>]) {
        to.write_copy_of_slice(values);
    }

    fn widen_slice(values: &[Self], to: &mut [f32]) {
        to.copy_from_slice(values);
    }
}

impl Rounded for bf16 {
    fn round_slice(values: &[f32], to: &mut [MaybeUninit<Self>]) {
        round_to_bf16(values, to);
    }

    fn widen_slice(values: &[Self], to: &mut [f32]) {
        widen_bf16(values, to);
    }
}

/// The bits of the nearest bf16 value; ties go to even.
#[inline(always)]
pub fn f32_to_bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fc0 } else { nearest }
}

/// The value of a bf16.
#[inline(always)]
pub fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The value of an f16 with the given bits, by shifting them into an f32; vectorises.
#[inline(always)]
pub fn f16_bits_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23); // · 2^112
    // The largest exponent means infinity or NaN, in f16 as in f32.
    let largest_exponent = if bits & 0x7c00 == 0x7c00 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(magnitude.to_bits() | largest_exponent | ((bits & 0x8000) << 16))
}

#[pulp::with_simd(round_to_bf16 = crate::cpu::unit::arch())]
#[inline(always)]
fn round_to_bf16_simd<'a, S: pulp::Simd>(_simd: S, values: &'a [f32], to: &'a mut [MaybeUninit<bf16>]) {
    assert_eq!(values.len(), to.len(), "slices have the same length");
    for (to, &x) in to.iter_mut().zip(values) {
        to.write(bf16::from_bits(f32_to_bf16_bits(x)));
    }
}

#[pulp::with_simd(widen_bf16 = crate::cpu::unit::arch())]
#[inline(always)]
fn widen_bf16_simd<'a, S: pulp::Simd>(_simd: S, values: &'a [bf16], to: &'a mut [f32]) {
    assert_eq!(values.len(), to.len(), "slices have the same length");
    for (to, &x) in to.iter_mut().zip(values) {
        *to = bf16_to_f32(x);
    }
}
