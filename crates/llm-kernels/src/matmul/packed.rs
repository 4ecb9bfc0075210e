//! Products on AVX-512 from packed panels: in f32, or in bf16 with sums in f32 (`vdpbf16ps`).
//!
//! The scheme is Goto's (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"): both sides
//! are copied into panels that the innermost loop reads from front to back while it holds a tile of the result in
//! registers; rows of the left side lie in theirs as they are. Panels are made of *units* of 32 bits: one number in f32,
//! or two neighbours along the contraction in bf16. What is not there (the rest of a panel, an odd number's neighbour) is
//! zero.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_castsi512_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::mem::transmute;
use std::ops::Range;

use bytemuck::cast;
use rayon::prelude::*;

use super::{Element, Matrix, Out, Threads};

/// A tile of the result, 24 of the 32 registers.
const ROWS: usize = 12;
const COLS: usize = 32;

/// Units of the contraction that are multiplied before the result is touched again: a panel of `b` of 128 KB.
const DEPTH: usize = 1024;

/// Rows of the result that one task makes; their panels stay in the second-level cache.
const BLOCK: usize = 4 * ROWS;

/// How far apart the rows of `a` begin that are not turned: not so that all of them meet in one place of the cache.
const APART: usize = DEPTH + 16;

/// How many units ahead of those that are packed memory is asked for.
const AHEAD: usize = 16;

/// Bytes that come from memory together.
const LINE: usize = 64;

/// Units of `b` that are packed at a time: 16 MB.
const PACKED: usize = 4 << 20;

/// Whether this machine has the instructions.
pub fn is_available() -> bool {
    crate::unit::avx512_is_allowed()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
}

// SAFETY: `product` below hands it to tasks that read and write rows of their own only, and returns when all of them have; who
// called it answers for the memory until then.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above; what is shared is the address, which nobody changes.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

thread_local! {
    /// Panels of `a`, of `b`, and rows of the product: kept from product to product, as fresh pages cost more than the packing.
    static PANELS: [RefCell<Vec<u32>>; 3] = const { [const { RefCell::new(Vec::new()) }; 3] };
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
        let times = |panels: Panels| {
            each_block(a, threads, |first, a, next| {
                // SAFETY: the instructions are there. The block has rows, of which the first is `first`, and column `start` is one of
                // the result's, so the address is within it; the block's tiles lie within its own rows, and within the `b.rows`
                // columns from `start` on.
                unsafe {
                    let out = Out { data: { out }.data.add(first * out.stride + start), ..out };
                    rows_of_tiles::<BF16, A>(a, next, panels, b.rows, out);
                }
            });
        };
        // SAFETY: the caller says that the instructions are there.
        unsafe { with_right::<BF16, B>(b, threads, times) };
    }
}

/// The product `a · b` by all threads, some rows at a time: `each` gets the number of the first of them, and them, one behind
/// the other.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
pub unsafe fn product_by_rows<const BF16: bool, A: Element, B: Element>(
    a: Matrix<A>,
    b: Matrix<B>,
    each: impl Fn(usize, &[f32]) + Sync,
) {
    let times = |panels: Panels| {
        each_block(a, Threads::All, |first, a, next| {
            with_panels(2, a.rows * b.cols, |rows| {
                let rows: &mut [f32] = bytemuck::cast_slice_mut(rows);
                let out = Out { data: rows.as_mut_ptr(), stride: b.cols, add: false, scale: 1. };
                // SAFETY: the instructions are there, and there is room for `a.rows` rows of `b.cols` numbers.
                unsafe { rows_of_tiles::<BF16, A>(a, next, panels, b.cols, out) };
                each(first, rows);
            });
        });
    };
    // SAFETY: the caller says that the instructions are there.
    unsafe { with_right::<BF16, B>(b.t(), Threads::All, times) };
}

