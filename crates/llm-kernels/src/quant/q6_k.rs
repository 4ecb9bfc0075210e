//! Q6_K: blocks of 256 weights in 210 bytes: 256 integers of 6 bits, from which 32 is subtracted, an 8-bit scale for each of
//! 16 groups, then a scale (f16).

use super::activations::QuantizedActivations;
use super::bits::{f16_to_f32, integer_dot};

/// Writes the weights of a row.
#[inline(always)]
pub fn dequantize(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = f16_to_f32(block, 208);
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (l, (out, q)) in out.iter_mut().zip(q6_k_values(block, part)).enumerate() {
                *out = d * f32::from(block[192 + 2 * part + l / 16] as i8) * f32::from(q);
            }
        }
    }
}

/// Adds the dot products of a block with some rows of activations.
#[inline(always)]
pub fn dot<const R: usize>(sums: &mut [f32; R], block: &[u8; 210], x: [&QuantizedActivations; R], i: usize) {
    let mut of_block = [0f32; R];
    for part in 0..8 {
        let (w, at) = (q6_k_values(block, part), 8 * i + part);
        let scale = |j: usize| f32::from(block[192 + 2 * part + j] as i8);
        for r in 0..R {
            let (ours, theirs) = (w.as_chunks::<16>().0, x[r].integers[at].as_chunks::<16>().0);
            let first = scale(0) * integer_dot(&ours[0], &theirs[0]) as f32;
            let second = scale(1) * integer_dot(&ours[1], &theirs[1]) as f32;
            of_block[r] += x[r].scales[at] * (first + second);
        }
    }
    let d = f16_to_f32(block, 208);
    for r in 0..R {
        sums[r] += d * of_block[r];
    }
}

/// The integers of part `part` (of 8) of a Q6_K block.
#[inline(always)]
fn q6_k_values(block: &[u8; 210], part: usize) -> [i8; 32] {
    let (side, quarter) = (part / 4, part % 4);
    let low = &block[64 * side + 32 * (quarter % 2)..][..32];
    let high = &block[128 + 32 * side..][..32];
    let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
    let mut integers = [0i8; 32];
    for l in 0..32 {
        integers[l] = (((low[l] >> low_shift) & 15) | (((high[l] >> high_shift) & 3) << 4)) as i8 - 32;
    }
    integers
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512, __m512i, _mm512_and_si512, _mm512_broadcast_i64x4, _mm512_cvtepi8_epi32,
        _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_sllv_epi32, _mm512_srli_epi16, _mm512_srlv_epi32,
    };

    use bytemuck::cast;

    use crate::quant::activations::QuantizedActivations;
    use crate::quant::avx2::Accumulator;
    use crate::quant::bits::{f16_to_f32, read_bytes};
    use crate::quant::vnni::{VnniActivations, add, low_nibbles, permute_lanes};

    /// [`dot`](super::dot).
    #[inline(always)]
    pub fn dot_avx2<const R: usize>(
        sums: &mut [Accumulator; R],
        block: &[u8; 210],
        x: [&QuantizedActivations; R],
        i: usize,
    ) {
        let simd = sums[0].simd;
        let (avx, avx2) = (simd.avx, simd.avx2);
        let d = f16_to_f32(block, 208);
        for part in 0..8 {
            let (side, quarter) = (part / 4, part % 4);
            let low =
                sums[0].nibbles(pulp::cast(read_bytes::<32>(block, 64 * side + 32 * (quarter % 2))), quarter >= 2);
            let high: __m256i = pulp::cast(read_bytes::<32>(block, 128 + 32 * side));
            // Two bits of each byte, moved to bits 4 and 5.
            let high = match quarter {
                0 => avx2._mm256_slli_epi16::<4>(high),
                1 => avx2._mm256_slli_epi16::<2>(high),
                2 => high,
                _ => avx2._mm256_srli_epi16::<2>(high),
            };
            let high = avx2._mm256_and_si256(high, avx._mm256_set1_epi8(48));
            let w = avx2._mm256_sub_epi8(avx2._mm256_or_si256(low, high), avx._mm256_set1_epi8(32));
            let magnitude = avx2._mm256_sign_epi8(w, w);
            // Each group of 16 weights has a scale, which is multiplied in when pairs are added.
            let scale = |j: usize| i16::from(block[192 + 2 * part + j] as i8);
            let (first, second) = (simd.sse2._mm_set1_epi16(scale(0)), simd.sse2._mm_set1_epi16(scale(1)));
            let scales = avx._mm256_set_m128i(second, first);
            for r in 0..R {
                let integers = avx2._mm256_sign_epi8(pulp::cast(x[r].integers[8 * i + part]), w);
                let product = avx2._mm256_madd_epi16(avx2._mm256_maddubs_epi16(magnitude, integers), scales);
                sums[r].add(d * x[r].scales[8 * i + part], product);
            }
        }
    }

    /// The dot products of a row with some rows of activations, each as 16 sums, with VNNI.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni<const R: usize>(row: &[u8], x: [&VnniActivations; R]) -> [__m512; R] {
        let mut sums = [_mm512_setzero_ps(); R];
        for (at, block) in row.as_chunks::<210>().0.iter().enumerate() {
            let weight_scales =
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(cast::<_, __m128i>(read_bytes::<16>(block, 192))));
            let weight_scales = _mm512_mul_ps(weight_scales, _mm512_set1_ps(f16_to_f32(block, 208)));
            for i in 0..4 {
                let low: __m512i = cast(read_bytes::<64>(block, 64 * (i / 2)));
                let high = _mm512_broadcast_i64x4(cast::<_, __m256i>(read_bytes::<32>(block, 128 + 32 * (i / 2))));
                // Each byte of `high` has two bits for each of four weights; they are moved to bits 4 and 5.
                let (low, high) = if i % 2 == 0 {
                    (low, _mm512_sllv_epi32(high, cast([4, 4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2])))
                } else {
                    let high = _mm512_srlv_epi32(high, cast([0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]));
                    (_mm512_srli_epi16::<4>(low), high)
                };
                let weights = _mm512_or_si512(low_nibbles(low), _mm512_and_si512(high, _mm512_set1_epi8(48)));
                let lane = 4 * i as i32;
                let weight_scales = permute_lanes(weight_scales, std::array::from_fn(|j| lane + j as i32 / 4));
                add(&mut sums, weights, weight_scales, x, 4 * at + i);
            }
        }
        sums
    }
}
