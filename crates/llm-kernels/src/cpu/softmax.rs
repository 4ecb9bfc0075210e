//! The softmax of a row of logits and its logarithm.

use super::simd::{exp, max, sum_exp_minus_one};

/// `log softmax(x / T)` of a row, element by element; depends only on differences of logits.
///
/// The logsumexp is in two parts, the maximum and `log Σ exp((x - max) / T)`: their sum in f32 would lose the small second
/// part, which is the whole loss of a confident token.
#[derive(Debug, Clone, Copy)]
pub struct LogSoftmax {
    row_max: f32,
    inverse_temperature: f32,
    log_sum: f32,
}

impl LogSoftmax {
    /// Of the logits `row`, with `1 / T`. To be inlined into a vectorised function; [`log_softmax`] is one.
    #[inline(always)]
    pub fn of(row: &[f32], inverse_temperature: f32) -> Self {
        let row_max = max(row);
        let log_sum = sum_exp_minus_one(row, |x| exp((x - row_max) * inverse_temperature)).ln_1p();
        Self { row_max, inverse_temperature, log_sum }
    }

    /// The log-probability of a token with logit `x`.
    #[inline(always)]
    pub fn at(self, x: f32) -> f32 {
        (x - self.row_max) * self.inverse_temperature - self.log_sum
    }

    /// The cross-entropy of a token with logit `x`, at temperature 1.
    pub fn cross_entropy(self, x: f32) -> f64 {
        f64::from(self.log_sum) + (f64::from(self.row_max) - f64::from(x))
    }

    /// The logsumexp of the logits, at temperature 1.
    pub fn logsumexp(self) -> f64 {
        f64::from(self.log_sum) + f64::from(self.row_max)
    }

    /// The log-probability of a set of tokens, from the log-softmax of their logits alone, at the same temperature; -inf if all of these
    /// logits are.
    #[inline(always)]
    pub fn at_logsumexp(self, part: Self) -> f32 {
        if part.row_max == f32::NEG_INFINITY { f32::NEG_INFINITY } else { self.at(part.row_max) + part.log_sum }
    }

    /// True if the logits are not a distribution: one of them is NaN or +inf, or all are -inf.
    pub fn is_nan(self) -> bool {
        self.log_sum.is_nan()
    }
}

/// [`LogSoftmax::of`] a row at temperature 1.
#[pulp::with_simd(log_softmax = crate::cpu::unit::arch())]
#[inline(always)]
pub fn log_softmax_simd<S: pulp::Simd>(_simd: S, row: &[f32]) -> LogSoftmax {
    LogSoftmax::of(row, 1.)
}

/// Replaces a row of logits by `softmax · scale` and returns its log-softmax.
#[pulp::with_simd(scaled_softmax = crate::cpu::unit::arch())]
#[inline(always)]
pub fn scaled_softmax_simd<S: pulp::Simd>(_simd: S, row: &mut [f32], scale: f32) -> LogSoftmax {
    let row_max = max(row);
    for x in &mut *row {
        *x = exp(*x - row_max);
    }
    let sum_minus_one = sum_exp_minus_one(row, |e| e);
    let factor = scale / (1. + sum_minus_one);
    row.iter_mut().for_each(|x| *x *= factor);
    LogSoftmax { row_max, inverse_temperature: 1., log_sum: sum_minus_one.ln_1p() }
}