/// Runs `f` with the panels of a right side, whose columns are the rows of `bt`.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
unsafe fn with_right<const BF16: bool, B: Element>(bt: Matrix<B>, threads: Threads, f: impl FnOnce(Panels)) {
    let units = bt.cols.div_ceil(1 + usize::from(BF16));
    with_panels(1, bt.rows.next_multiple_of(COLS) * units, |panels| {
        // SAFETY: the caller says that the instructions are there.
        unsafe { pack_all::<BF16, B>(bt, panels, threads) };
        f(Panels { units: panels, depth: units, first: 0 });
    });
}

/// Packs the rows of `bt`, the columns of a right side, into as many panels as they need.
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
unsafe fn pack_all<const BF16: bool, B: Element>(bt: Matrix<B>, panels: &mut [u32], threads: Threads) {
    let panel_len = (COLS * bt.cols.div_ceil(1 + usize::from(BF16))).max(1);
    // SAFETY: the caller says that the instructions are there.
    let pack = |(i, panel)| unsafe { pack_right::<BF16, B>(bt, i * COLS, panel) };
    match threads {
        Threads::One => panels.chunks_mut(panel_len).enumerate().for_each(pack),
        Threads::All => panels.par_chunks_mut(panel_len).enumerate().for_each(pack),
    }
}

/// Runs `f` with the first row and the rows of each block of the left side, and those behind them.
fn each_block<A: Element>(a: Matrix<A>, threads: Threads, f: impl Fn(usize, Matrix<A>, Matrix<A>) + Sync) {
    let rows = |i: usize| a.rows_from(i * BLOCK, BLOCK);
    let block = |i: usize| f(i * BLOCK, rows(i), rows(i + 1));
    let blocks = a.rows.div_ceil(BLOCK);
    match threads {
        Threads::One => (0..blocks).for_each(block),
        Threads::All => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
    }
}

/// The panels of all of `b`, for [`product_of_panels`].
///
/// # Safety
/// [`is_available`].
#[allow(unsafe_code)]
pub unsafe fn panels<const BF16: bool, B: Element>(b: Matrix<B>) -> Vec<u32> {
    let (units, bt) = (b.rows.div_ceil(1 + usize::from(BF16)), b.t());
    let mut panels = vec![0; bt.rows.next_multiple_of(COLS) * units];
    // SAFETY: the caller says that the instructions are there.
    unsafe { pack_all::<BF16, B>(bt, &mut panels, Threads::One) };
    panels
}

/// `a` times a part of the matrix of `depth` rows that was packed: rows from `row` on, as many as `a` has columns, and `cols`
/// columns from `col` on. Both begin where a panel and a unit do.
///
/// # Safety
/// [`is_available`], and `out` is what [`Out`] says for `a.rows` rows of `cols` numbers.
#[allow(unsafe_code)]
pub unsafe fn product_of_panels<const BF16: bool, A: Element>(
    a: Matrix<A>,
    panels: &[u32],
    depth: usize,
    [row, col]: [usize; 2],
    cols: usize,
    out: Out,
) {
    let numbers = 1 + usize::from(BF16);
    let depth = depth.div_ceil(numbers);
    let units = &panels[col / COLS * COLS * depth..][..cols.next_multiple_of(COLS) * depth];
    let panels = Panels { units, depth, first: row / numbers };
    for start in (0..a.rows).step_by(BLOCK) {
        // SAFETY: the instructions are there; row `start` is one of the result's, and so are the block's, each of `cols` numbers.
        unsafe {
            let out = Out { data: out.data.add(start * out.stride), ..out };
            let next = a.rows_from(start + BLOCK, BLOCK);
            rows_of_tiles::<BF16, A>(a.rows_from(start, BLOCK), next, panels, cols, out);
        }
    }
}

/// The right side of a product.
#[derive(Clone, Copy)]
struct Panels<'a> {
    /// For each [`COLS`] columns, one panel behind the other, `depth` times a unit of each.
    units: &'a [u32],
    depth: usize,
    /// The unit of each column that meets the first of the left side.
    first: usize,
}

