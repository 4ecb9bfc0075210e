//! Fused LM head and loss: the logits `(tokens, vocab)` are never in memory as a whole.
//!
//! For a few tokens at a time, the logits are computed and replaced by their gradient, which is kept in the precision
//! of the matmuls for a chunk of tokens and multiplied into the gradients of the hidden states and of the weight. With
//! a vocabulary of 8192 and 4096 tokens, separate operations would hold three matrices of 128 MB.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::cross_entropy::{IGNORE_INDEX, LogSumExp, check_labels, log_sum_exp};
use crate::cpu::contiguous;
use crate::cpu::gemm::{GemmElement, GemmOptions, Matrix, Precision, matmul_epilogue, matmul_into};
use crate::cpu::rows::zeros;
use crate::cpu::simd::{exp, max, sum_exp_minus_one, sum2};

/// Options of [`linear_cross_entropy`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// This share of the target probability is spread evenly over the vocabulary (Szegedy et al. 2016, arXiv
    /// 1512.00567).
    pub label_smoothing: f64,
    /// The coefficient of `logsumexp(logits)²`, which keeps logits small (`PaLM`, arXiv 2204.02311).
    pub z_loss: f64,
    /// The precision of the matmuls. In bf16, logits should stay below some hundreds, which `z_loss` ensures: at 1e4
    /// the rounding error exceeds the gradient.
    pub precision: Precision,
}

/// The mean cross-entropy in nats of the logits `x · wᵀ` with `labels`, over the labels that are not [`IGNORE_INDEX`].
///
/// `x` is `(n, hidden)`, `w` is `(vocab, hidden)`; the result is a scalar, 0 if every label is ignored. Up to rounding
/// it equals the mean of [`crate::cross_entropy`] of [`crate::linear`], without saving the logits. A label outside the
/// vocabulary is an error.
pub fn linear_cross_entropy(x: &Tensor, w: &Tensor, labels: &[i64], options: CrossEntropyOptions) -> Result<Tensor> {
    let ((n, k), (vocab, kw)) = (x.dims2()?, w.dims2()?);
    if k != kw {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; their last dimensions must be equal", x.dims(), w.dims());
    }
    check_labels(labels, n, vocab)?;
    if n * k * vocab == 0 {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; neither may be empty", x.dims(), w.dims());
    }
    if !(crate::is_fused(x) && crate::is_fused(w)) {
        return reference(x, w, labels, options);
    }
    let scale = 1. / count_labels(labels) as f32;
    let labels: Arc<[i64]> = labels.into();
    let chunk_loss = move |rows: Range<usize>| -> Result<RowLoss> {
        let labels = Arc::clone(&labels);
        Ok(Box::new(move |row, logits, gradient| {
            [row_loss(logits, gradient, labels[rows.start + row], options, scale), 0.]
        }))
    };
    FusedHead::apply(x, w, options.precision, chunk_loss, move |[loss, _]| loss * f64::from(scale))
}

/// The number of labels that are not ignored, at least one.
pub(crate) fn count_labels(labels: &[i64]) -> usize {
    labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1)
}

fn reference(x: &Tensor, w: &Tensor, labels: &[i64], options: CrossEntropyOptions) -> Result<Tensor> {
    let logits = crate::linear(x, w)?; // (n, vocab)
    let row_max = logits.detach().max_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&row_max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (n, 1), relative to the maximum
    let index: Vec<u32> = labels.iter().map(|&l| if l == IGNORE_INDEX { 0 } else { l as u32 }).collect();
    let target = shifted.gather(&Tensor::from_vec(index, (labels.len(), 1), x.device())?, 1)?; // (n, 1)
    let smoothing = options.label_smoothing;
    let target_term = ((target * (1. - smoothing))? + (shifted.mean_keepdim(D::Minus1)? * smoothing)?)?;
    let squared = ((&log_sum + row_max)?.sqr()? * options.z_loss)?;
    let loss = ((log_sum - target_term)? + squared)?.squeeze(1)?; // (n,)
    let mask: Vec<f32> = labels.iter().map(|&l| f32::from(l != IGNORE_INDEX)).collect();
    let mask = Tensor::from_vec(mask, labels.len(), x.device())?.to_dtype(x.dtype())?;
    (loss * mask)?.sum_all()? / count_labels(labels) as f64
}

