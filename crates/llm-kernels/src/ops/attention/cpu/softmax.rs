//! The softmax of attention, block by block, forward and backward.

use std::ops::Range;

use crate::cpu::simd::{exp, max, sum2, tanh};

/// Online softmax: replaces the scores of a block by `exp(score - largest score so far)`, 0 outside `columns`. Returns
/// the factor that rescales the previous sums.
#[pulp::with_simd(online_softmax_update = crate::cpu::unit::arch())]
#[inline(always)]
pub(in crate::ops::attention) fn online_softmax_update_simd<'a, S: pulp::Simd>(
    _simd: S,
    row: &'a mut [f32],
    columns: Range<usize>,
    soft_cap: f32,
    softmax: &'a mut (f32, f32),
) -> f32 {
    row[..columns.start].fill(0.);
    row[columns.end..].fill(0.);
    let row = &mut row[columns];
    if row.is_empty() {
        return 1.;
    }
    if soft_cap > 0. {
        row.iter_mut().for_each(|x| *x = soft_cap * tanh(*x / soft_cap));
    }
    let (before, sum) = *softmax;
    let row_max = max(row).max(before);
    for x in &mut *row {
        *x = exp(*x - row_max);
    }
    let rescale = if before == f32::NEG_INFINITY { 1. } else { exp(before - row_max) };
    *softmax = (row_max, sum * rescale + sum2(row, row, |a, _| a));
    rescale
}

/// Softmax backward: replaces the raw scores `p` by the softmax weights, and the gradients `ds` of the weights by
/// those of the raw scores.
#[pulp::with_simd(softmax_backward = crate::cpu::unit::arch())]
#[inline(always)]
pub(super) fn softmax_backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    p: &'a mut [f32],
    ds: &'a mut [f32],
    columns: Range<usize>,
    soft_cap: f32,
    lse_i: f32,
    mean: f32,
) {
    for row in [&mut *p, &mut *ds] {
        row[..columns.start].fill(0.);
        row[columns.end..].fill(0.);
    }
    for (p, ds) in p[columns.clone()].iter_mut().zip(&mut ds[columns]) {
        let mut slope = 1.;
        if soft_cap > 0. {
            let y = tanh(*p / soft_cap);
            slope = 1. - y * y;
            *p = soft_cap * y;
        }
        *p = exp(*p - lse_i);
        *ds = *p * (*ds - mean) * slope;
    }
}
