//! Fused LM head and loss: the logits `(tokens, vocab)` are never in memory as a whole.
//!
//! For a few tokens at a time, the logits are computed and replaced by their gradient, which is kept in the precision
//! of the matmuls for a chunk of tokens and multiplied into the gradients of the hidden states and of the weight. With
//! a vocabulary of 8192 and 4096 tokens, separate operations would hold three matrices of 128 MB.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::cross_entropy::{IGNORE_INDEX, check_labels};
use crate::cpu::contiguous;
use crate::cpu::gemm::{GemmElement, GemmOptions, Matrix, Precision, matmul_epilogue, matmul_into};
use crate::cpu::rows::zeros;
use crate::cpu::softmax::{log_softmax, scaled_softmax};

/// The mean cross-entropy in nats of the logits `x · wᵀ` with `labels`, over the labels that are not [`IGNORE_INDEX`].
///
/// `x` is `(n, hidden)`, `w` is `(vocab, hidden)`; the result is a scalar, 0 if every label is ignored. Up to rounding
/// it equals the mean of [`crate::cross_entropy`] of [`crate::linear`], without saving the logits. A label outside the
/// vocabulary is an error.
///
/// The matmuls have the given precision. In bf16, logits should stay below some hundreds: at 1e4 the rounding error
/// exceeds the gradient.
pub fn linear_cross_entropy(x: &Tensor, w: &Tensor, labels: &[i64], precision: Precision) -> Result<Tensor> {
    Ok(linear_cross_entropy_z(x, w, labels, 0., precision)?.loss)
}

/// The loss of [`linear_cross_entropy_z`] and its two terms.
#[derive(Debug)]
pub struct CrossEntropyLoss {
    /// `cross_entropy + z_loss_coef · z_loss`, a differentiable scalar.
    pub loss: Tensor,
    /// The mean cross-entropy, in nats.
    pub cross_entropy: f64,
    /// The mean of `logsumexp(logits)²`; 0 without a z-loss.
    pub z_loss: f64,
}

/// [`linear_cross_entropy`] plus `z_loss_coef` times the mean of `logsumexp(logits)²` over the same rows: the z-loss keeps the
/// logits small (Chowdhery et al. 2022, arXiv 2204.02311, section 5, with 1e-4).
pub fn linear_cross_entropy_z(
    x: &Tensor,
    w: &Tensor,
    labels: &[i64],
    z_loss_coef: f64,
    precision: Precision,
) -> Result<CrossEntropyLoss> {
    let ((n, k), (vocab, kw)) = (x.dims2()?, w.dims2()?);
    if k != kw {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; their last dimensions must be equal", x.dims(), w.dims());
    }
    check_labels(labels, n, vocab)?;
    if n * k * vocab == 0 {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; neither may be empty", x.dims(), w.dims());
    }
    if !(crate::is_fused(x) && crate::is_fused(w)) {
        return cross_entropy_z(&crate::linear(x, w)?, labels, z_loss_coef);
    }
    let count = count_labels(labels) as f64;
    let (scale, coef) = ((1. / count) as f32, z_loss_coef as f32);
    let labels: Arc<[i64]> = labels.into();
    let chunk_loss = move |rows: Range<usize>| -> Result<RowLoss> {
        let labels = Arc::clone(&labels);
        Ok(Box::new(move |row, logits, gradient| row_loss(logits, gradient, labels[rows.start + row], scale, coef)))
    };
    let sums = Arc::new(Mutex::new([0f64; 2]));
    let gathered = Arc::clone(&sums);
    let total = move |terms: [f64; 2]| {
        *gathered.lock().unwrap_or_else(PoisonError::into_inner) = terms;
        (terms[0] + z_loss_coef * terms[1]) / count
    };
    let loss = FusedHead::apply(x, w, precision, chunk_loss, total)?;
    let [cross_entropy, z_loss] = *sums.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(CrossEntropyLoss { loss, cross_entropy: cross_entropy / count, z_loss: z_loss / count })
}

/// [`linear_cross_entropy_z`] on logits `(n, vocab)`, composed of candle operations.
pub fn cross_entropy_z(logits: &Tensor, labels: &[i64], z_loss_coef: f64) -> Result<CrossEntropyLoss> {
    let count = count_labels(labels) as f64;
    // Metal has no f64.
    let number = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>();
    let loss = (crate::cross_entropy(logits, labels)?.sum_all()? / count)?;
    let cross_entropy = number(&loss)?;
    if z_loss_coef == 0. {
        return Ok(CrossEntropyLoss { loss, cross_entropy, z_loss: 0. });
    }
    let kept: Vec<f32> = labels.iter().map(|&label| f32::from(label != IGNORE_INDEX)).collect();
    let kept = Tensor::from_vec(kept, labels.len(), logits.device())?.to_dtype(logits.dtype())?;
    let max = logits.detach().max_keepdim(1)?;
    let logsumexp = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()? + max)?.squeeze(1)?; // (n,)
    let z_loss = ((logsumexp.sqr()? * kept)?.sum_all()? / count)?;
    let z = number(&z_loss)?;
    Ok(CrossEntropyLoss { loss: (loss + (z_loss * z_loss_coef)?)?, cross_entropy, z_loss: z })
}

