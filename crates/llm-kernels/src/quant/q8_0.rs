//! Q8_0: blocks of 32 weights in 34 bytes: a scale (f16), then 32 signed bytes.

use super::activations::QuantizedActivations;
use super::bits::{f16_to_f32, integer_dot};

/// Writes the weights of a row.
#[inline(always)]
pub fn dequantize(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_to_f32(block, 0);
        for (out, &q) in out.iter_mut().zip(&block[2..]) {
            *out = d * f32::from(q as i8);
        }
    }
}

/// Adds the dot products of a block with some rows of activations.
#[inline(always)]
pub fn dot<const R: usize>(sums: &mut [f32; R], block: &[u8; 34], x: [&QuantizedActivations; R], i: usize) {
    let mut w = [0i8; 32];
    for j in 0..32 {
        w[j] = block[2 + j] as i8;
    }
    let d = f16_to_f32(block, 0);
    for r in 0..R {
        sums[r] += d * x[r].scales[i] * integer_dot(&w, &x[r].integers[i]) as f32;
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512, __m512i, _mm256_set1_epi8, _mm256_xor_si256, _mm512_castsi256_si512, _mm512_inserti64x4,
        _mm512_setzero_ps,
    };

    use bytemuck::cast;

    use crate::quant::activations::QuantizedActivations;
    use crate::quant::avx2::Accumulator;
    use crate::quant::bits::{f16_to_f32, read_bytes};
    use crate::quant::vnni::{VnniActivations, add, block_scales};

    /// [`dot`](super::dot).
    #[inline(always)]
    pub fn dot_avx2<const R: usize>(
        sums: &mut [Accumulator; R],
        block: &[u8; 34],
        x: [&QuantizedActivations; R],
        i: usize,
    ) {
        let (avx2, w): (_, __m256i) = (sums[0].simd.avx2, pulp::cast(read_bytes::<32>(block, 2)));
        let (magnitude, d) = (avx2._mm256_sign_epi8(w, w), f16_to_f32(block, 0));
        for r in 0..R {
            // |w| · (x with the sign of w): the first operand of the instruction is unsigned.
            let product = sums[r].unsigned_dot(magnitude, avx2._mm256_sign_epi8(pulp::cast(x[r].integers[i]), w));
            sums[r].add(d * x[r].scales[i], product);
        }
    }

    /// The dot products of a row with some rows of activations, each as 16 sums, with VNNI: two blocks at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni<const R: usize>(row: &[u8], x: [&VnniActivations; R]) -> [__m512; R] {
        let (pairs, odd) = row.as_chunks::<34>().0.as_chunks::<2>();
        let mut sums = [_mm512_setzero_ps(); R];
        for (i, [first, second]) in pairs.iter().enumerate() {
            add(&mut sums, weights(first, second), block_scales(first, second), x, i);
        }
        for block in odd {
            add(&mut sums, weights(block, &[0; 34]), block_scales(block, &[0; 34]), x, pairs.len());
        }
        sums
    }

    /// The weights of two blocks, plus 128.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    fn weights(first: &[u8; 34], second: &[u8; 34]) -> __m512i {
        let offset = |block: &[u8; 34]| _mm256_xor_si256(cast(read_bytes::<32>(block, 2)), _mm256_set1_epi8(-128));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(offset(first)), offset(second))
    }
}
