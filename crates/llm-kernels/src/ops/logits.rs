//! Loops over one row of logits in CPU memory, for sampling: slices and not tensors, because the next token is chosen on the host.

use crate::cpu::simd::{exp, sum_lanes};

/// Length of the parts whose sums are added in f64, so that the sum of a large vocabulary keeps seven digits.
const PART: usize = 1024;

/// The smallest and the largest of the values; `None` if one of them is NaN or there are none.
pub fn logit_range(row: &[f32]) -> Option<(f32, f32)> {
    let (low, high, nan) = range(row);
    (!nan && !row.is_empty()).then_some((low, high))
}

/// Writes `e^(x - shift)` of each logit to `out`, which has the same length, and returns the sum. Less than `e^-87` is written as
/// about `e^-87`.
pub fn exp_logits(row: &[f32], shift: f32, out: &mut [f32]) -> f64 {
    let parts = row.chunks(PART).zip(out.chunks_mut(PART));
    parts.map(|(row, out)| f64::from(exp_part(row, shift, out))).sum()
}

/// The sum of the values.
pub fn sum_weights(weights: &[f32]) -> f64 {
    weights.chunks(PART).map(|part| f64::from(sum_part(part))).sum()
}

/// The number of keys that are at most `limit`.
pub fn count_up_to(keys: &[f32], limit: f32) -> usize {
    keys.chunks(1 << 20).map(|part| count_part(part, limit) as usize).sum()
}

/// The sum of the weights whose key is at most `limit`; there is one weight for each key.
pub fn sum_up_to(keys: &[f32], weights: &[f32], limit: f32) -> f64 {
    keys.chunks(PART).zip(weights.chunks(PART)).map(|(keys, weights)| f64::from(sum_keys(keys, weights, limit))).sum()
}

#[pulp::with_simd(range = crate::cpu::unit::arch())]
#[inline(always)]
fn range_simd<S: pulp::Simd>(_simd: S, row: &[f32]) -> (f32, f32, bool) {
    let (mut low, mut high, mut nan) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16], [0f32; 16]);
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
            high[i] = if chunk[i] > high[i] { chunk[i] } else { high[i] };
            nan[i] = if chunk[i].is_nan() { 1. } else { nan[i] };
        }
    }
    let mut all = (f32::INFINITY, f32::NEG_INFINITY, sum_lanes(&mut nan) > 0.);
    for (low, high) in low.iter().zip(&high).chain(rest.iter().zip(rest)) {
        all =
            (if *low < all.0 { *low } else { all.0 }, if *high > all.1 { *high } else { all.1 }, all.2 || low.is_nan());
    }
    all
}

#[pulp::with_simd(exp_part = crate::cpu::unit::arch())]
#[inline(always)]
fn exp_part_simd<S: pulp::Simd>(_simd: S, row: &[f32], shift: f32, out: &mut [f32]) -> f32 {
    for (out, &x) in out.iter_mut().zip(row) {
        *out = exp(x - shift);
    }
    sum_slice(out)
}

#[pulp::with_simd(sum_part = crate::cpu::unit::arch())]
#[inline(always)]
fn sum_part_simd<S: pulp::Simd>(_simd: S, values: &[f32]) -> f32 {
    sum_slice(values)
}

#[inline(always)]
fn sum_slice(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    sum_lanes(&mut lanes)
}

#[pulp::with_simd(count_part = crate::cpu::unit::arch())]
#[inline(always)]
fn count_part_simd<S: pulp::Simd>(_simd: S, keys: &[f32], limit: f32) -> u32 {
    let mut lanes = [0u32; 16];
    let (chunks, rest) = keys.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += u32::from(chunk[i] <= limit);
        }
    }
    let mut count = 0;
    for lane in lanes {
        count += lane;
    }
    for &key in rest {
        count += u32::from(key <= limit);
    }
    count
}

#[pulp::with_simd(sum_keys = crate::cpu::unit::arch())]
#[inline(always)]
fn sum_keys_simd<S: pulp::Simd>(_simd: S, keys: &[f32], weights: &[f32], limit: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (key_chunks, key_rest) = keys.as_chunks::<16>();
    let (weight_chunks, weight_rest) = weights.as_chunks::<16>();
    for (keys, weights) in key_chunks.iter().zip(weight_chunks) {
        for i in 0..16 {
            lanes[i] += if keys[i] <= limit { weights[i] } else { 0. };
        }
    }
    for (lane, (&key, &weight)) in lanes.iter_mut().zip(key_rest.iter().zip(weight_rest)) {
        *lane += if key <= limit { weight } else { 0. };
    }
    sum_lanes(&mut lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values with a fractional part, in no order; a length that no vector width divides.
    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919) % 1000) as f32 / 50. - 10.).collect()
    }

    #[test]
    fn each_loop_agrees_with_a_plain_loop_in_f64() {
        for len in [1, 15, 16, 1000, 49_157] {
            let row = row(len);
            let (low, high) = logit_range(&row).unwrap();
            assert_eq!(low, row.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(high, row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut weights = vec![0.; len];
            let sum = exp_logits(&row, high, &mut weights);
            let wanted: Vec<f64> = row.iter().map(|&x| (f64::from(x) - f64::from(high)).exp()).collect();
            // The difference to the maximum, up to 20, is rounded to f32: 1e-6.
            let close = |a: f64, b: f64| (a - b).abs() <= 3e-6 * b.abs();
            assert!(close(sum, wanted.iter().sum()) && close(sum_weights(&weights), sum));
            assert!(weights.iter().zip(&wanted).all(|(a, b)| close(f64::from(*a), *b)));
            for limit in [-11., 0.01, 3., 11.] {
                let below = row.iter().zip(&wanted).filter(|(x, _)| **x <= limit);
                assert_eq!(count_up_to(&row, limit), below.clone().count());
                let wanted: f64 = below.map(|(_, weight)| weight).sum();
                assert!(close(sum_up_to(&row, &weights, limit), wanted), "{len} {limit}");
            }
        }
    }

    #[test]
    fn the_range_of_a_row_with_nan_is_none_wherever_it_is() {
        for len in [1, 20, 33] {
            for at in 0..len {
                let mut row = row(len);
                row[at] = f32::NAN;
                assert_eq!(logit_range(&row), None, "{at} of {len}");
                row[at] = f32::NEG_INFINITY;
                assert_eq!(logit_range(&row).map(|range| range.0), Some(f32::NEG_INFINITY), "{at} of {len}");
            }
        }
        assert_eq!(logit_range(&[]), None);
    }
}
