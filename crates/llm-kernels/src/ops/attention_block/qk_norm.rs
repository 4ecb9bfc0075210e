//! The norms of queries and keys inside a fused attention block.

use candle_core::{Result, Tensor};

use super::QkNorm;
use crate::cpu::cpu_slice;
use crate::cpu::node::ParamGradients;
use crate::cpu::rounding::Rounded;
use crate::cpu::simd::f32_epsilon;
use crate::cpu::uninit::par_rows;
use crate::ops::norm::Norm;
use crate::ops::rms_norm::{rms_norm_row, rms_norm_row_backward};

/// `RMSNorm`s of queries and of keys. A weight `(d,)` is applied to each head, `(h·d,)` to all heads of a token.
pub struct FusedQkNorm([(Tensor, f32); 2]);

impl FusedQkNorm {
    /// The norms, if they are `RMSNorm`s with weights in f32 in CPU memory.
    pub fn of(norms: &QkNorm) -> Option<Self> {
        let (QkNorm::Head(q, k) | QkNorm::Whole(q, k)) = norms;
        let norm = |norm: &Norm| {
            let (weight, eps) = norm.rms().filter(|(weight, _)| crate::is_fused(weight))?;
            Some((weight.contiguous().ok()?, f32_epsilon(eps)))
        };
        Some(Self([norm(q)?, norm(k)?]))
    }

    /// The weights.
    pub fn params(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter().map(|(weight, _)| weight)
    }

    /// Whether the weights are for `h` query and `g` key heads of `d` elements.
    pub fn fits(&self, heads: [usize; 2], d: usize) -> bool {
        self.params().zip(heads).all(|(weight, heads)| weight.dims() == [d] || weight.dims() == [heads * d])
    }

    /// The values of the weights.
    pub fn weights(&self) -> Result<QkWeights> {
        let [q, k] = &self.0;
        let values = |(weight, eps): &(Tensor, f32)| -> Result<_> {
            let (storage, layout) = weight.storage_and_layout();
            Ok((cpu_slice(&storage, layout)?.to_vec(), *eps))
        };
        Ok(QkWeights([values(q)?, values(k)?]))
    }

    /// The gradients of the heads before the norms `(n, h + 2 g, d)` from those after them; `before` is `(h + g, n, d)`.
    pub fn backward<T: Rounded>(
        &self,
        before: &[T],
        d_heads: &[T],
        [h, g]: [usize; 2],
        d: usize,
        gradients: &ParamGradients,
    ) -> Result<Vec<T>> {
        let QkWeights([q, k]) = self.weights()?;
        let (width, n) = ((h + 2 * g) * d, d_heads.len() / ((h + 2 * g) * d).max(1));
        let (qk, lens) = ((h + g) * d, [q.0.len(), k.0.len()]);
        // The gradients of the weights, the heads of a token before the norms, and their gradients after the norms.
        let init = || (lens.map(|len| vec![0f32; len]), vec![0f32; qk], vec![0f32; width]);
        let (result, states) = par_rows(d_heads.len(), width, init, |(d_weights, x, dy), token, dx| {
            for head in 0..h + g {
                T::widen_slice(&before[(head * n + token) * d..][..d], &mut x[head * d..][..d]);
            }
            T::widen_slice(&d_heads[token * width..][..width], dy);
            dx[qk..].copy_from_slice(&dy[qk..]);
            for ((part, (weight, eps)), d_weight) in [0..h * d, h * d..qk].into_iter().zip([&q, &k]).zip(d_weights) {
                for start in part.step_by(weight.len()) {
                    let row = start..start + weight.len();
                    rms_norm_row_backward([&x[row.clone()], weight, &dy[row.clone()]], *eps, d_weight, &mut dx[row]);
                }
            }
        });
        for (i, param) in self.params().enumerate() {
            gradients.add(param, || {
                let mut sum = vec![0f32; lens[i]];
                for (d_weights, ..) in &states {
                    sum.iter_mut().zip(&d_weights[i]).for_each(|(sum, x)| *sum += x);
                }
                sum
            })?;
        }
        Ok(result)
    }
}

/// The weights and epsilons of queries and of keys.
pub struct QkWeights([(Vec<f32>, f32); 2]);

impl QkWeights {
    /// Normalises the queries, `queries` elements, and the keys of a token.
    pub fn forward(&self, queries: usize, x: &[f32], y: &mut [f32]) {
        let (([qx, kx], (qy, ky)), [q, k]) = ((<[_; 2]>::from(x.split_at(queries)), y.split_at_mut(queries)), &self.0);
        rms_norm_row(qx, &q.0, q.1, qy);
        rms_norm_row(kx, &k.0, k.1, ky);
    }
}
