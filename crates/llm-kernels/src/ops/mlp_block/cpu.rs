//! Fused gated MLP: `down(activation(gate(x)) · up(x))` as one operation, optionally with the RMSNorm before it and
//! the residual connection around it.
//!
//! The two branches are the largest saved tensors of an MLP. Here they are saved once, in the precision of the
//! matmuls, and candle zeroes and accumulates only the gradients of `x` and of the weights.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::MlpBlock;
use crate::cpu::gemm::{FEW_ROWS, GemmElement, GemmOptions, Matrix, Precision, matmul, matmul_epilogue, matmul_into};
use crate::cpu::rows::zeros;
use crate::cpu::simd::f32_epsilon;
use crate::cpu::slice_op::{SliceCustomOp, SliceOp};
use crate::cpu::uninit::rounded;
use crate::ops::activation::{Activation, gated_backward, gated_forward};
use crate::ops::linear::matmul_residual;
use crate::ops::rms_norm::{rms_norm_backward, rms_norm_rows};

/// The weights of a block that can be one operation. With a norm, the residual is `x`; without, there is no residual.
pub struct Inputs<'a> {
    norm: Option<(&'a Tensor, f64)>, // (hidden,), epsilon
    gate: &'a Tensor,                // (inner, hidden)
    up: &'a Tensor,                  // (inner, hidden)
    down: &'a Tensor,                // (hidden, inner)
    precision: Precision,
}

impl<'a> Inputs<'a> {
    /// The weights of the block with its norm and residual connection, if they can be one operation.
    pub fn with_residual(x: &Tensor, block: &'a MlpBlock) -> Option<Self> {
        let of_x = block.residual.is_some_and(|residual| residual.id() == x.id());
        let norm = block.norm.as_ref()?.rms()?;
        if of_x && block.output_norm.is_none() { Self::new(x, block, Some(norm)) } else { None }
    }

    /// The weights of the block without norms and residual, if they can be one operation.
    pub fn of_mlp(x: &Tensor, block: &'a MlpBlock) -> Option<Self> {
        Self::new(x, block, None)
    }

    /// The weights, if they are trained and `x` has more than a few rows.
    fn new(x: &Tensor, block: &'a MlpBlock, norm: Option<(&'a Tensor, f64)>) -> Option<Self> {
        let (gate, precision) = block.gate.as_ref()?.plain()?;
        let (up, down) = (block.up.plain()?.0, block.down.plain()?.0);
        let rows = x.elem_count().checked_div(*x.dims().last()?)?;
        let tensors: Vec<&Tensor> = [x, gate, up, down].into_iter().chain(norm.map(|(weight, _)| weight)).collect();
        let fused = rows > FEW_ROWS && crate::is_differentiated(&tensors);
        fused.then_some(Self { norm, gate, up, down, precision })
    }
}

/// The block as one operation.
pub fn fused(x: &Tensor, inputs: &Inputs, activation: Activation) -> Result<Tensor> {
    let Inputs { norm, gate, up, down, precision } = *inputs;
    let (inner, hidden) = gate.dims2()?;
    let fits = x.dims().last() == Some(&hidden)
        && up.dims() == gate.dims()
        && down.dims() == [hidden, inner]
        && norm.is_none_or(|(weight, _)| weight.dims() == [hidden]);
    if !fits {
        bail!(
            "mlp_block: x is {:?}, gate {:?}, up {:?}, down {:?}; these shapes do not match",
            x.dims(),
            gate.dims(),
            up.dims(),
            down.dims()
        );
    }
    let eps = norm.map(|(_, eps)| f32_epsilon(eps));
    let norm = norm.map(|(weight, _)| weight.unsqueeze(0)).transpose()?;
    let params: Vec<&Tensor> = norm.iter().chain([gate, up]).collect();
    let params = Tensor::cat(&params, 0)?; // (1 + 2 inner, hidden), or (2 inner, hidden) without a norm
    let (x, down) = (x.contiguous()?, down.contiguous()?);
    let needs_grad = [&x, &params, &down].map(Tensor::track_op);
    match precision {
        Precision::F32 => x.apply_op3(
            &params,
            &down,
            SliceCustomOp(FusedMlp::<f32> { inner, eps, activation, needs_grad, saved: OnceLock::new() }),
        ),
        Precision::Bf16 => x.apply_op3(
            &params,
            &down,
            SliceCustomOp(FusedMlp::<bf16> { inner, eps, activation, needs_grad, saved: OnceLock::new() }),
        ),
    }
}

