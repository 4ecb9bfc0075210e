//! Packed GEMM on AVX-512: factors in f32, or in bf16 with sums in f32 (`vdpbf16ps`).
//!
//! The algorithm is Goto's (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"), the
//! names are those of BLIS (Van Zee and van de Geijn 2015): B, and A if it is transposed, are packed into panels that
//! the micro-kernel reads sequentially while an `MR x NR` tile of the result is in registers. Panels consist of 32-bit
//! words: one f32, or a *k-pair* of two bf16 values that are neighbours along the contraction. Padding (the rest of a
//! panel, the second value of the last k-pair if k is odd) is zero.

mod pack;

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::cell::RefCell;
use std::mem::transmute;

use bytemuck::cast;
use half::{bf16, f16};
use rayon::prelude::*;

use pack::{copy_a_rows, pack_b_panel, pack_strided, prefetch};

use super::{AnyMatrix, Element, Matrix, OutputView, Threads};

/// Rows and columns of the micro-kernel's tile, which takes 24 of the 32 registers.
const MR: usize = 12;
const NR: usize = 32;

/// Words along the contraction per pass over the result: a B panel of 128 KB.
const KC: usize = 1024;

/// Rows of the result per task; the A panels stay in the L2 cache.
const MC: usize = 4 * MR;

/// Row stride of an untransposed A panel; not a power of two, to avoid cache-set conflicts.
const A_STRIDE: usize = KC + 16;

/// Prefetch distance of the strided packing, in words.
const PREFETCH_DISTANCE: usize = 16;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Words of B that are packed at a time: 16 MB.
const MAX_PACKED_B: usize = 4 << 20;

/// True if this machine has the instructions.
pub fn is_available() -> bool {
    crate::cpu::unit::avx512_is_allowed()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
}

// SAFETY: `matmul` below gives it to tasks that read and write only their own rows, and returns after all of them. The
// caller of `matmul` guarantees the memory until then.
#[allow(unsafe_code)]
unsafe impl Send for OutputView {}
// SAFETY: as above; only the address is shared, and it does not change.
#[allow(unsafe_code)]
unsafe impl Sync for OutputView {}

thread_local! {
    /// Panels of A, panels of B, and rows of the result. They are reused by later matmuls, because page faults of new
    /// memory cost more than the packing.
    static BUFFERS: [RefCell<Vec<u32>>; 3] = const { [const { RefCell::new(Vec::new()) }; 3] };
}

/// Runs `f` with `len` words of this thread's buffer `which`.
fn with_buffer(which: usize, len: usize, f: impl FnOnce(&mut [u32])) {
    // The buffer is taken out of its cell meanwhile: while this thread waits inside `f`, rayon may run another matmul
    // on it.
    let mut buffer = BUFFERS.with(|panels| panels[which].take());
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    f(&mut buffer[..len]);
    BUFFERS.with(|panels| panels[which].replace(buffer));
}

/// `a · b`, in bf16 or f32.
///
/// # Safety
/// [`is_available`], and `out` is valid as described at [`OutputView`] for `a.rows` rows of `b.cols` elements.
#[allow(unsafe_code)]
pub unsafe fn matmul<const BF16: bool, A: Element, B: Element>(
    a: Matrix<A>,
    b: Matrix<B>,
    out: OutputView,
    threads: Threads,
) {
    let words = a.cols.div_ceil(1 + usize::from(BF16));
    let bt = b.t();
    let width = (MAX_PACKED_B / words / NR).max(1) * NR;
    for start in (0..bt.rows).step_by(width) {
        let b = bt.rows_from(start, width);
        let macro_kernels = |panels: BPanels| {
            for_each_row_block(a, threads, |first, a, next| {
                // SAFETY: the instructions are available. `first` is a row and `start` a column of the result, so the
                // address is inside it. The tiles of the block are inside the rows of the block and the `b.rows`
                // columns from `start` on.
                unsafe {
                    let out = OutputView { data: { out }.data.add(first * out.stride + start), ..out };
                    macro_kernel::<BF16, A>(a, next, panels, b.rows, out);
                }
            });
        };
        // SAFETY: the caller guarantees that the instructions are available.
        unsafe { with_packed_b::<BF16, B>(b, threads, macro_kernels) };
    }
}

