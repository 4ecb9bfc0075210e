//! What the formats' dot products on AVX-512 with VNNI share; they multiply 64 weights at a time.

use std::arch::x86_64::{
    __m512, __m512i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm512_and_si512, _mm512_castps128_ps512, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi8, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_sub_epi32,
};

use bytemuck::cast;
use pulp::x86::V4;

use super::BlockFormat;
use super::activations::QuantizedActivations;
use super::bits::read_bytes;

/// The instructions, if this machine has them.
pub fn available() -> Option<V4> {
    let all = crate::cpu::unit::avx512_is_allowed()
        && std::is_x86_feature_detected!("avx512vnni")
        && std::is_x86_feature_detected!("f16c");
    V4::try_new().filter(|_| all)
}

/// What most formats add to their signed weights.
const OFFSET: u8 = 128;

/// A row of quantised activations in the layout for one weight format.
pub struct VnniActivations {
    pub parts: Vec<Part>,
    /// For each `Q4_K` block: eight zeros, and the factors of its eight minima.
    pub minima: Vec<[f32; 16]>,
}

/// 64 activations. The instruction needs unsigned weights, so an offset is added to them; `init`, the initial value of
/// the sums of four products, compensates for it.
#[repr(align(64))]
pub struct Part {
    integers: [i8; 64],
    init: [i32; 16],
    scales: [f32; 16],
}

impl VnniActivations {
    /// If the number of groups of 32 is odd, a group of zeros is added.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn new(x: &QuantizedActivations, format: BlockFormat) -> Self {
        let offset = match format {
            BlockFormat::Q4_0 => 8,
            BlockFormat::Q4_K => 0,
            BlockFormat::Q6_K => 32,
            _ => OFFSET.cast_signed(),
        };
        let mut parts = Vec::with_capacity(x.scales.len().div_ceil(2));
        for (integers, scales) in x.integers.chunks(2).zip(x.scales.chunks(2)) {
            let integers = [integers[0], integers.get(1).copied().unwrap_or([0; 32])];
            let scales = [scales[0], scales.get(1).copied().unwrap_or_default()];
            let fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(offset), cast(integers));
            let init = _mm512_sub_epi32(_mm512_setzero_si512(), fours);
            parts.push(Part { integers: cast(integers), init: cast(init), scales: cast(scales.map(|x| [x; 8])) });
        }
        let minima = x.scales.as_chunks::<8>().0.iter().zip(x.sums.as_chunks::<8>().0);
        let minima = minima.filter(|_| format == BlockFormat::Q4_K).map(|(scales, sums)| {
            std::array::from_fn(|lane| if lane < 8 { 0. } else { -scales[lane - 8] * sums[lane - 8] })
        });
        Self { parts, minima: minima.collect() }
    }
}

/// Adds the products of 64 weights with part `i` of each row of activations, times the given scales.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub fn add<const R: usize>(
    sums: &mut [__m512; R],
    weights: __m512i,
    weight_scales: __m512,
    x: [&VnniActivations; R],
    i: usize,
) {
    for r in 0..R {
        let Part { integers, init, scales } = &x[r].parts[i];
        let products = _mm512_dpbusd_epi32(cast(*init), weights, cast(*integers));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(weight_scales, cast(*scales)), sums[r]);
    }
}

/// Subtracts the sums of 64 activations times the given minima, for formats with the offset 128.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn subtract_minima<const R: usize>(sums: &mut [__m512; R], minima: __m512, x: [&VnniActivations; R], i: usize) {
    for r in 0..R {
        let Part { init, scales, .. } = &x[r].parts[i];
        // `init` is -128 times the sums of four activations.
        let scales = _mm512_mul_ps(cast(*scales), _mm512_set1_ps(1. / f32::from(OFFSET)));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(cast(*init)), _mm512_mul_ps(minima, scales), sums[r]);
    }
}

/// Permutes the lanes of `x`: lane `i` of the result is lane `lanes[i]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn permute_lanes(x: __m512, lanes: [i32; 16]) -> __m512 {
    _mm512_permutexvar_ps(cast(lanes), x)
}

/// Two f16 numbers, the first in lanes 0 to 7, the second in lanes 8 to 15.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
pub fn broadcast_two_f16(bits: u32) -> __m512 {
    let scales = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.cast_signed())));
    permute_lanes(scales, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
}

/// The scales of two blocks that begin with an f16 scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub fn block_scales<const N: usize>(first: &[u8; N], second: &[u8; N]) -> __m512 {
    let scale = |block: &[u8; N]| u32::from(u16::from_le_bytes(read_bytes(block, 0)));
    broadcast_two_f16(scale(first) | scale(second) << 16)
}

/// The lower four bits of each byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn low_nibbles(x: __m512i) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(15))
}
