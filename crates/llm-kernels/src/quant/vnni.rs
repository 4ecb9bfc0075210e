//! The dot products of decoding on AVX-512 with VNNI, 64 weights at a time. The equivalent portable loops are in
//! `quant/blocks.rs`; tests compare both.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_set_epi64x, _mm256_set1_epi8,
    _mm256_xor_si256, _mm512_add_ps, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_broadcast_i64x4,
    _mm512_castps128_ps512, _mm512_castsi256_si512, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_mask_broadcast_i32x4, _mm512_mul_ps,
    _mm512_or_si512, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_sllv_epi32, _mm512_srli_epi16, _mm512_srlv_epi32, _mm512_sub_epi32,
};

use bytemuck::cast;

use super::{BlockFormat, QuantizedActivations, f16_to_f32, read_bytes};

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
    parts: Vec<Part>,
    /// For each `Q4_K` block: eight zeros, and the factors of its eight minima.
    minima: Vec<[f32; 16]>,
}

/// 64 activations. The instruction needs unsigned weights, so an offset is added to them; `init`, the initial value of
/// the sums of four products, compensates for it.
#[repr(align(64))]
struct Part {
    integers: [i8; 64],
    init: [i32; 16],
    scales: [f32; 16],
}

impl VnniActivations {
    /// If the number of groups of 32 is odd, a group of zeros is added.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    pub fn new(x: &QuantizedActivations, format: BlockFormat) -> Self {
        let offset = match format {
            BlockFormat::Q8_0 => -128, // 128 as an unsigned byte
            BlockFormat::Q4_0 => 8,
            BlockFormat::Q4_K => 0,
            BlockFormat::Q6_K => 32,
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

/// The dot product of each row of blocks with the activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub fn dots(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &VnniActivations, y: &mut [f32]) {
    for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
        *y = _mm512_reduce_add_ps(match format {
            BlockFormat::Q8_0 => pairs::<34>(row, x),
            BlockFormat::Q4_0 => pairs::<18>(row, x),
            BlockFormat::Q4_K => q4_k(row, x),
            BlockFormat::Q6_K => q6_k(row, x),
        });
    }
}

/// Adds the products of 64 weights with the given scales.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add(sum: __m512, weights: __m512i, weight_scales: __m512, x: &Part) -> __m512 {
    let products = _mm512_dpbusd_epi32(cast(x.init), weights, cast(x.integers));
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(weight_scales, cast(x.scales)), sum)
}

/// Permutes the lanes of `x`: lane `i` of the result is lane `lanes[i]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn permute_lanes(x: __m512, lanes: [i32; 16]) -> __m512 {
    _mm512_permutexvar_ps(cast(lanes), x)
}

/// Two f16 numbers, the first in lanes 0 to 7, the second in lanes 8 to 15.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
fn broadcast_two_f16(bits: u32) -> __m512 {
    let scales = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.cast_signed())));
    permute_lanes(scales, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
}