/// The loss of a row as two terms, from its index in the chunk and its logits. If a slice is given, the gradient of
/// the row's loss is written to it.
pub(crate) type RowLoss = Box<dyn Fn(usize, &[f32], Option<&mut [f32]>) -> [f64; 2] + Sync>;

/// The logits `x · wᵀ`, chunk by chunk, and a loss of them: a scalar.
pub(crate) struct FusedHead {
    /// Whether `x` and `w` need a gradient.
    needs_grad: [bool; 2],
    precision: Precision,
    /// The row losses of a chunk of rows.
    chunk_loss: Box<dyn Fn(Range<usize>) -> Result<RowLoss> + Send + Sync>,
    /// The loss, from the sums of the two terms over all rows.
    total: Box<dyn Fn([f64; 2]) -> f64 + Send + Sync>,
    /// The gradients of the loss with respect to `x` and `w`, computed in the forward.
    gradients: OnceLock<[Option<Tensor>; 2]>,
}

/// Bytes of the logits' gradients of one chunk. Smaller chunks would fit in the cache, but packing the weight again
/// for each chunk costs more.
const GRADIENT_CHUNK_BYTES: usize = 64 << 20;

impl FusedHead {
    /// Applies the head `w` `(vocab, hidden)` and the loss to `x` `(n, hidden)`.
    pub fn apply(
        x: &Tensor,
        w: &Tensor,
        precision: Precision,
        chunk_loss: impl Fn(Range<usize>) -> Result<RowLoss> + Send + Sync + 'static,
        total: impl Fn([f64; 2]) -> f64 + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let needs_grad = [x.track_op(), w.track_op()];
        let (chunk_loss, total) = (Box::new(chunk_loss), Box::new(total));
        x.contiguous()?
            .apply_op2(&w.contiguous()?, Self { needs_grad, precision, chunk_loss, total, gradients: OnceLock::new() })
    }

    /// The loss and the gradients of `x` `(n, k)` and `w` `(vocab, k)`; a gradient that is not needed is empty.
    fn run<T: GemmElement>(&self, x: &[f32], w: &[f32], k: usize, vocab: usize) -> Result<(f64, [Vec<f32>; 2])> {
        let [needs_dx, needs_dw] = self.needs_grad;
        let (n, options) = (x.len() / k, GemmOptions::all_threads(T::PRECISION));
        let (mut dx, mut dw) = (zeros(if needs_dx { x.len() } else { 0 }), zeros(if needs_dw { w.len() } else { 0 }));
        let w = Matrix::new(w, vocab, k);
        let chunk = (GRADIENT_CHUNK_BYTES / (vocab * size_of::<T>())).max(16);
        let mut sums = [0f64; 2];
        for start in (0..n).step_by(chunk) {
            let range = start..(start + chunk).min(n);
            let chunk_loss = (self.chunk_loss)(range.clone())?;
            // The terms of each row, as bits: rows are computed in parallel and summed in order.
            let parts: Vec<[AtomicU64; 2]> = range.clone().map(|_| Default::default()).collect();
            let x = Matrix::new(&x[range.start * k..range.end * k], range.len(), k);
            let width = if needs_dx || needs_dw { vocab } else { 0 };
            let gradient: Vec<T> = matmul_epilogue(x, w.t(), [width; 2], |row, logits, gradient| {
                let loss = chunk_loss(row, logits, Some(gradient).filter(|gradient| !gradient.is_empty()));
                for (part, loss) in parts[row].iter().zip(loss) {
                    part.store(loss.to_bits(), Ordering::Relaxed);
                }
            });
            for (sum, part) in parts.iter().flat_map(|parts| [0, 1].map(|i| (i, &parts[i]))) {
                sums[sum] += f64::from_bits(part.load(Ordering::Relaxed));
            }
            let gradient = Matrix::new(&gradient, range.len(), width);
            if needs_dx {
                matmul_into(gradient, w, &mut dx[range.start * k..range.end * k], k, false, 1., options);
            }
            if needs_dw {
                matmul_into(gradient.t(), x, &mut dw, k, start > 0, 1., options);
            }
        }
        Ok(((self.total)(sums), [dx, dw]))
    }
}

