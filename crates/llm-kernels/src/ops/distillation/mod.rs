//! Fused distillation loss and LM heads: neither the student's nor the teacher's logits are in memory as a whole.

mod divergence;
mod top_k;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::cross_entropy::{IGNORE_INDEX, check_labels};
use super::head::{FusedHead, RowLoss, count_labels};
use crate::cpu::cpu_slice;
use crate::cpu::gemm::{GemmOptions, Matrix, Precision, matmul};
use crate::cpu::simd::exp;
use crate::cpu::softmax::{LogSoftmax, log_softmax};
pub use divergence::Divergence;
pub use top_k::TopKLogprobs;

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

/// The distribution of the teacher for `n` tokens.
#[derive(Debug, Clone, Copy)]
pub enum TeacherLogits<'a> {
    /// The logits of an LM head.
    Head(HeadInputs<'a>),
    /// Given logits `(n, vocab)`.
    Logits(&'a Tensor),
    /// Stored log-probabilities of its most likely tokens, at the temperature of the loss.
    TopK(&'a TopKLogprobs),
}

/// How a student is compared with its teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillationOptions {
    /// The weight of the divergence, from 0 to 1; that of the cross-entropy is 1 - alpha.
    pub alpha: f64,
    /// T: the logits of both are divided by it.
    pub temperature: f64,
    /// The divergence.
    pub divergence: Divergence,
    /// The number of tokens that both vocabularies have. The logits of both are cut to it before the softmax of the divergence: rows that
    /// pad a vocabulary to a round size are no tokens. The cross-entropy is that of the student's whole vocabulary.
    pub vocab: usize,
}

/// The loss of [`linear_distillation`] and its two terms.
#[derive(Debug)]
pub struct DistillationLoss {
    /// `alpha · T² · divergence + (1 - alpha) · cross_entropy`, a differentiable scalar.
    pub loss: Tensor,
    /// The mean divergence of the student at temperature T, in nats.
    pub divergence: f64,
    /// The mean cross-entropy of the student, in nats.
    pub cross_entropy: f64,
}

/// `alpha · T² · divergence(teacher/T, student/T) + (1 - alpha) · cross-entropy`, means over the labels that are not ignored (Hinton et al.
/// 2015, arXiv 1503.02531; Agarwal et al. 2024, arXiv 2306.13649).
///
/// Teacher and student have `n` rows; the teacher gets no gradient. `labels` `(n,)` are the next tokens. It is an error if shapes do not
/// match, a vocabulary has less than `options.vocab` tokens, or a label is outside the student's vocabulary.
pub fn linear_distillation(
    student: HeadInputs,
    teacher: TeacherLogits,
    labels: &[i64],
    options: &DistillationOptions,
) -> Result<DistillationLoss> {
    let ((n, k), (vocab, kw)) = (student.hidden_states.dims2()?, student.weight.dims2()?);
    if k != kw || n * vocab * k == 0 {
        let shapes = [student.hidden_states, student.weight].map(Tensor::dims);
        bail!("linear_distillation: student {:?} · {:?} have mismatched shapes", shapes[0], shapes[1]);
    }
    check_labels(labels, n, vocab)?;
    teacher.check(n, vocab, options)?;
    let fused = |tensors: &[&Tensor]| tensors.iter().all(|x| crate::is_fused(x));
    let all_fused = fused(&[student.hidden_states, student.weight])
        && match teacher {
            TeacherLogits::Head(head) => fused(&[head.hidden_states, head.weight]),
            TeacherLogits::Logits(logits) => fused(&[logits]),
            TeacherLogits::TopK(_) => true,
        };
    if !all_fused {
        let logits = crate::linear(student.hidden_states, student.weight)?;
        return distillation_of_logits(&logits, teacher, labels, options);
    }
    let count = count_labels(labels) as f64;
    let params = RowLossParams { options: *options, scale: (1. / count) as f32 };
    let labels: Arc<[i64]> = labels.into();
    let sums = Arc::new(Mutex::new((0f64, 0f64)));
    let gathered = Arc::clone(&sums);
    let rows_of = teacher.rows(options.vocab)?;
    let chunk_loss = move |rows: Range<usize>| -> Result<RowLoss> {
        let (theirs, labels, start) = (rows_of(rows.clone())?, Arc::clone(&labels), rows.start);
        Ok(Box::new(move |row, logits, gradient| params.row(logits, theirs.row(row), labels[start + row], gradient)))
    };
    let DistillationOptions { alpha, temperature, .. } = *options;
    let total = move |[divergence, cross_entropy]: [f64; 2]| {
        *gathered.lock().unwrap_or_else(PoisonError::into_inner) = (divergence, cross_entropy);
        (alpha * temperature * temperature * divergence + (1. - alpha) * cross_entropy) / count
    };
    let loss = FusedHead::apply(student.hidden_states, student.weight, student.precision, chunk_loss, total)?;
    let (divergence, cross_entropy) = *sums.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(DistillationLoss { loss, divergence: divergence / count, cross_entropy: cross_entropy / count })
}

/// The teacher's rows of a chunk.
type RowsOf = Box<dyn Fn(Range<usize>) -> Result<TeacherRows> + Send + Sync>;

/// The teacher's distributions for a few tokens.
enum TeacherRows {
    /// Logits, with the size of the vocabulary.
    Logits(Vec<f32>, usize),
    /// Stored ones, from this position on.
    TopK(Arc<TopKLogprobs>, usize),
}

/// The teacher's distribution for one token.
enum TeacherRow<'a> {
    Logits(&'a [f32]),
    TopK(&'a TopKLogprobs, usize),
}

impl TeacherRows {
    fn row(&self, row: usize) -> TeacherRow<'_> {
        match self {
            Self::Logits(logits, vocab) => TeacherRow::Logits(&logits[row * vocab..][..*vocab]),
            Self::TopK(top, start) => TeacherRow::TopK(top, start + row),
        }
    }
}

impl TeacherLogits<'_> {
    fn check(&self, n: usize, student_vocab: usize, options: &DistillationOptions) -> Result<()> {
        let shared = options.vocab;
        let (rows, vocab) = match self {
            Self::Head(HeadInputs { hidden_states, weight, .. }) => {
                let ((n, k), (vocab, kw)) = (hidden_states.dims2()?, weight.dims2()?);
                if k != kw || k == 0 {
                    let shapes = [hidden_states, weight].map(|x| x.dims());
                    bail!("linear_distillation: teacher {:?} · {:?} have mismatched shapes", shapes[0], shapes[1]);
                }
                (n, vocab)
            }
            Self::Logits(logits) => logits.dims2()?,
            Self::TopK(top) => {
                top.check(n, shared)?;
                (n, shared)
            }
        };
        if rows != n {
            bail!("linear_distillation: {n} rows of the student, {rows} of the teacher");
        }
        if shared == 0 || shared > vocab.min(student_vocab) {
            bail!(
                "linear_distillation: the vocabularies have {student_vocab} (student) and {vocab} tokens (teacher); they cannot share \
                 {shared}"
            );
        }
        Ok(())
    }

    /// The rows of a chunk, cut to the shared vocabulary.
    fn rows(&self, shared: usize) -> Result<RowsOf> {
        Ok(match self {
            Self::Head(HeadInputs { hidden_states, weight, precision }) => {
                let (hidden, weight) = (hidden_states.detach().contiguous()?, weight.detach().contiguous()?);
                let (k, options) = (hidden.dim(1)?, GemmOptions::all_threads(*precision));
                Box::new(move |rows| {
                    let ((hs, hl), (ws, wl)) = (hidden.storage_and_layout(), weight.storage_and_layout());
                    let states = Matrix::new(&cpu_slice(&hs, hl)?[rows.start * k..rows.end * k], rows.len(), k);
                    let weight = Matrix::new(&cpu_slice(&ws, wl)?[..shared * k], shared, k);
                    Ok(TeacherRows::Logits(matmul(states, weight.t(), options), shared))
                })
            }
            Self::Logits(logits) => {
                let logits = logits.detach().clone();
                Box::new(move |rows| {
                    let rows = logits.narrow(0, rows.start, rows.len())?.narrow(1, 0, shared)?;
                    Ok(TeacherRows::Logits(rows.flatten_all()?.to_vec1()?, shared))
                })
            }
            Self::TopK(top) => {
                let top = Arc::new((*top).clone());
                Box::new(move |rows| Ok(TeacherRows::TopK(Arc::clone(&top), rows.start)))
            }
        })
    }
}

