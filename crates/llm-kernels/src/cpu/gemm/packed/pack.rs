//! Packing of matrices into the panels of the packed GEMM.

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_cvtne2ps_pbh, _mm512_permutexvar_epi16, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::transmute;
use std::ops::Range;

use bytemuck::cast;

use super::{A_STRIDE, CACHE_LINE, MC, NR, PREFETCH_DISTANCE};
use crate::cpu::gemm::{Element, Matrix};

/// Packs at most `NR` columns of B from `start` on, given as rows of its transpose `bt`, into a panel `(k, NR)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn pack_b_panel<const BF16: bool, T: Element>(bt: Matrix<T>, start: usize, panel: &mut [u32]) {
    let from = bt.rows_from(start, NR);
    match from.col_stride {
        1 => pack_transposed::<BF16, T>(from, bt.rows_from(start + NR, NR), panel.as_chunks_mut().0),
        _ => pack_strided::<BF16, NR, T>(from, panel),
    }
}

/// Copies rows of A as words; rows up to `MR` are filled with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn copy_a_rows<const BF16: bool, T: Element>(from: Matrix<T>, rows: &mut [[u32; A_STRIDE]]) {
    let per_word = 1 + usize::from(BF16);
    for (i, to) in rows.iter_mut().enumerate() {
        if i >= from.rows {
            to[..from.cols.div_ceil(per_word)].fill(0);
            continue;
        }
        for (to, from) in to.as_chunks_mut::<16>().0.iter_mut().zip(from.row(i).chunks(16 * per_word)) {
            *to = cast(load_words::<BF16, T>(from));
        }
    }
}

/// Up to 16 words of contiguous elements; the rest is zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load_words<const BF16: bool, T: Element>(elements: &[T]) -> __m512i {
    if let (true, [bits]) = (BF16, T::as_bf16_bits(elements).unwrap_or_default().as_chunks::<32>().0) {
        return cast(*bits);
    }
    match (BF16, T::as_f32(elements).unwrap_or_default().as_chunks::<16>().0) {
        (true, [first, second]) => f32_pair_to_bf16(first, second),
        (false, [elements]) => cast(*elements),
        _ => load_words_tail::<BF16, T>(elements),
    }
}

/// Packs at most `NR` contiguous rows: 16 words of 16 rows are loaded and transposed. Prefetches the rows `next`
/// meanwhile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_transposed<const BF16: bool, T: Element>(from: Matrix<T>, next: Matrix<T>, panel: &mut [[u32; NR]]) {
    let per_word = 1 + usize::from(BF16);
    for (part, columns) in panel.chunks_mut(16).enumerate() {
        let start = part * 16 * per_word;
        let count = (16 * per_word).min(from.cols - start);
        for row in 0..next.rows {
            prefetch(&next.row(row)[start..start + count], 0..usize::MAX);
        }
        for first in (0..NR).step_by(16) {
            let mut words = [_mm512_setzero_si512(); 16];
            for (i, words) in words.iter_mut().enumerate().take(from.rows.saturating_sub(first)) {
                *words = load_words::<BF16, T>(&from.row(first + i)[start..start + count]);
            }
            for (column, words) in columns.iter_mut().zip(transpose_16x16(&words)) {
                column.as_chunks_mut::<16>().0[first / 16] = cast(words);
            }
        }
    }
}

/// Rounds 32 values to bf16, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn f32_pair_to_bf16(first: &[f32; 16], second: &[f32; 16]) -> __m512i {
    // SAFETY: both types have 512 bits; every bit pattern is valid.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(cast(*second), cast(*first))) }
}

/// [`load_words`] for element types without a fast path, or for fewer than 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn load_words_tail<const BF16: bool, T: Element>(row: &[T]) -> __m512i {
    let mut words = [0u32; 16];
    if BF16 {
        let (pairs, odd) = row.as_chunks::<2>();
        for (word, &[first, second]) in words.iter_mut().zip(pairs) {
            *word = bf16_pair(first, second);
        }
        if let ([last], Some(word)) = (odd, words.get_mut(pairs.len())) {
            *word = bf16_pair(*last, T::default());
        }
    } else {
        for (word, x) in words.iter_mut().zip(row) {
            *word = x.widen().to_bits();
        }
    }
    cast(words)
}

