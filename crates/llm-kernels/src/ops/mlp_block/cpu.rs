//! Fused gated MLP: `down(activation(gate(x)) · up(x))` as one operation, optionally with the RMSNorm before it and
//! the residual connection around it.
//!
//! The two branches are the largest saved tensors of an MLP. Here they are saved once, in the precision of the
//! matmuls, and candle zeroes and accumulates only the gradients of `x` and of the weights.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::MlpBlock;
use crate::cpu::cpu_slice;
use crate::cpu::gemm::{GemmElement, Matrix, Precision, matmul_epilogue};
use crate::cpu::node::{self, FusedOp, ParamGradients};
use crate::cpu::rows::zeros;
use crate::cpu::simd::f32_epsilon;
use crate::cpu::uninit::rounded;
use crate::ops::activation::{Activation, gated_backward, gated_forward};
use crate::ops::fused_projection::{FusedProjection, LowRank, MIN_ROWS, precision_of, with_weights};
use crate::ops::rms_norm::{rms_norm_backward, rms_norm_rows};

/// The parts of a block that can be one operation. With a norm, the residual is `x`; without, there is no residual.
pub struct Inputs {
    norm: Option<(Tensor, f32)>, // (hidden,), epsilon
    gate: FusedProjection,       // (inner, hidden)
    up: FusedProjection,         // (inner, hidden)
    down: FusedProjection,       // (hidden, inner)
    precision: Precision,
}

impl Inputs {
    /// The weights of the block with its norm and residual connection, if they can be one operation.
    pub fn with_residual(x: &Tensor, block: &MlpBlock) -> Option<Self> {
        let of_x = block.residual.is_some_and(|residual| residual.id() == x.id());
        let norm = block.norm.as_ref()?.rms()?;
        if of_x && block.output_norm.is_none() { Self::new(x, block, Some(norm)) } else { None }
    }

    /// The weights of the block without norms and residual, if they can be one operation.
    pub fn of_mlp(x: &Tensor, block: &MlpBlock) -> Option<Self> {
        Self::new(x, block, None)
    }

    /// The parts, if something is trained and `x` has more than a few rows.
    fn new(x: &Tensor, block: &MlpBlock, norm: Option<(&Tensor, f64)>) -> Option<Self> {
        let gate = block.gate.as_ref()?;
        let rows = x.elem_count().checked_div(*x.dims().last()?)?;
        if rows < MIN_ROWS || !crate::is_fused(x) {
            return None;
        }
        let norm = match norm {
            Some((weight, _)) if !crate::is_fused(weight) => return None,
            Some((weight, eps)) => Some((weight.contiguous().ok()?, f32_epsilon(eps))),
            None => None,
        };
        let precision = precision_of(gate);
        let project = FusedProjection::of;
        let inputs =
            Self { norm, gate: project(gate)?, up: project(&block.up)?, down: project(&block.down)?, precision };
        let params = inputs.params();
        let fused = crate::is_trained(x, &params);
        fused.then_some(inputs)
    }

    fn params(&self) -> Vec<&Tensor> {
        let projections = [&self.gate, &self.up, &self.down];
        let norm = self.norm.iter().map(|(weight, _)| weight);
        norm.chain(projections.into_iter().flat_map(FusedProjection::params)).collect()
    }
}

/// The block as one operation.
pub fn fused(x: &Tensor, inputs: Inputs, activation: Activation) -> Result<Tensor> {
    let Inputs { norm, gate, up, down, .. } = &inputs;
    let (inner, hidden) = gate.shape();
    let fits = x.dims().last() == Some(&hidden)
        && up.shape() == gate.shape()
        && down.shape() == (hidden, inner)
        && [gate, up, down].into_iter().all(FusedProjection::is_consistent)
        && norm.as_ref().is_none_or(|(weight, _)| weight.dims() == [hidden]);
    if !fits {
        bail!(
            "mlp_block: x is {:?}, gate {:?}, up {:?}, down {:?}; these shapes do not match",
            x.dims(),
            gate.shape(),
            up.shape(),
            down.shape()
        );
    }
    let params: Vec<Tensor> = inputs.params().into_iter().cloned().collect();
    let params: Vec<&Tensor> = params.iter().collect();
    match inputs.precision {
        Precision::F32 => node::apply(FusedMlp::<f32> { inputs, activation, saved: Mutex::default() }, x, &params),
        Precision::Bf16 => node::apply(FusedMlp::<bf16> { inputs, activation, saved: Mutex::default() }, x, &params),
    }
}

