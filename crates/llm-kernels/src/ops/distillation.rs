//! Fused distillation loss and LM heads: neither the student's nor the teacher's logits are in memory as a whole.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cross_entropy::{IGNORE_INDEX, check_labels};
use super::head::{FusedHead, RowLoss, count_labels};
use crate::cpu::cpu_slice;
use crate::cpu::gemm::{GemmOptions, Matrix, Precision, matmul};
use crate::cpu::simd::exp;
use crate::cpu::softmax::{LogSoftmax, log_softmax};

/// The inputs of an LM head: hidden states `(n, hidden)` and its weight `(vocab, hidden)`.
#[derive(Debug, Clone, Copy)]
pub struct HeadInputs<'a> {
    /// The hidden states `(n, hidden)`.
    pub hidden_states: &'a Tensor,
    /// The weight of the head `(vocab, hidden)`.
    pub weight: &'a Tensor,
    /// The precision of their matmul.
    pub precision: Precision,
}

/// The loss of [`linear_distillation`] and its two terms.
#[derive(Debug)]
pub struct DistillationLoss {
    /// `alpha · T² · kl + (1 - alpha) · cross_entropy`, a differentiable scalar.
    pub loss: Tensor,
    /// The mean of `KL(softmax(teacher / T) ‖ softmax(student / T))`, in nats.
    pub kl: f64,
    /// The mean cross-entropy of the student, in nats.
    pub cross_entropy: f64,
}

/// `alpha · T² · KL(teacher/T ‖ student/T) + (1 - alpha) · cross-entropy`, means over the labels that are not ignored
/// (Hinton et al. 2015, arXiv 1503.02531).
///
/// Both heads have `n` rows and the same vocabulary; the teacher gets no gradient. `labels` `(n,)` are the next
/// tokens. It is an error if shapes do not match or a label is outside the vocabulary.
pub fn linear_distillation(
    student: HeadInputs,
    teacher: HeadInputs,
    labels: &[i64],
    alpha: f64,
    temperature: f64,
) -> Result<DistillationLoss> {
    let ((n, k), (vocab, kw)) = (student.hidden_states.dims2()?, student.weight.dims2()?);
    let ((tn, tk), (teacher_vocab, tkw)) = (teacher.hidden_states.dims2()?, teacher.weight.dims2()?);
    if k != kw || tk != tkw || n != tn || vocab != teacher_vocab || n * vocab * k * tk == 0 {
        let shapes = [student.hidden_states, student.weight, teacher.hidden_states, teacher.weight].map(Tensor::dims);
        bail!(
            "linear_distillation: student {:?} · {:?} and teacher {:?} · {:?} have mismatched shapes",
            shapes[0],
            shapes[1],
            shapes[2],
            shapes[3]
        );
    }
    check_labels(labels, n, vocab)?;
    let tensors = [student.hidden_states, student.weight, teacher.hidden_states, teacher.weight];
    if !tensors.iter().all(|x| crate::is_fused(x)) {
        return reference(student, teacher, labels, alpha, temperature);
    }
    let count = count_labels(labels) as f64;
    let row_params = RowLossParams { alpha: alpha as f32, temperature: temperature as f32, scale: (1. / count) as f32 };
    let labels: Arc<[i64]> = labels.into();
    let (hidden, weight) = (teacher.hidden_states.detach().contiguous()?, teacher.weight.detach().contiguous()?);
    let sums = Arc::new(Mutex::new((0f64, 0f64)));
    let gathered = Arc::clone(&sums);
    let teacher_options = GemmOptions::all_threads(teacher.precision);
    let chunk_loss = move |rows: Range<usize>| -> Result<RowLoss> {
        let ((hs, hl), (ws, wl)) = (hidden.storage_and_layout(), weight.storage_and_layout());
        let states = Matrix::new(&cpu_slice(&hs, hl)?[rows.start * tk..rows.end * tk], rows.len(), tk);
        let theirs = matmul(states, Matrix::new(cpu_slice(&ws, wl)?, vocab, tk).t(), teacher_options);
        let labels = Arc::clone(&labels);
        Ok(Box::new(move |row, logits, gradient| {
            row_params.row(logits, &theirs[row * vocab..][..vocab], labels[rows.start + row], gradient)
        }))
    };
    let total = move |[kl, cross_entropy]: [f64; 2]| {
        *gathered.lock().unwrap_or_else(PoisonError::into_inner) = (kl, cross_entropy);
        (alpha * temperature * temperature * kl + (1. - alpha) * cross_entropy) / count
    };
    let loss = FusedHead::apply(student.hidden_states, student.weight, student.precision, chunk_loss, total)?;
    let (kl, cross_entropy) = *sums.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(DistillationLoss { loss, kl: kl / count, cross_entropy: cross_entropy / count })
}

