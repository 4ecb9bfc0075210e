//! Activations quantised to 8 bits, for dot products with blocks.

use crate::cpu::simd::{self, ROUND_MAGIC};

/// A row of activations quantised to 8 bits: a scale and the sum of the integers per group of 32. If a value of a
/// group is not finite, its scale is NaN, and so is every result.
pub(crate) struct QuantizedActivations {
    pub integers: Vec<[i8; 32]>,
    pub scales: Vec<f32>,
    pub sums: Vec<f32>,
}

impl QuantizedActivations {
    /// Quantises one row.
    pub fn quantize(x: &[f32]) -> Self {
        let blocks = x.len() / 32;
        let mut all = Self { integers: vec![[0; 32]; blocks], scales: vec![0.; blocks], sums: vec![0.; blocks] };
        quantize_activations(x, &mut all);
        all
    }
}

#[pulp::with_simd(quantize_activations = crate::cpu::unit::arch())]
#[inline(always)]
fn quantize_activations_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], all: &'a mut QuantizedActivations) {
    for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
        let (mut lanes, mut zeros) = ([0f32; 16], [0f32; 16]);
        for c in 0..16 {
            let (a, b) = (x[c].abs(), x[c + 16].abs());
            lanes[c] = if a > b { a } else { b };
            zeros[c] = a * 0. + b * 0.; // NaN if a value is not finite; `max` ignores NaN
        }
        let largest = simd::max(&lanes);
        let zero = simd::sum_lanes(&mut zeros);
        let inverse = if largest > 0. { 127. / largest } else { 0. };
        let mut integers = [0i32; 32];
        for c in 0..32 {
            // Rounds to the nearest integer, ties to even.
            integers[c] = ((x[c] * inverse + ROUND_MAGIC).to_bits() as i32)
                .wrapping_sub(ROUND_MAGIC.to_bits() as i32)
                .clamp(-127, 127);
        }
        for (small, &integer) in all.integers[i].iter_mut().zip(&integers) {
            *small = integer as i8;
        }
        let mut sum = 0;
        for &integer in &integers {
            sum += integer;
        }
        all.scales[i] = largest / 127. + zero;
        all.sums[i] = sum as f32;
    }
}
