//! The log-probability of each sampled token and the entropy of its distribution, for reinforcement learning. The
//! backward saves neither probabilities nor scaled logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::simd::{exp, max, sum2};
use crate::cpu::{contiguous, cpu_slice};

/// The log-probability of `ids[i]` under `softmax(logits[i] / temperature)`, in nats: `(n,)`.
///
/// `logits` is `(n, vocab)`, `ids` has one token id per row. An id outside the vocabulary and a temperature that is
/// not positive are errors.
pub fn token_logprobs(logits: &Tensor, ids: &[u32], temperature: f64) -> Result<Tensor> {
    let columns = logprob_columns(logits, ids, temperature, false)?;
    columns.squeeze(1)
}

/// [`token_logprobs`] and the entropy of each row's distribution, in nats: both `(n,)`, both differentiable.
pub fn token_logprobs_and_entropies(logits: &Tensor, ids: &[u32], temperature: f64) -> Result<(Tensor, Tensor)> {
    let columns = logprob_columns(logits, ids, temperature, true)?;
    Ok((columns.narrow(1, 0, 1)?.squeeze(1)?, columns.narrow(1, 1, 1)?.squeeze(1)?))
}

/// The log-probability of each row, and its entropy if `entropies`: `(n, 1)` or `(n, 2)`.
fn logprob_columns(logits: &Tensor, ids: &[u32], temperature: f64, entropies: bool) -> Result<Tensor> {
    let (n, vocab) = logits.dims2()?;
    if ids.len() != n {
        bail!("token_logprobs: {n} rows, {} token ids", ids.len());
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("token_logprobs: token id {id} is outside the vocabulary of {vocab}");
    }
    if !(temperature > 0. && temperature.is_finite()) {
        bail!("token_logprobs: temperature is {temperature}; it must be above 0");
    }
    if crate::is_fused(logits) {
        let op = TokenLogprobs { ids: ids.into(), inverse_temperature: (1. / temperature) as f32, entropies };
        logits.contiguous()?.apply_op1(op)
    } else {
        reference(logits, ids, temperature, entropies)
    }
}

fn reference(logits: &Tensor, ids: &[u32], temperature: f64, entropies: bool) -> Result<Tensor> {
    // Not `candle_nn::ops::log_softmax`: its gradient passes through the maximum, too, where it is only rounding error.
    let logits = (logits / temperature)?;
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let all = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?; // (n, vocab)
    let chosen = all.gather(&Tensor::from_slice(ids, (ids.len(), 1), logits.device())?, 1)?; // (n, 1)
    if !entropies {
        return Ok(chosen);
    }
    // A token with probability 0 adds 0 · -inf to the entropy, which is 0 in the limit.
    let weighted = (all.exp()? * all.maximum(f64::from(f32::MIN))?)?;
    Tensor::cat(&[chosen, weighted.sum_keepdim(D::Minus1)?.neg()?], 1)
}

struct TokenLogprobs {
    ids: Arc<[u32]>,
    inverse_temperature: f32,
    entropies: bool,
}

impl TokenLogprobs {
    /// The number of columns of the result.
    fn columns(&self) -> usize {
        if self.entropies { 2 } else { 1 }
    }
}