fn reference(
    student: HeadInputs,
    teacher: HeadInputs,
    labels: &[i64],
    alpha: f64,
    temperature: f64,
) -> Result<DistillationLoss> {
    let keep: Vec<u32> = (0..labels.len() as u32).filter(|&i| labels[i as usize] != IGNORE_INDEX).collect();
    let count = keep.len().max(1) as f64;
    let kept_mean = |sum: Tensor| sum.sum_all()? / count;
    let logits = crate::linear(student.hidden_states, student.weight)?;
    let theirs = crate::linear(&teacher.hidden_states.detach(), &teacher.weight.detach())?;
    let rows = keep.len();
    let index = Tensor::from_vec(keep, rows, logits.device())?;
    let (some, their_some) = (logits.index_select(&index, 0)?, theirs.index_select(&index, 0)?);
    let kl = kept_mean(crate::kl_divergence(&some, &their_some, temperature)?)?;
    let cross_entropy = kept_mean(crate::cross_entropy(&logits, labels)?)?;
    let loss = ((&kl * (alpha * temperature * temperature))? + (&cross_entropy * (1. - alpha))?)?;
    let number = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>();
    Ok(DistillationLoss { loss, kl: number(&kl)?, cross_entropy: number(&cross_entropy)? })
}

#[derive(Clone, Copy)]
struct RowLossParams {
    alpha: f32,
    temperature: f32,
    scale: f32,
}

impl RowLossParams {
    /// KL divergence and cross-entropy of one row, and the gradient of the loss.
    fn row(self, student: &[f32], teacher: &[f32], label: i64, gradient_out: Option<&mut [f32]>) -> [f64; 2] {
        if label == IGNORE_INDEX {
            gradient_out.into_iter().for_each(|gradient| gradient.fill(0.));
            return [0., 0.];
        }
        let inverse = 1. / self.temperature;
        let kl = super::kl_divergence::forward(student, teacher, inverse);
        let all = log_softmax(student);
        let cross_entropy = all.cross_entropy(student[label as usize]);
        if let Some(to) = gradient_out {
            let (kl_factor, label_factor) =
                (self.scale * self.alpha * self.temperature, self.scale * (1. - self.alpha));
            to.copy_from_slice(student);
            logits_gradient(to, teacher, [inverse, kl_factor, label_factor], all);
            to[label as usize] -= label_factor;
        }
        [f64::from(kl), cross_entropy]
    }
}

