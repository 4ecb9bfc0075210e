//! The divergence of two rows of logits, and its gradient with respect to the student's.
//!
//! p: the teacher's distribution, q: the student's, m: their mixture.

use candle_core::{D, Result, Tensor};

use crate::cpu::simd::{exp, ln_1p, sum2};
use crate::cpu::softmax::LogSoftmax;

/// How the difference of the student's distribution q from the teacher's p is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// `KL(p ‖ q)`: the student covers all that the teacher does (Hinton et al. 2015, arXiv 1503.02531).
    Forward,
    /// `KL(q ‖ p)`: the student prefers what the teacher finds likely (Gu et al. 2024, arXiv 2306.08543).
    Reverse,
    /// The generalised Jensen-Shannon divergence `β KL(p ‖ m) + (1 - β) KL(q ‖ m)` with `m = β p + (1 - β) q` (Agarwal et al.
    /// 2024, arXiv 2306.13649). Below 1 and above 0 it is the formula; β = 0 is [`Self::Forward`] and β = 1 [`Self::Reverse`], the
    /// limits of the formula divided by β and by 1 - β.
    Jsd(f64),
}

impl Divergence {
    /// The same divergence without the two special cases of β.
    pub(super) fn plain(self) -> Self {
        match self {
            Self::Jsd(0.) => Self::Forward,
            Self::Jsd(1.) => Self::Reverse,
            other => other,
        }
    }

    /// The divergence of two rows of logits, both multiplied by `inverse`, in nats.
    pub(super) fn value(self, student: &[f32], teacher: &[f32], inverse: f32) -> f64 {
        f64::from(match self.plain() {
            Self::Forward => crate::ops::kl_divergence::forward(student, teacher, inverse),
            Self::Reverse => reverse(student, teacher, inverse),
            Self::Jsd(beta) => jsd(student, teacher, inverse, beta as f32),
        })
    }

    /// [`Self::value`]; writes `factor` times its gradient with respect to `student · inverse` to `out`.
    pub(super) fn value_and_gradient(
        self,
        student: &[f32],
        teacher: &[f32],
        inverse: f32,
        factor: f32,
        out: &mut [f32],
    ) -> f64 {
        match self.plain() {
            Self::Forward => {
                forward_gradient(student, teacher, inverse, factor, out);
                self.value(student, teacher, inverse)
            }
            Self::Reverse => f64::from(reverse_gradient(student, teacher, inverse, factor, out)),
            Self::Jsd(beta) => f64::from(jsd_gradient(student, teacher, inverse, [beta as f32, factor], out)),
        }
    }

    /// The divergence of each row of log-probabilities `(n, vocab)`: `(n,)`, composed of candle operations. A probability of 0 adds
    /// nothing to its own term.
    pub(super) fn of_logprobs(self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        // Σ a (log a - log b)
        let kl = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            let terms = (a.exp()? * (a - b)?)?;
            terms.zeros_like().and_then(|zeros| a.eq(f64::NEG_INFINITY)?.where_cond(&zeros, &terms))?.sum(D::Minus1)
        };
        match self.plain() {
            Self::Forward => kl(teacher, student),
            Self::Reverse => kl(student, teacher),
            Self::Jsd(beta) => {
                let (a, b) = ((teacher + beta.ln())?, (student + (1. - beta).ln())?);
                let high = a.detach().maximum(&b.detach())?;
                let mixture = (((&a - &high)?.exp()? + (&b - &high)?.exp()?)?.log()? + high)?;
                (kl(teacher, &mixture)? * beta)? + (kl(student, &mixture)? * (1. - beta))?
            }
        }
    }
}

// d KL(p ‖ q) / d logits = q - p.
#[pulp::with_simd(forward_gradient = crate::cpu::unit::arch())]
#[inline(always)]
fn forward_gradient_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse: f32,
    factor: f32,
    out: &'a mut [f32],
) {
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    for ((out, &s), &t) in out.iter_mut().zip(student).zip(teacher) {
        *out = factor * (exp(ours.at(s)) - exp(theirs.at(t)));
    }
}

