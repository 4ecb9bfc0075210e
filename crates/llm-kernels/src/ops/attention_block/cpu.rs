//! Fused attention block: RMSNorm, query, key and value projections, rotary embedding, attention, output projection
//! and the residual connection, as one operation.
//!
//! As separate operations, candle would zero and accumulate a full gradient for each of eleven tensors; here for two.
//! The saved tensors have the precision of the matmuls.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::AttentionBlock;
use crate::cpu::gemm::{FEW_ROWS, GemmElement, GemmOptions, Matrix, Precision, matmul, matmul_epilogue, matmul_into};
use crate::cpu::rows::zeros;
use crate::cpu::simd::f32_epsilon;
use crate::cpu::slice_op::{SliceCustomOp, SliceOp};
use crate::cpu::uninit::write_heads;
use crate::ops::attention::{Dims, FlashAttention, GroupWriters, Heads};
use crate::ops::linear::matmul_residual;
use crate::ops::projection::Projection;
use crate::ops::rms_norm::{rms_norm_backward, rms_norm_rows};
use crate::ops::rotary::RotaryTable;

/// The weights of a block that can be one operation.
pub struct Inputs<'a> {
    norm: &'a Tensor, // (hidden,)
    eps: f64,
    q: &'a Tensor, // (h·d, hidden)
    k: &'a Tensor, // (g·d, hidden)
    v: &'a Tensor, // (g·d, hidden)
    o: &'a Tensor, // (hidden, h·d)
}

impl<'a> Inputs<'a> {
    /// The weights, if the block is trained, has no other parts than these, and `x` has more than a few rows.
    pub fn of(x: &Tensor, block: &'a AttentionBlock) -> Option<Self> {
        let AttentionBlock { mask, .. } = *block;
        let others = block.qk_norm.is_some() || block.output_norm.is_some() || block.cache.is_some();
        if others || mask.masked_keys.is_some() || mask.sequences.is_some() {
            return None;
        }
        let weight = |projection: &Projection<'a>| projection.plain().map(|(weight, _)| weight);
        let (norm, eps) = block.norm.as_ref()?.rms()?;
        let (q, k, v, o) = (weight(&block.q)?, weight(&block.k)?, weight(&block.v)?, weight(&block.o)?);
        let rows = x.elem_count().checked_div(*x.dims().last()?)?;
        let fused = rows > FEW_ROWS && crate::is_differentiated(&[x, norm, q, k, v, o]);
        fused.then_some(Self { norm, eps, q, k, v, o })
    }
}

/// [`super::attention_block`] as one operation. All matmuls have the precision of `block.params`.
pub fn fused(x: &Tensor, inputs: &Inputs, block: &AttentionBlock) -> Result<Tensor> {
    let ((b, t, hidden), d) = (x.dims3()?, block.head_dim.max(1));
    let Inputs { norm, eps, q, k, v, o } = *inputs;
    let AttentionBlock { params, mask, rotary, .. } = *block;
    let (h, g) = (q.dims2()?.0 / d, k.dims2()?.0 / d);
    let fits = norm.dims() == [hidden]
        && q.dims() == [h * d, hidden]
        && [k, v].iter().all(|w| w.dims() == [g * d, hidden])
        && o.dims() == [hidden, h * d];
    if !fits || rotary.is_some_and(|rotary| !rotary.fits(b * t, d)) {
        bail!(
            "attention_block: x is {:?}, the weights {:?}, {:?}, {:?} and {:?}, head_dim {d}; these do not match",
            x.dims(),
            q.dims(),
            k.dims(),
            v.dims(),
            o.dims()
        );
    }
    let dims = Dims { b, t, s: t, h, g, d }.checked(mask)?;
    let norm_qkv = Tensor::cat(&[&norm.unsqueeze(0)?, q, k, v], 0)?; // (1 + (h + 2 g) d, hidden)
    let (flash, rotation, eps) =
        (FlashAttention { dims, params, mask: mask.clone() }, rotary.cloned(), f32_epsilon(eps));
    let (x, o) = (x.contiguous()?, o.contiguous()?);
    let needs_grad = [&x, &norm_qkv, &o].map(Tensor::track_op);
    match params.precision {
        Precision::F32 => x.apply_op3(
            &norm_qkv,
            &o,
            SliceCustomOp(FusedAttention::<f32> { flash, rotation, eps, needs_grad, saved: OnceLock::new() }),
        ),
        Precision::Bf16 => x.apply_op3(
            &norm_qkv,
            &o,
            SliceCustomOp(FusedAttention::<bf16> { flash, rotation, eps, needs_grad, saved: OnceLock::new() }),
        ),
    }
}