struct FusedMlp<T> {
    inner: usize,
    /// The epsilon of the norm, if there is a norm.
    eps: Option<f32>,
    activation: Activation,
    /// Whether `x`, the parameters and `down` need a gradient.
    needs_grad: [bool; 3],
    saved: OnceLock<SavedTensors<T>>,
}

/// Tensors saved for the backward of n tokens.
struct SavedTensors<T> {
    normed: Vec<T>, // (n, hidden)
    inner: Vec<T>,  // (n, 3 inner): gated activations, gate branch, up branch
}

/// Bytes that a fused MLP saves for its backward, apart from its inputs and its result: for hidden states
/// `(tokens, hidden)`, with or without a norm.
pub fn saved_bytes(tokens: usize, hidden: usize, inner: usize, norm: bool, precision: Precision) -> usize {
    let saved_tensors = precision.size_in_bytes() * (hidden + 3 * inner); // of a token
    let params = 4 * (usize::from(norm) + 2 * inner) * hidden;
    tokens * saved_tensors + params
}

impl<T: GemmElement> FusedMlp<T> {
    const GEMM_OPTIONS: GemmOptions = GemmOptions::all_threads(T::PRECISION);

    /// The number of tokens, the hidden size, and the weights of the norm and of the branches.
    fn parts<'a>(&self, x: &[f32], params: &'a [f32]) -> (usize, usize, &'a [f32], &'a [f32]) {
        let rows = 2 * self.inner + usize::from(self.eps.is_some());
        let hidden = params.len() / rows;
        let (norm, branches) = params.split_at(hidden * (rows - 2 * self.inner));
        (x.len() / hidden, hidden, norm, branches)
    }

    /// The gated activations `(n, inner)`, a part of the saved tensor.
    fn gated<'a>(&self, saved: &'a [T], n: usize) -> Matrix<'a, T> {
        Matrix::with_stride(saved, n, self.inner, 3 * self.inner)
    }
}

impl<T: GemmElement> SliceOp for FusedMlp<T> {
    const NAME: &'static str = "mlp_block";

    fn forward(&self, [x, params, down]: [&[f32]; 3]) -> Result<Vec<f32>> {
        let (n, hidden, norm, weight) = self.parts(x, params);
        let normed: Vec<T> = self.eps.map_or_else(|| rounded(x), |eps| rms_norm_rows(x, norm, eps));
        let weight = Matrix::new(weight, 2 * self.inner, hidden);
        let inner =
            matmul_epilogue(Matrix::new(&normed, n, hidden), weight.t(), [3 * self.inner; 2], |_, branches, to| {
                let (gated, saved) = to.split_at_mut(self.inner);
                saved.copy_from_slice(branches);
                let (gate, up) = branches.split_at(self.inner);
                gated_forward(self.activation, gate, up, gated);
            });
        let down = Matrix::new(down, hidden, self.inner);
        let y = matmul_residual(self.eps.map(|_| x), self.gated(&inner, n), down.t(), Self::GEMM_OPTIONS);
        match self.saved.set(SavedTensors { normed, inner }) {
            Ok(()) => Ok(y),
            Err(_) => bail!("mlp_block: an operation runs only once"),
        }
    }