/// The rate at which this thread multiplies numbers that lie in its first-level cache: what the machine can do, in FLOP/s.
pub fn peak<const BF16: bool>() -> f64 {
    const UNITS: usize = 128;
    const TIMES: usize = 20_000;
    let (a, b) = ([[0u32; ROWS]; UNITS], [[[0u32; 16]; 2]; UNITS]);
    let start = std::time::Instant::now();
    for _ in 0..TIMES {
        // SAFETY: `peak_flops`, the only caller, asks where `is_available` only; nothing but registers and the arrays is used.
        #[allow(unsafe_code)]
        unsafe {
            let a = std::hint::black_box(&a);
            std::hint::black_box(multiply::<BF16>(&b, |k, i| a[k][i]));
        }
    }
    let numbers = UNITS * (1 + usize::from(BF16));
    (TIMES * ROWS * COLS * numbers * 2) as f64 / start.elapsed().as_secs_f64()
}

/// Some rows `a` times all panels of `b`, [`DEPTH`] units at a time; the rows `next` are asked for meanwhile, as they will be
/// needed then.
///
/// # Safety
/// [`is_available`], and `out` is what [`Out`] says for `a.rows` rows of `cols` numbers; `b` has the panels of `cols` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn rows_of_tiles<const BF16: bool, A: Element>(a: Matrix<A>, next: Matrix<A>, b: Panels, cols: usize, out: Out) {
    let numbers = 1 + usize::from(BF16);
    let units = a.cols.div_ceil(numbers);
    let depth = units.div_ceil(units.div_ceil(DEPTH));
    let (turned, height) = (a.col_stride != 1, a.rows.next_multiple_of(ROWS));
    let lines = (a.cols * size_of::<A>()).div_ceil(LINE);
    let ahead = if turned { 0 } else { next.rows * lines };
    let for_a_tile = ahead.div_ceil(cols.div_ceil(COLS) * height / ROWS);
    let mut asked = 0;
    with_panels(0, height * if turned { depth } else { APART }, |buffer| {
        for start in (0..units).step_by(depth) {
            let end = units.min(start + depth);
            let width = if turned { end - start } else { APART };
            let buffer = &mut buffer[..height * width];
            let out = Out { add: out.add || start > 0, ..out };
            let part = a.cols_from(start * numbers, (end - start) * numbers);
            match turned {
                true => pack_columns::<BF16, ROWS, A>(part, buffer),
                false => copy_rows::<BF16, A>(part, buffer.as_chunks_mut().0),
            }
            for (j, panel) in b.units.chunks_exact(COLS * b.depth).enumerate() {
                let b = panel[COLS * (b.first + start)..COLS * (b.first + end)].as_chunks::<16>().0.as_chunks::<2>().0;
                for (i, panel) in buffer.chunks_exact(ROWS * width).enumerate() {
                    let tile = if turned {
                        let panel = panel.as_chunks::<ROWS>().0;
                        multiply::<BF16>(b, |k, i| panel[k][i])
                    } else {
                        let panel = panel.as_chunks::<APART>().0;
                        multiply::<BF16>(b, |k, i| panel[i][k])
                    };
                    if asked < ahead {
                        let (row, line) = (asked / lines, asked % lines);
                        fetch(next.row(row), line..line + for_a_tile);
                        asked += for_a_tile.min(lines - line);
                    }
                    let (rows, cols) = (ROWS.min(a.rows - i * ROWS), COLS.min(cols - j * COLS));
                    // SAFETY: there is a panel for each `ROWS` rows and each `COLS` columns that are begun, so that the tile's first
                    // number is one of those that the caller speaks of, and `rows` and `cols` end with them.
                    unsafe {
                        put(&tile, rows, cols, Out { data: out.data.add(i * ROWS * out.stride + j * COLS), ..out });
                    }
                }
            }
        }
    });
}