#[pulp::with_simd(reverse = crate::cpu::unit::arch())]
#[inline(always)]
fn reverse_simd<'a, S: pulp::Simd>(_simd: S, student: &'a [f32], teacher: &'a [f32], inverse: f32) -> f32 {
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    if ours.is_nan() {
        return f32::NAN; // not a distribution; the terms below would skip it
    }
    sum2(student, teacher, |s, t| {
        let (log_q, log_p) = (ours.at(s), theirs.at(t));
        let term = exp(log_q) * (log_q - log_p);
        if s == f32::NEG_INFINITY { 0. } else { term }
    })
}

// d KL(q ‖ p) / d logits = q · (log q - log p - KL).
#[pulp::with_simd(reverse_gradient = crate::cpu::unit::arch())]
#[inline(always)]
fn reverse_gradient_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse: f32,
    factor: f32,
    out: &'a mut [f32],
) -> f32 {
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    for ((out, &s), &t) in out.iter_mut().zip(student).zip(teacher) {
        *out = if s == f32::NEG_INFINITY { 0. } else { ours.at(s) - theirs.at(t) };
    }
    finish_gradient(student, ours, factor, out)
}

/// Replaces the log-ratios `log q - log m` in `out` by `factor · q · (log-ratio - Σ q log-ratio)`, and returns that sum: the divergence of
/// q from m.
#[inline(always)]
fn finish_gradient(student: &[f32], ours: LogSoftmax, factor: f32, out: &mut [f32]) -> f32 {
    let mean = if ours.is_nan() { f32::NAN } else { sum2(student, out, |s, ratio| exp(ours.at(s)) * ratio) };
    for (out, &s) in out.iter_mut().zip(student) {
        *out = factor * exp(ours.at(s)) * (*out - mean);
    }
    mean
}

/// `log m - log q` of one token, for the log-weights `(log β, log(1 - β))`.
#[inline(always)]
fn log_mixture(log_p: f32, log_q: f32, (log_beta, log_rest): (f32, f32)) -> f32 {
    let (a, b) = (log_p + log_beta, log_q + log_rest);
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + ln_1p(exp(low - high))
}

#[pulp::with_simd(jsd = crate::cpu::unit::arch())]
#[inline(always)]
fn jsd_simd<'a, S: pulp::Simd>(_simd: S, student: &'a [f32], teacher: &'a [f32], inverse: f32, beta: f32) -> f32 {
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    if ours.is_nan() || theirs.is_nan() {
        return f32::NAN;
    }
    let weights = (beta.ln(), (-beta).ln_1p());
    sum2(student, teacher, |s, t| {
        let (log_q, log_p) = (ours.at(s), theirs.at(t));
        let log_m = log_mixture(log_p, log_q, weights);
        let of_teacher = beta * exp(log_p) * (log_p - log_m);
        let of_student = (1. - beta) * exp(log_q) * (log_q - log_m);
        let of_teacher = if t == f32::NEG_INFINITY { 0. } else { of_teacher };
        of_teacher + if s == f32::NEG_INFINITY { 0. } else { of_student }
    })
}

// d JSD / d logits = (1 - β) · q · (log q - log m - KL(q ‖ m)): the terms of m cancel, because m is a distribution.
#[pulp::with_simd(jsd_gradient = crate::cpu::unit::arch())]
#[inline(always)]
fn jsd_gradient_simd<'a, S: pulp::Simd>(
    simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse: f32,
    [beta, factor]: [f32; 2],
    out: &'a mut [f32],
) -> f32 {
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    let weights = (beta.ln(), (-beta).ln_1p());
    for ((out, &s), &t) in out.iter_mut().zip(student).zip(teacher) {
        let log_q = ours.at(s);
        let ratio = log_q - log_mixture(theirs.at(t), log_q, weights);
        *out = if s == f32::NEG_INFINITY { 0. } else { ratio };
    }
    finish_gradient(student, ours, (1. - beta) * factor, out);
    jsd_simd(simd, student, teacher, inverse, beta)
}
