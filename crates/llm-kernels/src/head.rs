//! The output layer and its loss in one: the logits `(tokens, vocab)` never stand in memory whole.
//!
//! A few tokens at a time, the logits are computed and turned into the loss and into their own gradient, which is kept in
//! the precision of the products for a chunk of tokens and multiplied into the gradients of the hidden states and of the
//! weight at once. A vocabulary of 8192 and 4096 tokens would otherwise hold three matrices of 128 MB.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cross_entropy::{IGNORE_INDEX, TopAndLogSum, check_labels, log_sum_exp};
use crate::matmul::{How, Matrix, Precision, Rounded, mapped_product, product_into};
use crate::simd::{contiguous, exp, max, sum_beside_top, sum2, zeros};

/// What [`linear_cross_entropy`] adds to the plain cross-entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// This share of the target is spread evenly over the vocabulary (Szegedy et al. 2016, arXiv 1512.00567).
    pub label_smoothing: f64,
    /// The coefficient of `logsumexp(logits)²`, which keeps logits from drifting (arXiv 2204.02311).
    pub z_loss: f64,
    /// What hidden states, weight and the gradient of the logits are rounded to before they are multiplied. In bf16 logits should
    /// stay under some hundreds, as `z_loss` keeps them: at 1e4 the rounding of the factors outweighs the gradient.
    pub precision: Precision,
}

/// The mean cross-entropy in nats of the logits `x · wᵀ` with `labels`, over the labels that are not [`IGNORE_INDEX`].
///
/// `x` is `(n, hidden)`, `w` is `(vocab, hidden)`; the result is a scalar, 0 if every label is ignored. It equals the
/// mean of [`crate::cross_entropy`] of [`crate::linear`] to the rounding, without keeping the logits. A label outside
/// the vocabulary is an error.
pub fn linear_cross_entropy(x: &Tensor, w: &Tensor, labels: &[i64], options: CrossEntropyOptions) -> Result<Tensor> {
    let ((n, k), (vocab, kw)) = (x.dims2()?, w.dims2()?);
    if k != kw {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; their last dimensions must be alike", x.dims(), w.dims());
    }
    check_labels(labels, n, vocab)?;
    if n * k * vocab == 0 {
        bail!("linear_cross_entropy: x is {:?}, w is {:?}; neither may be empty", x.dims(), w.dims());
    }
    if !(crate::is_fused(x) && crate::is_fused(w)) {
        return naive(x, w, labels, options);
    }
    let scale = 1. / counted(labels) as f32;
    let labels: Arc<[i64]> = labels.into();
    let of_rows = move |rows: Range<usize>| -> Result<RowLoss> {
        let labels = Arc::clone(&labels);
        Ok(Box::new(move |row, logits, gradient| {
            [row_loss(logits, gradient, labels[rows.start + row], options, scale), 0.]
        }))
    };
    Head::apply(x, w, options.precision, of_rows, move |[loss, _]| loss * f64::from(scale))
}

/// How many labels count, at least one.
pub(crate) fn counted(labels: &[i64]) -> usize {
    labels.iter().filter(|&&label| label != IGNORE_INDEX).count().max(1)
}

fn naive(x: &Tensor, w: &Tensor, labels: &[i64], options: CrossEntropyOptions) -> Result<Tensor> {
    let logits = x.matmul(&w.t()?)?; // (n, vocab)
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&top)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (n, 1), relative to the top
    let index: Vec<u32> = labels.iter().map(|&l| if l == IGNORE_INDEX { 0 } else { l as u32 }).collect();
    let target = shifted.gather(&Tensor::from_vec(index, (labels.len(), 1), x.device())?, 1)?; // (n, 1)
    let smooth = options.label_smoothing;
    let aim = ((target * (1. - smooth))? + (shifted.mean_keepdim(D::Minus1)? * smooth)?)?;
    let squared = ((&log_sum + top)?.sqr()? * options.z_loss)?;
    let loss = ((log_sum - aim)? + squared)?.squeeze(1)?; // (n,)
    let keep: Vec<f32> = labels.iter().map(|&l| f32::from(l != IGNORE_INDEX)).collect();
    let keep = Tensor::from_vec(keep, labels.len(), x.device())?.to_dtype(x.dtype())?;
    (loss * keep)?.sum_all()? / counted(labels) as f64
}