/// A tile of the product of two panels, `a(k, i)` of which is unit `k` of row `i`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn multiply<const BF16: bool>(b: &[[[u32; 16]; 2]], a: impl Fn(usize, usize) -> u32) -> [[__m512; 2]; ROWS] {
    let mut tile = [[_mm512_setzero_ps(); 2]; ROWS];
    for (k, b) in b.iter().enumerate() {
        for (i, tile) in tile.iter_mut().enumerate() {
            let a = _mm512_set1_epi32(a(k, i).cast_signed());
            for j in 0..2 {
                tile[j] = if BF16 {
                    // SAFETY: 512 bits and 32 numbers in bf16 are the same bytes.
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
            // SAFETY: `16 * j` is less than `cols`, and the mask lets through what lies within the row only; what it does not let
            // through is neither read nor written.
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

/// Copies the columns of the right side from `start` on, `COLS` at most, which are rows of `bt`, into a panel: for each unit
/// along the rows, that of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_right<const BF16: bool, T: Element>(bt: Matrix<T>, start: usize, panel: &mut [u32]) {
    let from = bt.rows_from(start, COLS);
    match from.col_stride {
        1 => turn_rows::<BF16, T>(from, bt.rows_from(start + COLS, COLS), panel.as_chunks_mut().0),
        _ => pack_columns::<BF16, COLS, T>(from, panel),
    }
}

/// Rows as units one behind the other; rows that are not there are zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn copy_rows<const BF16: bool, T: Element>(from: Matrix<T>, rows: &mut [[u32; APART]]) {
    let numbers = 1 + usize::from(BF16);
    for (i, to) in rows.iter_mut().enumerate() {
        if i >= from.rows {
            to[..from.cols.div_ceil(numbers)].fill(0);
            continue;
        }
        for (to, from) in to.as_chunks_mut::<16>().0.iter_mut().zip(from.row(i).chunks(16 * numbers)) {
            *to = cast(units::<BF16, T>(from));
        }
    }
}

/// At most 16 units of numbers that lie in memory one behind the other; zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn units<const BF16: bool, T: Element>(numbers: &[T]) -> __m512i {
    if let (true, [halves]) = (BF16, T::halves(numbers).unwrap_or_default().as_chunks::<32>().0) {
        return cast(*halves);
    }
    match (BF16, T::f32s(numbers).unwrap_or_default().as_chunks::<16>().0) {
        (true, [first, second]) => halves(first, second),
        (false, [numbers]) => cast(*numbers),
        _ => few_units::<BF16, T>(numbers),
    }
}

/// At most `COLS` rows that lie in memory one number after the other: 16 units of 16 rows are made, then turned. The rows
/// `next` are asked for meanwhile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn turn_rows<const BF16: bool, T: Element>(from: Matrix<T>, next: Matrix<T>, panel: &mut [[u32; COLS]]) {
    let numbers = 1 + usize::from(BF16);
    for (part, columns) in panel.chunks_mut(16).enumerate() {
        let start = part * 16 * numbers;
        let count = (16 * numbers).min(from.cols - start);
        for row in 0..next.rows {
            fetch(&next.row(row)[start..start + count], 0..usize::MAX);
        }
        for first in (0..COLS).step_by(16) {
            let mut units = [_mm512_setzero_si512(); 16];
            for (i, units) in units.iter_mut().enumerate().take(from.rows.saturating_sub(first)) {
                *units = self::units::<BF16, T>(&from.row(first + i)[start..start + count]);
            }
            for (column, units) in columns.iter_mut().zip(turn(&units)) {
                column.as_chunks_mut::<16>().0[first / 16] = cast(units);
            }
        }
    }
}

/// Twice 16 numbers in bf16, one behind the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn halves(first: &[f32; 16], second: &[f32; 16]) -> __m512i {
    // SAFETY: 32 numbers in bf16 are the same bytes as a register of integers.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(cast(*second), cast(*first))) }
}