impl CustomOp1 for TokenLogprobs {
    fn name(&self) -> &'static str {
        "token_logprobs"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = contiguous(storage, layout)?;
        let (n, vocab) = layout.shape().dims2()?;
        let columns = self.columns();
        let mut result = vec![0f32; columns * n];
        result.par_chunks_mut(columns).enumerate().with_min_len(8).for_each(|(i, result)| {
            let row = &logits[i * vocab..(i + 1) * vocab];
            let softmax = softmax_stats(row, self.inverse_temperature, self.entropies);
            result[0] = (row[self.ids[i] as usize] - softmax.row_max) * self.inverse_temperature - softmax.log_sum;
            if let Some(entropy) = result.get_mut(1) {
                *entropy = softmax.entropy;
            }
        });
        Ok((CpuStorage::F32(result), Shape::from((n, columns))))
    }

    // d logprob / d logits = (one_hot(id) - p) / T, d entropy / d logits = -p · (log p + entropy) / T.
    fn bwd(&self, logits: &Tensor, _result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let ((ls, ll), (gs, gl)) = (logits.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (cpu_slice(&ls, ll)?, cpu_slice(&gs, gl)?);
        let ((n, vocab), columns) = (logits.dims2()?, self.columns());
        let mut d = vec![0f32; n * vocab];
        if vocab > 0 {
            d.par_chunks_mut(vocab).enumerate().with_min_len(8).for_each(|(i, d)| {
                let grad_logprob = grad[columns * i];
                let grad_entropy = if self.entropies { grad[columns * i + 1] } else { 0. };
                backward(&data[i * vocab..(i + 1) * vocab], self.inverse_temperature, grad_logprob, grad_entropy, d);
                d[self.ids[i] as usize] += grad_logprob * self.inverse_temperature;
            });
        }
        Tensor::from_vec(d, (n, vocab), logits.device()).map(Some)
    }
}

/// The statistics of a row's softmax: `log p = (x - row_max) / T - log_sum`. The entropy is 0 if it was not requested.
struct SoftmaxStats {
    row_max: f32,
    log_sum: f32,
    entropy: f32,
}

/// `(x - row_max) / T`, limited to the range of `exp`, so that a token with probability 0 adds nothing to the entropy.
#[inline(always)]
fn shifted(x: f32, row_max: f32, inverse_temperature: f32) -> f32 {
    ((x - row_max) * inverse_temperature).clamp(-87.3, 0.)
}

#[pulp::with_simd(softmax_stats = crate::cpu::unit::arch())]
#[inline(always)]
fn softmax_stats_simd<S: pulp::Simd>(_simd: S, row: &[f32], inverse_temperature: f32, entropies: bool) -> SoftmaxStats {
    let row_max = max(row);
    let sum = sum2(row, row, |x, _| exp(shifted(x, row_max, inverse_temperature)));
    let log_sum = sum.ln();
    if !entropies {
        return SoftmaxStats { row_max, log_sum, entropy: 0. };
    }
    let weighted = sum2(row, row, |x, _| {
        let x = shifted(x, row_max, inverse_temperature);
        exp(x) * x
    });
    SoftmaxStats { row_max, log_sum, entropy: log_sum - weighted / sum }
}

