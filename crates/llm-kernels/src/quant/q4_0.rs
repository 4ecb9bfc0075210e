//! Q4_0: blocks of 32 weights in 18 bytes: a scale (f16), then 32 integers of 4 bits, from which 8 is subtracted.

use super::activations::QuantizedActivations;
use super::bits::{f16_to_f32, integer_dot};

/// Writes the weights of a row.
#[inline(always)]
pub fn dequantize(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_to_f32(block, 0);
        for (j, &q) in block[2..].iter().enumerate() {
            out[j] = d * (f32::from(q & 15) - 8.);
            out[j + 16] = d * (f32::from(q >> 4) - 8.);
        }
    }
}

/// The dot product of a block with the activations.
#[inline(always)]
pub fn dot(block: &[u8; 18], x: &QuantizedActivations, i: usize) -> f32 {
    // w = d · (q - 8): the 8 is subtracted from the sum at once.
    let sum = nibbles_dot(&block[2..18], &x.integers[i]);
    f16_to_f32(block, 0) * x.scales[i] * (sum as f32 - 8. * x.sums[i])
}

/// 16 bytes; their low nibbles belong to the first 16 activations, the high nibbles to the last 16.
#[inline(always)]
fn nibbles_dot(q: &[u8], x: &[i8; 32]) -> i32 {
    let mut w = [0i8; 32];
    for j in 0..16 {
        w[j] = (q[j] & 15) as i8;
        w[j + 16] = (q[j] >> 4) as i8;
    }
    integer_dot(&w, x)
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{
        __m128i, __m512, __m512i, _mm512_broadcast_i32x4, _mm512_mask_broadcast_i32x4, _mm512_setzero_ps,
        _mm512_srlv_epi32,
    };

    use bytemuck::cast;

    use crate::quant::activations::QuantizedActivations;
    use crate::quant::avx2::Accumulator;
    use crate::quant::bits::{f16_to_f32, read_bytes};
    use crate::quant::vnni::{VnniActivations, add, block_scales, low_nibbles};

    /// [`dot`](super::dot), added to `sum`.
    #[inline(always)]
    pub fn dot_avx2(sum: &mut Accumulator, block: &[u8; 18], x: &QuantizedActivations, i: usize) {
        let bytes: __m128i = pulp::cast(read_bytes::<16>(block, 2));
        // Two copies of the 16 bytes; the upper one is shifted, so that its low nibbles are the last 16 weights.
        let shifted = sum.simd.sse2._mm_srli_epi16::<4>(bytes);
        let both = sum.nibbles(sum.simd.avx._mm256_set_m128i(shifted, bytes), false);
        let scale = f16_to_f32(block, 0) * x.scales[i];
        sum.add(scale, sum.unsigned_dot(both, pulp::cast(x.integers[i])));
        sum.rest -= 8. * scale * x.sums[i];
    }

    /// The dot product of a row, as 16 sums, with VNNI: two blocks at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni(row: &[u8], x: &VnniActivations) -> __m512 {
        let (pairs, odd) = row.as_chunks::<18>().0.as_chunks::<2>();
        let mut sum = _mm512_setzero_ps();
        for ([first, second], x) in pairs.iter().zip(&x.parts) {
            sum = add(sum, weights(first, second), block_scales(first, second), x);
        }
        for (block, x) in odd.iter().zip(&x.parts[pairs.len()..]) {
            sum = add(sum, weights(block, &[0; 18]), block_scales(block, &[0; 18]), x);
        }
        sum
    }

    /// The weights of two blocks, plus 8.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    fn weights(first: &[u8; 18], second: &[u8; 18]) -> __m512i {
        let load = |block: &[u8; 18]| cast::<_, __m128i>(read_bytes::<16>(block, 2));
        let duplicated = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load(first)), 0xff00, load(second));
        low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4])))
    }
}
