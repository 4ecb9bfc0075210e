//! The matmul of a bf16 weight with one row, with AVX2 intrinsics through pulp's safe wrappers. [`super::dots_bf16`] is
//! the equivalent portable loop; tests compare both.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use pulp::x86::V3;

use crate::cpu::simd::sum_lanes;

/// The dot product of each row of a bf16 weight with one row of activations.
pub struct Bf16Dots<'a> {
    pub simd: V3,
    pub x: &'a [f32],
    pub w: &'a [bf16],
    pub y: &'a mut [f32],
}

impl pulp::NullaryFnOnce for Bf16Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, x, w, y } = self;
        let (avx, avx2, fma) = (simd.avx, simd.avx2, simd.fma);
        let (x_chunks, x_rest) = x.as_chunks::<32>();
        let w: &[u16] = w.reinterpret_cast();
        for (w, y) in w.chunks_exact(x.len()).zip(y) {
            let (w_chunks, w_rest) = w.as_chunks::<32>();
            let mut lanes = [avx._mm256_setzero_ps(); 4];
            for (x, w) in x_chunks.iter().zip(w_chunks) {
                let (x, w) = (x.as_chunks::<8>().0, w.as_chunks::<8>().0);
                for i in 0..4 {
                    let wide = avx2._mm256_slli_epi32::<16>(avx2._mm256_cvtepu16_epi32(pulp::cast(w[i])));
                    lanes[i] = fma._mm256_fmadd_ps(avx._mm256_castsi256_ps(wide), pulp::cast(x[i]), lanes[i]);
                }
            }
            let sums = avx._mm256_add_ps(avx._mm256_add_ps(lanes[0], lanes[1]), avx._mm256_add_ps(lanes[2], lanes[3]));
            let mut sums: [f32; 8] = pulp::cast(sums);
            let mut rest = 0f32;
            for (x, w) in x_rest.iter().zip(w_rest) {
                rest += x * f32::from_bits(u32::from(*w) << 16);
            }
            *y = sum_lanes(&mut sums) + rest;
        }
    }
}