/// Two parts of the loss of a row, counted from the first of its chunk, from its logits. The gradient of the row's loss, if
/// there is room for one, is written too.
pub(crate) type RowLoss = Box<dyn Fn(usize, &[f32], Option<&mut [f32]>) -> [f64; 2] + Sync>;

/// The logits `x · wᵀ`, a chunk at a time, and a loss of them: a scalar.
pub(crate) struct Head {
    /// Whether the gradients of `x` and of `w` are asked for.
    wants: [bool; 2],
    precision: Precision,
    /// The losses of a chunk of rows.
    of_rows: Box<dyn Fn(Range<usize>) -> Result<RowLoss> + Send + Sync>,
    /// The loss, from the sums of its two parts over all rows.
    total: Box<dyn Fn([f64; 2]) -> f64 + Send + Sync>,
    /// The gradients of the loss with respect to `x` and `w`, made beside the loss.
    gradients: OnceLock<[Option<Tensor>; 2]>,
}

/// Bytes of the gradients of one chunk: packing the weight anew for each chunk costs more than leaving the cache.
const CHUNK: usize = 64 << 20;

impl Head {
    /// Applies the head `w` `(vocab, hidden)` and the loss to `x` `(n, hidden)`.
    pub fn apply(
        x: &Tensor,
        w: &Tensor,
        precision: Precision,
        of_rows: impl Fn(Range<usize>) -> Result<RowLoss> + Send + Sync + 'static,
        total: impl Fn([f64; 2]) -> f64 + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let wants = [x.track_op(), w.track_op()];
        let (of_rows, total) = (Box::new(of_rows), Box::new(total));
        x.contiguous()?
            .apply_op2(&w.contiguous()?, Self { wants, precision, of_rows, total, gradients: OnceLock::new() })
    }

    /// The loss and the gradients of `x` `(n, k)` and `w` `(vocab, k)`; those that nobody wants are empty.
    fn run<T: Rounded>(&self, x: &[f32], w: &[f32], k: usize, vocab: usize) -> Result<(f64, [Vec<f32>; 2])> {
        let [wants_x, wants_w] = self.wants;
        let (n, how) = (x.len() / k, How::all(T::PRECISION));
        let (mut dx, mut dw) = (zeros(if wants_x { x.len() } else { 0 }), zeros(if wants_w { w.len() } else { 0 }));
        let w = Matrix::new(w, vocab, k);
        let chunk = (CHUNK / (vocab * size_of::<T>())).max(16);
        let mut sums = [0f64; 2];
        for start in (0..n).step_by(chunk) {
            let range = start..(start + chunk).min(n);
            let of_rows = (self.of_rows)(range.clone())?;
            // Each row's parts, as bits: rows are made next to each other and summed in order.
            let parts: Vec<[AtomicU64; 2]> = range.clone().map(|_| Default::default()).collect();
            let x = Matrix::new(&x[range.start * k..range.end * k], range.len(), k);
            let width = if wants_x || wants_w { vocab } else { 0 };
            let gradient: Vec<T> = mapped_product(x, w.t(), [width; 2], |row, logits, gradient| {
                let loss = of_rows(row, logits, Some(gradient).filter(|gradient| !gradient.is_empty()));
                for (part, loss) in parts[row].iter().zip(loss) {
                    part.store(loss.to_bits(), Ordering::Relaxed);
                }
            });
            for (sum, part) in parts.iter().flat_map(|parts| [0, 1].map(|i| (i, &parts[i]))) {
                sums[sum] += f64::from_bits(part.load(Ordering::Relaxed));
            }
            let gradient = Matrix::new(&gradient, range.len(), width);
            if wants_x {
                product_into(gradient, w, &mut dx[range.start * k..range.end * k], k, false, 1., how);
            }
            if wants_w {
                product_into(gradient.t(), x, &mut dw, k, start > 0, 1., how);
            }
        }
        Ok(((self.total)(sums), [dx, dw]))
    }
}