    /// The gradients of `x`, of the parameters, and of `down`.
    fn backward(&self, [x, params, down]: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]> {
        let Some(SavedTensors { normed, inner }) = self.saved.get() else {
            bail!("mlp_block: backward ran before forward");
        };
        let (n, hidden, norm, weight) = self.parts(x, params);
        let dy_rows = Matrix::new(dy, n, hidden);
        let [needs_dx, needs_d_params, needs_d_down] = self.needs_grad;
        let d_down = needs_d_down.then(|| matmul(dy_rows.t(), self.gated(inner, n), Self::GEMM_OPTIONS));
        if !needs_dx && !needs_d_params {
            return Ok([None, None, d_down]);
        }
        let down = Matrix::new(down, hidden, self.inner);
        let d_branches: Vec<T> = matmul_epilogue(dy_rows, down, [2 * self.inner; 2], |token, d_gated, to| {
            T::widen_slice(&inner[(3 * token + 1) * self.inner..][..to.len()], to);
            let (gate, up) = to.split_at_mut(self.inner);
            gated_backward(self.activation, gate, up, d_gated);
        });
        let d_branches = Matrix::new(&d_branches, n, 2 * self.inner);
        let mut d_params = zeros(if needs_d_params { params.len() } else { norm.len() });
        let (d_norm, d_weight) = d_params.split_at_mut(norm.len());
        if needs_d_params {
            matmul_into(
                d_branches.t(),
                Matrix::new(normed, n, hidden),
                d_weight,
                hidden,
                false,
                1.,
                Self::GEMM_OPTIONS,
            );
        }
        let mut dx = matmul(d_branches, Matrix::new(weight, 2 * self.inner, hidden), Self::GEMM_OPTIONS);
        if let Some(eps) = self.eps {
            let (d_x, d_norm_weight) = rms_norm_backward(x, norm, &dx, eps, Some(dy));
            d_norm.copy_from_slice(&d_norm_weight);
            dx = d_x;
        }
        Ok([needs_dx.then_some(dx), needs_d_params.then_some(d_params), d_down])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::mlp_block;
    use super::*;
    use crate::ops::norm::Norm;
    use crate::ops::projection::Projection;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn the_fused_block_equals_the_f64_reference() -> Result<()> {
        for (shape, inner) in [(vec![1, 7], 5), (vec![33, 20], 40), (vec![2, 9, 12], 17), (vec![0, 4], 3)] {
            let hidden = *shape.last().unwrap();
            let (x, norm) = (random(&shape, 1, 1.)?, random(&[hidden], 2, 1.)?);
            let [gate, up] = [3, 4].map(|seed| random(&[inner, hidden], seed, 1.));
            let (gate, up, down) = (gate?, up?, random(&[hidden, inner], 5, 1.)?);
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 1. / 32.)] {
                    let run = |t: &[Tensor]| {
                        let norm = t.get(4).map(|norm| Norm::Rms { weight: norm.clone(), eps: 1e-5 });
                        let residual = norm.is_some().then_some(&t[0]);
                        let weights = [1, 2, 3].map(|i| Projection::dense(&t[i], precision));
                        mlp_block(&t[0], &MlpBlock { norm, residual, ..MlpBlock::gated(weights, activation) })
                    };
                    assert_matches_reference(&[&x, &gate, &up, &down], tolerance, run)?;
                    assert_matches_reference(&[&x, &gate, &up, &down, &norm], tolerance, run)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn frozen_inputs_get_no_gradient() -> Result<()> {
        let (x, w, down) = (random(&[6, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?, random(&[4, 3], 3, 1.)?);
        let vars = [&x, &w, &down].map(Var::from_tensor);
        let [x_var, w_var, down_var] = vars;
        let (x_var, w_var, down_var) = (x_var?, w_var?, down_var?);
        let forward = |x: &Tensor, w: &Tensor, down: &Tensor| {
            let weights = [w, w, down].map(|w| Projection::dense(w, Precision::F32));
            mlp_block(x, &MlpBlock::gated(weights, Activation::Silu))
        };
        let run = |x: &Tensor, w: &Tensor, down: &Tensor| forward(x, w, down)?.sum_all()?.backward();
        let grads = run(&x, &w, &down_var)?;
        assert!(grads.get(&down_var).is_some() && grads.get(&w).is_none() && grads.get(&x).is_none());
        let grads = run(&x, &w_var, &down)?;
        assert!(grads.get(&w_var).is_some() && grads.get(&down).is_none() && grads.get(&x).is_none());
        let grads = run(&x_var, &w, &down)?;
        assert!(grads.get(&x_var).is_some() && grads.get(&w).is_none() && grads.get(&down).is_none());
        assert!(forward(&x, &w, &w).is_err() && forward(&x_var, &w, &w).is_err());
        Ok(())
    }
}
