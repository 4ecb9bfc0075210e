//! One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over each tensor, in place.

mod cpu;
mod reference;

use candle_core::{DType, Device, Result, Tensor, bail};

use cpu::WithWeight;
pub(crate) use cpu::{CHUNK, f32s_mut, sum_of_squares as sum_of_squares_of};
use reference::reference;

use crate::cpu::cpu_slice;

/// The hyperparameters of one [`adamw_step`].
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, in `0..1`.
    pub beta1: f64,
    /// Decay of the second moment, in `0..1`.
    pub beta2: f64,
    /// Added to the root of the *bias-corrected* second moment, as in PyTorch; positive.
    pub eps: f64,
    /// Decoupled weight decay: the weight is first multiplied by `1 - learning_rate * weight_decay`.
    pub weight_decay: f64,
    /// The number of the step, from 1, for the bias correction.
    pub step: u64,
    /// The gradient is first multiplied by this (clipping, averaging over micro-batches).
    pub gradient_scale: f64,
}

/// Updates `weight` and `moments` in place. `moments` is `(2, n)`: first and second moment of the `n` weights.
///
/// All three are contiguous and on the same device. The moments are f32, or bf16 with stochastic rounding, whose random numbers
/// depend on the number of the step only. It is an error if two of the tensors share memory.
pub fn adamw_step(weight: &Tensor, grad: &Tensor, moments: &Tensor, step: &AdamWStep) -> Result<()> {
    if moments.dims() != [2, weight.elem_count()] || grad.dims() != weight.dims() {
        bail!("adamw_step: weight {:?}, gradient {:?}, moments {:?}", weight.dims(), grad.dims(), moments.dims());
    }
    let AdamWStep { beta1, beta2, eps, step: number, .. } = *step;
    let decays = [beta1, beta2].iter().all(|beta| (0. ..1.).contains(beta));
    // The second moment of a small gradient is 0 in f32: only a positive eps keeps its step finite.
    if !decays || eps <= 0. || eps.is_nan() || number == 0 {
        bail!(
            "adamw_step: beta1 {beta1}, beta2 {beta2}, eps {eps}, step {number}; the betas must be in 0..1, eps positive, \
             and the first step is 1"
        );
    }
    let grad = grad.contiguous()?;
    // Each of the three is locked below; locking the same storage twice would wait forever.
    let [w, g, m] = [weight, &grad, moments].map(memory);
    if w == g || w == m || g == m {
        bail!("adamw_step: weight, gradient and moments must not share the same memory");
    }
    if crate::is_fused(weight) {
        return weight.inplace_op2(&grad, &WithWeight { moments, step });
    }
    reference(weight, &grad, moments, step)
}

/// `Σ x²` of all elements, summed in f64; for the global gradient norm.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    if x.dtype() == DType::BF16 {
        return sum_of_squares(&x.to_dtype(DType::F32)?);
    }
    if !crate::is_fused(&x) {
        let sum = x.to_dtype(crate::widest_dtype(x.device()))?.sqr()?.sum_all()?;
        return sum.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>();
    }
    let (storage, layout) = x.storage_and_layout();
    Ok(cpu::sum_of_squares(cpu_slice(&storage, layout)?))
}

/// The factor that the moments are divided by, since they begin at 0.
fn bias_correction(beta: f64, step: u64) -> f64 {
    1. - beta.powf(step as f64)
}

