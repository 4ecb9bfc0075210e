//! What the formats that are only read share: a block is a list of [`Part`]s of 32 weights.

/// 32 weights: `scale · integer - minimum`, with a scale and a minimum for each half.
pub struct Part {
    pub integers: [i8; 32],
    pub scales: [f32; 2],
    pub minima: [f32; 2],
}

/// A format with blocks of `N` bytes.
pub trait Parts<const N: usize> {
    /// False if all minima are 0.
    const HAS_MINIMA: bool;

    /// Part `j` of a block.
    fn part(block: &[u8; N], j: usize) -> Part;
}

/// Writes the weights of a row of blocks with `COUNT` parts.
#[inline(always)]
pub fn dequantize<F: Parts<N>, const N: usize, const COUNT: usize>(row: &[u8], out: &mut [f32]) {
    let parts = out.as_chunks_mut::<32>().0.chunks_exact_mut(COUNT);
    for (block, out) in row.as_chunks::<N>().0.iter().zip(parts) {
        for (j, out) in out.iter_mut().enumerate() {
            let Part { integers, scales, minima } = F::part(block, j);
            for l in 0..16 {
                out[l] = scales[0] * f32::from(integers[l]) - minima[0];
                out[l + 16] = scales[1] * f32::from(integers[l + 16]) - minima[1];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::{__m512, _mm512_set1_epi8, _mm512_setzero_ps, _mm512_xor_si512};

    use bytemuck::cast;

    use super::{Part, Parts};
    use crate::quant::vnni::{VnniActivations, add, subtract_minima};

    /// The dot products of a row of blocks with `COUNT` parts with some rows of activations, each as 16 sums, with VNNI: two
    /// parts at a time.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn row_vnni<F: Parts<N>, const N: usize, const COUNT: usize, const R: usize>(
        row: &[u8],
        x: [&VnniActivations; R],
    ) -> [__m512; R] {
        let (blocks, mut sums) = (row.as_chunks::<N>().0, [_mm512_setzero_ps(); R]);
        let parts = blocks.len() * COUNT;
        for i in 0..parts.div_ceil(2) {
            let first = F::part(&blocks[2 * i / COUNT], 2 * i % COUNT);
            let second = match blocks.get((2 * i + 1) / COUNT) {
                Some(block) => F::part(block, (2 * i + 1) % COUNT),
                None => Part { integers: [0; 32], scales: [0.; 2], minima: [0.; 2] },
            };
            let four = |[a, b]: [f32; 2], [c, d]: [f32; 2]| cast::<_, __m512>([[a; 4], [b; 4], [c; 4], [d; 4]]);
            // Plus 128, as unsigned bytes.
            let weights = _mm512_xor_si512(cast([first.integers, second.integers]), _mm512_set1_epi8(-128));
            add(&mut sums, weights, four(first.scales, second.scales), x, i);
            if F::HAS_MINIMA {
                subtract_minima(&mut sums, four(first.minima, second.minima), x, i);
            }
        }
        sums
    }
}

/// The low nibbles of 16 bytes, then the high nibbles.
#[inline(always)]
pub fn nibbles(bytes: &[u8; 16]) -> [i8; 32] {
    let mut integers = [0; 32];
    for l in 0..16 {
        integers[l] = (bytes[l] & 15) as i8;
        integers[l + 16] = (bytes[l] >> 4) as i8;
    }
    integers
}

/// Adds bit `l` of `bits` to integer `l`, as its bit 4.
#[inline(always)]
pub fn with_fifth_bit(mut integers: [i8; 32], bits: [u8; 4]) -> [i8; 32] {
    let bits = u32::from_le_bytes(bits);
    for (l, integer) in integers.iter_mut().enumerate() {
        *integer |= ((bits >> l & 1) << 4) as i8;
    }
    integers
}
