//! Products on AVX-512 from packed panels: in f32, or in bf16 with sums in f32 (`vdpbf16ps`).
//!
//! The scheme is Goto's (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"): both sides
//! are copied into panels that the innermost loop reads from front to back while it holds a tile of the result in
//! registers. Panels are made of *units* of 32 bits: one number in f32, or two neighbours along the contraction in bf16.
//! What is not there (the rest of a panel, an odd number's neighbour) is zero.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::cell::RefCell;
use std::mem::transmute;

use rayon::prelude::*;

use super::{Element, Matrix, Out, Threads};

/// A tile of the result, 24 of the 32 registers.
const ROWS: usize = 12;
const COLS: usize = 32;

/// Units of the contraction that are multiplied before the result is touched again: a panel of `b` of 128 KB.
const DEPTH: usize = 1024;

/// Rows of the result that one task makes; their panels stay in the second-level cache.
const BLOCK: usize = 4 * ROWS;

/// Units of `b` that are packed at a time: 16 MB.
const PACKED: usize = 4 << 20;

/// Whether this machine has the instructions.
pub fn is_available() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
}

// SAFETY: tasks write disjoint rows of it.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

thread_local! {
    /// Panels of `a`, and of `b`: kept from product to product, as fresh pages cost more than the packing.
    static PANELS: [RefCell<Vec<u32>>; 2] = const { [RefCell::new(Vec::new()), RefCell::new(Vec::new())] };
}

/// Runs `f` with `len` units of this thread's buffer `which`.
fn with_panels(which: usize, len: usize, f: impl FnOnce(&mut [u32])) {
    // Taken out meanwhile: while this thread waits within `f`, rayon may run another product on it.
    let mut buffer = PANELS.with(|panels| panels[which].take());
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    f(&mut buffer[..len]);
    PANELS.with(|panels| panels[which].replace(buffer));
}

/// The product `a · b`, in bf16 or in f32.
///
/// # Safety
/// [`is_available`], and `out` is what [`Out`] says for `a.rows` rows of `b.cols` numbers.
#[allow(unsafe_code)]
pub unsafe fn product<const BF16: bool, A: Element, B: Element>(
    a: Matrix<A>,
    b: Matrix<B>,
    out: Out,
    threads: Threads,
) {
    let units = a.cols.div_ceil(1 + usize::from(BF16));
    let bt = b.t();
    let width = (PACKED / units / COLS).max(1) * COLS;
    for start in (0..bt.rows).step_by(width) {
        let b = bt.rows_from(start, width);
        with_panels(1, b.rows.next_multiple_of(COLS) * units, |panels| {
            // SAFETY: the caller says that the instructions are there.
            let pack = |(i, panel)| unsafe { pack::<BF16, COLS, B>(b.rows_from(i * COLS, COLS), panel) };
            match threads {
                Threads::One => panels.chunks_mut(COLS * units).enumerate().for_each(pack),
                Threads::All => panels.par_chunks_mut(COLS * units).enumerate().for_each(pack),
            }
            let panels = &*panels;
            let block = |i: usize| {
                let a = a.rows_from(i * BLOCK, BLOCK);
                // SAFETY: the block's tiles lie within its own rows, from column `start` on.
                unsafe {
                    let out = Out { data: { out }.data.add(i * BLOCK * out.stride + start), ..out };
                    rows_of_tiles::<BF16, A>(a, panels, b.rows, out);
                }
            };
            let blocks = a.rows.div_ceil(BLOCK);
            match threads {
                Threads::One => (0..blocks).for_each(block),
                Threads::All => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
            }
        });
    }
}

/// Some rows `a` times all panels of `b`, [`DEPTH`] units at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn rows_of_tiles<const BF16: bool, A: Element>(a: Matrix<A>, b: &[u32], cols: usize, out: Out) {
    let numbers = 1 + usize::from(BF16);
    let units = a.cols.div_ceil(numbers);
    let depth = units.div_ceil(units.div_ceil(DEPTH));
    with_panels(0, a.rows.next_multiple_of(ROWS) * depth, |buffer| {
        for start in (0..units).step_by(depth) {
            let end = units.min(start + depth);
            let out = Out { add: out.add || start > 0, ..out };
            let panels = buffer.chunks_exact_mut(ROWS * (end - start));
            let count = panels.len();
            for (i, panel) in panels.enumerate() {
                let part = a.rows_from(i * ROWS, ROWS).cols_from(start * numbers, (end - start) * numbers);
                pack::<BF16, ROWS, A>(part, panel);
            }
            for (j, b) in b.chunks_exact(COLS * units).enumerate() {
                let b = b[COLS * start..COLS * end].as_chunks::<16>().0.as_chunks::<2>().0;
                for (i, panel) in buffer.chunks_exact(ROWS * (end - start)).take(count).enumerate() {
                    let tile = multiply::<BF16>(panel.as_chunks::<ROWS>().0, b);
                    let (rows, cols) = (ROWS.min(a.rows - i * ROWS), COLS.min(cols - j * COLS));
                    // SAFETY: the tile lies within the rows and columns that the caller speaks of.
                    unsafe {
                        put(&tile, rows, cols, Out { data: out.data.add(i * ROWS * out.stride + j * COLS), ..out });
                    }
                }
            }
        }
    });
}

