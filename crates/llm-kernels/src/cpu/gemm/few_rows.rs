//! The matmul of decoding: a few rows of activations with a whole weight, bound by memory bandwidth.

#[cfg(target_arch = "x86_64")]
mod avx2;

use half::{bf16, f16};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Bf16Dots;

use super::Element;
use crate::cpu::simd::sum_lanes;

/// The largest number of rows of `x` for which [`matmul_few_rows`] is faster than the general matmul. The weight is
/// read once for all rows.
pub const FEW_ROWS: usize = 4;

/// Rows of a weight with `m` rows per task: one task per thread, because worker threads spin during decoding
/// ([`crate::spin_workers`]).
pub fn rows_per_thread(m: usize) -> usize {
    m.div_ceil(rayon::current_num_threads()).max(16)
}

/// `x · wᵀ` for `x` `(n, k)` with at most [`FEW_ROWS`] rows and `w` `(m, k)`: `(n, m)`.
pub fn matmul_few_rows<W: Element>(x: &[f32], w: &[W], k: usize) -> Vec<f32> {
    let (n, m) = (x.len() / k, w.len() / k);
    let mut columns = vec![0f32; n * m]; // (m, n): each task owns whole columns of the result
    let rows = rows_per_thread(m);
    columns.par_chunks_mut((rows * n).max(1)).zip(w.par_chunks(rows * k)).for_each(|(out, w)| W::dots(x, w, k, out));
    if n == 1 {
        return columns;
    }
    (0..n).flat_map(|i| (0..m).map(move |j| (i, j))).map(|(i, j)| columns[j * n + i]).collect()
}

#[pulp::with_simd(dots_f32 = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn dots_f32_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [f32], k: usize, out: &'a mut [f32]) {
    dots(x, w, k, out);
}

#[pulp::with_simd(dots_bf16 = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn dots_bf16_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [bf16], k: usize, out: &'a mut [f32]) {
    dots(x, w, k, out);
}

#[pulp::with_simd(dots_f16 = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn dots_f16_simd<'a, S: pulp::Simd>(_simd: S, x: &'a [f32], w: &'a [f16], k: usize, out: &'a mut [f32]) {
    dots(x, w, k, out);
}

#[inline(always)]
fn dots<W: Element>(x: &[f32], w: &[W], k: usize, out: &mut [f32]) {
    let n = x.len() / k;
    for (out, w) in out.chunks_exact_mut(n).zip(w.chunks_exact(k)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            *out = dot(x, w);
        }
    }
}

/// 32 accumulators: four AVX2 vectors hide the latency of an addition.
#[inline(always)]
fn dot<W: Element>(x: &[f32], w: &[W]) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let ((x_chunks, x_rest), (w_chunks, w_rest)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
    for (x, w) in x_chunks.iter().zip(w_chunks) {
        for i in 0..LANES {
            lanes[i] += x[i] * w[i].widen();
        }
    }
    let mut rest = 0f32;
    for (x, w) in x_rest.iter().zip(w_rest) {
        rest += x * w.widen();
    }
    sum_lanes(&mut lanes) + rest
}
