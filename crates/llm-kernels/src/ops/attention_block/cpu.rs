//! Fused attention block: RMSNorm, query, key and value projections, rotary embedding, attention, output projection
//! and the residual connection, as one operation.
//!
//! As separate operations, candle would zero and accumulate a full gradient for each of eleven tensors; here for two.
//! The saved tensors have the precision of the matmuls.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::AttentionBlock;
use super::qk_norm::FusedQkNorm;
use crate::cpu::cpu_slice;
use crate::cpu::gemm::{GemmElement, Matrix, Precision, matmul_epilogue};
use crate::cpu::node::{self, FusedOp, ParamGradients};
use crate::cpu::rows::zeros;
use crate::cpu::simd::f32_epsilon;
use crate::cpu::uninit::write_heads;
use crate::ops::attention::{Dims, FlashAttention, GroupWriters, Heads};
use crate::ops::fused_projection::{FusedProjection, LowRank, MIN_ROWS, with_weights};
use crate::ops::rms_norm::{rms_norm_backward, rms_norm_rows};
use crate::ops::rotary::RotaryTable;

/// The parts of a block that can be one operation.
pub struct Inputs {
    norm: (Tensor, f32), // (hidden,), epsilon
    q: FusedProjection,  // (h·d, hidden)
    k: FusedProjection,  // (g·d, hidden)
    v: FusedProjection,  // (g·d, hidden)
    o: FusedProjection,  // (hidden, h·d)
    qk_norm: Option<FusedQkNorm>,
}

impl Inputs {
    /// The parts, if something is trained, the block has no other parts than these, and `x` has more than a few rows.
    pub fn of(x: &Tensor, block: &AttentionBlock) -> Option<Self> {
        let AttentionBlock { mask, .. } = *block;
        let others = block.output_norm.is_some() || block.cache.is_some();
        let rows = x.elem_count().checked_div(*x.dims().last()?)?;
        if others || mask.masked_keys.is_some() || mask.sequences.is_some() || rows < MIN_ROWS || !crate::is_fused(x) {
            return None;
        }
        let (weight, eps) = block.norm.as_ref()?.rms().filter(|(weight, _)| crate::is_fused(weight))?;
        let norm = (weight.contiguous().ok()?, f32_epsilon(eps));
        let qk_norm = match &block.qk_norm {
            Some(norms) => Some(FusedQkNorm::of(norms)?),
            None => None,
        };
        let [q, k, v, o] = [&block.q, &block.k, &block.v, &block.o].map(FusedProjection::of);
        let inputs = Self { norm, q: q?, k: k?, v: v?, o: o?, qk_norm };
        let fused = crate::is_trained(x, &inputs.params());
        fused.then_some(inputs)
    }

    fn params(&self) -> Vec<&Tensor> {
        let mut params = self.before_attention();
        params.extend(self.o.params());
        params
    }

    /// The parameters of everything before attention.
    fn before_attention(&self) -> Vec<&Tensor> {
        let projections = [&self.q, &self.k, &self.v].into_iter().flat_map(FusedProjection::params);
        projections.chain([&self.norm.0]).chain(self.qk_norm.iter().flat_map(FusedQkNorm::params)).collect()
    }
}

/// [`super::attention_block`] as one operation. All matmuls have the precision of `block.params`.
pub fn fused(x: &Tensor, inputs: Inputs, block: &AttentionBlock) -> Result<Tensor> {
    let ((b, t, hidden), d) = (x.dims3()?, block.head_dim.max(1));
    let Inputs { norm, q, k, v, o, qk_norm } = &inputs;
    let AttentionBlock { params, mask, rotary, .. } = *block;
    let (h, g) = (q.shape().0 / d, k.shape().0 / d);
    let fits = norm.0.dims() == [hidden]
        && q.shape() == (h * d, hidden)
        && [k, v].iter().all(|w| w.shape() == (g * d, hidden))
        && o.shape() == (hidden, h * d)
        && [q, k, v, o].into_iter().all(FusedProjection::is_consistent)
        && qk_norm.as_ref().is_none_or(|norm| norm.fits([h, g], d));
    if !fits || rotary.is_some_and(|rotary| !rotary.fits(b * t, d)) {
        bail!(
            "attention_block: x is {:?}, the weights {:?}, {:?}, {:?} and {:?}, head_dim {d}; these do not match",
            x.dims(),
            q.shape(),
            k.shape(),
            v.shape(),
            o.shape()
        );
    }
    let dims = Dims { b, t, s: t, h, g, d }.checked(mask)?;
    let (flash, rotation) = (FlashAttention { dims, params, mask: mask.clone() }, rotary.cloned());
    let params: Vec<Tensor> = inputs.params().into_iter().cloned().collect();
    let params: Vec<&Tensor> = params.iter().collect();
    match flash.params.precision {
        Precision::F32 => {
            node::apply(FusedAttention::<f32> { inputs, flash, rotation, saved: Mutex::default() }, x, &params)
        }
        Precision::Bf16 => {
            node::apply(FusedAttention::<bf16> { inputs, flash, rotation, saved: Mutex::default() }, x, &params)
        }
    }
}

