//! The teacher's k most likely tokens and the mass of all others: its distribution over k + 1 outcomes.
//!
//! A sum over the k tokens alone is no divergence: it can be negative, and its gradient pushes the student's mass onto tokens that the
//! teacher finds unlikely. With the tail as one outcome it is the divergence of two distributions, at most that over the whole
//! vocabulary (data processing inequality; Cover and Thomas 2006, section 2.8), and equal to it if k is the size of the vocabulary.

use candle_core::{DType, Result, Tensor, bail};

use super::Divergence;
use crate::cpu::simd::exp;
use crate::cpu::softmax::LogSoftmax;

/// The most likely tokens of a teacher at `n` positions, at the temperature of the loss.
#[derive(Debug, Clone, PartialEq)]
pub struct TopKLogprobs {
    /// Number of tokens per position.
    pub k: usize,
    /// Token ids, `(n, k)`; those of a position are distinct.
    pub ids: Vec<u32>,
    /// Their log-probabilities, `(n, k)`.
    pub logprobs: Vec<f32>,
    /// The log-probability of all other tokens together, `(n,)`; -inf if there are none.
    pub tail: Vec<f32>,
}

impl TopKLogprobs {
    /// An error if the lists do not match `n` positions, or an id is not in the vocabulary.
    pub(super) fn check(&self, n: usize, vocab: usize) -> Result<()> {
        let (k, ids) = (self.k, self.ids.len());
        if k == 0 || k > vocab || ids != n * k || self.logprobs.len() != ids || self.tail.len() != n {
            let (logprobs, tail) = (self.logprobs.len(), self.tail.len());
            bail!(
                "top-k log-probabilities: {ids} ids, {logprobs} log-probabilities and {tail} tails do not match {n} positions with \
                 {k} of {vocab} tokens"
            );
        }
        match self.ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => bail!("top-k log-probabilities: id {id} is outside the vocabulary of {vocab}"),
            None => Ok(()),
        }
    }

    /// The divergence at `position`, where `student` has these logits. If a slice is given, `factor` times the gradient with respect to
    /// `student · inverse` is written to it.
    pub(super) fn row(
        &self,
        position: usize,
        student: &[f32],
        inverse: f32,
        divergence: Divergence,
        factor: f32,
        out: Option<&mut [f32]>,
    ) -> f64 {
        let k = self.k;
        let ids = &self.ids[position * k..][..k];
        let mut theirs = self.logprobs[position * k..][..k].to_vec();
        let mut scratch = Vec::new();
        let (has_gradient, rest) = match out {
            Some(out) => (true, out),
            None => {
                scratch.resize(student.len(), 0f32);
                (false, scratch.as_mut_slice())
            }
        };
        rest.copy_from_slice(student);
        ids.iter().for_each(|&id| rest[id as usize] = f32::NEG_INFINITY);
        let (all, tail) = (log_softmax(student, inverse), log_softmax(rest, inverse));
        // Log-weights of the outcomes, relative to the largest logit.
        let mut ours: Vec<f32> = ids.iter().map(|&id| all.at(student[id as usize])).collect();
        if k < student.len() {
            theirs.push(self.tail[position]);
            ours.push(all.at_logsumexp(tail));
        }
        if !has_gradient {
            return divergence.value(&ours, &theirs, 1.);
        }
        let mut slopes = vec![0f32; ours.len()];
        let value = divergence.value_and_gradient(&ours, &theirs, 1., factor, &mut slopes);
        // A token of the tail has its share of the slope of the tail.
        let of_tail = slopes.get(k).copied().unwrap_or(0.);
        scale_softmax(rest, tail, of_tail);
        ids.iter().zip(&slopes).for_each(|(&id, &slope)| rest[id as usize] = slope);
        value
    }

    /// The log-probabilities of `student`, logits `(n, vocab)` divided by the temperature, and those of the teacher, both over the
    /// outcomes, `(n, k + 1)`, or `(n, k)` without other tokens; composed of candle operations.
    pub(super) fn outcomes(&self, student: &Tensor, rows: &[u32]) -> Result<(Tensor, Tensor)> {
        let ((n, vocab), k, dtype, device) = (student.dims2()?, self.k, student.dtype(), student.device());
        let of_rows = |values: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|&row| values[row as usize * width..][..width].iter().copied()).collect()
        };
        let ids: Vec<u32> = rows.iter().flat_map(|&row| &self.ids[row as usize * k..][..k]).copied().collect();
        let mut mask = vec![0f32; n * vocab];
        ids.iter().enumerate().for_each(|(i, &id)| mask[i / k * vocab + id as usize] = f32::NEG_INFINITY);
        let all = candle_nn::ops::log_softmax(student, candle_core::D::Minus1)?;
        let ours = all.gather(&Tensor::from_vec(ids, (n, k), device)?, 1)?;
        let theirs = Tensor::from_vec(of_rows(&self.logprobs, k), (n, k), device)?.to_dtype(dtype)?;
        if k == vocab {
            return Ok((ours, theirs));
        }
        let masked = all.broadcast_add(&Tensor::from_vec(mask, (n, vocab), device)?.to_dtype(dtype)?)?;
        let high = masked.detach().max_keepdim(1)?;
        let tail = (masked.broadcast_sub(&high)?.exp()?.sum_keepdim(1)?.log()? + high)?;
        let their_tail = Tensor::from_vec(of_rows(&self.tail, 1), (n, 1), device)?.to_dtype(dtype)?;
        Ok((Tensor::cat(&[ours, tail], 1)?, Tensor::cat(&[theirs, their_tail], 1)?))
    }

    /// The top k of logits `(n, vocab)` divided by `temperature`; ids of a row are ascending. Among equal logits the lower id is first.
    pub fn of_logits(logits: &Tensor, k: usize, temperature: f64) -> Result<Self> {
        let (n, vocab) = logits.dims2()?;
        if k == 0 || k > vocab {
            bail!("top-k log-probabilities: k is {k}; it must be from 1 to the size of the vocabulary, {vocab}");
        }
        let logits = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut top = Self { k, ids: Vec::new(), logprobs: Vec::new(), tail: Vec::new() };
        let inverse = (1. / temperature) as f32;
        for row in logits.chunks_exact(vocab).take(n) {
            let mut order: Vec<u32> = (0..vocab as u32).collect();
            let larger = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
            if k < vocab {
                order.select_nth_unstable_by(k - 1, larger);
            }
            order.truncate(k);
            order.sort_unstable();
            let all = log_softmax(row, inverse);
            let mut rest = row.to_vec();
            order.iter().for_each(|&id| rest[id as usize] = f32::NEG_INFINITY);
            top.logprobs.extend(order.iter().map(|&id| all.at(row[id as usize])));
            top.tail.push(if k == vocab { f32::NEG_INFINITY } else { all.at_logsumexp(log_softmax(&rest, inverse)) });
            top.ids.extend(order);
        }
        Ok(top)
    }
}

#[pulp::with_simd(log_softmax = crate::cpu::unit::arch())]
#[inline(always)]
fn log_softmax_simd<S: pulp::Simd>(_simd: S, row: &[f32], inverse: f32) -> LogSoftmax {
    LogSoftmax::of(row, inverse)
}

/// Replaces logits by `factor` times their softmax.
#[pulp::with_simd(scale_softmax = crate::cpu::unit::arch())]
#[inline(always)]
fn scale_softmax_simd<S: pulp::Simd>(_simd: S, row: &mut [f32], softmax: LogSoftmax, factor: f32) {
    for x in row {
        *x = if *x == f32::NEG_INFINITY { 0. } else { factor * exp(softmax.at(*x)) };
    }
}