impl CustomOp2 for FusedHead {
    fn name(&self) -> &'static str {
        "head"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, k) = wl.shape().dims2()?;
        let (x, w) = (contiguous(xs, xl)?, contiguous(ws, wl)?);
        let (loss, [x_grad, w_grad]) = match self.precision {
            Precision::F32 => self.run::<f32>(x, w, k, vocab)?,
            Precision::Bf16 => self.run::<bf16>(x, w, k, vocab)?,
        };
        let [dx, dw] = self.needs_grad;
        let tensor = |wanted: bool, data: Vec<f32>, shape: &Shape| match wanted {
            true => Tensor::from_vec(data, shape, &Device::Cpu).map(Some),
            false => Ok(None),
        };
        let gradients = [tensor(dx, x_grad, xl.shape())?, tensor(dw, w_grad, wl.shape())?];
        if self.gradients.set(gradients).is_err() {
            bail!("head: an operation runs only once");
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = f64::from(dy.to_scalar::<f32>()?);
        let Some([dx, dw]) = self.gradients.get() else { bail!("head: backward ran before forward") };
        let scaled = |grad: &Option<Tensor>| match grad {
            Some(grad) if factor != 1. => (grad * factor).map(Some),
            grad => Ok(grad.clone()),
        };
        Ok((scaled(dx)?, scaled(dw)?))
    }
}

/// The cross-entropy of one row of logits, and its gradient times `scale`.
fn row_loss(row: &[f32], gradient: Option<&mut [f32]>, label: i64, options: CrossEntropyOptions, scale: f32) -> f64 {
    if label == IGNORE_INDEX {
        gradient.into_iter().for_each(|gradient| gradient.fill(0.));
        return 0.;
    }
    let (smoothing, z_loss) = (options.label_smoothing as f32, options.z_loss as f32);
    let target = row[label as usize];
    let lse = if let Some(gradient) = gradient {
        gradient.copy_from_slice(row);
        let lse = softmax_gradient(gradient, scale, z_loss);
        if smoothing > 0. {
            let share = scale * smoothing / row.len() as f32;
            gradient.iter_mut().for_each(|d| *d -= share);
        }
        gradient[label as usize] -= scale * (1. - smoothing);
        lse
    } else {
        log_sum_exp(row)
    };
    let log_sum = f64::from(lse.row_max) + f64::from(lse.log_sum);
    let mut loss = f64::from(1. - smoothing) * lse.minus(target);
    if smoothing > 0. {
        let below_top = sum2(row, row, |x, _| lse.row_max - x) / row.len() as f32;
        loss += f64::from(smoothing) * (f64::from(lse.log_sum) + f64::from(below_top));
    }
    if z_loss == 0. { loss } else { loss + f64::from(z_loss) * log_sum * log_sum }
}

