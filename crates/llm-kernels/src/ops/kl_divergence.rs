//! The Kullback-Leibler divergence of a student from its teacher, per token.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::simd::{exp, sum2};
use crate::cpu::softmax::LogSoftmax;
use crate::cpu::{contiguous, cpu_slice};

/// `KL(teacher ‖ student)` of each row, in nats, with the logits of both divided by `temperature`: `(n,)`.
///
/// `student` and `teacher` are logits `(n, vocab)`; the teacher gets no gradient. The caller multiplies the result by
/// `temperature²` to keep the gradient's scale (Hinton et al. 2015, arXiv 1503.02531).
///
/// A logit of -inf is a probability of 0, as in a masked vocabulary: if the teacher has it, the term is 0; if only the
/// student has it, the divergence is +inf. Adding a constant to all logits of a row does not change the result.
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    if student.dims2()? != teacher.dims2()? {
        bail!(
            "kl_divergence: student is {:?}, teacher is {:?}; their shapes must be equal",
            student.dims(),
            teacher.dims()
        );
    }
    if crate::is_fused(student) && crate::is_fused(teacher) {
        let (storage, layout) = teacher.storage_and_layout();
        let teacher: Arc<[f32]> = if layout.is_contiguous() {
            cpu_slice(&storage, layout)?.into()
        } else {
            teacher.flatten_all()?.to_vec1::<f32>()?.into()
        };
        student.contiguous()?.apply_op1(Kl { teacher, inverse_temperature: (1. / temperature) as f32 })
    } else {
        reference(student, &teacher.detach(), temperature)
    }
}

fn reference(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (dtype, wide) = (student.dtype(), crate::widest_dtype(student.device()));
    let smallest = if wide == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let log_softmax = |x: &Tensor| candle_nn::ops::log_softmax(&(x.to_dtype(wide)? / temperature)?, D::Minus1);
    let (student, teacher) = (log_softmax(student)?, log_softmax(teacher)?);
    // A probability that underflows to 0 still counts if the student's is 0.
    let terms = (teacher.exp()?.maximum(smallest)? * (&teacher - student)?)?;
    let terms = teacher.eq(f64::NEG_INFINITY)?.where_cond(&terms.zeros_like()?, &terms)?;
    terms.sum(D::Minus1)?.to_dtype(dtype)
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
        let (data, grad) = (cpu_slice(&ss, sl)?, cpu_slice(&gs, gl)?);
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

#[pulp::with_simd(forward = crate::cpu::unit::arch())]
#[inline(always)]
pub(crate) fn forward_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse_temperature: f32,
) -> f32 {
    let ours = LogSoftmax::of(student, inverse_temperature);
    let theirs = LogSoftmax::of(teacher, inverse_temperature);
    if theirs.is_nan() {
        return f32::NAN; // not a distribution; the terms below would skip it
    }
    sum2(teacher, student, |t, s| {
        let (log_p, log_q) = (theirs.at(t), ours.at(s));
        let term = exp(log_p) * (log_p - log_q);
        if t == f32::NEG_INFINITY { 0. } else { term }
    })
}

