//! The matmul of decoding: up to [`FEW_ROWS`] rows of activations with a weight `(m, k)`, which is read where it is and once
//! for all rows.
//!
//! Vectors run along k. A tile has 4 rows of the weight and up to 4 of the activations; its sums stay in registers. The order
//! of a sum depends on k only, so the result of a row is the same for any number of rows and threads. Activations are f32 for
//! every dtype of the weight.

mod vectors;

use super::Element;
use vectors::Portable;
pub use vectors::Vectors;
#[cfg(target_arch = "x86_64")]
use vectors::{Avx2, Avx512};

/// The largest number of rows for which the matmul of few rows is used, in which the result of a row has the same bits for any number of
/// rows. It is then faster than the general one.
pub const FEW_ROWS: usize = 64;

/// Rows of the weight per tile.
const TILE: usize = 4;

/// Bytes of the weight that are multiplied with all rows of activations before the next bytes are read; they stay in the L2
/// cache.
const BLOCK_BYTES: usize = 1 << 17;

/// `x · wᵀ` for `x` `(n, k)` and `w` `(m, k)`, on the calling thread: element `j` of row `i` is written to `out[i][j]`.
pub fn matmul_few_rows<W: Element>(x: &[f32], w: &[W], k: usize, out: &mut [&mut [f32]]) {
    match crate::cpu::unit::arch() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(simd) => simd.vectorize(FewRows { vectors: Avx512(simd), x, w, k, out }),
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(simd) => simd.vectorize(FewRows { vectors: Avx2(simd), x, w, k, out }),
        _ => pulp::NullaryFnOnce::call(FewRows { vectors: Portable, x, w, k, out }),
    }
}

struct FewRows<'a, 'b, W, V, const L: usize> {
    vectors: V,
    x: &'a [f32],
    w: &'a [W],
    k: usize,
    out: &'a mut [&'b mut [f32]],
}

impl<W: Element, V: Vectors<L>, const L: usize> pulp::NullaryFnOnce for FewRows<'_, '_, W, V, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { vectors, x, w, k, out } = self;
        let (n, m) = (out.len(), w.len() / k);
        let groups = n.div_ceil(V::MAX_ROWS);
        let block = match groups {
            1 => m,
            _ => (BLOCK_BYTES / size_of_val(&w[..k])).max(1).next_multiple_of(16),
        };
        // A single group prefetches the tile after the next one; several share the prefetch of the next block.
        let (distance, lines) = match groups {
            1 => (2 * TILE * k, TILE),
            2 | 3 => (block * k, TILE / 2),
            _ => (block * k, 1),
        };
        for start in (0..m).step_by(block) {
            let w = &w[start * k..(start + block).min(m) * k];
            for group in 0..groups {
                let first = group * V::MAX_ROWS;
                let rows = (n - first).min(V::MAX_ROWS);
                let (x, out) = (&x[first * k..(first + rows) * k], &mut out[first..first + rows]);
                let ahead = Ahead { distance: distance + group * lines % TILE * k, lines };
                match rows {
                    1 => multiply_block::<_, _, L, 1>(vectors, x, w, k, ahead, start, out),
                    2 => multiply_block::<_, _, L, 2>(vectors, x, w, k, ahead, start, out),
                    3 => multiply_block::<_, _, L, 3>(vectors, x, w, k, ahead, start, out),
                    _ => multiply_block::<_, _, L, 4>(vectors, x, w, k, ahead, start, out),
                }
            }
        }
    }
}

/// What a tile prefetches: 1, 2 or 4 rows of the weight, from `distance` elements after its first row on.
#[derive(Clone, Copy)]
struct Ahead {
    distance: usize,
    lines: usize,
}

/// `R` rows of activations times some rows of the weight: columns `start` and following of `out`.
#[inline(always)]
fn multiply_block<W: Element, V: Vectors<L>, const L: usize, const R: usize>(
    vectors: V,
    x: &[f32],
    w: &[W],
    k: usize,
    ahead: Ahead,
    start: usize,
    out: &mut [&mut [f32]],
) {
    // The lanes of 16 sums are added at a time: those of `R` rows of activations with `wide` rows of the weight.
    let (m, wide) = (w.len() / k, 16 / R / TILE * TILE);
    let mut x_rows = [x; R];
    for r in 0..R {
        x_rows[r] = &x[r * k..(r + 1) * k];
    }
    for first in (0..m).step_by(wide) {
        let mut sums = [vectors.zeros(); 16];
        for tile in (0..wide).step_by(TILE) {
            if first + tile >= m {
                break;
            }
            // Where the weight has no more rows, the last one is repeated.
            let mut w_rows = [w; TILE];
            for (j, w_row) in w_rows.iter_mut().enumerate() {
                let row = (first + tile + j).min(m - 1);
                *w_row = &w[row * k..(row + 1) * k];
            }
            let products = multiply_tile::<W, V, L, R>(vectors, x_rows, w_rows, ahead);
            for r in 0..R {
                for j in 0..TILE {
                    sums[r * wide + tile + j] = products[r][j];
                }
            }
        }
        let (sums, count) = (vectors.lane_sums(&sums), wide.min(m - first));
        for r in 0..R {
            out[r][start + first..start + first + count].copy_from_slice(&sums[r * wide..r * wide + count]);
        }
    }
}

/// The dot products of `R` rows of activations with the rows of a tile, in lanes.
#[inline(always)]
fn multiply_tile<W: Element, V: Vectors<L>, const L: usize, const R: usize>(
    vectors: V,
    x: [&[f32]; R],
    w: [&[W]; TILE],
    ahead: Ahead,
) -> [[V::F32s; TILE]; R] {
    let (k, count) = (w[0].len(), w[0].len() / L);
    let mut sums = [[vectors.zeros(); TILE]; R];
    let (mut x_chunks, mut w_chunks) = ([x[0].as_chunks::<L>().0; R], [w[0].as_chunks::<L>().0; TILE]);
    for r in 0..R {
        x_chunks[r] = &x[r].as_chunks::<L>().0[..count];
    }
    for j in 0..TILE {
        w_chunks[j] = &w[j].as_chunks::<L>().0[..count];
    }
    let mut next = w[0].as_ptr().wrapping_add(ahead.distance);
    for i in 0..count {
        vectors.prefetch(next);
        if ahead.lines > 1 {
            vectors.prefetch(next.wrapping_add(k));
        }
        if ahead.lines > 2 {
            vectors.prefetch(next.wrapping_add(2 * k));
            vectors.prefetch(next.wrapping_add(3 * k));
        }
        next = next.wrapping_add(L);
        let mut wide = [vectors.zeros(); TILE];
        for j in 0..TILE {
            wide[j] = W::load(vectors, &w_chunks[j][i]);
        }
        for r in 0..R {
            let x = vectors.load_f32(&x_chunks[r][i]);
            for j in 0..TILE {
                sums[r][j] = vectors.mul_add(x, wide[j], sums[r][j]);
            }
        }
    }
    if k % L > 0 {
        // The rest of the rows, with zeros after it.
        let mut wide = [vectors.zeros(); TILE];
        for j in 0..TILE {
            let mut rest = [W::default(); L];
            rest[..k % L].copy_from_slice(&w[j][count * L..]);
            wide[j] = W::load(vectors, &rest);
        }
        for r in 0..R {
            let mut rest = [0f32; L];
            rest[..k % L].copy_from_slice(&x[r][count * L..]);
            let x = vectors.load_f32(&rest);
            for j in 0..TILE {
                sums[r][j] = vectors.mul_add(x, wide[j], sums[r][j]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests;
