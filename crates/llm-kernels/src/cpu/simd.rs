//! Scalar functions that the vectorised loops inline.
//!
//! They are plain `for` loops: an iterator's `sum` or `fold` is a separate function, which is not compiled with the
//! SIMD features of its caller.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

use rayon::prelude::*;

/// Rounding constant, 1.5 · 2^23: `x + ROUND_MAGIC - ROUND_MAGIC` is the nearest integer of `x`, and the lowest bits
/// of `x + ROUND_MAGIC` are that integer. `as i32` does not vectorise, because it checks the range of each value.
pub const ROUND_MAGIC: f32 = 12_582_912.;

/// `e^x` for f32 with a relative error under 2e-7. It calls no function, so a loop over it vectorises.
///
/// The method is that of Cephes: `e^x = 2^n · e^r` with `|r| <= ln2 / 2` and a polynomial for `e^r`. Below -87.3 the
/// result is less than 1.3e-38 instead of a denormal; above 88.3 it saturates near `f32::MAX`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND_MAGIC);
    let n = shifted - ROUND_MAGIC;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_2e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5.0e-1);
    let e = p.mul_add(r * r, r) + 1.0;
    // The lowest bits of `shifted` are `n`; they become the exponent.
    e * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// `ln(1 + x)` for x from 0 to 1 with a relative error under 3e-7; vectorises. It is the series of `2 artanh(x / (2 + x))`.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    let z = x / (2. + x); // at most 1/3
    let y = z * z;
    let p = 1f32 / 13.;
    let p = p.mul_add(y, 1. / 11.);
    let p = p.mul_add(y, 1. / 9.);
    let p = p.mul_add(y, 1. / 7.);
    let p = p.mul_add(y, 1. / 5.);
    let p = p.mul_add(y, 1. / 3.);
    2. * z.mul_add(y * p, z)
}

/// The largest value of a row, `-inf` if it is empty. Sixteen lanes avoid a serial dependency.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for part in [&lanes[..], rest] {
        for &x in part {
            largest = if x > largest { x } else { largest };
        }
    }
    largest
}

/// `Σ f(a, b)` over two rows of equal length. The sum has 16 lanes, so it vectorises and always gives the same bits.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..16 {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let mut rest = 0f32;
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        rest += f(a, b);
    }
    sum_lanes(&mut lanes) + rest
}

/// `Σ exp(x - max) - 1`, where the 1 is the term of the maximum itself; pass it to [`f32::ln_1p`] for the logarithm.
/// Terms equal to 1 are summed separately, so that a sum of `1 + 1e-9` keeps the 1e-9. `exp_of` maps an
/// element to its exponential.
#[inline(always)]
pub fn sum_exp_minus_one(exps: &[f32], exp_of: impl Fn(f32) -> f32) -> f32 {
    let (mut ones, mut lanes) = ([0f32; 16], [0f32; 16]);
    let (chunks, rest) = exps.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            let e = exp_of(chunk[i]);
            ones[i] += if e == 1. { 1. } else { 0. };
            lanes[i] += if e == 1. { 0. } else { e };
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        let e = exp_of(x);
        ones[i] += if e == 1. { 1. } else { 0. };
        lanes[i] += if e == 1. { 0. } else { e };
    }
    sum_lanes(&mut ones) - 1. + sum_lanes(&mut lanes)
}

/// The sum of a power of two of lanes, added pairwise.
#[inline(always)]
pub fn sum_lanes(lanes: &mut [f32]) -> f32 {
    let mut width = lanes.len() / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sums of the lanes of 16 vectors: adds neighbours within 128-bit lanes, then the 128-bit lanes. The order does not
/// depend on the position of a vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn lane_sums(simd: pulp::x86::V4, vectors: &[__m512; 16]) -> __m512 {
    let avx = simd.avx512f;
    let mut twos = [avx._mm512_setzero_ps(); 8];
    for i in 0..8 {
        let (a, b) = (vectors[2 * i], vectors[2 * i + 1]);
        twos[i] = avx._mm512_add_ps(avx._mm512_unpacklo_ps(a, b), avx._mm512_unpackhi_ps(a, b));
    }
    let mut fours = [avx._mm512_setzero_ps(); 4];
    for i in 0..4 {
        let (a, b) = (avx._mm512_castps_pd(twos[2 * i]), avx._mm512_castps_pd(twos[2 * i + 1]));
        let (low, high) = (avx._mm512_unpacklo_pd(a, b), avx._mm512_unpackhi_pd(a, b));
        fours[i] = avx._mm512_add_ps(avx._mm512_castpd_ps(low), avx._mm512_castpd_ps(high));
    }
    let add_lanes = |a: __m512, b: __m512| {
        avx._mm512_add_ps(avx._mm512_shuffle_f32x4::<0x88>(a, b), avx._mm512_shuffle_f32x4::<0xdd>(a, b))
    };
    add_lanes(add_lanes(fours[0], fours[1]), add_lanes(fours[2], fours[3]))
}

/// The hyperbolic tangent with an absolute error under 1e-6; vectorises.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1. - 2. / (exp(2. * x) + 1.)
}

/// True if no value is infinite or NaN.
pub fn all_finite(values: &[f32]) -> bool {
    values.par_chunks(1 << 16).all(finite)
}

#[pulp::with_simd(finite = crate::cpu::unit::arch())]
#[inline(always)]
fn finite_simd<S: pulp::Simd>(_simd: S, values: &[f32]) -> bool {
    sum2(values, values, |a, _| a * 0.) == 0.
}

/// `eps` in f32, whose smallest positive number is 1e-45. A positive `eps` stays positive, so that a row of zeros
/// stays zero.
pub fn f32_epsilon(eps: f64) -> f32 {
    if eps > 0. { (eps as f32).max(f32::MIN_POSITIVE) } else { eps as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.;
            let (ours, theirs) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / theirs - 1.).abs() < 3e-7, "exp({x}) = {ours}, not {theirs}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.), 1.);
    }

    #[test]
    fn ln_1p_agrees_with_the_standard_library() {
        for i in 0..=10_000 {
            for x in [i as f32 / 10_000., (-i as f32 / 120.).exp()] {
                let (ours, theirs) = (f64::from(ln_1p(x)), f64::from(x).ln_1p());
                assert!((ours - theirs).abs() <= 3e-7 * theirs, "ln_1p({x}) = {ours}, not {theirs}");
            }
        }
    }

    #[test]
    fn tanh_agrees_with_the_standard_library() {
        for i in -2000..=2000 {
            let x = i as f32 / 100.;
            assert!((tanh(x) - x.tanh()).abs() < 1e-6, "tanh({x})");
        }
    }

    #[test]
    fn max_and_sum_include_the_tail_of_a_row() {
        let row: Vec<f32> = (0..37).map(|i| if i == 36 { 100. } else { i as f32 }).collect();
        assert_eq!(max(&row), 100.);
        assert_eq!(sum2(&row, &row, |a, _| a), (0..36).sum::<i32>() as f32 + 100.);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