/// `a · b` on all threads, block by block: `each` gets the index of the first row of a block and its rows, of
/// [`row_stride`] elements. B consists of the columns of several matrices, given as their transposes `bts`; those of each
/// matrix begin at a panel.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
pub unsafe fn matmul_row_blocks<const BF16: bool, A: Element>(
    a: Matrix<A>,
    bts: &[AnyMatrix],
    each: impl Fn(usize, &mut [f32]) + Sync,
) {
    let (depth, stride) = (a.cols.div_ceil(1 + usize::from(BF16)), row_stride(bts));
    let len = |bt: &AnyMatrix| bt.rows().next_multiple_of(NR) * depth;
    with_buffer(1, bts.iter().map(len).sum(), |words| {
        let mut free = &mut *words;
        for bt in bts {
            let (panels, rest) = std::mem::take(&mut free).split_at_mut(len(bt));
            // SAFETY: the caller guarantees that the instructions are available.
            unsafe {
                match *bt {
                    AnyMatrix::F32(bt) => pack_b::<BF16, f32>(bt, panels, Threads::All),
                    AnyMatrix::Bf16(bt) => pack_b::<BF16, bf16>(bt, panels, Threads::All),
                    AnyMatrix::F16(bt) => pack_b::<BF16, f16>(bt, panels, Threads::All),
                }
            }
            free = rest;
        }
        let panels = BPanels { words, depth, first: 0 };
        for_each_row_block(a, Threads::All, |first, a, next| {
            with_buffer(2, a.rows * stride, |rows| {
                let rows: &mut [f32] = bytemuck::cast_slice_mut(rows);
                let out = OutputView { data: rows.as_mut_ptr(), stride, accumulate: false, scale: 1. };
                // SAFETY: the instructions are available, the buffer has `a.rows` rows of `stride` elements, and there is
                // a panel for every `NR` of them.
                unsafe { macro_kernel::<BF16, A>(a, next, panels, stride, out) };
                each(first, rows);
            });
        });
    });
}

/// Elements of a row of the result of [`matmul_row_blocks`]: each matrix but the last is padded to whole panels.
pub fn row_stride(bts: &[AnyMatrix]) -> usize {
    let last = bts.last().map_or(0, super::any_matrix::AnyMatrix::rows);
    bts.iter().rev().skip(1).map(|bt| bt.rows().next_multiple_of(NR)).sum::<usize>() + last
}

/// Runs `f` with packed B; `bt` is B transposed.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
unsafe fn with_packed_b<const BF16: bool, B: Element>(bt: Matrix<B>, threads: Threads, f: impl FnOnce(BPanels)) {
    let words = bt.cols.div_ceil(1 + usize::from(BF16));
    with_buffer(1, bt.rows.next_multiple_of(NR) * words, |panels| {
        // SAFETY: the caller guarantees that the instructions are available.
        unsafe { pack_b::<BF16, B>(bt, panels, threads) };
        f(BPanels { words: panels, depth: words, first: 0 });
    });
}

/// Packs B, given as its transpose `bt`, into panels of `NR` columns.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
unsafe fn pack_b<const BF16: bool, B: Element>(bt: Matrix<B>, panels: &mut [u32], threads: Threads) {
    let panel_len = (NR * bt.cols.div_ceil(1 + usize::from(BF16))).max(1);
    // SAFETY: the caller guarantees that the instructions are available.
    let pack = |(i, panel)| unsafe { pack_b_panel::<BF16, B>(bt, i * NR, panel) };
    match threads {
        Threads::One => panels.chunks_mut(panel_len).enumerate().for_each(pack),
        Threads::All => panels.par_chunks_mut(panel_len).enumerate().for_each(pack),
    }
}

/// Runs `f(first row, block, next block)` for each block of `MC` rows of A.
fn for_each_row_block<A: Element>(a: Matrix<A>, threads: Threads, f: impl Fn(usize, Matrix<A>, Matrix<A>) + Sync) {
    let rows = |i: usize| a.rows_from(i * MC, MC);
    let block = |i: usize| f(i * MC, rows(i), rows(i + 1));
    let blocks = a.rows.div_ceil(MC);
    match threads {
        Threads::One => (0..blocks).for_each(block),
        Threads::All => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
    }
}

