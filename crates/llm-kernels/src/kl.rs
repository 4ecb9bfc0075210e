//! The Kullback-Leibler divergence from a student's distribution to its teacher's, token by token.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::norm::cpu;
use crate::simd::{contiguous, exp, max, sum2};

/// `KL(teacher || student)` of each row, in nats, with both sets of logits divided by `temperature`: `(n,)`.
///
/// `student` and `teacher` are logits `(n, vocab)`. The teacher is a constant: no gradient flows to it. Hinton et al.
/// 2015 (arXiv 1503.02531) multiply the result by `temperature²`, which keeps the gradient's size; the caller does.
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    if student.dims2()? != teacher.dims2()? {
        bail!("kl_divergence: student is {:?}, teacher is {:?}; they must be alike", student.dims(), teacher.dims());
    }
    if crate::is_fused(student) && crate::is_fused(teacher) {
        let (storage, layout) = teacher.storage_and_layout();
        let teacher: Arc<[f32]> = if layout.is_contiguous() {
            cpu(&storage, layout)?.into()
        } else {
            teacher.flatten_all()?.to_vec1::<f32>()?.into()
        };
        student.contiguous()?.apply_op1(Kl { teacher, inverse_temperature: (1. / temperature) as f32 })
    } else {
        naive(student, &teacher.detach(), temperature)
    }
}

fn naive(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let log_softmax = |x: &Tensor| -> Result<Tensor> {
        let x = (x / temperature)?;
        let x = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
        x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
    };
    let (student, teacher) = (log_softmax(student)?, log_softmax(teacher)?);
    (teacher.exp()? * (teacher - student)?)?.sum(D::Minus1)
}

struct Kl {
    teacher: Arc<[f32]>,
    inverse_temperature: f32,
}

impl CustomOp1 for Kl {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let student = contiguous(storage, layout)?;
        let (n, vocab) = layout.shape().dims2()?;
        let mut kl = vec![0f32; n];
        kl.par_iter_mut().enumerate().with_min_len(8).for_each(|(i, kl)| {
            let row = i * vocab..(i + 1) * vocab;
            *kl = forward(&student[row.clone()], &self.teacher[row], self.inverse_temperature);
        });
        Ok((CpuStorage::F32(kl), Shape::from(n)))
    }

    // d KL / d student = (softmax(student / T) - softmax(teacher / T)) / T.
    fn bwd(&self, student: &Tensor, _kl: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let ((ss, sl), (gs, gl)) = (student.storage_and_layout(), grad.storage_and_layout());
        let (data, grad) = (cpu(&ss, sl)?, cpu(&gs, gl)?);
        let (n, vocab) = student.dims2()?;
        let mut d = vec![0f32; n * vocab];
        if vocab > 0 {
            d.par_chunks_mut(vocab).enumerate().with_min_len(8).for_each(|(i, d)| {
                let row = i * vocab..(i + 1) * vocab;
                backward(&data[row.clone()], &self.teacher[row], self.inverse_temperature, grad[i], d);
            });
        }
        Tensor::from_vec(d, (n, vocab), student.device()).map(Some)
    }
}

/// `log Σ exp(x / T)` of a row.
#[inline(always)]
pub(crate) fn log_sum_scaled(row: &[f32], inverse_temperature: f32) -> f32 {
    let top = max(row);
    top * inverse_temperature + sum2(row, row, |x, _| exp((x - top) * inverse_temperature)).ln()
}

#[pulp::with_simd(forward = crate::unit::arch())]
#[inline(always)]
pub(crate) fn forward_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse_temperature: f32,
) -> f32 {
    let (ls, lt) = (log_sum_scaled(student, inverse_temperature), log_sum_scaled(teacher, inverse_temperature));
    sum2(teacher, student, |t, s| {
        let (log_p, log_q) = (t * inverse_temperature - lt, s * inverse_temperature - ls);
        exp(log_p) * (log_p - log_q)
    })
}

#[pulp::with_simd(backward = crate::unit::arch())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse_temperature: f32,
    grad: f32,
    d: &'a mut [f32],
) {
    let (ls, lt) = (log_sum_scaled(student, inverse_temperature), log_sum_scaled(teacher, inverse_temperature));
    for ((d, s), t) in d.iter_mut().zip(student).zip(teacher) {
        let (q, p) = (exp(s * inverse_temperature - ls), exp(t * inverse_temperature - lt));
        *d = (q - p) * inverse_temperature * grad;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn fused_kl_equals_the_naive_one_in_f64() -> Result<()> {
        for (n, vocab, temperature) in [(1, 1, 1.), (3, 7, 2.), (20, 129, 1.), (5, 40, 4.)] {
            let (student, teacher) = (random(&[n, vocab], 1, 3.)?, random(&[n, vocab], 2, 3.)?);
            assert_same_gradients(&[&student], 2e-5, |t| {
                kl_divergence(&t[0], &teacher.to_dtype(t[0].dtype())?, temperature)
            })?;
        }
        Ok(())
    }

    #[test]
    fn golden_values_of_the_specification() -> Result<()> {
        let device = candle_core::Device::Cpu;
        let (teacher, student) = (Tensor::new(&[[2f32, 1., 0.]], &device)?, Tensor::new(&[[0f32, 1., 0.]], &device)?);
        let kl = |s: &Tensor, t: &Tensor, temperature| -> Result<f32> {
            Ok(kl_divergence(s, t, temperature)?.to_vec1::<f32>()?[0])
        };
        assert!((kl(&student, &teacher, 1.)? - 0.474321).abs() < 1e-5);
        assert!((kl(&teacher, &student, 1.)? - 0.432278).abs() < 1e-5); // asymmetric
        assert!((kl(&student, &teacher, 2.)? - 0.120587).abs() < 1e-5);
        assert!((kl(&student, &teacher, 2.)? * 4. - 0.482350).abs() < 1e-5);
        assert!((kl(&student, &teacher, 4.)? * 16. - 0.469541).abs() < 1e-5);
        assert!(kl(&teacher, &teacher, 1.)?.abs() < 1e-6);
        assert!((kl(&(student + 5.)?, &teacher, 1.)? - 0.474321).abs() < 1e-5);
        Ok(())
    }
}