struct FusedAttention<T> {
    inputs: Inputs,
    flash: FlashAttention,
    rotation: Option<RotaryTable>,
    saved: Mutex<Option<SavedTensors<T>>>,
}

/// Tensors saved for the backward; n is `b·t`.
struct SavedTensors<T> {
    normed: Vec<T>, // (n, hidden)
    /// Rotated queries, rotated keys, values, and with query/key norms the queries and keys before these:
    /// `(h + 2 g, n, d)` or `(2 h + 3 g, n, d)`.
    heads: Vec<T>,
    attn_out: Vec<f32>, // (n, h, d)
    lse: Vec<f32>,      // (b, h, t)
    /// Of `q`, `k`, `v` and `o`.
    low: [LowRank; 4],
}

/// Bytes that a fused attention block saves for its backward, apart from its inputs, its result and the low-rank
/// activations of adapters: for hidden states `(tokens, hidden)`, and query and key/value heads `[h, g]` of `d` elements,
/// with or without norms of queries and keys.
pub fn saved_bytes(
    tokens: usize,
    hidden: usize,
    [h, g]: [usize; 2],
    d: usize,
    qk_norm: bool,
    precision: Precision,
) -> usize {
    let heads = (h + 2 * g + if qk_norm { h + g } else { 0 }) * d;
    tokens * (precision.size_in_bytes() * (hidden + heads) + 4 * (h * d + h))
}

impl<T: GemmElement> FusedAttention<T> {
    /// Applies the rotary embedding to the queries and keys of a token and copies its values.
    fn rotate(&self, token: usize, heads: &[f32], to: &mut [f32]) {
        let Dims { h, g, d, .. } = self.flash.dims;
        let rotated = self.rotation.as_ref().map_or(0, |_| (h + g) * d);
        if let Some(rotation) = &self.rotation {
            rotation.rotate(token, d, &heads[..rotated], &mut to[..rotated]);
        }
        to[rotated..].copy_from_slice(&heads[rotated..]);
    }

    /// The strides of sequences, tokens and heads in `(n, heads, d)`.
    fn by_token(&self, heads: usize) -> [usize; 3] {
        let Dims { t, d, .. } = self.flash.dims;
        [t * heads * d, heads * d, d]
    }

    /// The heads from `first` on of `(heads, n, d)`; in this layout the data of a task is contiguous.
    fn by_head<'a>(&self, heads: &'a [T], first: usize) -> Heads<'a, T> {
        let Dims { b, t, d, .. } = self.flash.dims;
        Heads::new(&heads[first * b * t * d..], [t * d, d, b * t * d], d)
    }

    fn inputs<'a>(&self, heads: &'a [T]) -> [Heads<'a, T>; 3] {
        let Dims { h, g, .. } = self.flash.dims;
        [0, h, h + g].map(|first| self.by_head(heads, first))
    }
}

