//! What the formats' dot products with AVX2 intrinsics share; pulp's wrappers of the intrinsics are safe.

use std::arch::x86_64::{__m256, __m256i};

use pulp::x86::V3;

use crate::cpu::simd::sum_lanes;

/// A sum of eight lanes and a scalar.
#[derive(Clone, Copy)]
pub struct Accumulator {
    pub simd: V3,
    pub lanes: __m256,
    pub rest: f32,
}

impl Accumulator {
    /// A sum of zero.
    #[inline(always)]
    pub fn new(simd: V3) -> Self {
        Self { simd, lanes: simd.avx._mm256_setzero_ps(), rest: 0. }
    }

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
