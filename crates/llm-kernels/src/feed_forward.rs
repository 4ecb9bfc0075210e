//! A gated feed-forward network in one operation: `down(activation(gate(x)) · up(x))`, with the norm before it and the
//! residual stream around it if it is half of a block.
//!
//! The two branches are what a network keeps most of for its backward. Here they are kept once, in the precision of the
//! products, and candle clears and adds no gradient but those of `x` and of the weights.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::activation::{Activation, gated, gated_backward, gated_forward};
use crate::linear::{added, linear_add, linear_in};
use crate::matmul::{How, Matrix, Precision, Rounded, product, product_into};
use crate::norm::{cpu, gradients, normed, rms_norm};
use crate::simd::{contiguous, zeros};

/// The weights of a gated feed-forward network.
#[derive(Debug, Clone, Copy)]
pub struct GatedWeights<'a> {
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
/// [`rms_norm`], [`linear_in`], [`gated`] and [`linear_add`] one after the other.
pub fn feed_forward(
    x: &Tensor,
    norm: Option<(&Tensor, f64)>,
    weights: GatedWeights,
    activation: Activation,
    precision: Precision,
) -> Result<Tensor> {
    let GatedWeights { gate, up, down } = weights;
    let (inner, hidden) = gate.dims2()?;
    let fits = x.dims().last() == Some(&hidden)
        && up.dims() == gate.dims()
        && down.dims() == [hidden, inner]
        && norm.is_none_or(|(weight, _)| weight.dims() == [hidden]);
    if !fits {
        bail!(
            "feed_forward: x is {:?}, gate {:?}, up {:?}, down {:?}; they do not fit",
            x.dims(),
            gate.dims(),
            up.dims(),
            down.dims()
        );
    }
    let mut tensors = [x, gate, up, down].into_iter().chain(norm.map(|(weight, _)| weight));
    if x.elem_count() == 0 || !tensors.all(crate::is_fused) {
        let y = norm.map_or_else(|| Ok(x.clone()), |(weight, eps)| rms_norm(x, weight, eps))?;
        let y = gated(&linear_in(&y, gate, precision)?, &linear_in(&y, up, precision)?, activation)?;
        return if norm.is_some() { linear_add(&y, down, x, precision) } else { linear_in(&y, down, precision) };
    }
    let eps = norm.map(|(_, eps)| eps as f32);
    let norm = norm.map(|(weight, _)| weight.unsqueeze(0)).transpose()?;
    let params: Vec<&Tensor> = norm.iter().chain([gate, up]).collect();
    let params = Tensor::cat(&params, 0)?; // (1 + 2 inner, hidden), or without the 1
    let (x, down) = (x.contiguous()?, down.contiguous()?);
    let wants = [&x, &params, &down].map(Tensor::track_op);
    match precision {
        Precision::F32 => {
            x.apply_op3(&params, &down, FeedForward::<f32> { inner, eps, activation, wants, kept: OnceLock::new() })
        }
        Precision::Bf16 => {
            x.apply_op3(&params, &down, FeedForward::<bf16> { inner, eps, activation, wants, kept: OnceLock::new() })
        }
    }
}

struct FeedForward<T> {
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
    normed: Vec<T>,   // (n, hidden)
    branches: Vec<T>, // (n, 2 inner)
    gated: Vec<T>,    // (n, inner)
}

/// Tokens that one task takes.
const TOKENS: usize = 16;

impl<T: Rounded> FeedForward<T> {
    const HOW: How = How::all(T::PRECISION);

