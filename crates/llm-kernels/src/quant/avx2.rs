//! Dot products of blocks with AVX2 intrinsics, through pulp's safe wrappers; the formats have the code of a block. Tests
//! compare it with the portable loops.

use std::arch::x86_64::{__m256, __m256i};

use pulp::x86::V3;

use super::activations::QuantizedActivations;
use super::{BlockFormat, q4_0, q4_k, q6_k, q8_0};
use crate::cpu::simd::sum_lanes;

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
                        q8_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q4_0 => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_0::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q4_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q4_k::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
                BlockFormat::Q6_K => {
                    for (i, block) in row.as_chunks().0.iter().enumerate() {
                        q6_k::x86::dot_avx2(&mut sum, block, x, i);
                    }
                }
            }
            *y = sum.total();
        }
    }
}

/// A sum of eight lanes and a scalar.
pub struct Accumulator {
    pub simd: V3,
    pub lanes: __m256,
    pub rest: f32,
}

impl Accumulator {
    /// Adds `scale · Σ integers`.
    #[inline(always)]
    pub fn add(&mut self, scale: f32, integers: __m256i) {
        let (avx, fma) = (self.simd.avx, self.simd.fma);
        self.lanes = fma._mm256_fmadd_ps(avx._mm256_set1_ps(scale), avx._mm256_cvtepi32_ps(integers), self.lanes);
    }

    /// Multiplies 32 unsigned with 32 signed bytes and adds neighbours: 8 sums of four products.
    #[inline(always)]
    pub fn unsigned_dot(&self, w: __m256i, x: __m256i) -> __m256i {
        let avx2 = self.simd.avx2;
        avx2._mm256_madd_epi16(avx2._mm256_maddubs_epi16(w, x), self.simd.avx._mm256_set1_epi16(1))
    }

    /// The low or the high nibble of each byte.
    #[inline(always)]
    pub fn nibbles(&self, bytes: __m256i, high: bool) -> __m256i {
        let (avx, avx2) = (self.simd.avx, self.simd.avx2);
        let bytes = if high { avx2._mm256_srli_epi16::<4>(bytes) } else { bytes };
        avx2._mm256_and_si256(bytes, avx._mm256_set1_epi8(15))
    }

    /// The sum of all lanes and `rest`.
    #[inline(always)]
    pub fn total(self) -> f32 {
        let mut lanes: [f32; 8] = pulp::cast(self.lanes);
        sum_lanes(&mut lanes) + self.rest
    }
}