/// The address of a tensor's storage: views of one storage share it.
pub(crate) fn memory(x: &Tensor) -> usize {
    std::ptr::from_ref(&*x.storage_and_layout().0).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use candle_core::Var;

    /// The steps of Algorithm 2 of the paper on one weight, in f64.
    fn by_hand(mut w: f64, grads: &[f64], lr: f64, b1: f64, b2: f64, eps: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0., 0.);
        for (i, g) in grads.iter().enumerate() {
            let t = (i + 1) as i32;
            m = b1 * m + (1. - b1) * g;
            v = b2 * v + (1. - b2) * g * g;
            w -= lr * decay * w;
            w -= lr * (m / (1. - b1.powi(t))) / ((v / (1. - b2.powi(t))).sqrt() + eps);
        }
        w
    }

    #[test]
    fn three_steps_follow_the_algorithm() -> Result<()> {
        let n = 70_000; // more than one chunk
        let start = random(&[n], 5, 1.)?;
        let weight = Var::from_tensor(&start)?;
        let moments = Tensor::zeros((2, n), DType::F32, &Device::Cpu)?;
        let grads: Vec<Tensor> = (0..3).map(|i| random(&[n], 10 + i, 0.5)).collect::<Result<_>>()?;
        for (i, grad) in grads.iter().enumerate() {
            let step = AdamWStep {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-5,
                weight_decay: 0.1,
                step: i as u64 + 1,
                gradient_scale: 0.5,
            };
            adamw_step(&weight, grad, &moments, &step)?;
        }
        let (start, end) = (start.to_vec1::<f32>()?, weight.to_vec1::<f32>()?);
        let grads: Vec<Vec<f32>> = grads.iter().map(Tensor::to_vec1::<f32>).collect::<Result<_>>()?;
        for i in (0..n).step_by(997) {
            let g: Vec<f64> = grads.iter().map(|g| f64::from(g[i]) * 0.5).collect();
            let expected = by_hand(f64::from(start[i]), &g, 0.01, 0.9, 0.95, 1e-5, 0.1);
            assert!((f64::from(end[i]) - expected).abs() < 1e-5, "{} is not {expected}", end[i]);
        }
        Ok(())
    }

    /// With bf16 moments the weights follow f64 `AdamW` closely over many steps. With a `beta2` of 0.999 and rounding to nearest,
    /// the second moment would stay at its value of the first steps.
    #[test]
    fn bf16_moments_follow_the_algorithm() -> Result<()> {
        let (n, steps) = (4000, 2000u64);
        let hyper = |i: u64| AdamWStep { learning_rate: 1e-3, step: i + 1, ..STEP };
        let start = random(&[n], 5, 1.)?;
        let (weight, moments) = (Var::from_tensor(&start)?, Tensor::zeros((2, n), DType::BF16, &Device::Cpu)?);
        // Gradients that grow: the second moment rises by a factor of about 100.
        let noise: Vec<Vec<f32>> = (0..8).map(|i| random(&[n], 10 + i, 1.)?.to_vec1()).collect::<Result<_>>()?;
        let grad = |i: u64, j: usize| {
            (0.1 + i as f32 / steps as f32) * (noise[i as usize % 8][(j + i as usize / 8) % n] + 0.2)
        };
        for i in 0..steps {
            let grad = Tensor::from_vec((0..n).map(|j| grad(i, j)).collect(), n, &Device::Cpu)?;
            adamw_step(&weight, &grad, &moments, &hyper(i))?;
        }
        let (start, end) = (start.to_vec1::<f32>()?, weight.to_vec1::<f32>()?);
        let second = moments.get(1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let (mut moved, mut gap, mut ratio) = (0., 0., 0.);
        for j in (0..n).step_by(20) {
            let grads: Vec<f64> = (0..steps).map(|i| f64::from(grad(i, j))).collect();
            let expected = by_hand(f64::from(start[j]), &grads, 1e-3, STEP.beta1, STEP.beta2, STEP.eps, 0.);
            let v = grads.iter().fold(0., |v, g| STEP.beta2 * v + (1. - STEP.beta2) * g * g);
            moved += (expected - f64::from(start[j])).abs();
            gap += (f64::from(end[j]) - expected).abs();
            ratio += f64::from(second[j]) / v / (n / 20) as f64;
        }
        assert!(gap < 0.01 * moved, "the weights are off by {gap} of a way of {moved}");
        assert!((ratio - 1.).abs() < 0.01, "the second moments are on average {ratio} times those of the algorithm");
        Ok(())
    }

    #[test]
    fn stochastic_rounding_is_exact_on_average_and_repeats() {
        let (x, up, n) = (1.001f32, 1.0078125, 100_000u32);
        let mean = (0..n).map(|i| f64::from(cpu::round_moments(-x, x, i)[1].to_f32())).sum::<f64>() / f64::from(n);
        // The standard error of the mean is 0.0026 / sqrt(n) = 8e-6.
        assert!((mean - f64::from(x)).abs() < 4e-5, "{mean}");
        for i in 0..100 {
            let [m, v] = cpu::round_moments(-x, x, i).map(half::bf16::to_f32);
            assert!([-1., -up].contains(&m) && [1., up].contains(&v));
            assert_eq!(cpu::round_moments(0., 0.5, i).map(half::bf16::to_f32), [0., 0.5]);
        }
    }

    #[test]
    fn sum_of_squares_adds_every_element() -> Result<()> {
        let x = Tensor::ones((1001, 100), DType::F32, &Device::Cpu)?;
        assert_eq!(sum_of_squares(&x)?, 100_100.);
        assert_eq!(sum_of_squares(&x.to_dtype(DType::F64)?)?, 100_100.);
        Ok(())
    }

    const STEP: AdamWStep = AdamWStep {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.,
        step: 1,
        gradient_scale: 1.,
    };

    #[test]
    fn moments_after_one_step_are_exact() -> Result<()> {
        let (weight, moments) = (random(&[1], 1, 1.)?, Tensor::zeros((2, 1), DType::F32, &Device::Cpu)?);
        adamw_step(&weight, &Tensor::ones(1, DType::F32, &Device::Cpu)?, &moments, &STEP)?;
        for (moment, share) in moments.flatten_all()?.to_vec1::<f32>()?.into_iter().zip([0.1, 0.001]) {
            assert!((f64::from(moment) / share - 1.).abs() < 1e-7, "{moment} is not {share}");
        }
        Ok(())
    }

    #[test]
    fn a_tiny_epsilon_is_not_zero_and_invalid_hyperparameters_are_errors() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let run = |step: AdamWStep| -> Result<f64> {
                let weight = Tensor::ones(3, dtype, &Device::Cpu)?;
                let (grad, moments) = (weight.zeros_like()?, Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?);
                adamw_step(&weight, &grad, &moments, &step)?;
                weight.to_dtype(DType::F64)?.get(0)?.to_scalar()
            };
            assert_eq!(run(AdamWStep { eps: 1e-60, ..STEP })?, 1.);
            for eps in [0., -1e-8, f64::NAN] {
                assert!(run(AdamWStep { eps, ..STEP }).is_err());
            }
            for beta in [1., -0.1, f64::NAN] {
                assert!(run(AdamWStep { beta1: beta, ..STEP }).is_err());
                assert!(run(AdamWStep { beta2: beta, ..STEP }).is_err());
            }
            let message = run(AdamWStep { step: 0, ..STEP }).unwrap_err().to_string();
            assert!(message.contains("step 0") && message.contains("the first step is 1"), "{message}");
        }
        Ok(())
    }

    /// On its own thread, because a regression would wait forever.
    #[test]
    fn tensors_that_share_memory_are_an_error() {
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let run = |weight: &Tensor, grad: &Tensor, moments: &Tensor| {
                adamw_step(weight, grad, moments, &STEP).err().map(|error| error.to_string())
            };
            let all = random(&[3, 4], 1, 1.).unwrap();
            let (first, rest, own) = (all.get(0).unwrap(), all.narrow(0, 1, 2).unwrap(), random(&[4], 2, 1.).unwrap());
            let moments = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
            let errors =
                [run(&first, &own, &rest), run(&own, &first, &rest), run(&first, &all.get(1).unwrap(), &moments)];
            done.send((errors, run(&first, &own, &moments))).unwrap();
        });
        let (errors, fine) = wait.recv_timeout(std::time::Duration::from_mins(1)).expect("adamw_step hangs");
        assert!(errors.iter().flatten().filter(|error| error.contains("the same memory")).count() == 3, "{errors:?}");
        assert_eq!(fine, None);
    }

    #[test]
    fn moments_of_the_wrong_size_are_an_error() -> Result<()> {
        let (w, g, m) = (random(&[3], 1, 1.)?, random(&[3], 1, 1.)?, random(&[2, 4], 1, 1.)?);
        assert!(adamw_step(&w, &g, &m, &STEP).is_err());
        Ok(())
    }
}
