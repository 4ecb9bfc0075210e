//! Dot products of blocks with AVX2 intrinsics, through pulp's safe wrappers. The equivalent portable loops are
//! in `quant/blocks.rs`; tests compare both.

use std::arch::x86_64::{__m128i, __m256, __m256i};

use pulp::x86::V3;

use super::{BlockFormat, QuantizedActivations, f16_to_f32, read_bytes, scale_and_min};

/// The dot product of each row of blocks with the activations.
pub struct QuantizedDots<'a> {
    pub simd: V3,
    pub format: BlockFormat,
    pub blocks: &'a [u8],
    pub row_bytes: usize,
    pub x: &'a QuantizedActivations,
    pub y: &'a mut [f32],
}

impl pulp::NullaryFnOnce for QuantizedDots<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, format, blocks, row_bytes, x, y } = self;
        for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
            let mut sum = Accumulator { simd, lanes: simd.avx._mm256_setzero_ps(), rest: 0. };
            match format {
                BlockFormat::Q8_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        sum.q8_0(block, x, i);
                    }
                }
                BlockFormat::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        sum.q4_0(block, x, i);
                    }
                }
                BlockFormat::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        sum.q4_k(block, x, i);
                    }
                }
                BlockFormat::Q6_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        sum.q6_k(block, x, i);
                    }
                }
            }
            *y = sum.total();
        }
    }
}

/// A sum of eight lanes and a scalar.
struct Accumulator {
    simd: V3,
    lanes: __m256,
    rest: f32,
}

impl Accumulator {
    /// Adds `scale · Σ integers`.
    #[inline(always)]
    fn add(&mut self, scale: f32, integers: __m256i) {
        let (avx, fma) = (self.simd.avx, self.simd.fma);
        self.lanes = fma._mm256_fmadd_ps(avx._mm256_set1_ps(scale), avx._mm256_cvtepi32_ps(integers), self.lanes);
    }

    /// Multiplies 32 unsigned with 32 signed bytes and adds neighbours: 8 sums of four products.
    #[inline(always)]
    fn unsigned_dot(&self, w: __m256i, x: __m256i) -> __m256i {
        let avx2 = self.simd.avx2;
        avx2._mm256_madd_epi16(avx2._mm256_maddubs_epi16(w, x), self.simd.avx._mm256_set1_epi16(1))
    }

    #[inline(always)]
    fn q8_0(&mut self, block: &[u8; 34], x: &QuantizedActivations, i: usize) {
        let avx2 = self.simd.avx2;
        let (w, integers): (__m256i, __m256i) = (pulp::cast(read_bytes::<32>(block, 2)), pulp::cast(x.integers[i]));
        // |w| · (x with the sign of w): the first operand of the instruction is unsigned.
        let product = self.unsigned_dot(avx2._mm256_sign_epi8(w, w), avx2._mm256_sign_epi8(integers, w));
        self.add(f16_to_f32(block, 0) * x.scales[i], product);
    }

    /// The low or the high nibble of each byte.
    #[inline(always)]
    fn nibbles(&self, bytes: __m256i, high: bool) -> __m256i {
        let (avx, avx2) = (self.simd.avx, self.simd.avx2);
        let bytes = if high { avx2._mm256_srli_epi16::<4>(bytes) } else { bytes };
        avx2._mm256_and_si256(bytes, avx._mm256_set1_epi8(15))
    }

    #[inline(always)]
    fn q4_0(&mut self, block: &[u8; 18], x: &QuantizedActivations, i: usize) {
        let bytes: __m128i = pulp::cast(read_bytes::<16>(block, 2));
        // Two copies of the 16 bytes; the upper one is shifted, so that its low nibbles are the last 16 weights.
        let shifted = self.simd.sse2._mm_srli_epi16::<4>(bytes);
        let both = self.nibbles(self.simd.avx._mm256_set_m128i(shifted, bytes), false);
        let scale = f16_to_f32(block, 0) * x.scales[i];
        self.add(scale, self.unsigned_dot(both, pulp::cast(x.integers[i])));
        self.rest -= 8. * scale * x.sums[i];
    }

    #[inline(always)]
    fn q4_k(&mut self, block: &[u8; 144], x: &QuantizedActivations, i: usize) {
        let (d, low) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        for part in 0..4 {
            let bytes: __m256i = pulp::cast(read_bytes::<32>(block, 16 + 32 * part));
            for high in 0..2 {
                let (j, at) = (2 * part + high, 8 * i + 2 * part + high);
                let (scale, min) = scale_and_min(&block[4..16], j);
                let product = self.unsigned_dot(self.nibbles(bytes, high == 1), pulp::cast(x.integers[at]));
                self.add(d * scale * x.scales[at], product);
                self.rest -= low * min * x.scales[at] * x.sums[at];
            }
        }
    }

    #[inline(always)]
    fn q6_k(&mut self, block: &[u8; 210], x: &QuantizedActivations, i: usize) {
        let (avx, avx2) = (self.simd.avx, self.simd.avx2);
        let d = f16_to_f32(block, 208);
        for part in 0..8 {
            let (side, quarter) = (part / 4, part % 4);
            let low = self.nibbles(pulp::cast(read_bytes::<32>(block, 64 * side + 32 * (quarter % 2))), quarter >= 2);
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
            let integers: __m256i = pulp::cast(x.integers[8 * i + part]);
            let pairs = avx2._mm256_maddubs_epi16(avx2._mm256_sign_epi8(w, w), avx2._mm256_sign_epi8(integers, w));
            // Each group of 16 weights has a scale, which is multiplied in when pairs are added.
            let scale = |j: usize| i16::from(block[192 + 2 * part + j] as i8);
            let (first, second) = (self.simd.sse2._mm_set1_epi16(scale(0)), self.simd.sse2._mm_set1_epi16(scale(1)));
            let product = avx2._mm256_madd_epi16(pairs, avx._mm256_set_m128i(second, first));
            self.add(d * x.scales[8 * i + part], product);
        }
    }

    #[inline(always)]
    fn total(self) -> f32 {
        let mut lanes: [f32; 8] = pulp::cast(self.lanes);
        crate::cpu::simd::sum_lanes(&mut lanes) + self.rest
    }
}