#[pulp::with_simd(backward = crate::cpu::unit::arch())]
#[inline(always)]
fn backward_simd<'a, S: pulp::Simd>(
    _simd: S,
    student: &'a [f32],
    teacher: &'a [f32],
    inverse_temperature: f32,
    grad: f32,
    d: &'a mut [f32],
) {
    let ours = LogSoftmax::of(student, inverse_temperature);
    let theirs = LogSoftmax::of(teacher, inverse_temperature);
    for ((d, &s), &t) in d.iter_mut().zip(student).zip(teacher) {
        *d = (exp(ours.at(s)) - exp(theirs.at(t))) * inverse_temperature * grad;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn fused_kl_equals_the_f64_reference() -> Result<()> {
        for (n, vocab, temperature) in [(1, 1, 1.), (3, 7, 2.), (20, 129, 1.), (5, 40, 4.)] {
            let (student, teacher) = (random(&[n, vocab], 1, 3.)?, random(&[n, vocab], 2, 3.)?);
            assert_matches_reference(&[&student], 2e-5, |t| {
                kl_divergence(&t[0], &teacher.to_dtype(t[0].dtype())?, temperature)
            })?;
        }
        Ok(())
    }

    /// Value and gradient of one row in f64, from the definition.
    fn by_hand(student: &[f32], teacher: &[f32], temperature: f64) -> (f64, Vec<f64>) {
        let log_softmax = |row: &[f32]| -> Vec<f64> {
            let row_max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let gaps: Vec<f64> = row.iter().map(|&x| (f64::from(x) - f64::from(row_max)) / temperature).collect();
            let log_sum = gaps.iter().map(|x| x.exp()).sum::<f64>().ln();
            gaps.iter().map(|x| x - log_sum).collect()
        };
        let (ours, theirs) = (log_softmax(student), log_softmax(teacher));
        let pairs = || theirs.iter().zip(&ours);
        let kl = pairs().filter(|(t, _)| **t > f64::NEG_INFINITY).map(|(t, s)| t.exp() * (t - s)).sum();
        (kl, pairs().map(|(t, s)| (s.exp() - t.exp()) / temperature).collect())
    }

    /// Compares both implementations with [`by_hand`].
    fn check(student: &[f32], teacher: &[f32], temperature: f64, tolerance: f64) -> Result<()> {
        let (expected, slopes) = by_hand(student, teacher, temperature);
        let near = |a: f64, b: f64, scale: f64| a == b || (a - b).abs() <= tolerance * scale;
        let largest = slopes.iter().fold(0f64, |a, b| a.max(b.abs()));
        for dtype in [DType::F32, DType::F64] {
            let row = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &candle_core::Device::Cpu)?.to_dtype(dtype);
            let student = candle_core::Var::from_tensor(&row(student)?)?;
            let kl = kl_divergence(&student, &row(teacher)?, temperature)?;
            let value = kl.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
            assert!(near(value, expected, expected.abs()), "{dtype:?}: {value} is not {expected}");
            let grads = kl.sum_all()?.backward()?;
            let gradient = grads.get(&student).unwrap().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            for (i, (&ours, &slope)) in gradient.iter().zip(&slopes).enumerate() {
                assert!(near(ours, slope, largest), "{dtype:?}: gradient {i}: {ours} is not {slope}");
            }
        }
        Ok(())
    }

    #[test]
    fn adding_a_constant_to_all_logits_changes_nothing() -> Result<()> {
        let numbers = |seed, scale| random(&[1000], seed, scale)?.to_vec1::<f32>();
        let teacher = numbers(1, 4.)?;
        // A student far from the teacher, and one with a small divergence.
        let far = numbers(2, 4.)?;
        let close: Vec<f32> = teacher.iter().zip(numbers(3, 0.1)?).map(|(t, noise)| t + noise).collect();
        for (student, tolerance) in [(&far, 1e-5), (&close, 1e-3)] {
            for (student_offset, teacher_offset) in [(0., 0.), (1e3, 1e3), (1e4, 1e4), (-1e4, 1e4), (0., -1e4)] {
                let shifted = |row: &[f32], by: f32| row.iter().map(|x| x + by).collect::<Vec<_>>();
                for temperature in [1., 2.] {
                    check(
                        &shifted(student, student_offset),
                        &shifted(&teacher, teacher_offset),
                        temperature,
                        tolerance,
                    )?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_logit_of_minus_infinity_is_a_probability_of_zero() -> Result<()> {
        let minus_inf = f32::NEG_INFINITY;
        check(&[1., 2., 0.5], &[0., minus_inf, 1.], 1., 1e-5)?;
        check(&[1., minus_inf, 0.5], &[0., minus_inf, 1.], 2., 1e-5)?;
        check(&[0., minus_inf, minus_inf], &[7., minus_inf, minus_inf], 1., 1e-5)?;
        let kl = |student: &[f32], teacher: &[f32]| -> Result<f32> {
            let row = |x: &[f32]| Tensor::from_slice(x, (1, x.len()), &candle_core::Device::Cpu);
            let values = [DType::F32, DType::F64].map(|dtype| -> Result<f32> {
                let kl = kl_divergence(&row(student)?.to_dtype(dtype)?, &row(teacher)?.to_dtype(dtype)?, 1.)?;
                Ok(kl.to_dtype(DType::F32)?.to_vec1::<f32>()?[0])
            });
            let [fused, reference] = values;
            let (fused, reference) = (fused?, reference?);
            assert!(fused == reference || fused.is_nan() && reference.is_nan(), "{fused} and {reference}");
            Ok(fused)
        };
        assert_eq!(kl(&[1., minus_inf], &[1., 2.])?, f32::INFINITY);
        assert_eq!(kl(&[1., minus_inf], &[1000., 0.])?, f32::INFINITY, "even for a tiny probability");
        // Infinite and NaN inputs give NaN.
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(kl(&[1., broken], &[1., 2.])?.is_nan() && kl(&[1., 2.], &[1., broken])?.is_nan());
        }
        assert!(kl(&[minus_inf, minus_inf], &[1., 2.])?.is_nan() && kl(&[1., 2.], &[minus_inf, minus_inf])?.is_nan());
        Ok(())
    }

    #[test]
    fn golden_values() -> Result<()> {
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