/// Replaces a row of logits by `softmax · scale · (1 + 2 · z_loss · logsumexp)` and returns the logsumexp.
#[pulp::with_simd(softmax_gradient = crate::cpu::unit::arch())]
#[inline(always)]
fn softmax_gradient_simd<S: pulp::Simd>(_simd: S, row: &mut [f32], scale: f32, z_loss: f32) -> LogSumExp {
    let row_max = max(row);
    for x in &mut *row {
        *x = exp(*x - row_max);
    }
    let sum_minus_one = sum_exp_minus_one(row, |e| e);
    let log_sum = sum_minus_one.ln_1p();
    let factor = scale * (1. + 2. * z_loss * (row_max + log_sum)) / (1. + sum_minus_one);
    row.iter_mut().for_each(|x| *x *= factor);
    LogSumExp { row_max, log_sum }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_matches_reference, random};

    fn labels(n: usize, vocab: usize) -> Vec<i64> {
        (0..n).map(|i| if i % 3 == 2 { IGNORE_INDEX } else { (i * 7 % vocab) as i64 }).collect()
    }

    #[test]
    fn the_fused_head_equals_the_f64_reference() -> Result<()> {
        let smoothing = CrossEntropyOptions { label_smoothing: 0.1, ..CrossEntropyOptions::default() };
        let smooth_and_z = CrossEntropyOptions { label_smoothing: 0.2, z_loss: 0.01, ..CrossEntropyOptions::default() };
        // The last shape has several chunks, the one before a vocabulary that is larger than a chunk.
        for (n, k, vocab) in [(1, 1, 1), (5, 7, 11), (33, 16, 50), (40, 2, 300_001), (150, 3, 60_000)] {
            let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
            for options in [CrossEntropyOptions::default(), smoothing, smooth_and_z] {
                assert_matches_reference(&[&x, &w], 1e-4, |t| {
                    linear_cross_entropy(&t[0], &t[1], &labels(n, vocab), options)
                })?;
            }
        }
        // Large logits, a transposed weight, a loss that is scaled in the backward.
        let (x, w) = (random(&[6, 8], 1, 60.)?, random(&[8, 9], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 1e-4, |t| {
            linear_cross_entropy(&t[0], &t[1].t()?, &labels(6, 9), CrossEntropyOptions::default())? * 0.25
        })
    }

    /// `row_loss` on given logits, without the rounding of a matmul.
    #[test]
    fn the_loss_of_a_confident_token_is_exact_at_any_offset() {
        for (gap, offset, smoothing) in [15f32, 18.].into_iter().flat_map(|gap| {
            [0f32, 1e3, 1e4, -1e4].into_iter().flat_map(move |offset| [(gap, offset, 0.), (gap, offset, 0.1)])
        }) {
            let mut row = vec![offset - gap; 1000];
            row[700] = offset;
            let rest = 999. * (-f64::from(gap)).exp();
            let mean_gap = f64::from(gap) * 0.999;
            for label in [700i64, 3] {
                let own = if label == 700 { 0. } else { f64::from(gap) };
                let exact = rest.ln_1p() + (1. - smoothing) * own + smoothing * mean_gap;
                let options = CrossEntropyOptions { label_smoothing: smoothing, ..CrossEntropyOptions::default() };
                let without_gradient = row_loss(&row, None, label, options, 1.);
                let mut gradient = vec![0f32; 1000];
                let with_gradient = row_loss(&row, Some(&mut gradient), label, options, 1.);
                for loss in [without_gradient, with_gradient] {
                    assert!((loss / exact - 1.).abs() < 1e-3, "{gap} {offset} {smoothing}: {loss} is not {exact}");
                }
                let left: f64 = gradient.iter().copied().map(f64::from).sum();
                assert!(left.abs() < 1e-6, "the gradient of a softmax sums to {left} instead of zero");
            }
        }
    }

    #[test]
    fn bf16_head_equals_the_f64_reference_up_to_rounding() -> Result<()> {
        let options = CrossEntropyOptions { precision: Precision::Bf16, ..CrossEntropyOptions::default() };
        let (x, w) = (random(&[33, 16], 1, 2.)?, random(&[50, 16], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 1. / 64., |t| linear_cross_entropy(&t[0], &t[1], &labels(33, 50), options))
    }

    #[test]
    fn the_fused_head_equals_the_mean_of_the_separate_functions() -> Result<()> {
        let (x, w) = (random(&[50, 12], 1, 2.)?, random(&[70, 12], 2, 1.)?);
        let labels = labels(50, 70);
        let fused = linear_cross_entropy(&x, &w, &labels, CrossEntropyOptions::default())?.to_scalar::<f32>()?;
        let separate = crate::cross_entropy(&crate::linear(&x, &w)?, &labels)?.sum_all()?.to_scalar::<f32>()?;
        assert!((fused - separate / count_labels(&labels) as f32).abs() < 1e-5);
        let none = linear_cross_entropy(&x, &w, &[IGNORE_INDEX; 50], CrossEntropyOptions::default())?;
        assert_eq!(none.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn frozen_inputs_get_no_gradient_and_wrong_labels_are_errors() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[4, 3], 1, 1.)?)?, random(&[5, 3], 2, 1.)?);
        let loss = linear_cross_entropy(&x, &w, &[0, 1, 2, 4], CrossEntropyOptions::default())?;
        let grads = loss.backward()?;
        assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
        assert!(linear_cross_entropy(&x, &w, &[0, 1, 2, 5], CrossEntropyOptions::default()).is_err());
        assert!(linear_cross_entropy(&x, &w, &[0], CrossEntropyOptions::default()).is_err());
        Ok(())
    }
}
