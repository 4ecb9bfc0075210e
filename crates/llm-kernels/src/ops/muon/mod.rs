//! One step of Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for one matrix, in place, with the
//! scale and the decoupled weight decay of Moonlight (Liu et al. 2025, arXiv 2502.16982).

mod cpu;
mod reference;

use candle_core::{Result, Tensor, bail};

use cpu::WithWeight;
use reference::reference;

use super::adamw::memory;
use crate::Precision;

/// The coefficients of the quintic Newton-Schulz iteration `x ← a·x + (b·A + c·A²)·x` with `A = x·xᵀ`.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Iterations of a step. They bring singular values from about 0.002 to 1 into the range from 0.7 to 1.2.
const ITERATIONS: usize = 5;
/// The smallest Frobenius norm that a matrix is divided by.
const MIN_NORM: f64 = 1e-7;

/// The hyperparameters of one [`muon_step`].
#[derive(Debug, Clone, Copy)]
pub struct MuonStep {
    /// Learning rate of this step. The root mean square of the update is about 0.2 times it, as with `AdamW`.
    pub learning_rate: f64,
    /// Decay of the momentum, in `0..1`; the step uses Nesterov's form.
    pub momentum: f64,
    /// Decoupled weight decay: the weight is first multiplied by `1 - learning_rate * weight_decay`.
    pub weight_decay: f64,
    /// The gradient is first multiplied by this (clipping, averaging over micro-batches).
    pub gradient_scale: f64,
    /// Compute precision of the matmuls.
    pub precision: Precision,
}

impl MuonStep {
    /// The factor of the orthogonalised update of a matrix: `learning_rate · 0.2 · sqrt(max(rows, cols))` (arXiv 2502.16982, section 2.2).
    fn step_size(&self, (rows, cols): (usize, usize)) -> f64 {
        self.learning_rate * 0.2 * (rows.max(cols) as f64).sqrt()
    }

    /// The factor of the weight.
    fn decay(&self) -> f64 {
        1. - self.learning_rate * self.weight_decay
    }
}

