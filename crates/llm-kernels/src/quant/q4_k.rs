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

/// The dot product of a block with the activations.
#[inline(always)]
pub fn dot(block: &[u8; 144], x: &QuantizedActivations, i: usize) -> f32 {
    let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
    let mut sum = 0.;
    for part in 0..4 {
        let q = &block[16 + 32 * part..48 + 32 * part];
        for high in 0..2 {
            let (j, at) = (2 * part + high, 8 * i + 2 * part + high);
            let (scale, min) = scale_and_min(&block[4..16], j);
            let mut w = [0i8; 32];
            for l in 0..32 {
                w[l] = ((q[l] >> (4 * high)) & 15) as i8;
            }
            let product = integer_dot(&w, &x.integers[at]) as f32;
            sum += x.scales[at] * (d * scale * product - low * min * x.sums[at]);
        }
    }
    sum
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
    use crate::quant::vnni::{VnniActivations, add, add_sums, broadcast_two_f16, low_nibbles, permute_lanes};

    /// [`dot`](super::dot), added to `sum`.
    #[inline(always)]
    pub fn dot_avx2(sum: &mut Accumulator, block: &[u8; 144], x: &QuantizedActivations, i: usize) {
        let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        for part in 0..4 {
            let bytes: __m256i = pulp::cast(read_bytes::<32>(block, 16 + 32 * part));
            for high in 0..2 {
                let (j, at) = (2 * part + high, 8 * i + 2 * part + high);
                let (scale, min) = scale_and_min(&block[4..16], j);
                let product = sum.unsigned_dot(sum.nibbles(bytes, high == 1), pulp::cast(x.integers[at]));
                sum.add(d * scale * x.scales[at], product);
                sum.rest -= low * min * x.scales[at] * x.sums[at];
            }
        }
    }

    /// The dot product of a row, as 16 sums, with VNNI.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni(row: &[u8], x: &VnniActivations) -> __m512 {
        let mut sums = [_mm512_setzero_ps(); 2];
        let blocks = row.as_chunks::<144>().0;
        for ((block, x), &minima) in blocks.iter().zip(x.parts.as_chunks::<4>().0).zip(&x.minima) {
            // Eight scales and eight minima of 6 bits each, in 12 bytes.
            let [a, b, c] = [4, 8, 12].map(|at| u32::from_le_bytes(read_bytes(block, at)));
            let join = |first: u32, second: u32| (u64::from(second) << 32 | u64::from(first)).cast_signed();
            let (low_six, low_four, low_two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
            let scales = join(a & low_six, (c & low_four) | ((a >> 6 & low_two) << 4));
            let minima_of_block = join(b & low_six, (c >> 4 & low_four) | ((b >> 6 & low_two) << 4));
            let weight_scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(minima_of_block, scales)));
            let weight_scales =
                _mm512_mul_ps(weight_scales, broadcast_two_f16(u32::from_le_bytes(read_bytes(block, 0))));
            sums[0] = _mm512_fmadd_ps(weight_scales, cast(minima), sums[0]);
            for (i, x) in x.iter().enumerate() {
                let duplicated = _mm512_broadcast_i64x4(cast::<_, __m256i>(read_bytes::<32>(block, 16 + 32 * i)));
                let weights =
                    low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4])));
                let lane = 2 * i as i32;
                let weight_scales =
                    permute_lanes(weight_scales, std::array::from_fn(|j| if j < 8 { lane } else { lane + 1 }));
                sums[i % 2] = add(sums[i % 2], weights, weight_scales, x);
            }
        }
        add_sums(sums)
    }
}