/// The number of labels that are not ignored, at least one.
pub(crate) fn count_labels(labels: &[i64]) -> usize {
    labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1)
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
    gradients: Mutex<Option<[Option<Tensor>; 2]>>,
}

/// Bytes that [`linear_cross_entropy`] saves for its backward, apart from its inputs: the gradients of `x`
/// `(tokens, hidden)` and of the weight `(vocab, hidden)`, and the labels.
pub fn saved_bytes(tokens: usize, hidden: usize, vocab: usize) -> usize {
    4 * (tokens + vocab) * hidden + size_of::<i64>() * tokens
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
            .apply_op2(&w.contiguous()?, Self { needs_grad, precision, chunk_loss, total, gradients: Mutex::default() })
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
            let gradient: Vec<T> = matmul_epilogue(x, &[w.into()], [width; 2], |row, logits, gradient| {
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
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradients);
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = f64::from(dy.to_scalar::<f32>()?);
        // Taken, so that the gradient of a tied embedding is in memory once.
        let Some([dx, dw]) = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("head: backward runs once, after forward");
        };
        let scaled = |grad: Option<Tensor>| match grad {
            Some(grad) if factor != 1. => (grad * factor).map(Some),
            grad => Ok(grad),
        };
        Ok((scaled(dx)?, scaled(dw)?))
    }
}

