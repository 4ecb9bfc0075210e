//! Vectors of f32, for each instruction set.

use half::{bf16, f16};

use crate::cpu::rounding::{bf16_to_f32, f16_bits_to_f32};
use crate::cpu::simd::sum_lanes;

/// An instruction set with vectors of `L` f32 numbers.
pub trait Vectors<const L: usize>: Copy {
    /// A vector.
    type F32s: Copy;

    /// The rows of activations of a tile whose sums stay in registers, at most 4.
    const MAX_ROWS: usize;

    /// Zeros.
    fn zeros(self) -> Self::F32s;

    /// Loads numbers.
    fn load_f32(self, x: &[f32; L]) -> Self::F32s;

    /// Converts numbers to f32.
    fn load_bf16(self, x: &[bf16; L]) -> Self::F32s;

    /// Converts numbers to f32.
    fn load_f16(self, x: &[f16; L]) -> Self::F32s;

    /// `a · b + c`.
    fn mul_add(self, a: Self::F32s, b: Self::F32s, c: Self::F32s) -> Self::F32s;

    /// The sum of the lanes of each vector, in an order that does not depend on its position.
    fn lane_sums(self, vectors: &[Self::F32s; 16]) -> [f32; 16];

    /// Loads the cache line at `address` into the cache. The address may be invalid.
    fn prefetch<T>(self, address: *const T);
}

/// Code for any machine.
#[derive(Clone, Copy)]
pub struct Portable;

impl Vectors<8> for Portable {
    type F32s = [f32; 8];
    const MAX_ROWS: usize = 2;

    #[inline(always)]
    fn zeros(self) -> Self::F32s {
        [0.; 8]
    }

    #[inline(always)]
    fn load_f32(self, x: &[f32; 8]) -> Self::F32s {
        *x
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; 8]) -> Self::F32s {
        x.map(bf16_to_f32)
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; 8]) -> Self::F32s {
        x.map(|x| f16_bits_to_f32(x.to_bits()))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32s, b: Self::F32s, mut c: Self::F32s) -> Self::F32s {
        for i in 0..8 {
            c[i] += a[i] * b[i];
        }
        c
    }

    #[inline(always)]
    fn lane_sums(self, vectors: &[Self::F32s; 16]) -> [f32; 16] {
        vectors.map(|mut lanes| sum_lanes(&mut lanes))
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use pulp::x86::{V3, V4};

    use super::{Vectors, bf16, f16, f16_bits_to_f32};
    use crate::cpu::simd::lane_sums;

    /// AVX2 and FMA, through pulp's safe wrappers.
    #[derive(Clone, Copy)]
    pub struct Avx2(pub V3);

    impl Vectors<8> for Avx2 {
        type F32s = __m256;
        const MAX_ROWS: usize = 2;

        #[inline(always)]
        fn zeros(self) -> __m256 {
            self.0.avx._mm256_setzero_ps()
        }

        #[inline(always)]
        fn load_f32(self, x: &[f32; 8]) -> __m256 {
            pulp::cast(*x)
        }

        #[inline(always)]
        fn load_bf16(self, x: &[bf16; 8]) -> __m256 {
            let avx2 = self.0.avx2;
            let bits = avx2._mm256_slli_epi32::<16>(avx2._mm256_cvtepu16_epi32(pulp::cast(*x)));
            self.0.avx._mm256_castsi256_ps(bits)
        }

        #[inline(always)]
        fn load_f16(self, x: &[f16; 8]) -> __m256 {
            let mut wide = [0f32; 8];
            for i in 0..8 {
                wide[i] = f16_bits_to_f32(x[i].to_bits());
            }
            pulp::cast(wide)
        }

        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            self.0.fma._mm256_fmadd_ps(a, b, c)
        }

        /// Adds neighbours within 128-bit lanes, then the 128-bit lanes.
        #[inline(always)]
        fn lane_sums(self, vectors: &[__m256; 16]) -> [f32; 16] {
            let avx = self.0.avx;
            let mut sums = [[0f32; 8]; 2];
            for (sums, v) in sums.iter_mut().zip(vectors.as_chunks::<8>().0) {
                let add = |i: usize| {
                    let (first, second) = (avx._mm256_hadd_ps(v[i], v[i + 1]), avx._mm256_hadd_ps(v[i + 2], v[i + 3]));
                    avx._mm256_hadd_ps(first, second)
                };
                let (first, second) = (add(0), add(4));
                let low = avx._mm256_permute2f128_ps::<0x20>(first, second);
                *sums = pulp::cast(avx._mm256_add_ps(low, avx._mm256_permute2f128_ps::<0x31>(first, second)));
            }
            pulp::cast(sums)
        }

        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            self.0.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
    }

    /// AVX-512, through pulp's safe wrappers.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub V4);

    impl Vectors<16> for Avx512 {
        type F32s = __m512;
        const MAX_ROWS: usize = 4;

        #[inline(always)]
        fn zeros(self) -> __m512 {
            self.0.avx512f._mm512_setzero_ps()
        }

        #[inline(always)]
        fn load_f32(self, x: &[f32; 16]) -> __m512 {
            pulp::cast(*x)
        }

        #[inline(always)]
        fn load_bf16(self, x: &[bf16; 16]) -> __m512 {
            let avx = self.0.avx512f;
            avx._mm512_castsi512_ps(avx._mm512_slli_epi32::<16>(avx._mm512_cvtepu16_epi32(pulp::cast(*x))))
        }

        #[inline(always)]
        fn load_f16(self, x: &[f16; 16]) -> __m512 {
            self.0.avx512f._mm512_cvtph_ps(pulp::cast(*x))
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            self.0.avx512f._mm512_fmadd_ps(a, b, c)
        }

        #[inline(always)]
        fn lane_sums(self, vectors: &[__m512; 16]) -> [f32; 16] {
            pulp::cast(lane_sums(self.0, vectors))
        }

        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            self.0.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
    }
}