/// Blocks of 32 weights in `N` bytes, two at a time: Q8_0 or Q4_0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn pairs<const N: usize>(row: &[u8], x: &VnniActivations) -> __m512 {
    let (pairs, odd) = row.as_chunks::<N>().0.as_chunks::<2>();
    let mut sum = _mm512_setzero_ps();
    for ([first, second], x) in pairs.iter().zip(&x.parts) {
        sum = add_pair(sum, first, second, x);
    }
    for (block, x) in odd.iter().zip(&x.parts[pairs.len()..]) {
        sum = add_pair(sum, block, &[0; N], x);
    }
    sum
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn add_pair<const N: usize>(sum: __m512, first: &[u8; N], second: &[u8; N], x: &Part) -> __m512 {
    let scale = |block: &[u8; N]| u32::from(u16::from_le_bytes(read_bytes(block, 0)));
    let weight_scales = broadcast_two_f16(scale(first) | scale(second) << 16);
    let weights = if N == 34 {
        let offset = |block: &[u8; N]| _mm256_xor_si256(cast(read_bytes::<32>(block, 2)), _mm256_set1_epi8(-128));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(offset(first)), offset(second))
    } else {
        let load = |block: &[u8; N]| cast::<_, __m128i>(read_bytes::<16>(block, 2));
        let duplicated = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load(first)), 0xff00, load(second));
        low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4])))
    };
    add(sum, weights, weight_scales, x)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn low_nibbles(x: __m512i) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn q4_k(row: &[u8], x: &VnniActivations) -> __m512 {
    let mut sums = [_mm512_setzero_ps(); 2];
    let blocks = row.as_chunks::<144>().0;
    for ((block, x), &minima) in blocks.iter().zip(x.parts.as_chunks::<4>().0).zip(&x.minima) {
        // Eight scales and eight minima of 6 bits each, in 12 bytes.
        let [a, b, c] = [4, 8, 12].map(|at| u32::from_le_bytes(read_bytes(block, at)));
        let join = |first: u32, second: u32| (u64::from(second) << 32 | u64::from(first)).cast_signed();
        let (low_six, low_four, low_two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
        let scales = join(a & low_six, (c & low_four) | ((a >> 6 & low_two) << 4));
        let minima_of_block = join(b & low_six, (c >> 4 & low_four) | ((b >> 6 & low_two) << 4));
        let weight_scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(minima_of_block, scales)));
        let weight_scales = _mm512_mul_ps(weight_scales, broadcast_two_f16(u32::from_le_bytes(read_bytes(block, 0))));
        sums[0] = _mm512_fmadd_ps(weight_scales, cast(minima), sums[0]);
        for (i, x) in x.iter().enumerate() {
            let duplicated = _mm512_broadcast_i64x4(cast::<_, __m256i>(read_bytes::<32>(block, 16 + 32 * i)));
            let weights =
                low_nibbles(_mm512_srlv_epi32(duplicated, cast([0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4])));
            let lane = 2 * i as i32;
            let weight_scales =
                permute_lanes(weight_scales, std::array::from_fn(|j| if j < 8 { lane } else { lane + 1 }));
            sums[i % 2] = add(sums[i % 2], weights, weight_scales, x);
        }
    }
    add_sums(sums)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn q6_k(row: &[u8], x: &VnniActivations) -> __m512 {
    let mut sums = [_mm512_setzero_ps(); 2];
    for (block, x) in row.as_chunks::<210>().0.iter().zip(x.parts.as_chunks::<4>().0) {
        let weight_scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(cast::<_, __m128i>(read_bytes::<16>(block, 192))));
        let weight_scales = _mm512_mul_ps(weight_scales, _mm512_set1_ps(f16_to_f32(block, 208)));
        for (i, x) in x.iter().enumerate() {
            let low: __m512i = cast(read_bytes::<64>(block, 64 * (i / 2)));
            let high = _mm512_broadcast_i64x4(cast::<_, __m256i>(read_bytes::<32>(block, 128 + 32 * (i / 2))));
            // Each byte of `high` has two bits for each of four weights; they are moved to bits 4 and 5.
            let (low, high) = if i % 2 == 0 {
                (low, _mm512_sllv_epi32(high, cast([4, 4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2])))
            } else {
                let high = _mm512_srlv_epi32(high, cast([0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]));
                (_mm512_srli_epi16::<4>(low), high)
            };
            let weights = _mm512_or_si512(low_nibbles(low), _mm512_and_si512(high, _mm512_set1_epi8(48)));
            let lane = 4 * i as i32;
            let weight_scales = permute_lanes(weight_scales, std::array::from_fn(|j| lane + j as i32 / 4));
            sums[i % 2] = add(sums[i % 2], weights, weight_scales, x);
        }
    }
    add_sums(sums)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_sums(sums: [__m512; 2]) -> __m512 {
    _mm512_add_ps(sums[0], sums[1])
}