/// All panels of `b`, for [`matmul_packed`].
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
pub unsafe fn pack_b_panels<const BF16: bool, B: Element>(b: Matrix<B>) -> Vec<u32> {
    let (words, bt) = (b.rows.div_ceil(1 + usize::from(BF16)), b.t());
    let mut panels = vec![0; bt.rows.next_multiple_of(NR) * words];
    // SAFETY: the caller guarantees that the instructions are available.
    unsafe { pack_b::<BF16, B>(bt, &mut panels, Threads::One) };
    panels
}

/// `a` times a part of a packed matrix with `depth` rows: the `a.cols` rows from `row` on, and the `cols` columns from
/// `col` on. `row` must be even and `col` the first column of a panel.
///
/// # Safety
/// [`is_available`], and `out` is valid as described at [`OutputView`] for `a.rows` rows of `cols` elements.
#[allow(unsafe_code)]
pub unsafe fn matmul_packed<const BF16: bool, A: Element>(
    a: Matrix<A>,
    panels: &[u32],
    depth: usize,
    [row, col]: [usize; 2],
    cols: usize,
    out: OutputView,
) {
    let per_word = 1 + usize::from(BF16);
    let depth = depth.div_ceil(per_word);
    let words = &panels[col / NR * NR * depth..][..cols.next_multiple_of(NR) * depth];
    let panels = BPanels { words, depth, first: row / per_word };
    for start in (0..a.rows).step_by(MC) {
        // SAFETY: the instructions are available. Row `start` and the rows of the block are rows of the result, each
        // of `cols` elements.
        unsafe {
            let out = OutputView { data: out.data.add(start * out.stride), ..out };
            let next = a.rows_from(start + MC, MC);
            macro_kernel::<BF16, A>(a.rows_from(start, MC), next, panels, cols, out);
        }
    }
}

/// Packed B.
#[derive(Clone, Copy)]
struct BPanels<'a> {
    /// One panel per [`NR`] columns, each with the layout `(depth, NR)`.
    words: &'a [u32],
    depth: usize,
    /// The word of each column that is multiplied with the first word of A.
    first: usize,
}

/// The multiply-add rate of this thread on data in the L1 cache, in FLOP/s.
pub fn peak<const BF16: bool>() -> f64 {
    const WORDS: usize = 128;
    const REPEATS: usize = 20_000;
    let (a, b) = ([[0u32; MR]; WORDS], [[[0u32; 16]; 2]; WORDS]);
    let start = std::time::Instant::now();
    for _ in 0..REPEATS {
        // SAFETY: `peak_flops`, the only caller, checks `is_available` first. Only registers and the arrays are used.
        #[allow(unsafe_code)]
        unsafe {
            let a = std::hint::black_box(&a);
            std::hint::black_box(micro_kernel::<BF16>(&b, |k, i| a[k][i]));
        }
    }
    let elements = WORDS * (1 + usize::from(BF16));
    (REPEATS * MR * NR * elements * 2) as f64 / start.elapsed().as_secs_f64()
}