struct FusedAttention<T> {
    flash: FlashAttention,
    rotation: Option<RotaryTable>,
    eps: f32,
    /// Whether `x`, the weights of norm, queries, keys and values, and `o` need a gradient.
    needs_grad: [bool; 3],
    saved: OnceLock<SavedTensors<T>>,
}

/// Tensors saved for the backward; n is `b·t`.
struct SavedTensors<T> {
    normed: Vec<T>,     // (n, hidden)
    heads: Vec<T>,      // (h + 2 g, n, d): rotated queries, rotated keys, values
    attn_out: Vec<f32>, // (n, h, d)
    lse: Vec<f32>,      // (b, h, t)
}

/// Bytes that a fused attention block saves for its backward, apart from its inputs and its result: for hidden states
/// `(tokens, hidden)`, and query and key/value heads `[h, g]` of `d` elements.
pub fn saved_bytes(tokens: usize, hidden: usize, [h, g]: [usize; 2], d: usize, precision: Precision) -> usize {
    let heads = (h + 2 * g) * d;
    let saved_tensors = precision.size_in_bytes() * (hidden + heads) + 4 * (h * d + h); // of a token
    let norm_qkv = 4 * (1 + heads) * hidden;
    tokens * saved_tensors + norm_qkv
}

impl<T: GemmElement> FusedAttention<T> {
    const GEMM_OPTIONS: GemmOptions = GemmOptions::all_threads(T::PRECISION);

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

impl<T: GemmElement> SliceOp for FusedAttention<T> {
    const NAME: &'static str = "attention_block";

    fn forward(&self, [x, norm_qkv, o]: [&[f32]; 3]) -> Result<Vec<f32>> {
        let Dims { b, t, h, g, d, .. } = self.flash.dims;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let (norm, qkv) = norm_qkv.split_at(hidden);
        let normed: Vec<T> = rms_norm_rows(x, norm, self.eps);
        let rows = Matrix::new(&normed, n, hidden);
        let qkv = Matrix::new(qkv, width, hidden);
        let heads = matmul_epilogue(rows, qkv.t(), [width, d], |token, heads, to| self.rotate(token, heads, to));
        let inputs = self.inputs(&heads);
        let (attn_out, lse) = self.flash.forward(|b, head, out| self.flash.forward_head(inputs, b, head, out));
        let y = matmul_residual(
            Some(x),
            Matrix::new(&attn_out, n, h * d),
            Matrix::new(o, hidden, h * d).t(),
            Self::GEMM_OPTIONS,
        );
        match self.saved.set(SavedTensors { normed, heads, attn_out, lse }) {
            Ok(()) => Ok(y),
            Err(_) => bail!("attention_block: an operation runs only once"),
        }
    }