    /// Sizes, and the parameters of the norm and of the branches.
    fn parts<'a>(&self, x: &[f32], params: &'a [f32]) -> (usize, usize, &'a [f32], &'a [f32]) {
        let rows = 2 * self.inner + usize::from(self.eps.is_some());
        let hidden = params.len() / rows;
        let (norm, branches) = params.split_at(hidden * (rows - 2 * self.inner));
        (x.len() / hidden, hidden, norm, branches)
    }

    /// The product of the branches, and the branches as they are kept.
    fn gated(&self, branches: Vec<f32>, n: usize) -> (Vec<T>, Vec<T>) {
        let inner = self.inner;
        let mut gated: Vec<T> = zeros(n * inner);
        let mut rounded: Vec<T> = zeros(if T::PRECISION == Precision::F32 { 0 } else { branches.len() });
        let mut keeping: Vec<&mut [T]> = rounded.chunks_mut(2 * inner * TOKENS).collect();
        keeping.resize_with(n.div_ceil(TOKENS), Default::default);
        let tasks = gated.par_chunks_mut(inner * TOKENS).zip(branches.par_chunks(2 * inner * TOKENS)).zip(keeping);
        tasks.for_each(|((gated, branches), rounded)| {
            let mut product = vec![0f32; inner];
            for (gated, row) in gated.chunks_exact_mut(inner).zip(branches.chunks_exact(2 * inner)) {
                let (gate, up) = row.split_at(inner);
                gated_forward(self.activation, gate, up, &mut product);
                T::round(&product, gated);
            }
            if !rounded.is_empty() {
                T::round(branches, rounded);
            }
        });
        (gated, T::kept(branches, rounded))
    }

    fn forward(&self, x: &[f32], params: &[f32], down: &[f32]) -> Result<Vec<f32>> {
        let (n, hidden, norm, weight) = self.parts(x, params);
        let normed: Vec<T> = self.eps.map_or_else(|| rounded(x), |eps| normed(x, norm, eps));
        let weight = Matrix::new(weight, 2 * self.inner, hidden);
        let branches = product(Matrix::new(&normed, n, hidden), weight.t(), Self::HOW);
        let (gated, branches) = self.gated(branches, n);
        let down = Matrix::new(down, hidden, self.inner);
        let residual = self.eps.map(|_| x);
        let y = added(residual, Matrix::new(&gated, n, self.inner), down.t(), Self::HOW);
        match self.kept.set(Kept { normed, branches, gated }) {
            Ok(()) => Ok(y),
            Err(_) => bail!("feed_forward: an operation is used once"),
        }
    }

    /// The gradients of the branches `(n, 2 inner)` from that of their product.
    fn of_branches(&self, branches: &[T], d_gated: &[f32]) -> Vec<T> {
        let inner = self.inner;
        let mut gradients: Vec<T> = zeros(branches.len());
        let tasks = gradients.par_chunks_mut(2 * inner * TOKENS).zip(branches.par_chunks(2 * inner * TOKENS));
        tasks.zip(d_gated.par_chunks(inner * TOKENS)).for_each(|((gradients, branches), d_gated)| {
            let mut row = vec![0f32; 2 * inner];
            let rows = gradients.chunks_exact_mut(2 * inner).zip(branches.chunks_exact(2 * inner));
            for ((gradient, branches), d_gated) in rows.zip(d_gated.chunks_exact(inner)) {
                T::widen_all(branches, &mut row);
                let (gate, up) = row.split_at_mut(inner);
                gated_backward(self.activation, gate, up, d_gated);
                T::round(&row, gradient);
            }
        });
        gradients
    }

    /// The gradients of `x`, of the parameters, and of `down`.
    fn backward(&self, x: &[f32], params: &[f32], down: &[f32], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]> {
        let Some(Kept { normed, branches, gated }) = self.kept.get() else {
            bail!("feed_forward: its backward came before its forward");
        };
        let (n, hidden, norm, weight) = self.parts(x, params);
        let dy_rows = Matrix::new(dy, n, hidden);
        let [wants_x, wants_params, wants_down] = self.wants;
        let d_down = wants_down.then(|| product(dy_rows.t(), Matrix::new(gated, n, self.inner), Self::HOW));
        if !wants_x && !wants_params {
            return Ok([None, None, d_down]);
        }
        let d_gated = product(dy_rows, Matrix::new(down, hidden, self.inner), Self::HOW);
        let d_branches = self.of_branches(branches, &d_gated);
        drop(d_gated);
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
    let mut rounded = zeros(numbers.len());
    rounded.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK)).for_each(|(to, from)| T::round(from, to));
    rounded
}

impl<T: Rounded> CustomOp3 for FeedForward<T> {
    fn name(&self) -> &'static str {
        "feed_forward"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ps: &CpuStorage,
        pl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(contiguous(xs, xl)?, contiguous(ps, pl)?, contiguous(ws, wl)?)?;
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        down: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ps, pl)) = (x.storage_and_layout(), params.storage_and_layout());
        let ((ws, wl), (ds, dl)) = (down.storage_and_layout(), dy.storage_and_layout());
        let [dx, d_params, d_down] = self.backward(cpu(&xs, xl)?, cpu(&ps, pl)?, cpu(&ws, wl)?, cpu(&ds, dl)?)?;
        let tensor = |data: Option<Vec<f32>>, like: &Tensor| {
            data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
        };
        Ok((tensor(dx, x)?, tensor(d_params, params)?, tensor(d_down, down)?))
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
                        let (norm, weights) = (t.get(4), GatedWeights { gate: &t[1], up: &t[2], down: &t[3] });
                        feed_forward(&t[0], norm.map(|norm| (norm, 1e-5)), weights, activation, precision)
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
            let weights = GatedWeights { gate: w, up: w, down };
            feed_forward(x, None, weights, Activation::Silu, Precision::F32)?.sum_all()?.backward()
        };
        let grads = run(&x, &w, &down_var)?;
        assert!(grads.get(&down_var).is_some() && grads.get(&w).is_none() && grads.get(&x).is_none());
        let grads = run(&x, &w_var, &down)?;
        assert!(grads.get(&w_var).is_some() && grads.get(&down).is_none() && grads.get(&x).is_none());
        let grads = run(&x_var, &w, &down)?;
        assert!(grads.get(&x_var).is_some() && grads.get(&w).is_none() && grads.get(&down).is_none());
        let weights = GatedWeights { gate: &w, up: &w, down: &down };
        let wrong = GatedWeights { down: &w, ..weights };
        assert!(feed_forward(&x, None, wrong, Activation::Silu, Precision::F32).is_err());
        Ok(())
    }
}