/// Macro-kernel: a block of rows `a` times all panels of `b`, [`KC`] words at a time. Prefetches the rows `next` of
/// the next block meanwhile.
///
/// # Safety
/// [`is_available`], and `out` is valid as described at [`OutputView`] for `a.rows` rows of `cols` elements. `b` has
/// the panels of `cols` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn macro_kernel<const BF16: bool, A: Element>(
    a: Matrix<A>,
    next: Matrix<A>,
    b: BPanels,
    cols: usize,
    out: OutputView,
) {
    let per_word = 1 + usize::from(BF16);
    let words = a.cols.div_ceil(per_word);
    let depth = words.div_ceil(words.div_ceil(KC));
    let (transposed, height) = (a.col_stride != 1, a.rows.next_multiple_of(MR));
    let lines = (a.cols * size_of::<A>()).div_ceil(CACHE_LINE);
    let prefetch_lines = if transposed { 0 } else { next.rows * lines };
    let lines_per_tile = prefetch_lines.div_ceil(cols.div_ceil(NR) * height / MR);
    let mut prefetched = 0;
    with_buffer(0, height * if transposed { depth } else { A_STRIDE }, |buffer| {
        for start in (0..words).step_by(depth) {
            let end = words.min(start + depth);
            let width = if transposed { end - start } else { A_STRIDE };
            let buffer = &mut buffer[..height * width];
            let out = OutputView { accumulate: out.accumulate || start > 0, ..out };
            let part = a.cols_from(start * per_word, (end - start) * per_word);
            match transposed {
                true => pack_strided::<BF16, MR, A>(part, buffer),
                false => copy_a_rows::<BF16, A>(part, buffer.as_chunks_mut().0),
            }
            for (j, panel) in b.words.chunks_exact(NR * b.depth).enumerate() {
                let b = panel[NR * (b.first + start)..NR * (b.first + end)].as_chunks::<16>().0.as_chunks::<2>().0;
                for (i, panel) in buffer.chunks_exact(MR * width).enumerate() {
                    let tile = if transposed {
                        let panel = panel.as_chunks::<MR>().0;
                        micro_kernel::<BF16>(b, |k, i| panel[k][i])
                    } else {
                        let panel = panel.as_chunks::<A_STRIDE>().0;
                        micro_kernel::<BF16>(b, |k, i| panel[i][k])
                    };
                    if prefetched < prefetch_lines {
                        let (row, line) = (prefetched / lines, prefetched % lines);
                        prefetch(next.row(row), line..line + lines_per_tile);
                        prefetched += lines_per_tile.min(lines - line);
                    }
                    let (rows, cols) = (MR.min(a.rows - i * MR), NR.min(cols - j * NR));
                    // SAFETY: there is one panel for every `MR` rows and every `NR` columns, the last one partly
                    // filled. So the first element of the tile is inside the output, and `rows` and `cols` end with
                    // it.
                    unsafe {
                        store_tile(
                            &tile,
                            rows,
                            cols,
                            OutputView { data: out.data.add(i * MR * out.stride + j * NR), ..out },
                        );
                    }
                }
            }
        }
    });
}

/// Micro-kernel: one tile of the result, from a B panel and words `a(k, i)` of A (word `k` of row `i`).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn micro_kernel<const BF16: bool>(b: &[[[u32; 16]; 2]], a: impl Fn(usize, usize) -> u32) -> [[__m512; 2]; MR] {
    let mut tile = [[_mm512_setzero_ps(); 2]; MR];
    for (k, b) in b.iter().enumerate() {
        for (i, tile) in tile.iter_mut().enumerate() {
            let a = _mm512_set1_epi32(a(k, i).cast_signed());
            for j in 0..2 {
                tile[j] = if BF16 {
                    // SAFETY: both types have 512 bits; every bit pattern is valid.
                    let [a, b] = [a, cast(b[j])].map(|x| unsafe { transmute::<__m512i, __m512bh>(x) });
                    _mm512_dpbf16_ps(tile[j], a, b)
                } else {
                    _mm512_fmadd_ps(_mm512_castsi512_ps(a), cast(b[j]), tile[j])
                };
            }
        }
    }
    tile
}

/// Writes the first `rows` rows and `cols` columns of a tile.
///
/// # Safety
/// `out` is valid as described at [`OutputView`] for `rows` rows of `cols` elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn store_tile(tile: &[[__m512; 2]; MR], rows: usize, cols: usize, out: OutputView) {
    let scale = _mm512_set1_ps(out.scale);
    for (i, row) in tile.iter().enumerate().take(rows) {
        for (j, &x) in row.iter().enumerate().take(cols.div_ceil(16)) {
            let mask = 0xffff >> (16 - (cols - 16 * j).min(16));
            // SAFETY: `16 * j` is less than `cols`, and the mask selects only elements inside the row; masked elements
            // are neither read nor written.
            unsafe {
                let at = out.data.add(i * out.stride + 16 * j);
                let x = match out.accumulate {
                    true => _mm512_fmadd_ps(x, scale, _mm512_maskz_loadu_ps(mask, at)),
                    false => _mm512_mul_ps(x, scale),
                };
                _mm512_mask_storeu_ps(at, mask, x);
            }
        }
    }
}
