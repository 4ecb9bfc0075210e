//! What the formats' dot products on AVX-512 with VNNI share; they multiply 64 weights at a time.

use std::arch::x86_64::{
    __m512, __m512i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm512_add_ps, _mm512_and_si512, _mm512_castps128_ps512,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi8,
    _mm512_setzero_si512, _mm512_sub_epi32,
};

use bytemuck::cast;

use super::BlockFormat;
use super::activations::QuantizedActivations;
use super::bits::read_bytes;

/// The formats that have code for AVX2 and VNNI. That of the others is portable, and compiled for each instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub(crate) enum X86Format {
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
}

impl X86Format {
    pub(super) fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::Q8_0 => Some(Self::Q8_0),
            BlockFormat::Q4_0 => Some(Self::Q4_0),
            BlockFormat::Q4_K => Some(Self::Q4_K),
            BlockFormat::Q6_K => Some(Self::Q6_K),
            _ => None,
        }
    }
}

/// True if this machine has the instructions.
pub fn is_available() -> bool {
    crate::cpu::unit::avx512_is_allowed()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512vnni")
        && std::is_x86_feature_detected!("f16c")
}

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
    pub fn new(x: &QuantizedActivations, format: X86Format) -> Self {
        let offset = match format {
            X86Format::Q8_0 => -128, // 128 as an unsigned byte
            X86Format::Q4_0 => 8,
            X86Format::Q4_K => 0,
            X86Format::Q6_K => 32,
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
        let minima = minima.filter(|_| format == X86Format::Q4_K).map(|(scales, sums)| {
            std::array::from_fn(|lane| if lane < 8 { 0. } else { -scales[lane - 8] * sums[lane - 8] })
        });
        Self { parts, minima: minima.collect() }
    }
}

/// Adds the products of 64 weights with the given scales.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub fn add(sum: __m512, weights: __m512i, weight_scales: __m512, x: &Part) -> __m512 {
    let products = _mm512_dpbusd_epi32(cast(x.init), weights, cast(x.integers));
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(weight_scales, cast(x.scales)), sum)
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

/// The sum of two accumulators.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn add_sums(sums: [__m512; 2]) -> __m512 {
    _mm512_add_ps(sums[0], sums[1])
}