#[pulp::with_simd(backward = crate::cpu::unit::arch())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    simd: S,
    row: &'a [f32],
    inverse_temperature: f32,
    grad_logprob: f32,
    grad_entropy: f32,
    out: &'a mut [f32],
) {
    let SoftmaxStats { row_max, log_sum, entropy } =
        softmax_stats_simd(simd, row, inverse_temperature, grad_entropy != 0.);
    for (out, &x) in out.iter_mut().zip(row) {
        let logprob = shifted(x, row_max, inverse_temperature) - log_sum;
        *out = -exp(logprob) * inverse_temperature * (grad_logprob + grad_entropy * (logprob + entropy));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_matches_reference, random};

    /// Log-probabilities and entropies as two columns.
    fn logprobs_and_entropies(logits: &Tensor, ids: &[u32], temperature: f64) -> Result<Tensor> {
        let (logprobs, entropies) = token_logprobs_and_entropies(logits, ids, temperature)?;
        Tensor::stack(&[logprobs, entropies], 1)
    }

    #[test]
    fn the_fused_op_equals_the_f64_reference() -> Result<()> {
        for (n, vocab, scale, temperature) in
            [(1, 2, 1., 1.), (3, 7, 1., 0.7), (40, 300, 1., 1.), (4, 33, 60., 1.5), (4, 33, 0.1, 2.)]
        {
            let logits = random(&[n, vocab], 1, scale)?;
            let ids: Vec<u32> = (0..n).map(|i| (i * 7 % vocab) as u32).collect();
            assert_matches_reference(&[&logits], 1e-5, |t| token_logprobs(&t[0], &ids, temperature))?;
            assert_matches_reference(&[&logits], 2e-5, |t| logprobs_and_entropies(&t[0], &ids, temperature))?;
            // The entropy alone: next to the other column its errors would be small in relation to the scale.
            assert_matches_reference(&[&logits], 1e-4, |t| {
                Ok(token_logprobs_and_entropies(&t[0], &ids, temperature)?.1)
            })?;
            let logprobs = token_logprobs(&logits, &ids, 1.)?.to_vec1::<f32>()?;
            let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let losses = crate::cross_entropy(&logits, &labels)?.to_vec1::<f32>()?;
            assert!(logprobs.iter().zip(losses).all(|(p, l)| (p + l).abs() <= 1e-5 * l.abs().max(1.)));
        }
        let logits = random(&[7, 5], 1, 1.)?;
        assert_matches_reference(&[&logits], 1e-5, |t| logprobs_and_entropies(&t[0].t()?, &[0, 1, 6, 2, 3], 1.))
    }

    /// P = (1/2, 1/4, 1/4) has an entropy of 3/2 · ln 2; at temperature 1/2, P is (4, 1, 1) / 6.
    #[test]
    fn entropy_has_its_closed_form() -> Result<()> {
        let logits = [0.5f32, 0.25, 0.25].map(|p| p.ln() + 3.);
        let logits = Tensor::from_vec(logits.to_vec(), (1, 3), &Device::Cpu)?;
        for dtype in [DType::F32, DType::F64] {
            let numbers = |temperature| -> Result<Vec<f64>> {
                logprobs_and_entropies(&logits.to_dtype(dtype)?, &[2], temperature)?
                    .flatten_all()?
                    .to_dtype(DType::F64)?
                    .to_vec1()
            };
            let warm = numbers(1.)?;
            assert!((warm[0] - 0.25f64.ln()).abs() < 1e-6 && (warm[1] - 1.5 * 2f64.ln()).abs() < 1e-6, "{warm:?}");
            let cold = numbers(0.5)?;
            let entropy = 4. / 6. * 1.5f64.ln() + 2. / 6. * 6f64.ln();
            assert!((cold[0] + 6f64.ln()).abs() < 1e-6 && (cold[1] - entropy).abs() < 1e-6, "{cold:?}, {entropy}");
        }
        Ok(())
    }

    #[test]
    fn a_masked_token_adds_nothing_and_nan_propagates() -> Result<()> {
        let numbers = |row: [f32; 3]| -> Result<Vec<f32>> {
            logprobs_and_entropies(&Tensor::from_vec(row.to_vec(), (1, 3), &Device::Cpu)?, &[0], 1.)?
                .flatten_all()?
                .to_vec1()
        };
        let masked = numbers([1., 1., f32::NEG_INFINITY])?;
        assert!(masked.iter().zip([-(2f32.ln()), 2f32.ln()]).all(|(a, b)| (a - b).abs() < 1e-6), "{masked:?}");
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(numbers([0., bad, 1.])?.iter().all(|x| x.is_nan()), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn invalid_arguments_are_errors() -> Result<()> {
        let logits = random(&[2, 5], 1, 1.)?;
        for (ids, temperature) in [(vec![0, 5], 1.), (vec![0], 1.), (vec![0, 1], 0.), (vec![0, 1], f64::NAN)] {
            assert!(token_logprobs(&logits, &ids, temperature).is_err());
        }
        if !crate::skip_on_reference_path("candle's reductions of empty tensors") {
            assert_eq!(token_logprobs(&random(&[0, 5], 1, 1.)?, &[], 1.)?.dims(), [0]);
        }
        Ok(())
    }
}