struct FusedMlp<T> {
    inputs: Inputs,
    activation: Activation,
    saved: Mutex<Option<SavedTensors<T>>>,
}

/// Tensors saved for the backward of n tokens.
struct SavedTensors<T> {
    normed: Vec<T>, // (n, hidden)
    inner: Vec<T>,  // (n, 3 inner): gated activations, gate branch, up branch
    /// Of gate, up and down.
    low: [LowRank; 3],
}

/// Bytes that a fused MLP saves for its backward, apart from its inputs, its result and the low-rank activations of
/// adapters: for hidden states `(tokens, hidden)`.
pub fn saved_bytes(tokens: usize, hidden: usize, inner: usize, precision: Precision) -> usize {
    tokens * precision.size_in_bytes() * (hidden + 3 * inner)
}

impl<T: GemmElement> FusedMlp<T> {
    /// The gated activations `(n, inner)`, a part of the saved tensor.
    fn gated<'a>(&self, saved: &'a [T], n: usize) -> Matrix<'a, T> {
        let (inner, _) = self.inputs.gate.shape();
        Matrix::with_stride(saved, n, inner, 3 * inner)
    }
}

impl<T: GemmElement> FusedOp for FusedMlp<T> {
    const NAME: &'static str = "mlp_block";

    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let Inputs { norm, gate, up, down, .. } = &self.inputs;
        let (inner, hidden) = gate.shape();
        let n = x.len() / hidden;
        let normed: Vec<T> = match norm {
            Some((weight, eps)) => {
                let (storage, layout) = weight.storage_and_layout();
                rms_norm_rows(x, cpu_slice(&storage, layout)?, *eps)
            }
            None => rounded(x),
        };
        let rows = Matrix::new(&normed, n, hidden);
        let ((gate_low, gate_add), (up_low, up_add)) = (gate.additions(rows)?, up.additions(rows)?);
        let branches: Vec<T> = with_weights::<T, 2, _>([gate, up], |weights| {
            Ok(matmul_epilogue(rows, &weights, [3 * inner; 2], |token, branches, to| {
                let (gate, up) = branches.split_at_mut(inner);
                gate_add.apply(token, gate);
                up_add.apply(token, up);
                let (gated, saved) = to.split_at_mut(inner);
                gated_forward(self.activation, gate, up, gated);
                saved.copy_from_slice(branches);
            }))
        })?;
        drop((gate_add, up_add));
        let (y, down_low) = down.forward::<T, T>(self.gated(&branches, n), norm.as_ref().map(|_| x))?;
        let saved = SavedTensors { normed, inner: branches, low: [gate_low, up_low, down_low] };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(y)
    }

    fn backward(&self, x: &[f32], dy: &[f32], needs_dx: bool, gradients: &ParamGradients) -> Result<Option<Vec<f32>>> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(SavedTensors { normed, inner: branches, low: [gate_low, up_low, down_low] }) = saved else {
            bail!("mlp_block: backward runs once, after forward");
        };
        let Inputs { norm, gate, up, down, .. } = &self.inputs;
        let (inner, hidden) = gate.shape();
        let n = x.len() / hidden;
        let dy_rows = Matrix::new(dy, n, hidden);
        let d_low = down.backward_params::<T, _, _>(self.gated(&branches, n), dy_rows, &down_low, gradients)?;
        let params = norm.iter().map(|(weight, _)| weight).chain(gate.params()).chain(up.params());
        if !needs_dx && !params.into_iter().any(Tensor::track_op) {
            return Ok(None);
        }
        let update = down.backward_additions::<T>(&d_low, n)?;
        let d_branches: Vec<T> = with_weights::<T, 1, _>([down], |[down]| {
            Ok(matmul_epilogue(dy_rows, &[down.t()], [2 * inner; 2], |token, d_gated, to| {
                update.apply(token, d_gated);
                T::widen_slice(&branches[(3 * token + 1) * inner..][..to.len()], to);
                let (gate, up) = to.split_at_mut(inner);
                gated_backward(self.activation, gate, up, d_gated);
            }))
        })?;
        drop((update, branches));
        let (rows, mut d_normed) = (Matrix::new(&normed, n, hidden), zeros(n * hidden));
        for (i, (projection, low)) in [(gate, gate_low), (up, up_low)].into_iter().enumerate() {
            let dy = Matrix::with_stride(&d_branches[(i * inner).min(d_branches.len())..], n, inner, 2 * inner);
            let d_low = projection.backward_params::<T, _, _>(rows, dy, &low, gradients)?;
            projection.backward_input::<T, _>(dy, &d_low, &mut d_normed, i > 0)?;
        }
        let Some((weight, eps)) = norm else { return Ok(needs_dx.then_some(d_normed)) };
        let (storage, layout) = weight.storage_and_layout();
        let (dx, d_weight) = rms_norm_backward(x, cpu_slice(&storage, layout)?, &d_normed, *eps, Some(dy));
        gradients.add(weight, || d_weight)?;
        Ok(needs_dx.then_some(dx))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::mlp_block;
    use super::*;
    use crate::ops::norm::Norm;
    use crate::ops::projection::{LoraWeights, Projection};
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn the_fused_block_equals_the_f64_reference() -> Result<()> {
        for (shape, inner) in
            [(vec![1, 7], 5), (vec![33, 20], 40), (vec![81, 20], 40), (vec![2, 45, 12], 17), (vec![0, 4], 3)]
        {
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
    fn biases_and_adapters_equal_the_f64_reference() -> Result<()> {
        let (tokens, hidden, inner, r) = (81, 20, 37, 4);
        let mut inputs = vec![random(&[tokens, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?];
        for (i, (out, input)) in [(inner, hidden), (inner, hidden), (hidden, inner)].into_iter().enumerate() {
            let shapes = [vec![out, input], vec![out], vec![r, input], vec![out, r]];
            for (j, shape) in shapes.iter().enumerate() {
                inputs.push(random(shape, (10 * i + j + 3) as u64, 0.5)?);
            }
        }
        for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 1. / 24.)] {
            let run = |t: &[Tensor]| {
                let norm = Some(Norm::Rms { weight: t[1].clone(), eps: 1e-5 });
                let weights = [2, 6, 10].map(|i| {
                    let lora = LoraWeights {
                        a: t[i + 2].clone(),
                        b: t[i + 3].clone(),
                        scale: 1.5,
                        dora_scale: None,
                        dropout: None,
                    };
                    Projection { bias: Some(&t[i + 1]), lora: vec![lora], ..Projection::dense(&t[i], precision) }
                });
                let block = MlpBlock { norm, residual: Some(&t[0]), ..MlpBlock::gated(weights, Activation::Silu) };
                assert!(!crate::is_fused(&t[0]) || Inputs::with_residual(&t[0], &block).is_some());
                mlp_block(&t[0], &block)
            };
            assert_matches_reference(&inputs.iter().collect::<Vec<_>>(), tolerance, run)?;
        }
        Ok(())
    }

    #[test]
    fn frozen_inputs_get_no_gradient() -> Result<()> {
        let (x, w, down) = (random(&[66, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?, random(&[4, 3], 3, 1.)?);
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