/// Updates the matrix `weight` `(rows, cols)` and its `momentum` of the same shape in place:
///
/// `momentum ← μ·momentum + (1-μ)·grad`, `u = (1-μ)·grad + μ·momentum`, `weight ← decay·weight - step_size·orthogonalised(u)`.
///
/// All three are contiguous and on the same device; the momentum is f32, or bf16 rounded to nearest. In a reference and on other
/// devices than the CPU the matmuls are not rounded. It is an error if two of the tensors share memory.
pub fn muon_step(weight: &Tensor, grad: &Tensor, momentum: &Tensor, step: &MuonStep) -> Result<()> {
    let (rows, cols) = weight.dims2()?;
    if momentum.dims() != weight.dims() || grad.dims() != weight.dims() {
        bail!("muon_step: weight {:?}, gradient {:?}, momentum {:?}", weight.dims(), grad.dims(), momentum.dims());
    }
    if !(0. ..1.).contains(&step.momentum) {
        bail!("muon_step: momentum {}; it must be in 0..1", step.momentum);
    }
    if rows * cols == 0 {
        return Ok(());
    }
    let grad = grad.contiguous()?;
    // Each of the three is locked below; locking the same storage twice would wait forever.
    let [w, g, m] = [weight, &grad, momentum].map(memory);
    if w == g || w == m || g == m {
        bail!("muon_step: weight, gradient and momentum must not share the same memory");
    }
    if crate::is_fused(weight) {
        return weight.inplace_op2(&grad, &WithWeight { momentum, shape: (rows, cols), step });
    }
    reference(weight, &grad, momentum, step)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::random;

    fn step(precision: Precision) -> MuonStep {
        MuonStep { learning_rate: 0.1, momentum: 0.95, weight_decay: 0.2, gradient_scale: 0.5, precision }
    }

    /// Weight and momentum after three steps in a dtype.
    fn trained(shape: (usize, usize), dtype: DType, precision: Precision) -> Result<[Vec<f64>; 2]> {
        let matrix = |seed| random(&[shape.0, shape.1], seed, 1.)?.to_dtype(dtype);
        let (weight, momentum) = (Var::from_tensor(&matrix(1)?)?, Tensor::zeros(shape, dtype, &Device::Cpu)?);
        for seed in 2..5 {
            muon_step(&weight, &matrix(seed)?, &momentum, &step(precision))?;
        }
        let values = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        Ok([values(&weight)?, values(&momentum)?])
    }

    #[test]
    fn the_fused_step_equals_the_f64_reference() -> Result<()> {
        for shape in [(1, 1), (7, 7), (5, 33), (33, 5), (64, 130), (300, 120)] {
            let exact = trained(shape, DType::F64, Precision::F32)?;
            // Five iterations amplify rounding errors; each factor of a bf16 matmul has an error of 1/256.
            for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.1)] {
                let fused = trained(shape, DType::F32, precision)?;
                for (fused, exact) in fused.iter().zip(&exact) {
                    let gap = fused.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
                    assert!(gap < tolerance, "{shape:?} {precision:?}: {gap}");
                }
            }
        }
        Ok(())
    }

    /// The update of a matrix with orthonormal rows keeps its singular vectors: all its singular values become one number near 1.
    #[test]
    fn the_update_of_a_scaled_identity_is_a_scaled_identity() -> Result<()> {
        let n = 16;
        let step = MuonStep { weight_decay: 0., ..step(Precision::F32) };
        let weight = Var::from_tensor(&Tensor::zeros((n, n), DType::F32, &Device::Cpu)?)?;
        let grad = (Tensor::eye(n, DType::F32, &Device::Cpu)? * 37.)?;
        muon_step(&weight, &grad, &Tensor::zeros((n, n), DType::F32, &Device::Cpu)?, &step)?;
        let rows = weight.to_vec2::<f32>()?;
        let [a, b, c] = COEFFICIENTS;
        let singular = (0..ITERATIONS).fold(0.25, |x: f64, _| a * x + b * x.powi(3) + c * x.powi(5)); // 1/√16
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let expected = if i == j { -0.1 * 0.2 * 4. * singular } else { 0. };
            assert!((f64::from(rows[i][j]) - expected).abs() < 1e-5, "{i} {j}: {} is not {expected}", rows[i][j]);
        }
        Ok(())
    }

    #[test]
    fn a_gradient_of_zero_only_decays_the_weight() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let weight = Var::from_tensor(&Tensor::ones((3, 4), dtype, &Device::Cpu)?)?;
            let momentum = weight.zeros_like()?;
            muon_step(&weight, &weight.zeros_like()?, &momentum, &step(Precision::F32))?;
            let values = weight.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            assert!(values.iter().all(|x| (x - 0.98).abs() < 1e-6), "{values:?}");
        }
        Ok(())
    }

    #[test]
    fn a_momentum_in_bf16_is_near_one_in_f32() -> Result<()> {
        let run = |dtype| -> Result<Vec<f32>> {
            let weight = Var::from_tensor(&random(&[24, 40], 1, 1.)?)?;
            let momentum = Tensor::zeros((24, 40), dtype, &Device::Cpu)?;
            for seed in 2..12 {
                muon_step(&weight, &random(&[24, 40], seed, 1.)?, &momentum, &step(Precision::F32))?;
            }
            weight.flatten_all()?.to_vec1()
        };
        let (wide, narrow) = (run(DType::F32)?, run(DType::BF16)?);
        let square = |x: f32| f64::from(x).powi(2);
        let gap = wide.iter().zip(&narrow).map(|(a, b)| square(a - b)).sum::<f64>();
        let all = wide.iter().map(|a| square(*a)).sum::<f64>();
        assert!(gap > 0. && gap < 1e-4 * all, "{gap} of {all}");
        Ok(())
    }

    #[test]
    fn wrong_shapes_and_shared_memory_are_errors() -> Result<()> {
        let (w, g, m) = (random(&[3, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?, random(&[4, 3], 3, 1.)?);
        let step = step(Precision::F32);
        assert!(muon_step(&w, &g, &m, &step).is_err());
        assert!(muon_step(&w, &g, &g, &step).unwrap_err().to_string().contains("the same memory"));
        assert!(muon_step(&random(&[3], 1, 1.)?, &random(&[3], 2, 1.)?, &random(&[3], 3, 1.)?, &step).is_err());
        assert!(muon_step(&w, &g, &m.t()?.contiguous()?, &MuonStep { momentum: 1., ..step }).is_err());
        Ok(())
    }
}