impl<T: GemmElement> FusedOp for FusedAttention<T> {
    const NAME: &'static str = "attention_block";

    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let Dims { b, t, h, g, d, .. } = self.flash.dims;
        let Inputs { norm: (norm, eps), q, k, v, o, qk_norm } = &self.inputs;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let normed: Vec<T> = {
            let (storage, layout) = norm.storage_and_layout();
            rms_norm_rows(x, cpu_slice(&storage, layout)?, *eps)
        };
        let rows = Matrix::new(&normed, n, hidden);
        let ((q_low, q_add), (k_low, k_add)) = (q.additions(rows)?, k.additions(rows)?);
        let (v_low, v_add) = v.additions(rows)?;
        let qk_weights = qk_norm.as_ref().map(FusedQkNorm::weights).transpose()?;
        let before_norm = if qk_norm.is_some() { (h + g) * d } else { 0 };
        let heads: Vec<T> = with_weights::<T, 3, _>([q, k, v], |weights| {
            Ok(matmul_epilogue(rows, &weights, [width + before_norm, d], |token, heads, to| {
                q_add.apply(token, &mut heads[..h * d]);
                k_add.apply(token, &mut heads[h * d..][..g * d]);
                v_add.apply(token, &mut heads[(h + g) * d..]);
                let (to, saved) = to.split_at_mut(width);
                if let Some(weights) = &qk_weights {
                    saved.copy_from_slice(&heads[..before_norm]);
                    weights.forward(h * d, saved, &mut heads[..before_norm]);
                }
                self.rotate(token, heads, to);
            }))
        })?;
        drop((q_add, k_add, v_add));
        let inputs = self.inputs(&heads);
        let (attn_out, lse) = self.flash.forward(|b, head, out| self.flash.forward_head(inputs, b, head, out));
        let (y, o_low) = o.forward::<T, f32>(Matrix::new(&attn_out, n, h * d), Some(x))?;
        let saved = SavedTensors { normed, heads, attn_out, lse, low: [q_low, k_low, v_low, o_low] };
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(y)
    }

    fn backward(&self, x: &[f32], dy: &[f32], needs_dx: bool, gradients: &ParamGradients) -> Result<Option<Vec<f32>>> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(SavedTensors { normed, heads, attn_out, lse, low: [q_low, k_low, v_low, o_low] }) = saved else {
            bail!("attention_block: backward runs once, after forward");
        };
        let Dims { b, t, h, g, d, .. } = self.flash.dims;
        let Inputs { norm: (norm, eps), q, k, v, o, qk_norm } = &self.inputs;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let dy_rows = Matrix::new(dy, n, hidden);
        let rows = Matrix::new(&attn_out, n, h * d);
        let d_low = o.backward_params::<T, _, _>(rows, dy_rows, &o_low, gradients)?;
        if !needs_dx && !self.inputs.before_attention().into_iter().any(Tensor::track_op) {
            return Ok(None);
        }
        let update = o.backward_additions::<T>(&d_low, n)?;
        let d_attn_out: Vec<T> = with_weights::<T, 1, _>([o], |[o]| {
            Ok(matmul_epilogue(dy_rows, &[o.t()], [h * d, d], |token, row, to| {
                update.apply(token, row);
                to.copy_from_slice(row);
            }))
        })?;
        drop(update);
        let result = Heads::new(&attn_out, self.by_token(h), d);
        let mut d_heads: Vec<T> = write_heads(&vec![t; b], h + 2 * g, d, |to| {
            let (mut parts, mut to) = ([const { Vec::new() }; 3], to.into_iter());
            for (part, heads) in (0..b).flat_map(|_| [h, g, g].into_iter().enumerate()) {
                parts[part].extend(to.by_ref().take(heads));
            }
            let [q, k, v] = parts;
            let gradients = GroupWriters::collect(&self.flash.dims, q, k, v);
            let (inputs, grad) = (self.inputs(&heads), self.by_head(&d_attn_out, 0));
            self.flash.backward(inputs, result, grad, &lse, gradients, self.rotation.as_ref());
        });
        drop((d_attn_out, attn_out));
        if let Some(qk_norm) = qk_norm {
            d_heads = qk_norm.backward(&heads[width * n..], &d_heads, [h, g], d, gradients)?;
        }
        drop(heads);
        let (rows, mut d_normed, mut first) = (Matrix::new(&normed, n, hidden), zeros(n * hidden), 0);
        for (projection, low) in [(q, q_low), (k, k_low), (v, v_low)] {
            let (out, _) = projection.shape();
            let dy = Matrix::with_stride(&d_heads[first..], n, out, width);
            let d_low = projection.backward_params::<T, _, _>(rows, dy, &low, gradients)?;
            projection.backward_input::<T, _>(dy, &d_low, &mut d_normed, first > 0)?;
            first += out;
        }
        let (storage, layout) = norm.storage_and_layout();
        let (dx, d_norm) = rms_norm_backward(x, cpu_slice(&storage, layout)?, &d_normed, *eps, Some(dy));
        gradients.add(norm, || d_norm)?;
        Ok(needs_dx.then_some(dx))
    }
}
