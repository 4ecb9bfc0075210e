//! The products of decoding on AVX-512 with VNNI, two blocks of weights at a time. The loops that they stand for are in
//! `quant.rs`; tests compare them.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_srli_epi16, _mm256_and_si256,
    _mm256_set_m128i, _mm256_set1_epi8, _mm256_xor_si256, _mm512_castps128_ps512, _mm512_castsi256_si512,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_inserti64x4, _mm512_mask_blend_ps, _mm512_mul_ps,
    _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_set_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_sub_epi32,
};
use std::mem::transmute;

use crate::quant::{Activations, BlockFormat};

/// Whether this machine has the instructions.
pub fn is_available() -> bool {
    crate::unit::avx512_is_allowed()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512vnni")
        && std::is_x86_feature_detected!("f16c")
}

/// The product of each row of blocks with the activations; false, and nothing done, for a format that is not here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub fn dots(format: BlockFormat, blocks: &[u8], row_bytes: usize, x: &Activations, y: &mut [f32]) -> bool {
    match format {
        BlockFormat::Q8_0 => rows::<34>(blocks, row_bytes, x, y),
        BlockFormat::Q4_0 => rows::<18>(blocks, row_bytes, x, y),
        BlockFormat::Q4_K | BlockFormat::Q6_K => return false,
    }
    true
}

/// Rows of blocks of `N` bytes: Q8_0 or Q4_0. They are read one after the other, as memory likes it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn rows<const N: usize>(blocks: &[u8], row_bytes: usize, x: &Activations, y: &mut [f32]) {
    for (row, y) in blocks.chunks_exact(row_bytes).zip(y) {
        let (pairs, odd) = row.as_chunks::<N>().0.as_chunks::<2>();
        let mut sum = _mm512_setzero_ps();
        for (i, [first, second]) in pairs.iter().enumerate() {
            sum = add(sum, [first, second], activations::<N>(x, i));
        }
        for block in odd {
            sum = add(sum, [block, &[0; N]], activations::<N>(x, pairs.len()));
        }
        *y = _mm512_reduce_add_ps(sum);
    }
}

/// The activations of the blocks `2 i` and `2 i + 1`: the integers, what the raised weights add to each sum of four
/// products, and the scales.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
fn activations<const N: usize>(x: &Activations, i: usize) -> (__m512i, __m512i, __m512) {
    let (integers, fours) = (x.integers.as_chunks::<2>().0[i], x.fours.as_chunks::<2>().0[i]);
    // SAFETY: 64 bytes, and 16 integers of 32 bits, are the same bytes as a register of them.
    let (integers, fours) =
        unsafe { (transmute::<[[i8; 32]; 2], __m512i>(integers), transmute::<[[i32; 8]; 2], __m512i>(fours)) };
    let raised = if N == 34 { _mm512_slli_epi32::<7>(fours) } else { _mm512_slli_epi32::<3>(fours) };
    let scales = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(x.scales[2 * i]), _mm512_set1_ps(x.scales[2 * i + 1]));
    (integers, raised, scales)
}

/// Adds the products of two blocks. The instruction wants one side unsigned: weights are raised by 128 or 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn add<const N: usize>(sum: __m512, blocks: [&[u8; N]; 2], x: (__m512i, __m512i, __m512)) -> __m512 {
    let (integers, raised, scales) = x;
    let halves = blocks.map(|block| weights(block));
    let weights = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
    let products = _mm512_sub_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, integers), raised);
    let [first, second] = blocks.map(|block| i32::from(u16::from_le_bytes([block[0], block[1]])));
    let halves = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(first | second << 16)));
    let own = _mm512_permutexvar_ps(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), halves);
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(own, scales), sum)
}

/// The 32 weights of a block, raised to be unsigned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(unsafe_code)]
fn weights<const N: usize>(block: &[u8; N]) -> __m256i {
    if N == 34 {
        let mut copy = [0u8; 32];
        copy.copy_from_slice(&block[2..]);
        // SAFETY: 32 bytes are the same as a register of them.
        return _mm256_xor_si256(unsafe { transmute::<[u8; 32], __m256i>(copy) }, _mm256_set1_epi8(-128));
    }
    let mut copy = [0u8; 16];
    copy.copy_from_slice(&block[2..]);
    // SAFETY: 16 bytes are the same as a register of them.
    let bytes = unsafe { transmute::<[u8; 16], __m128i>(copy) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}