/// A tile of the product of two panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn multiply<const BF16: bool>(a: &[[u32; ROWS]], b: &[[[u32; 16]; 2]]) -> [[__m512; 2]; ROWS] {
    let mut tile = [[_mm512_setzero_ps(); 2]; ROWS];
    for (a, b) in a.iter().zip(b) {
        for i in 0..ROWS {
            let a = _mm512_set1_epi32(a[i].cast_signed());
            for j in 0..2 {
                // SAFETY: 16 units, 512 bits and 32 numbers in bf16 are the same bytes.
                tile[i][j] = unsafe {
                    let b = transmute::<[u32; 16], __m512i>(b[j]);
                    if BF16 {
                        let (a, b) = (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b));
                        _mm512_dpbf16_ps(tile[i][j], a, b)
                    } else {
                        _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), tile[i][j])
                    }
                };
            }
        }
    }
    tile
}

/// Writes the first `rows` and `cols` of a tile.
///
/// # Safety
/// `out` is what [`Out`] says for `rows` rows of `cols` numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn put(tile: &[[__m512; 2]; ROWS], rows: usize, cols: usize, out: Out) {
    let scale = _mm512_set1_ps(out.scale);
    for (i, row) in tile.iter().enumerate().take(rows) {
        for (j, &x) in row.iter().enumerate().take(cols.div_ceil(16)) {
            let mask = 0xffff >> (16 - (cols - 16 * j).min(16));
            // SAFETY: the mask lets through what lies within the row only.
            unsafe {
                let at = out.data.add(i * out.stride + 16 * j);
                let x = match out.add {
                    true => _mm512_fmadd_ps(x, scale, _mm512_maskz_loadu_ps(mask, at)),
                    false => _mm512_mul_ps(x, scale),
                };
                _mm512_mask_storeu_ps(at, mask, x);
            }
        }
    }
}

/// Copies at most `R` rows into a panel: for each unit along the rows, that of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack<const BF16: bool, const R: usize, T: Element>(from: Matrix<T>, panel: &mut [u32]) {
    let panel = panel.as_chunks_mut::<R>().0;
    if from.rows < R {
        panel.fill([0; R]);
    }
    if from.col_stride == 1 {
        pack_rows::<BF16, R, T>(from, panel);
    } else {
        assert_eq!(from.row_stride, 1, "a matrix whose rows and columns are both apart");
        pack_columns::<BF16, R, T>(from, panel);
    }
}

/// Rows that lie in memory one number after the other: 16 units of each row are made, then turned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_rows<const BF16: bool, const R: usize, T: Element>(from: Matrix<T>, panel: &mut [[u32; R]]) {
    const WIDE: usize = 16;
    let numbers = 1 + usize::from(BF16);
    let full = from.cols / (WIDE * numbers);
    let mut parts = panel.chunks_exact_mut(WIDE);
    for (p, part) in parts.by_ref().take(full).enumerate() {
        let mut units = [[0u32; WIDE]; R];
        for (i, units) in units.iter_mut().enumerate().take(from.rows) {
            let row = &from.data[i * from.row_stride + p * WIDE * numbers..][..WIDE * numbers];
            for (k, unit) in units.iter_mut().enumerate() {
                *unit = if BF16 { pair(row[2 * k], row[2 * k + 1]) } else { row[k].widen().to_bits() };
            }
        }
        for (k, column) in part.iter_mut().enumerate() {
            for i in 0..R {
                column[i] = units[i][k];
            }
        }
    }
    for (k, column) in panel.iter_mut().enumerate().skip(full * WIDE) {
        for i in 0..from.rows {
            let row = &from.data[i * from.row_stride..][..from.cols];
            let at = |k: usize| row.get(k).copied().unwrap_or_default();
            column[i] = if BF16 { pair(at(2 * k), at(2 * k + 1)) } else { at(k).widen().to_bits() };
        }
    }
}

/// Rows that lie beside each other in memory: each column is a run of it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_columns<const BF16: bool, const R: usize, T: Element>(from: Matrix<T>, panel: &mut [[u32; R]]) {
    let column = |k: usize| &from.data[k * from.col_stride..][..from.rows];
    let zeros = [T::default(); R];
    for (k, units) in panel.iter_mut().enumerate() {
        if BF16 {
            let first = column(2 * k);
            let second = if 2 * k + 1 < from.cols { column(2 * k + 1) } else { &zeros[..from.rows] };
            for ((unit, &first), &second) in units.iter_mut().zip(first).zip(second) {
                *unit = pair(first, second);
            }
        } else {
            for (unit, x) in units.iter_mut().zip(column(k)) {
                *unit = x.widen().to_bits();
            }
        }
    }
}

/// Two numbers in bf16, the first one in the lower half.
#[inline(always)]
fn pair<T: Element>(first: T, second: T) -> u32 {
    u32::from(first.halve()) | u32::from(second.halve()) << 16
}