/// The cross-entropy of one row of logits and its squared logsumexp, and the gradient of the first plus `z_loss_coef` times the second,
/// times `scale`.
fn row_loss(row: &[f32], gradient: Option<&mut [f32]>, label: i64, scale: f32, z_loss_coef: f32) -> [f64; 2] {
    if label == IGNORE_INDEX {
        gradient.into_iter().for_each(|gradient| gradient.fill(0.));
        return [0., 0.];
    }
    let log_softmax = if let Some(gradient) = gradient {
        gradient.copy_from_slice(row);
        let log_softmax = scaled_softmax(gradient, scale);
        let probability = gradient[label as usize];
        gradient[label as usize] -= scale;
        if z_loss_coef != 0. {
            // d logsumexp² / d logits = 2 · logsumexp · softmax. The difference above is exact for a confident token; it stays so.
            let factor = 2. * z_loss_coef * log_softmax.logsumexp() as f32;
            let difference = gradient[label as usize];
            gradient.iter_mut().for_each(|x| *x += *x * factor);
            gradient[label as usize] = difference + probability * factor;
        }
        log_softmax
    } else {
        log_softmax(row)
    };
    let z = if z_loss_coef == 0. { 0. } else { log_softmax.logsumexp().powi(2) };
    [log_softmax.cross_entropy(row[label as usize]), z]
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
        // The last shape has several chunks, the one before a vocabulary that is larger than a chunk.
        for (n, k, vocab) in [(1, 1, 1), (5, 7, 11), (33, 16, 50), (40, 2, 300_001), (150, 3, 60_000)] {
            let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
            assert_matches_reference(&[&x, &w], 1e-4, |t| {
                linear_cross_entropy(&t[0], &t[1], &labels(n, vocab), Precision::F32)
            })?;
        }
        // Large logits, a transposed weight, a loss that is scaled in the backward.
        let (x, w) = (random(&[6, 8], 1, 60.)?, random(&[8, 9], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 1e-4, |t| {
            linear_cross_entropy(&t[0], &t[1].t()?, &labels(6, 9), Precision::F32)? * 0.25
        })
    }

    /// `row_loss` on given logits, without the rounding of a matmul.
    #[test]
    fn the_loss_of_a_confident_token_is_exact_at_any_offset() {
        for (gap, offset) in [15f32, 18.].into_iter().flat_map(|gap| [0f32, 1e3, 1e4, -1e4].map(|offset| (gap, offset)))
        {
            let mut row = vec![offset - gap; 1000];
            row[700] = offset;
            let rest = 999. * (-f64::from(gap)).exp();
            for label in [700i64, 3] {
                let own = if label == 700 { 0. } else { f64::from(gap) };
                let exact = rest.ln_1p() + own;
                let without_gradient = row_loss(&row, None, label, 1., 0.)[0];
                let mut gradient = vec![0f32; 1000];
                let with_gradient = row_loss(&row, Some(&mut gradient), label, 1., 0.)[0];
                for loss in [without_gradient, with_gradient] {
                    assert!((loss / exact - 1.).abs() < 1e-3, "{gap} {offset}: {loss} is not {exact}");
                }
                let left: f64 = gradient.iter().copied().map(f64::from).sum();
                assert!(left.abs() < 1e-6, "the gradient of a softmax sums to {left} instead of zero");
            }
        }
    }

    #[test]
    fn bf16_head_equals_the_f64_reference_up_to_rounding() -> Result<()> {
        let (x, w) = (random(&[33, 16], 1, 2.)?, random(&[50, 16], 2, 1.)?);
        assert_matches_reference(&[&x, &w], 1. / 64., |t| {
            linear_cross_entropy(&t[0], &t[1], &labels(33, 50), Precision::Bf16)
        })
    }

    #[test]
    fn the_z_loss_equals_the_f64_reference() -> Result<()> {
        for (n, k, vocab, coef) in [(1, 1, 1, 1e-4), (5, 7, 11, 0.1), (150, 3, 60_000, 1e-2)] {
            let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
            assert_matches_reference(&[&x, &w], 1e-4, |t| {
                Ok(linear_cross_entropy_z(&t[0], &t[1], &labels(n, vocab), coef, Precision::F32)?.loss)
            })?;
        }
        Ok(())
    }

    /// By hand in f64, with an ignored row; the gradient by central differences.
    #[test]
    fn the_z_loss_follows_its_formula() -> Result<()> {
        let (logits, labels, coef) = ([[1f64, -2., 0.5], [9., 9., 9.], [0., 3., -1.]], [2, IGNORE_INDEX, 0], 0.3);
        let exact = |logits: &[[f64; 3]; 3]| {
            let rows = [0, 2].map(|row| {
                let logsumexp = logits[row].iter().map(|x| x.exp()).sum::<f64>().ln();
                [logsumexp - logits[row][labels[row] as usize], logsumexp.powi(2)]
            });
            let mean = |term: usize| f64::midpoint(rows[0][term], rows[1][term]);
            (mean(0), mean(1), mean(0) + coef * mean(1))
        };
        let (entropy, z, loss) = exact(&logits);
        // The weight is the identity, so the hidden states are the logits.
        let flat: Vec<f32> = logits.iter().flatten().map(|&x| x as f32).collect();
        let x = Var::from_tensor(&Tensor::from_vec(flat, (3, 3), &Device::Cpu)?)?;
        let eye = Tensor::eye(3, DType::F32, &Device::Cpu)?;
        let found = linear_cross_entropy_z(&x, &eye, &labels, coef, Precision::F32)?;
        let value = f64::from(found.loss.to_scalar::<f32>()?);
        for (found, exact) in [(found.cross_entropy, entropy), (found.z_loss, z), (value, loss)] {
            assert!((found - exact).abs() < 1e-5, "{found} is not {exact}");
        }
        let gradient = found.loss.backward()?.get(&x).unwrap().to_vec2::<f32>()?;
        for (row, column) in (0..3).flat_map(|row| (0..3).map(move |column| (row, column))) {
            let moved = |by: f64| {
                let mut logits = logits;
                logits[row][column] += by;
                exact(&logits).2
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(gradient[row][column]) - slope).abs() < 1e-5, "{row} {column}: {gradient:?}");
        }
        Ok(())
    }

    #[test]
    fn the_fused_head_equals_the_mean_of_the_separate_functions() -> Result<()> {
        let (x, w) = (random(&[50, 12], 1, 2.)?, random(&[70, 12], 2, 1.)?);
        let labels = labels(50, 70);
        let fused = linear_cross_entropy(&x, &w, &labels, Precision::F32)?.to_scalar::<f32>()?;
        let separate = crate::cross_entropy(&crate::linear(&x, &w)?, &labels)?.sum_all()?.to_scalar::<f32>()?;
        assert!((fused - separate / count_labels(&labels) as f32).abs() < 1e-5);
        let none = linear_cross_entropy(&x, &w, &[IGNORE_INDEX; 50], Precision::F32)?;
        assert_eq!(none.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn frozen_inputs_get_no_gradient_and_wrong_labels_are_errors() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[4, 3], 1, 1.)?)?, random(&[5, 3], 2, 1.)?);
        let loss = linear_cross_entropy(&x, &w, &[0, 1, 2, 4], Precision::F32)?;
        let grads = loss.backward()?;
        assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
        assert!(linear_cross_entropy(&x, &w, &[0, 1, 2, 5], Precision::F32).is_err());
        assert!(linear_cross_entropy(&x, &w, &[0], Precision::F32).is_err());
        Ok(())
    }
}