/// [`linear_distillation`] of the student's logits `(n, vocab)`, composed of candle operations.
pub fn distillation_of_logits(
    student: &Tensor,
    teacher: TeacherLogits,
    labels: &[i64],
    options: &DistillationOptions,
) -> Result<DistillationLoss> {
    let (n, vocab) = student.dims2()?;
    check_labels(labels, n, vocab)?;
    teacher.check(n, vocab, options)?;
    let DistillationOptions { alpha, temperature, divergence, vocab: shared } = *options;
    let (wide, dtype) = (crate::widest_dtype(student.device()), student.dtype());
    let keep: Vec<u32> = (0..labels.len() as u32).filter(|&i| labels[i as usize] != IGNORE_INDEX).collect();
    let count = keep.len().max(1) as f64;
    let index = Tensor::from_slice(&keep, keep.len(), student.device())?;
    // The kept rows of logits, cut and divided.
    let scaled = |logits: &Tensor| logits.index_select(&index, 0)?.narrow(1, 0, shared)?.to_dtype(wide)? / temperature;
    let logprobs = |logits: &Tensor| candle_nn::ops::log_softmax(&scaled(logits)?, D::Minus1);
    let (ours, theirs) = match teacher {
        TeacherLogits::TopK(top) => top.outcomes(&scaled(student)?, &keep)?,
        TeacherLogits::Logits(logits) => (logprobs(student)?, logprobs(&logits.detach())?),
        TeacherLogits::Head(head) => {
            let logits = crate::linear(&head.hidden_states.detach(), &head.weight.detach())?;
            (logprobs(student)?, logprobs(&logits)?)
        }
    };
    let mean = |sum: Tensor| sum.sum_all()? / count;
    let divergence = match keep.is_empty() {
        true => Tensor::zeros((), dtype, student.device())?,
        false => mean(divergence.of_logprobs(&ours, &theirs)?.to_dtype(dtype)?)?,
    };
    let cross_entropy = mean(crate::cross_entropy(student, labels)?)?;
    let loss = ((&divergence * (alpha * temperature * temperature))? + (&cross_entropy * (1. - alpha))?)?;
    let number = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>();
    Ok(DistillationLoss { loss, divergence: number(&divergence)?, cross_entropy: number(&cross_entropy)? })
}

