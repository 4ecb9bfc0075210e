//! A gated feed-forward network in one operation: `down(activation(gate(x)) · up(x))`, with the norm before it and the
//! residual stream around it if it is half of a block.
//!
//! The two branches are what a network keeps most of for its backward. Here they are kept once, in the precision of the
//! products, and candle clears and adds no gradient but those of `x` and of the weights.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::activation::{Activation, gated_activation, gated_backward, gated_forward};
use crate::linear::{added, linear_residual, linear_with_precision};
use crate::matmul::{FEW_ROWS, How, Matrix, Precision, Rounded, mapped_product, product, product_into};
use crate::rms_norm::{epsilon, gradients, normed, rms_norm};
use crate::simd::zeros;
use crate::slice_op::{OnSlices, Operation};
use crate::uninit::written;

/// The weights of a gated feed-forward network.
#[derive(Debug, Clone, Copy)]
pub struct MlpWeights<'a> {
    /// Of the branch that is activated, `(inner, hidden)`.
    pub gate: &'a Tensor,
    /// Of the branch that it multiplies, `(inner, hidden)`.
    pub up: &'a Tensor,
    /// Of the result, `(hidden, inner)`.
    pub down: &'a Tensor,
}

/// `x + down(activation(gate(y)) · up(y))` with `y = rms_norm(x)`, the second half of a Llama block, or without a norm
/// `down(activation(gate(x)) · up(x))` alone.
///
/// `x` is `(…, hidden)`, and so is the result; `norm` is the weight of the norm `(hidden,)` and its epsilon. It equals
/// [`rms_norm`], [`linear_with_precision`], [`gated_activation`] and [`linear_residual`] one after the other, which is what runs where nothing trains.
pub fn mlp_block(
    x: &Tensor,
    norm: Option<(&Tensor, f64)>,
    weights: MlpWeights,
    activation: Activation,
    precision: Precision,
) -> Result<Tensor> {
    let MlpWeights { gate, up, down } = weights;
    let (inner, hidden) = gate.dims2()?;
    let fits = x.dims().last() == Some(&hidden)
        && up.dims() == gate.dims()
        && down.dims() == [hidden, inner]
        && norm.is_none_or(|(weight, _)| weight.dims() == [hidden]);
    if !fits {
        bail!(
            "mlp_block: x is {:?}, gate {:?}, up {:?}, down {:?}; they do not fit",
            x.dims(),
            gate.dims(),
            up.dims(),
            down.dims()
        );
    }
    let tensors: Vec<&Tensor> = [x, gate, up, down].into_iter().chain(norm.map(|(weight, _)| weight)).collect();
    let rows = x.elem_count() / hidden.max(1);
    if rows <= FEW_ROWS || !crate::is_differentiated(&tensors) {
        let y = norm.map_or_else(|| Ok(x.clone()), |(weight, eps)| rms_norm(x, weight, eps))?;
        let (gate, up) = crate::join(
            rows,
            || linear_with_precision(&y, gate, precision),
            || linear_with_precision(&y, up, precision),
        );
        let y = gated_activation(&gate?, &up?, activation)?;
        return if norm.is_some() {
            linear_residual(&y, down, x, precision)
        } else {
            linear_with_precision(&y, down, precision)
        };
    }
    let eps = norm.map(|(_, eps)| epsilon(eps));
    let norm = norm.map(|(weight, _)| weight.unsqueeze(0)).transpose()?;
    let params: Vec<&Tensor> = norm.iter().chain([gate, up]).collect();
    let params = Tensor::cat(&params, 0)?; // (1 + 2 inner, hidden), or without the 1
    let (x, down) = (x.contiguous()?, down.contiguous()?);
    let wants = [&x, &params, &down].map(Tensor::track_op);
    match precision {
        Precision::F32 => x.apply_op3(
            &params,
            &down,
            Operation(MlpBlock::<f32> { inner, eps, activation, wants, kept: OnceLock::new() }),
        ),
        Precision::Bf16 => x.apply_op3(
            &params,
            &down,
            Operation(MlpBlock::<bf16> { inner, eps, activation, wants, kept: OnceLock::new() }),
        ),
    }
}

struct MlpBlock<T> {
    inner: usize,
    /// Of the norm, if there is one.
    eps: Option<f32>,
    activation: Activation,
    /// Whether the gradients of `x`, of the parameters and of `down` are asked for.
    wants: [bool; 3],
    kept: OnceLock<Kept<T>>,
}

/// What the backward needs of n tokens.
struct Kept<T> {
    normed: Vec<T>, // (n, hidden)
    inner: Vec<T>,  // (n, 3 inner): the branches' product, and the branches
}

impl<T: Rounded> MlpBlock<T> {
    const HOW: How = How::all(T::PRECISION);

    /// Sizes, and the parameters of the norm and of the branches.
    fn parts<'a>(&self, x: &[f32], params: &'a [f32]) -> (usize, usize, &'a [f32], &'a [f32]) {
        let rows = 2 * self.inner + usize::from(self.eps.is_some());
        let hidden = params.len() / rows;
        let (norm, branches) = params.split_at(hidden * (rows - 2 * self.inner));
        (x.len() / hidden, hidden, norm, branches)
    }

    /// The product of the branches `(n, inner)`, of what is kept.
    fn gated<'a>(&self, kept: &'a [T], n: usize) -> Matrix<'a, T> {
        Matrix::with_stride(kept, n, self.inner, 3 * self.inner)
    }
}

impl<T: Rounded> OnSlices for MlpBlock<T> {
    const NAME: &'static str = "mlp_block";

