//! IQ4_NL: blocks of 32 weights in 18 bytes: a scale (f16), then 32 indices of 4 bits into [`VALUES`].

use super::bits::{f16_to_f32, read_bytes};
use super::parts::{Part, Parts, nibbles};

/// The integers of the format (ggml's `kvalues_iq4nl`).
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The format.
pub struct Iq4Nl;

impl Parts<18> for Iq4Nl {
    const HAS_MINIMA: bool = false;

    #[inline(always)]
    fn part(block: &[u8; 18], _: usize) -> Part {
        let integers = nibbles(&read_bytes(block, 2)).map(|i| VALUES[i as usize & 15]);
        Part { integers, scales: [f16_to_f32(block, 0); 2], minima: [0.; 2] }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_broadcast_i32x4, _mm512_set1_epi8, _mm512_setzero_ps, _mm512_shuffle_epi8,
        _mm512_xor_si512,
    };

    use bytemuck::cast;

    use super::VALUES;
    use crate::quant::q4_0;
    use crate::quant::vnni::{VnniActivations, add, block_scales};

    /// The dot products of a row with some rows of activations, each as 16 sums, with VNNI: two blocks at a time. The layout is
    /// that of Q4_0.
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

    /// The weights of two blocks, plus 128.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    fn weights(first: &[u8; 18], second: &[u8; 18]) -> __m512i {
        let values = _mm512_xor_si512(_mm512_broadcast_i32x4(cast(VALUES)), _mm512_set1_epi8(-128));
        _mm512_shuffle_epi8(values, q4_0::x86::weights(first, second))
    }
}