#[derive(Clone, Copy)]
struct RowLossParams {
    options: DistillationOptions,
    scale: f32,
}

impl RowLossParams {
    /// Divergence and cross-entropy of one row, and the gradient of the loss.
    fn row(self, student: &[f32], teacher: TeacherRow, label: i64, gradient_out: Option<&mut [f32]>) -> [f64; 2] {
        if label == IGNORE_INDEX {
            gradient_out.into_iter().for_each(|gradient| gradient.fill(0.));
            return [0., 0.];
        }
        let DistillationOptions { alpha, temperature, divergence, vocab } = self.options;
        let (alpha, temperature) = (alpha as f32, temperature as f32);
        let inverse = 1. / temperature;
        let all = log_softmax(student);
        let cross_entropy = all.cross_entropy(student[label as usize]);
        let (factor, label_factor) = (self.scale * alpha * temperature, self.scale * (1. - alpha));
        let shared = &student[..vocab];
        let Some(out) = gradient_out else {
            let value = match teacher {
                TeacherRow::Logits(teacher) => divergence.value(shared, teacher, inverse),
                TeacherRow::TopK(top, at) => top.row(at, shared, inverse, divergence, factor, None),
            };
            return [value, cross_entropy];
        };
        let (of_shared, padding) = out.split_at_mut(vocab);
        padding.fill(0.);
        let value = match teacher {
            TeacherRow::Logits(teacher) => divergence.value_and_gradient(shared, teacher, inverse, factor, of_shared),
            TeacherRow::TopK(top, at) => top.row(at, shared, inverse, divergence, factor, Some(of_shared)),
        };
        if label_factor != 0. {
            add_softmax(out, student, all, label_factor);
            out[label as usize] -= label_factor;
        }
        [value, cross_entropy]
    }
}

/// Adds `factor` times the softmax.
#[pulp::with_simd(add_softmax = crate::cpu::unit::arch())]
#[inline(always)]
fn add_softmax_simd<'a, S: pulp::Simd>(
    _simd: S,
    out: &'a mut [f32],
    logits: &'a [f32],
    softmax: LogSoftmax,
    factor: f32,
) {
    for (out, &x) in out.iter_mut().zip(logits) {
        *out += factor * exp(softmax.at(x));
    }
}

#[cfg(test)]
mod tests;