    fn forward(&self, [x, params, down]: [&[f32]; 3]) -> Result<Vec<f32>> {
        let (n, hidden, norm, weight) = self.parts(x, params);
        let normed: Vec<T> = self.eps.map_or_else(|| rounded(x), |eps| normed(x, norm, eps));
        let weight = Matrix::new(weight, 2 * self.inner, hidden);
        let inner =
            mapped_product(Matrix::new(&normed, n, hidden), weight.t(), [3 * self.inner; 2], |_, branches, to| {
                let (gated, kept) = to.split_at_mut(self.inner);
                kept.copy_from_slice(branches);
                let (gate, up) = branches.split_at(self.inner);
                gated_forward(self.activation, gate, up, gated);
            });
        let down = Matrix::new(down, hidden, self.inner);
        let y = added(self.eps.map(|_| x), self.gated(&inner, n), down.t(), Self::HOW);
        match self.kept.set(Kept { normed, inner }) {
            Ok(()) => Ok(y),
            Err(_) => bail!("mlp_block: an operation is used once"),
        }
    }

    /// The gradients of `x`, of the parameters, and of `down`.
    fn backward(&self, [x, params, down]: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]> {
        let Some(Kept { normed, inner }) = self.kept.get() else {
            bail!("mlp_block: its backward came before its forward");
        };
        let (n, hidden, norm, weight) = self.parts(x, params);
        let dy_rows = Matrix::new(dy, n, hidden);
        let [wants_x, wants_params, wants_down] = self.wants;
        let d_down = wants_down.then(|| product(dy_rows.t(), self.gated(inner, n), Self::HOW));
        if !wants_x && !wants_params {
            return Ok([None, None, d_down]);
        }
        let down = Matrix::new(down, hidden, self.inner);
        let d_branches: Vec<T> = mapped_product(dy_rows, down, [2 * self.inner; 2], |token, d_gated, to| {
            T::widen_all(&inner[(3 * token + 1) * self.inner..][..to.len()], to);
            let (gate, up) = to.split_at_mut(self.inner);
            gated_backward(self.activation, gate, up, d_gated);
        });
        let d_branches = Matrix::new(&d_branches, n, 2 * self.inner);
        let mut d_params = zeros(if wants_params { params.len() } else { norm.len() });
        let (d_norm, d_weight) = d_params.split_at_mut(norm.len());
        if wants_params {
            product_into(d_branches.t(), Matrix::new(normed, n, hidden), d_weight, hidden, false, 1., Self::HOW);
        }
        let mut dx = product(d_branches, Matrix::new(weight, 2 * self.inner, hidden), Self::HOW);
        if let Some(eps) = self.eps {
            let (of_x, of_norm) = gradients(x, norm, &dx, eps, Some(dy));
            d_norm.copy_from_slice(&of_norm);
            dx = of_x;
        }
        Ok([wants_x.then_some(dx), wants_params.then_some(d_params), d_down])
    }
}

fn rounded<T: Rounded>(numbers: &[f32]) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let task = |(to, from): (&mut [_], _)| T::round(from, to);
    // SAFETY: there are as many numbers as places, and `round` writes each of them.
    #[allow(unsafe_code)]
    unsafe {
        written(numbers.len(), |to| to.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK)).for_each(task))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn it_equals_its_steps_in_f64() -> Result<()> {
        for (shape, inner) in [(vec![1, 7], 5), (vec![33, 20], 40), (vec![2, 9, 12], 17), (vec![0, 4], 3)] {
            let hidden = *shape.last().unwrap();
            let (x, norm) = (random(&shape, 1, 1.)?, random(&[hidden], 2, 1.)?);
            let [gate, up] = [3, 4].map(|seed| random(&[inner, hidden], seed, 1.));
            let (gate, up, down) = (gate?, up?, random(&[hidden, inner], 5, 1.)?);
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::Bf16, 1. / 32.)] {
                    let run = |t: &[Tensor]| {
                        let (norm, weights) = (t.get(4), MlpWeights { gate: &t[1], up: &t[2], down: &t[3] });
                        mlp_block(&t[0], norm.map(|norm| (norm, 1e-5)), weights, activation, precision)
                    };
                    assert_same_gradients(&[&x, &gate, &up, &down], tolerance, run)?;
                    assert_same_gradients(&[&x, &gate, &up, &down, &norm], tolerance, run)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_train_has_no_gradient() -> Result<()> {
        let (x, w, down) = (random(&[6, 4], 1, 1.)?, random(&[3, 4], 2, 1.)?, random(&[4, 3], 3, 1.)?);
        let vars = [&x, &w, &down].map(Var::from_tensor);
        let [x_var, w_var, down_var] = vars;
        let (x_var, w_var, down_var) = (x_var?, w_var?, down_var?);
        let run = |x: &Tensor, w: &Tensor, down: &Tensor| {
            let weights = MlpWeights { gate: w, up: w, down };
            mlp_block(x, None, weights, Activation::Silu, Precision::F32)?.sum_all()?.backward()
        };
        let grads = run(&x, &w, &down_var)?;
        assert!(grads.get(&down_var).is_some() && grads.get(&w).is_none() && grads.get(&x).is_none());
        let grads = run(&x, &w_var, &down)?;
        assert!(grads.get(&w_var).is_some() && grads.get(&down).is_none() && grads.get(&x).is_none());
        let grads = run(&x_var, &w, &down)?;
        assert!(grads.get(&x_var).is_some() && grads.get(&w).is_none() && grads.get(&down).is_none());
        let weights = MlpWeights { gate: &w, up: &w, down: &down };
        let wrong = MlpWeights { down: &w, ..weights };
        assert!(mlp_block(&x, None, wrong, Activation::Silu, Precision::F32).is_err());
        Ok(())
    }
}
