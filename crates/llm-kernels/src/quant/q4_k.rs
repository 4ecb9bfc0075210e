//! Q4_K: blocks of 256 weights in 144 bytes: two scales (f16), a 6-bit scale and a 6-bit minimum for each of 8 parts, then
//! 256 integers of 4 bits.

use super::activations::QuantizedActivations;
use super::bits::{f16_to_f32, integer_dot};

/// Writes the weights of a row.
#[inline(always)]
pub fn dequantize(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.as_chunks::<144>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(&block[4..16], j);
            let q = &block[16 + 32 * (j / 2)..][..32];
            for (out, q) in out.iter_mut().zip(q) {
                *out = d * scale * f32::from((q >> (4 * (j % 2))) & 15) - low * min;
            }
        }
    }
}

/// Adds the dot products of a block with some rows of activations.
#[inline(always)]
pub fn dot<const R: usize>(sums: &mut [f32; R], block: &[u8; 144], x: [&QuantizedActivations; R], i: usize) {
    let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
    for j in 0..8 {
        let (q, at) = (&block[16 + 32 * (j / 2)..][..32], 8 * i + j);
        let (scale, min) = scale_and_min(&block[4..16], j);
        let mut w = [0i8; 32];
        for l in 0..32 {
            w[l] = ((q[l] >> (4 * (j % 2))) & 15) as i8;
        }
        for r in 0..R {
            let product = integer_dot(&w, &x[r].integers[at]) as f32;
            sums[r] += x[r].scales[at] * (d * scale * product - low * min * x[r].sums[at]);
        }
    }
}

/// Scale and minimum of sub-block `j`, 6 bits each, packed into 12 bytes.
#[inline(always)]
pub fn scale_and_min(q: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 15) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512, _mm_set_epi64x, _mm512_broadcast_i64x4, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
        _mm512_fmadd_ps, _mm512_mul_ps, _mm512_setzero_ps, _mm512_srlv_epi32,
    };

    use bytemuck::cast;

    use super::scale_and_min;
    use crate::quant::activations::QuantizedActivations;
    use crate::quant::avx2::Accumulator;
    use crate::quant::bits::{f16_to_f32, read_bytes};
    use crate::quant::vnni::{VnniActivations, add, broadcast_two_f16, low_nibbles, permute_lanes};

    /// [`dot`](super::dot).
    #[inline(always)]
    pub fn dot_avx2<const R: usize>(
        sums: &mut [Accumulator; R],
        block: &[u8; 144],
        x: [&QuantizedActivations; R],
        i: usize,
    ) {
        let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        for part in 0..4 {
            let bytes: __m256i = pulp::cast(read_bytes::<32>(block, 16 + 32 * part));
            for high in 0..2 {
                let (j, at) = (2 * part + high, 8 * i + 2 * part + high);
                let (scale, min) = scale_and_min(&block[4..16], j);
                let weights = sums[0].nibbles(bytes, high == 1);
                for r in 0..R {
                    let product = sums[r].unsigned_dot(weights, pulp::cast(x[r].integers[at]));
                    sums[r].add(d * scale * x[r].scales[at], product);
                    sums[r].rest -= low * min * x[r].scales[at] * x[r].sums[at];
                }
            }
        }
    }

    /// The dot products of a row with some rows of activations, each as 16 sums, with VNNI.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni<const R: usize>(row: &[u8], x: [&VnniActivations; R]) -> [__m512; R] {
        let mut sums = [_mm512_setzero_ps(); R];
        for (at, block) in row.as_chunks::<144>().0.iter().enumerate() {
            // Eight scales and eight minima of 6 bits each, in 12 bytes.
            let [a, b, c] = [4, 8, 12].map(|byte| u32::from_le_bytes(read_bytes(block, byte)));
            let join = |first: u32, second: u32| (u64::from(second) << 32 | u64::from(first)).cast_signed();
            let (low_six, low_four, low_two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
            let scales = join(a & low_six, (c & low_four) | ((a >> 6 & low_two) << 4));
            let minima_of_block = join(b & low_six, (c >> 4 & low_four) | ((b >> 6 & low_two) << 4));
            let weight_scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(minima_of_block, scales)));
            let weight_scales =
                _mm512_mul_ps(weight_scales, broadcast_two_f16(u32::from_le_bytes(read_bytes(block, 0))));
            for r in 0..R {
                sums[r] = _mm512_fmadd_ps(weight_scales, cast(x[r].minima[at]), sums[r]);
            }
            for i in 0..4 {
                let duplicated = _mm512_broadcast_i64x4(cast::<_, __m256i>(read_bytes::<32>(block, 16 + 32 * i)));
                let weights =
                    low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4])));
                let lane = 2 * i as i32;
                let weight_scales =
                    permute_lanes(weight_scales, std::array::from_fn(|j| if j < 8 { lane } else { lane + 1 }));
                add(&mut sums, weights, weight_scales, x, 4 * at + i);
            }
        }
        sums
    }
}