impl CustomOp2 for Head {
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
        let [dx, dw] = self.wants;
        let tensor = |wanted: bool, data: Vec<f32>, shape: &Shape| match wanted {
            true => Tensor::from_vec(data, shape, &Device::Cpu).map(Some),
            false => Ok(None),
        };
        let made = [tensor(dx, x_grad, xl.shape())?, tensor(dw, w_grad, wl.shape())?];
        if self.gradients.set(made).is_err() {
            bail!("head: an operation is used once");
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = f64::from(dy.to_scalar::<f32>()?);
        let Some([dx, dw]) = self.gradients.get() else { bail!("head: its backward came before its forward") };
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
    let (smooth, z_loss) = (options.label_smoothing as f32, options.z_loss as f32);
    let target = row[label as usize];
    let all = if let Some(gradient) = gradient {
        gradient.copy_from_slice(row);
        let all = softmax_gradient(gradient, scale, z_loss);
        if smooth > 0. {
            let evenly = scale * smooth / row.len() as f32;
            gradient.iter_mut().for_each(|d| *d -= evenly);
        }
        gradient[label as usize] -= scale * (1. - smooth);
        all
    } else {
        log_sum_exp(row)
    };
    let log_sum = f64::from(all.top) + f64::from(all.log_sum);
    let mut loss = f64::from(1. - smooth) * all.minus(target);
    if smooth > 0. {
        let below_top = sum2(row, row, |x, _| all.top - x) / row.len() as f32;
        loss += f64::from(smooth) * (f64::from(all.log_sum) + f64::from(below_top));
    }
    if z_loss == 0. { loss } else { loss + f64::from(z_loss) * log_sum * log_sum }
}

/// Turns a row of logits into `softmax · scale · (1 + 2 · z_loss · logsumexp)` and returns the logsumexp.
#[pulp::with_simd(softmax_gradient = crate::unit::arch())]
#[inline(always)]
fn softmax_gradient_simd<S: pulp::Simd>(_simd: S, row: &mut [f32], scale: f32, z_loss: f32) -> TopAndLogSum {
    let top = max(row);
    for x in &mut *row {
        *x = exp(*x - top);
    }
    let beside_top = sum_beside_top(row, |e| e);
    let log_sum = beside_top.ln_1p();
    let factor = scale * (1. + 2. * z_loss * (top + log_sum)) / (1. + beside_top);
    row.iter_mut().for_each(|x| *x *= factor);
    TopAndLogSum { top, log_sum }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_same_gradients, random};

    fn labels(n: usize, vocab: usize) -> Vec<i64> {
        (0..n).map(|i| if i % 3 == 2 { IGNORE_INDEX } else { (i * 7 % vocab) as i64 }).collect()
    }

    #[test]
    fn the_fused_head_equals_the_naive_one_in_f64() -> Result<()> {
        let smooth = CrossEntropyOptions { label_smoothing: 0.1, ..CrossEntropyOptions::default() };
        let held = CrossEntropyOptions { label_smoothing: 0.2, z_loss: 0.01, ..CrossEntropyOptions::default() };
        // The last shape takes several chunks, the one before a vocabulary that is larger than a chunk.
        for (n, k, vocab) in [(1, 1, 1), (5, 7, 11), (33, 16, 50), (40, 2, 300_001), (150, 3, 60_000)] {
            let (x, w) = (random(&[n, k], 1, 2.)?, random(&[vocab, k], 2, 1.)?);
            for options in [CrossEntropyOptions::default(), smooth, held] {
                assert_same_gradients(&[&x, &w], 1e-4, |t| {
                    linear_cross_entropy(&t[0], &t[1], &labels(n, vocab), options)
                })?;
            }
        }
        // Large logits, a transposed weight, a loss that is scaled on its way back.
        let (x, w) = (random(&[6, 8], 1, 60.)?, random(&[8, 9], 2, 1.)?);
        assert_same_gradients(&[&x, &w], 1e-4, |t| {
            linear_cross_entropy(&t[0], &t[1].t()?, &labels(6, 9), CrossEntropyOptions::default())? * 0.25
        })
    }