/// Transposes a 16 x 16 matrix of words: interleaves rows by 32-bit words, then by 64-bit words, then moves 128-bit
/// lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn transpose_16x16(rows: &[__m512i; 16]) -> [__m512i; 16] {
    let mut ones = *rows;
    for i in (0..16).step_by(2) {
        ones[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        ones[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // twos[4 g + c]: columns c, 4 + c, 8 + c, 12 + c of rows 4 g to 4 g + 3.
    let mut twos = ones;
    for g in (0..16).step_by(4) {
        twos[g] = _mm512_unpacklo_epi64(ones[g], ones[g + 2]);
        twos[g + 1] = _mm512_unpackhi_epi64(ones[g], ones[g + 2]);
        twos[g + 2] = _mm512_unpacklo_epi64(ones[g + 1], ones[g + 3]);
        twos[g + 3] = _mm512_unpackhi_epi64(ones[g + 1], ones[g + 3]);
    }
    let mut columns = twos;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(twos[c], twos[4 + c]); // columns c and 8 + c of rows 0 to 7
        let high = _mm512_shuffle_i32x4::<0xdd>(twos[c], twos[4 + c]); // 4 + c and 12 + c
        let low2 = _mm512_shuffle_i32x4::<0x88>(twos[8 + c], twos[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(twos[8 + c], twos[12 + c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    columns
}

/// Packs a matrix whose columns are contiguous: word `k` of all rows is one run of memory, from which each panel gets
/// `R` words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn pack_strided<const BF16: bool, const R: usize, T: Element>(from: Matrix<T>, panels: &mut [u32]) {
    assert_eq!(from.row_stride, 1, "strided packing needs contiguous columns");
    let per_word = 1 + usize::from(BF16);
    let words = from.cols.div_ceil(per_word);
    let column = |k: usize| &from.data[k * from.col_stride..][..from.rows];
    let zeros = [T::default(); MC];
    for k in 0..words {
        for ahead in (per_word * (k + PREFETCH_DISTANCE)..per_word * (k + 1 + PREFETCH_DISTANCE))
            .take_while(|&ahead| ahead < from.cols)
        {
            prefetch(column(ahead), 0..usize::MAX);
        }
        let first = if BF16 { column(2 * k) } else { column(k) };
        let second = if BF16 && 2 * k + 1 < from.cols { column(2 * k + 1) } else { &zeros[..from.rows] };
        let mut run = [0u32; MC];
        let mut done = 0;
        if let (true, Some(first), Some(second)) = (BF16, T::as_f32(first), T::as_f32(second)) {
            let (first, second) = (first.as_chunks::<16>().0, second.as_chunks::<16>().0);
            for ((run, first), second) in run.as_chunks_mut::<16>().0.iter_mut().zip(first).zip(second) {
                *run = interleave_bf16(f32_pair_to_bf16(first, second));
                done += 16;
            }
        }
        if let (true, Some(first), Some(second)) = (BF16, T::as_bf16_bits(first), T::as_bf16_bits(second)) {
            let (first, second) = (first.as_chunks::<16>().0, second.as_chunks::<16>().0);
            for ((run, first), second) in run.as_chunks_mut::<16>().0.iter_mut().zip(first).zip(second) {
                *run = interleave_bf16(cast([*first, *second]));
                done += 16;
            }
        }
        for ((word, &first), &second) in run.iter_mut().zip(first).zip(second).skip(done) {
            *word = if BF16 { bf16_pair(first, second) } else { first.widen().to_bits() };
        }
        for (panel, run) in panels.chunks_exact_mut(R * words).zip(run.as_chunks::<R>().0) {
            panel[k * R..(k + 1) * R].copy_from_slice(run);
        }
    }
}

/// Prefetches the given cache lines of a slice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
pub(super) fn prefetch<T>(elements: &[T], lines: Range<usize>) {
    let start = elements.as_ptr().cast::<i8>();
    for line in lines.start..lines.end.min(size_of_val(elements).div_ceil(CACHE_LINE)) {
        // SAFETY: a prefetch neither reads nor writes, and the line starts inside the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(line * CACHE_LINE)) };
    }
}

/// Interleaves the lower and the upper 16 bf16 values into 16 k-pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave_bf16(values: __m512i) -> [u32; 16] {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
            i += 1;
        }
        order
    };
    cast(_mm512_permutexvar_epi16(cast(ORDER), values))
}

/// A k-pair: two bf16 values, the first one in the lower 16 bits.
#[inline(always)]
fn bf16_pair<T: Element>(first: T, second: T) -> u32 {
    u32::from(first.to_bf16_bits()) | u32::from(second.to_bf16_bits()) << 16
}