/// [`units`] of other numbers than f32, or of fewer.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn few_units<const BF16: bool, T: Element>(row: &[T]) -> __m512i {
    let mut units = [0u32; 16];
    if BF16 {
        let (pairs, odd) = row.as_chunks::<2>();
        for (unit, &[first, second]) in units.iter_mut().zip(pairs) {
            *unit = pair(first, second);
        }
        if let ([last], Some(unit)) = (odd, units.get_mut(pairs.len())) {
            *unit = pair(*last, T::default());
        }
    } else {
        for (unit, x) in units.iter_mut().zip(row) {
            *unit = x.widen().to_bits();
        }
    }
    cast(units)
}

/// Rows become columns: pairs of rows are interleaved by one, then by two numbers, then four numbers move at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn turn(rows: &[__m512i; 16]) -> [__m512i; 16] {
    let mut ones = *rows;
    for i in (0..16).step_by(2) {
        ones[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        ones[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // twos[4 g + c]: of rows 4 g to 4 g + 3 the columns c, 4 + c, 8 + c, 12 + c.
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

/// Rows that lie beside each other in memory: each column is a run of it, of which each panel gets `R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_columns<const BF16: bool, const R: usize, T: Element>(from: Matrix<T>, panels: &mut [u32]) {
    assert_eq!(from.row_stride, 1, "a matrix whose rows and columns are both apart");
    let numbers = 1 + usize::from(BF16);
    let units = from.cols.div_ceil(numbers);
    let column = |k: usize| &from.data[k * from.col_stride..][..from.rows];
    let zeros = [T::default(); BLOCK];
    for k in 0..units {
        for ahead in (numbers * (k + AHEAD)..numbers * (k + 1 + AHEAD)).take_while(|&ahead| ahead < from.cols) {
            fetch(column(ahead), 0..usize::MAX);
        }
        let first = if BF16 { column(2 * k) } else { column(k) };
        let second = if BF16 && 2 * k + 1 < from.cols { column(2 * k + 1) } else { &zeros[..from.rows] };
        let mut run = [0u32; BLOCK];
        let mut done = 0;
        if let (true, Some(first), Some(second)) = (BF16, T::f32s(first), T::f32s(second)) {
            let (first, second) = (first.as_chunks::<16>().0, second.as_chunks::<16>().0);
            for ((run, first), second) in run.as_chunks_mut::<16>().0.iter_mut().zip(first).zip(second) {
                *run = interleaved(halves(first, second));
                done += 16;
            }
        }
        if let (true, Some(first), Some(second)) = (BF16, T::halves(first), T::halves(second)) {
            let (first, second) = (first.as_chunks::<16>().0, second.as_chunks::<16>().0);
            for ((run, first), second) in run.as_chunks_mut::<16>().0.iter_mut().zip(first).zip(second) {
                *run = interleaved(cast([*first, *second]));
                done += 16;
            }
        }
        for ((unit, &first), &second) in run.iter_mut().zip(first).zip(second).skip(done) {
            *unit = if BF16 { pair(first, second) } else { first.widen().to_bits() };
        }
        for (panel, run) in panels.chunks_exact_mut(R * units).zip(run.as_chunks::<R>().0) {
            panel[k * R..(k + 1) * R].copy_from_slice(run);
        }
    }
}

/// Asks for some cache lines of numbers that will be read soon.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code)]
fn fetch<T>(numbers: &[T], lines: Range<usize>) {
    let start = numbers.as_ptr().cast::<i8>();
    for line in lines.start..lines.end.min(size_of_val(numbers).div_ceil(LINE)) {
        // SAFETY: nothing is read or written, and the line begins within the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(line * LINE)) };
    }
}

/// 16 halves and 16 others as 16 pairs of one of each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleaved(halves: __m512i) -> [u32; 16] {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
            i += 1;
        }
        order
    };
    cast(_mm512_permutexvar_epi16(cast(ORDER), halves))
}

/// Two numbers in bf16, the first one in the lower half.
#[inline(always)]
fn pair<T: Element>(first: T, second: T) -> u32 {
    u32::from(first.halve()) | u32::from(second.halve()) << 16
}