    /// `row_loss` on the logits themselves: no product rounds them.
    #[test]
    fn the_loss_of_a_confident_token_is_exact_at_any_offset() {
        for (gap, offset, smooth) in [15f32, 18.].into_iter().flat_map(|gap| {
            [0f32, 1e3, 1e4, -1e4].into_iter().flat_map(move |offset| [(gap, offset, 0.), (gap, offset, 0.1)])
        }) {
            let mut row = vec![offset - gap; 1000];
            row[700] = offset;
            let rest = 999. * (-f64::from(gap)).exp();
            let mean_gap = f64::from(gap) * 0.999;
            for label in [700i64, 3] {
                let own = if label == 700 { 0. } else { f64::from(gap) };
                let exact = rest.ln_1p() + (1. - smooth) * own + smooth * mean_gap;
                let options = CrossEntropyOptions { label_smoothing: smooth, ..CrossEntropyOptions::default() };
                let alone = row_loss(&row, None, label, options, 1.);
                let mut gradient = vec![0f32; 1000];
                let beside = row_loss(&row, Some(&mut gradient), label, options, 1.);
                for loss in [alone, beside] {
                    assert!((loss / exact - 1.).abs() < 1e-3, "{gap} {offset} {smooth}: {loss} is not {exact}");
                }
                let left: f64 = gradient.iter().copied().map(f64::from).sum();
                assert!(left.abs() < 1e-6, "the gradient of a softmax sums to zero, not to {left}");
            }
        }
    }

    #[test]
    fn in_bf16_it_is_the_naive_one_to_the_rounding_of_the_factors() -> Result<()> {
        let options = CrossEntropyOptions { precision: Precision::Bf16, ..CrossEntropyOptions::default() };
        let (x, w) = (random(&[33, 16], 1, 2.)?, random(&[50, 16], 2, 1.)?);
        assert_same_gradients(&[&x, &w], 1. / 64., |t| linear_cross_entropy(&t[0], &t[1], &labels(33, 50), options))
    }

    #[test]
    fn it_is_the_mean_of_the_two_functions_it_is_made_of() -> Result<()> {
        let (x, w) = (random(&[50, 12], 1, 2.)?, random(&[70, 12], 2, 1.)?);
        let labels = labels(50, 70);
        let fused = linear_cross_entropy(&x, &w, &labels, CrossEntropyOptions::default())?.to_scalar::<f32>()?;
        let apart = crate::cross_entropy(&crate::linear(&x, &w)?, &labels)?.sum_all()?.to_scalar::<f32>()?;
        assert!((fused - apart / counted(&labels) as f32).abs() < 1e-5);
        let none = linear_cross_entropy(&x, &w, &[IGNORE_INDEX; 50], CrossEntropyOptions::default())?;
        assert_eq!(none.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn what_does_not_train_has_no_gradient_and_a_wrong_label_is_an_error() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[4, 3], 1, 1.)?)?, random(&[5, 3], 2, 1.)?);
        let loss = linear_cross_entropy(&x, &w, &[0, 1, 2, 4], CrossEntropyOptions::default())?;
        let grads = loss.backward()?;
        assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
        assert!(linear_cross_entropy(&x, &w, &[0, 1, 2, 5], CrossEntropyOptions::default()).is_err());
        assert!(linear_cross_entropy(&x, &w, &[0], CrossEntropyOptions::default()).is_err());
        Ok(())
    }
}
