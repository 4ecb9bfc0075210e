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

/// Adds the dot products of a block with some rows of activations.
#[inline(always)]
pub fn dot<const R: usize>(sums: &mut [f32; R], block: &[u8; 18], x: [&QuantizedActivations; R], i: usize) {
    // 16 bytes; their low nibbles belong to the first 16 activations, the high nibbles to the last 16.
    let mut w = [0i8; 32];
    for j in 0..16 {
        w[j] = (block[2 + j] & 15) as i8;
        w[j + 16] = (block[2 + j] >> 4) as i8;
    }
    let d = f16_to_f32(block, 0);
    for r in 0..R {
        // w = d · (q - 8): the 8 is subtracted from the sum at once.
        let sum = integer_dot(&w, &x[r].integers[i]) as f32 - 8. * x[r].sums[i];
        sums[r] += d * x[r].scales[i] * sum;
    }
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

    /// [`dot`](super::dot).
    #[inline(always)]
    pub fn dot_avx2<const R: usize>(
        sums: &mut [Accumulator; R],
        block: &[u8; 18],
        x: [&QuantizedActivations; R],
        i: usize,
    ) {
        let (simd, bytes): (_, __m128i) = (sums[0].simd, pulp::cast(read_bytes::<16>(block, 2)));
        // Two copies of the 16 bytes; the upper one is shifted, so that its low nibbles are the last 16 weights.
        let shifted = simd.sse2._mm_srli_epi16::<4>(bytes);
        let both = sums[0].nibbles(simd.avx._mm256_set_m128i(shifted, bytes), false);
        let d = f16_to_f32(block, 0);
        for r in 0..R {
            let scale = d * x[r].scales[i];
            let product = sums[r].unsigned_dot(both, pulp::cast(x[r].integers[i]));
            sums[r].add(scale, product);
            sums[r].rest -= 8. * scale * x[r].sums[i];
        }
    }

    /// The dot products of a row with some rows of activations, each as 16 sums, with VNNI: two blocks at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni<const R: usize>(row: &[u8], x: [&VnniActivations; R]) -> [__m512; R] {
        let (pairs, odd) = row.as_chunks::<18>().0.as_chunks::<2>();
        let mut sums = [_mm512_setzero_ps(); R];
        for (i, [first, second]) in pairs.iter().enumerate() {
            add(&mut sums, weights(first, second), block_scales(first, second), x, i);
        }
        for block in odd {
            add(&mut sums, weights(block, &[0; 18]), block_scales(block, &[0; 18]), x, pairs.len());
        }
        sums
    }

    /// The integers of two blocks: the weights plus 8.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn weights(first: &[u8; 18], second: &[u8; 18]) -> __m512i {
        let load = |block: &[u8; 18]| cast::<_, __m128i>(read_bytes::<16>(block, 2));
        let duplicated = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load(first)), 0xff00, load(second));
        low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4])))
    }
}