    /// The gradients of `x`, of the weights of norm, queries, keys and values, and of `o`.
    fn backward(&self, [x, norm_qkv, o]: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]> {
        let Some(SavedTensors { normed, heads, attn_out, lse }) = self.saved.get() else {
            bail!("attention_block: backward ran before forward");
        };
        let Dims { b, t, h, g, d, .. } = self.flash.dims;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let (norm, qkv) = norm_qkv.split_at(hidden);
        let dy_rows = Matrix::new(dy, n, hidden);
        let [needs_dx, needs_d_norm_qkv, needs_d_o] = self.needs_grad;
        let d_o = needs_d_o.then(|| matmul(dy_rows.t(), Matrix::new(attn_out, n, h * d), Self::GEMM_OPTIONS));
        if !needs_dx && !needs_d_norm_qkv {
            return Ok([None, None, d_o]);
        }
        let o = Matrix::new(o, hidden, h * d);
        let d_attn_out: Vec<T> = matmul_epilogue(dy_rows, o, [h * d, d], |_, row, to| to.copy_from_slice(row));
        let result = Heads::new(attn_out, self.by_token(h), d);
        let d_heads: Vec<T> = write_heads(&vec![t; b], h + 2 * g, d, |to| {
            let (mut parts, mut to) = ([const { Vec::new() }; 3], to.into_iter());
            for (part, heads) in (0..b).flat_map(|_| [h, g, g].into_iter().enumerate()) {
                parts[part].extend(to.by_ref().take(heads));
            }
            let [q, k, v] = parts;
            let gradients = GroupWriters::collect(&self.flash.dims, q, k, v);
            let (inputs, grad) = (self.inputs(heads), self.by_head(&d_attn_out, 0));
            self.flash.backward(inputs, result, grad, lse, gradients, self.rotation.as_ref());
        });
        drop(d_attn_out);
        let d_heads = Matrix::new(&d_heads, n, width);
        let mut d_norm_qkv = zeros(if needs_d_norm_qkv { norm_qkv.len() } else { hidden });
        let (d_norm, d_qkv) = d_norm_qkv.split_at_mut(hidden);
        if needs_d_norm_qkv {
            matmul_into(d_heads.t(), Matrix::new(normed, n, hidden), d_qkv, hidden, false, 1., Self::GEMM_OPTIONS);
        }
        let d_normed = matmul(d_heads, Matrix::new(qkv, width, hidden), Self::GEMM_OPTIONS);
        let (dx, d_weight) = rms_norm_backward(x, norm, &d_normed, self.eps, Some(dy));
        d_norm.copy_from_slice(&d_weight);
        Ok([needs_dx.then_some(dx), needs_d_norm_qkv.then_some(d_norm_qkv), d_o])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::attention_block;
    use super::*;
    use crate::ops::attention::{AttentionMask, AttentionParams};
    use crate::ops::norm::Norm;
    use crate::ops::rotary::RotaryFrequencies;
    use crate::testing::{assert_matches_reference_within, random};

    fn run(
        t: &[Tensor],
        d: usize,
        rotary: Option<&RotaryTable>,
        params: AttentionParams,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let projections = [2, 3, 4, 5].map(|i| Projection::dense(&t[i], params.precision));
        let norm = Some(Norm::Rms { weight: t[1].clone(), eps: 1e-5 });
        let block = AttentionBlock { norm, rotary, ..AttentionBlock::new(projections, d, params, mask) };
        attention_block(&t[0], &block, None)
    }

    #[test]
    fn the_fused_block_equals_the_f64_reference() -> Result<()> {
        for (b, t, h, g, d, hidden) in
            [(1, 1, 1, 1, 2, 3), (2, 9, 4, 2, 6, 10), (1, 130, 2, 2, 8, 33), (3, 50, 3, 1, 4, 7)]
        {
            let (x, norm) = (random(&[b, t, hidden], 1, 1.)?, random(&[hidden], 2, 1.)?);
            let weight = |rows: usize, cols: usize, seed| random(&[rows, cols], seed, 0.5);
            let (q, k) = (weight(h * d, hidden, 3)?, weight(g * d, hidden, 4)?);
            let (v, o) = (weight(g * d, hidden, 5)?, weight(hidden, h * d, 6)?);
            let inputs = [&x, &norm, &q, &k, &v, &o];
            let positions: Vec<u32> = (0..b * t).map(|token| (token % t) as u32).collect();
            let rotation = RotaryFrequencies::from_inverse_frequencies(vec![1.; d / 2 - usize::from(d > 4)], 1.25)
                .table(&positions);
            // Packed documents: some rows start in the middle.
            let first: Arc<[u32]> =
                (0..b * t).map(|token| if token % t > t / 3 { (t / 3) as u32 } else { 0 }).collect();
            for mask in [AttentionMask::default(), AttentionMask::from_window_starts(first)] {
                // The gradient of a query with one key is exactly 0; in f32 the difference of two equal sums remains.
                for (precision, tolerance, zero) in [(Precision::F32, 5e-5, 1e-5), (Precision::Bf16, 1. / 16., 1e-4)] {
                    let params = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
                    assert_matches_reference_within(&inputs, tolerance, zero, |t| {
                        run(t, d, Some(&rotation), params, &mask)
                    })?;
                    assert_matches_reference_within(&inputs, tolerance, zero, |t| run(t, d, None, params, &mask))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_errors() -> Result<()> {
        let (x, norm, w) = (random(&[1, 3, 4], 1, 1.)?, random(&[4], 2, 1.)?, random(&[4, 4], 3, 1.)?);
        let fits = [&x, &norm, &w, &w, &w, &w].map(Clone::clone);
        let run = |t: &[Tensor], d, rotation: Option<&RotaryTable>| {
            run(t, d, rotation, AttentionParams::for_head_dim(2), &AttentionMask::default())
        };
        assert!(run(&fits, 2, None).is_ok());
        assert!(run(&fits, 3, None).is_err(), "the weights have no heads of three elements");
        assert!(
            run(&fits, 2, Some(&RotaryFrequencies::new(2, 1e4).table(&[0, 1]))).is_err(),
            "two positions for three tokens"
        );
        let mut wide = fits.clone();
        wide[3] = random(&[6, 4], 3, 1.)?;
        assert!(run(&wide, 2, None).is_err(), "two query heads cannot share three key/value heads");
        Ok(())
    }
}