// d = kl_factor · (softmax(student / T) - softmax(teacher / T)) + label_factor · softmax(student).
#[pulp::with_simd(logits_gradient = crate::cpu::unit::arch())]
#[inline(always)]
fn logits_gradient_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a mut [f32],
    teacher: &'a [f32],
    factors: [f32; 3],
    all: LogSoftmax,
) {
    let [inverse, kl_factor, label_factor] = factors;
    let (ours, theirs) = (LogSoftmax::of(student, inverse), LogSoftmax::of(teacher, inverse));
    for (s, &t) in student.iter_mut().zip(teacher) {
        let soft = exp(ours.at(*s)) - exp(theirs.at(t));
        *s = kl_factor * soft + label_factor * exp(all.at(*s));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn the_fused_distillation_equals_the_f64_reference() -> Result<()> {
        for (n, k, tk, vocab) in [(1, 1, 2, 3), (7, 5, 9, 11), (40, 2, 3, 300_001)] {
            let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
            let (tx, tw) = (random(&[n, tk], 3, 2.)?, random(&[vocab, tk], 4, 1.)?);
            let labels: Vec<i64> =
                (0..n).map(|i| if i % 3 == 2 { IGNORE_INDEX } else { (i * 7 % vocab) as i64 }).collect();
            for (alpha, temperature) in [(0.9, 2.), (1., 1.), (0., 3.)] {
                assert_matches_reference(&[&x, &w], 1e-4, |t| {
                    let (tx, tw) = (tx.to_dtype(t[0].dtype())?, tw.to_dtype(t[0].dtype())?);
                    let (student, teacher) = (
                        HeadInputs { hidden_states: &t[0], weight: &t[1], precision: Precision::F32 },
                        HeadInputs { hidden_states: &tx, weight: &tw, precision: Precision::F32 },
                    );
                    Ok(linear_distillation(student, teacher, &labels, alpha, temperature)?.loss)
                })?;
            }
        }
        Ok(())
    }

    /// One given row of logits, without the rounding of a matmul.
    #[test]
    fn adding_a_constant_changes_nothing_and_minus_infinity_is_probability_zero() {
        let random_logits = |seed| random(&[1000], seed, 4.).unwrap().to_vec1::<f32>().unwrap();
        let (alpha, temperature, label) = (0.7, 2., 5usize);
        let log_softmax = |row: &[f32], temperature: f64| -> Vec<f64> {
            let row_max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let gaps: Vec<f64> = row.iter().map(|&x| (f64::from(x) - row_max) / temperature).collect();
            let log_sum = gaps.iter().map(|x| x.exp()).sum::<f64>().ln();
            gaps.iter().map(|x| x - log_sum).collect()
        };
        for offset in [0f32, 1e3, 1e4] {
            let [mut student, mut teacher] =
                [1, 2].map(|seed| random_logits(seed).iter().map(|x| x + offset).collect::<Vec<_>>());
            teacher[3] = f32::NEG_INFINITY;
            (student[9], teacher[9]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            let (soft, theirs) = (log_softmax(&student, temperature), log_softmax(&teacher, temperature));
            let hard = log_softmax(&student, 1.);
            let terms = theirs.iter().zip(&soft).filter(|(t, _)| **t > f64::NEG_INFINITY);
            let kl: f64 = terms.map(|(t, s)| t.exp() * (t - s)).sum();
            let mut gradient = vec![0f32; 1000];
            let row_params = RowLossParams { alpha: alpha as f32, temperature: temperature as f32, scale: 1. };
            let [ours, cross_entropy] = row_params.row(&student, &teacher, label as i64, Some(&mut gradient));
            assert!((ours / kl - 1.).abs() < 1e-5, "{offset}: {ours} is not {kl}");
            assert!(
                (cross_entropy / -hard[label] - 1.).abs() < 1e-5,
                "{offset}: {cross_entropy} is not {}",
                -hard[label]
            );
            for i in 0..1000 {
                let label_factor = hard[i].exp() - f64::from(u8::from(i == label));
                let slope = alpha * temperature * (soft[i].exp() - theirs[i].exp()) + (1. - alpha) * label_factor;
                assert!((f64::from(gradient[i]) - slope).abs() < 1e-6, "{offset} {i}: {} is not {slope}", gradient[i]);
            }
        }
    }

    #[test]
    fn both_terms_equal_the_separate_losses() -> Result<()> {
        let (x, w) = (random(&[30, 6], 1, 2.)?, random(&[20, 6], 2, 1.)?);
        let (tx, tw) = (random(&[30, 4], 3, 2.)?, random(&[20, 4], 4, 1.)?);
        let labels: Vec<i64> = (0..30).map(|i| i % 20).collect();
        let (student, teacher) = (
            HeadInputs { hidden_states: &x, weight: &w, precision: Precision::F32 },
            HeadInputs { hidden_states: &tx, weight: &tw, precision: Precision::F32 },
        );
        let fused = linear_distillation(student, teacher, &labels, 0.7, 2.)?;
        let separate = reference(student, teacher, &labels, 0.7, 2.)?;
        assert!((fused.kl - separate.kl).abs() < 1e-5 && (fused.cross_entropy - separate.cross_entropy).abs() < 1e-5);
        let same = linear_distillation(student, student, &labels, 1., 2.)?;
        assert!(same.kl.abs() < 1e-6 && same.loss.to_scalar::<f32>()?.abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_errors() -> Result<()> {
        let (x, w, other) = (random(&[3, 6], 1, 2.)?, random(&[5, 6], 2, 1.)?, random(&[4, 6], 2, 1.)?);
        let output = |weight| HeadInputs { hidden_states: &x, weight, precision: Precision::F32 };
        assert!(linear_distillation(output(&w), output(&other), &[0, 1, 2], 1., 1.).is_err());
        assert!(linear_distillation(output(&w), output(&w), &[0, 1], 1., 1.).is_err());
        Ok(())
    }
}
