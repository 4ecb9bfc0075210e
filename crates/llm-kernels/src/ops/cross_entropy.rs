//! Cross-entropy of each token: `-log softmax(logits)[label]`, without saving the probabilities for the backward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::softmax::{log_softmax, scaled_softmax};
use crate::cpu::{contiguous, cpu_slice};

/// The label of a position without a target: its loss and gradient are zero. The value is that of PyTorch's
/// `ignore_index`.
pub const IGNORE_INDEX: i64 = -100;

/// The cross-entropy of each row of `logits` `(n, vocab)` with its label, in nats: `(n,)`.
///
/// Its negative is the log-probability of the label. A label outside the vocabulary that is not [`IGNORE_INDEX`] is an
/// error.
pub fn cross_entropy(logits: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    check_labels(labels, n, vocab)?;
    if crate::is_fused(logits) {
        logits.contiguous()?.apply_op1(CrossEntropy { labels: labels.into() })
    } else {
        reference(logits, labels)
    }
}

/// Checks that there is one label per row, each within the vocabulary or [`IGNORE_INDEX`].
pub(crate) fn check_labels(labels: &[i64], n: usize, vocab: usize) -> Result<()> {
    if labels.len() != n {
        bail!("cross_entropy: {n} rows, {} labels", labels.len());
    }
    match labels.iter().find(|&&l| l != IGNORE_INDEX && (l < 0 || l >= vocab as i64)) {
        Some(bad) => bail!("cross_entropy: label {bad} is outside the vocabulary of {vocab}"),
        None => Ok(()),
    }
}

fn reference(logits: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let index: Vec<u32> = labels.iter().map(|&l| if l == IGNORE_INDEX { 0 } else { l as u32 }).collect();
    let index = Tensor::from_vec(index, (labels.len(), 1), logits.device())?;
    let mask: Vec<f32> = labels.iter().map(|&l| f32::from(l != IGNORE_INDEX)).collect();
    let mask = Tensor::from_vec(mask, labels.len(), logits.device())?.to_dtype(logits.dtype())?;
    candle_nn::ops::log_softmax(logits, D::Minus1)?.gather(&index, 1)?.squeeze(1)?.neg()? * mask
}

struct CrossEntropy {
    labels: Arc<[i64]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = contiguous(storage, layout)?;
        let (n, vocab) = layout.shape().dims2()?;
        let mut loss = vec![0f32; n];
        loss.par_iter_mut().zip(self.labels.par_iter()).enumerate().with_min_len(8).for_each(|(i, (loss, &label))| {
            if label != IGNORE_INDEX {
                let row = &logits[i * vocab..(i + 1) * vocab];
                *loss = log_softmax(row).cross_entropy(row[label as usize]) as f32;
            }
        });
        Ok((CpuStorage::F32(loss), Shape::from(n)))
    }

    // d loss / d logits = softmax(logits) - one_hot(label).
    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let ((ls, ll), (gs, gl)) = (logits.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (cpu_slice(&ls, ll)?, cpu_slice(&gs, gl)?);
        let (n, vocab) = logits.dims2()?;
        let mut d = vec![0f32; n * vocab];
        if vocab > 0 {
            d.par_chunks_mut(vocab).enumerate().with_min_len(8).for_each(|(i, d)| {
                let label = self.labels[i];
                if label != IGNORE_INDEX {
                    d.copy_from_slice(&data[i * vocab..(i + 1) * vocab]);
                    scaled_softmax(d, grad[i]);
                    d[label as usize] -= grad[i];
                }
            });
        }
        Tensor::from_vec(d, (n, vocab), logits.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn fused_cross_entropy_equals_the_f64_reference() -> Result<()> {
        for (n, vocab, scale) in [(1, 1, 1.), (3, 7, 1.), (40, 300, 1.), (4, 33, 80.), (4, 33, 1e-4)] {
            let logits = random(&[n, vocab], 1, scale)?;
            let labels: Vec<i64> =
                (0..n).map(|i| if i % 3 == 2 { IGNORE_INDEX } else { (i * 7 % vocab) as i64 }).collect();
            assert_matches_reference(&[&logits], 1e-5, |t| cross_entropy(&t[0], &labels))?;
        }
        let logits = random(&[7, 5], 1, 1.)?;
        assert_matches_reference(&[&logits], 1e-5, |t| cross_entropy(&t[0].t()?, &[0, 1, 6, IGNORE_INDEX, 3]))
    }

    #[test]
    fn the_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> Result<()> {
        let logits = Tensor::zeros((1, 50), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        assert!((cross_entropy(&logits, &[7])?.to_vec1::<f32>()?[0] - 50f32.ln()).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn the_loss_of_a_confident_token_is_exact_at_any_offset() -> Result<()> {
        for (gap, offset) in [15f32, 18.].into_iter().flat_map(|gap| [0f32, 1e3, 1e4, -1e4].map(|offset| (gap, offset)))
        {
            let mut row = vec![offset - gap; 1000];
            row[700] = offset;
            let exact = (999. * (-f64::from(gap)).exp()).ln_1p();
            for dtype in [candle_core::DType::F32, candle_core::DType::F64] {
                if dtype == candle_core::DType::F32 && crate::skip_on_reference_path("candle has no log1p") {
                    continue;
                }
                let logits = Tensor::from_slice(&row, (1, 1000), &candle_core::Device::Cpu)?.to_dtype(dtype)?;
                let loss = cross_entropy(&logits, &[700])?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?[0];
                assert!((loss / exact - 1.).abs() < 1e-3, "{dtype:?} {gap} {offset}: {loss} is not {exact}");
            }
        }
        // Two tokens with the same maximal logit, and one just below it.
        let logits = Tensor::new(&[[7f32, 7., 7. - 1e-6]], &candle_core::Device::Cpu)?;
        assert!((cross_entropy(&logits, &[0])?.to_vec1::<f32>()?[0] - 3f32.ln()).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn non_finite_logits_give_a_non_finite_loss() -> Result<()> {
        let loss = |row: &[f32], label| -> Result<f32> {
            let row = Tensor::from_slice(row, (1, row.len()), &candle_core::Device::Cpu)?;
            Ok(cross_entropy(&row, &[label])?.to_vec1::<f32>()?[0])
        };
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(!loss(&[1., broken], 0)?.is_finite() && !loss(&[1., broken], 1)?.is_finite());
            assert!(!loss(&[broken, broken], 0)?.is_finite());
        }
        let minus_inf = f32::NEG_INFINITY;
        assert!(loss(&[minus_inf, minus_inf], 0)?.is_nan());
        assert!(loss(&[1., minus_inf], 0)? < 1e-30 && loss(&[1., minus_inf], 1)? == f32::INFINITY);
        Ok(())
    }

    #[test]
    fn a_label_outside_the_vocabulary_is_an_error() -> Result<()> {
        let logits = random(&[2, 5], 1, 1.)?;
        assert!(cross_entropy(&logits, &[0, 5]).is_err());
        assert!(cross_entropy(&logits, &[0, -1]).is_err());
        assert!(cross_entropy(&logits, &[0]).is_err());
        Ok(())
    }
}
