//! The attention half of a block in one operation: norm, queries, keys and values, their turning, attention, the output map
//! and the residual stream.
//!
//! Step by step candle would clear and add a whole gradient for each of eleven tensors. Here there are two, and what is only
//! multiplied again is kept in the precision of the products.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};
use half::bf16;

use crate::attention::{AttentionMask, AttentionParams, Core, Dims, Heads, HeadsMut, attention};
use crate::linear::{added, linear_reshaped, linear_residual};
use crate::matmul::{FEW_ROWS, How, Matrix, Precision, Rounded, mapped_product, product, product_into};
use crate::rms_norm::{epsilon, gradients, normed, rms_norm};
use crate::rotary::{RotaryTable, rope};
use crate::simd::zeros;
use crate::slice_op::{OnSlices, Operation};
use crate::uninit::{Places, written};

/// The weights of a self-attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeights<'a> {
    /// Of the queries, `(h·d, hidden)`.
    pub q: &'a Tensor,
    /// Of the keys, `(g·d, hidden)`.
    pub k: &'a Tensor,
    /// Of the values, `(g·d, hidden)`.
    pub v: &'a Tensor,
    /// Of the result, `(hidden, h·d)`.
    pub o: &'a Tensor,
}

/// `x + o(attention(rope(q(y)), rope(k(y)), v(y)))` with `y = rms_norm(x)`, the first half of a Llama block.
///
/// `x` is `(b, t, hidden)`, and so is the result; `norm` is the weight of the norm `(hidden,)` and its epsilon, `head_dim` is
/// `d`. All products are in the precision of the scores. It equals [`rms_norm`], [`linear_reshaped`], [`rope`], [`attention`] and
/// [`linear_residual`] one after the other, which is what runs where nothing trains or
/// keys are hidden.
pub fn attention_block(
    x: &Tensor,
    norm: (&Tensor, f64),
    weights: AttentionWeights,
    head_dim: usize,
    rotation: Option<&RotaryTable>,
    scores: AttentionParams,
    visible: &AttentionMask,
) -> Result<Tensor> {
    let ((b, t, hidden), d) = (x.dims3()?, head_dim.max(1));
    let AttentionWeights { q, k, v, o } = weights;
    let (h, g) = (q.dims2()?.0 / d, k.dims2()?.0 / d);
    let fits = norm.0.dims() == [hidden]
        && q.dims() == [h * d, hidden]
        && [k, v].iter().all(|w| w.dims() == [g * d, hidden])
        && o.dims() == [hidden, h * d];
    if !fits || rotation.is_some_and(|rotation| !rotation.fits(b * t, d)) {
        bail!(
            "attention_block: x is {:?}, the weights {:?}, {:?}, {:?} and {:?}, heads {head_dim}; they do not fit",
            x.dims(),
            q.dims(),
            k.dims(),
            v.dims(),
            o.dims()
        );
    }
    let shape = Dims { b, t, s: t, h, g, d }.checked(visible)?;
    let composed = visible.masked_keys.is_some();
    if composed || b * t <= FEW_ROWS || !crate::is_differentiated(&[x, norm.0, q, k, v, o]) {
        let precision = scores.precision;
        let y = rms_norm(x, norm.0, norm.1)?;
        let heads = |w: &Tensor, heads: usize| linear_reshaped(&y, w, &[b, t, heads, d], precision);
        let turned = |x: Tensor| rotation.map_or_else(|| Ok(x.clone()), |rotation| rope(&x, rotation));
        let mixed = attention(&turned(heads(q, h)?)?, &turned(heads(k, g)?)?, &heads(v, g)?, scores, visible)?;
        return linear_residual(&mixed, o, x, precision);
    }
    let params = Tensor::cat(&[&norm.0.unsqueeze(0)?, q, k, v], 0)?; // (1 + (h + 2 g) d, hidden)
    let (core, rotation, eps) = (Core { shape, scores, visible: visible.clone() }, rotation.cloned(), epsilon(norm.1));
    let (x, o) = (x.contiguous()?, o.contiguous()?);
    let wants = [&x, &params, &o].map(Tensor::track_op);
    match scores.precision {
        Precision::F32 => x.apply_op3(
            &params,
            &o,
            Operation(AttentionBlock::<f32> { core, rotation, eps, wants, kept: OnceLock::new() }),
        ),
        Precision::Bf16 => x.apply_op3(
            &params,
            &o,
            Operation(AttentionBlock::<bf16> { core, rotation, eps, wants, kept: OnceLock::new() }),
        ),
    }
}

struct AttentionBlock<T> {
    core: Core,
    rotation: Option<RotaryTable>,
    eps: f32,
    /// Whether the gradients of `x`, of the parameters and of `o` are asked for.
    wants: [bool; 3],
    kept: OnceLock<Kept<T>>,
}

/// What the backward needs; n is `b·t`.
struct Kept<T> {
    normed: Vec<T>,     // (n, hidden)
    heads: Vec<T>,      // (h + 2 g, n, d): queries and keys, turned, and values
    mixed: Vec<f32>,    // (n, h, d)
    log_sums: Vec<f32>, // (b, h, t)
}

impl<T: Rounded> AttentionBlock<T> {
    const HOW: How = How::all(T::PRECISION);

    /// Turns the queries and keys of a token; values stay as they are.
    fn turn(&self, token: usize, heads: &[f32], to: &mut [f32]) {
        let Dims { h, g, d, .. } = self.core.shape;
        let turning = self.rotation.as_ref().map_or(0, |_| (h + g) * d);
        if let Some(rotation) = &self.rotation {
            rotation.turn(token, d, &heads[..turning], &mut to[..turning]);
        }
        to[turning..].copy_from_slice(&heads[turning..]);
    }

    /// Where sequences, tokens and heads begin in `(n, heads, d)`.
    fn by_token(&self, heads: usize) -> [usize; 3] {
        let Dims { t, d, .. } = self.core.shape;
        [t * heads * d, heads * d, d]
    }

    /// The heads from `first` on of `(heads, n, d)`, where what a task reads lies together.
    fn by_head<'a>(&self, heads: &'a [T], first: usize) -> Heads<'a, T> {
        let Dims { b, t, d, .. } = self.core.shape;
        Heads::new(&heads[first * b * t * d..], [t * d, d, b * t * d], d)
    }

    fn inputs<'a>(&self, heads: &'a [T]) -> [Heads<'a, T>; 3] {
        let Dims { h, g, .. } = self.core.shape;
        [0, h, h + g].map(|first| self.by_head(heads, first))
    }
}

impl<T: Rounded> OnSlices for AttentionBlock<T> {
    const NAME: &'static str = "attention_block";

    fn forward(&self, [x, params, o]: [&[f32]; 3]) -> Result<Vec<f32>> {
        let Dims { b, t, h, g, d, .. } = self.core.shape;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let (norm, qkv) = params.split_at(hidden);
        let normed: Vec<T> = normed(x, norm, self.eps);
        let rows = Matrix::new(&normed, n, hidden);
        let qkv = Matrix::new(qkv, width, hidden);
        let heads = mapped_product(rows, qkv.t(), [width, d], |token, heads, to| self.turn(token, heads, to));
        let mut log_sums = Vec::new();
        // SAFETY: `forward` writes every row.
        #[allow(unsafe_code)]
        let mixed = unsafe {
            written(n * h * d, |mixed| {
                let mixed = HeadsMut::new(Places::new(mixed), self.by_token(h), 0, d);
                log_sums = self.core.forward(self.inputs(&heads), mixed);
            })
        };
        let y = added(Some(x), Matrix::new(&mixed, n, h * d), Matrix::new(o, hidden, h * d).t(), Self::HOW);
        match self.kept.set(Kept { normed, heads, mixed, log_sums }) {
            Ok(()) => Ok(y),
            Err(_) => bail!("attention_block: an operation is used once"),
        }
    }

    /// The gradients of `x`, of the parameters, and of `o`.
    fn backward(&self, [x, params, o]: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]> {
        let Some(Kept { normed, heads, mixed, log_sums }) = self.kept.get() else {
            bail!("attention_block: its backward came before its forward");
        };
        let Dims { b, t, h, g, d, .. } = self.core.shape;
        let (n, width) = (b * t, (h + 2 * g) * d);
        let hidden = x.len() / n;
        let (norm, qkv) = params.split_at(hidden);
        let dy_rows = Matrix::new(dy, n, hidden);
        let [wants_x, wants_params, wants_o] = self.wants;
        let d_o = wants_o.then(|| product(dy_rows.t(), Matrix::new(mixed, n, h * d), Self::HOW));
        if !wants_x && !wants_params {
            return Ok([None, None, d_o]);
        }
        let o = Matrix::new(o, hidden, h * d);
        let d_mixed: Vec<T> = mapped_product(dy_rows, o, [h * d, d], |_, row, to| to.copy_from_slice(row));
        let result = Heads::new(mixed, self.by_token(h), d);
        // SAFETY: the queries' heads, the keys' and the values' are all that there are, and `backward` writes every row of each.
        #[allow(unsafe_code)]
        let d_heads: Vec<T> = unsafe {
            written(n * width, |to| {
                let places = Places::new(to);
                let parts = [0, h, h + g].map(|first| HeadsMut::new(places, self.by_token(h + 2 * g), first, d));
                let (inputs, grad) = (self.inputs(heads), self.by_head(&d_mixed, 0));
                self.core.backward(inputs, result, grad, log_sums, parts, self.rotation.as_ref());
            })
        };
        drop(d_mixed);
        let d_heads = Matrix::new(&d_heads, n, width);
        let mut d_params = zeros(if wants_params { params.len() } else { hidden });
        let (d_norm, d_qkv) = d_params.split_at_mut(hidden);
        if wants_params {
            product_into(d_heads.t(), Matrix::new(normed, n, hidden), d_qkv, hidden, false, 1., Self::HOW);
        }
        let d_normed = product(d_heads, Matrix::new(qkv, width, hidden), Self::HOW);
        let (dx, of_norm) = gradients(x, norm, &d_normed, self.eps, Some(dy));
        d_norm.copy_from_slice(&of_norm);
        Ok([wants_x.then_some(dx), wants_params.then_some(d_params), d_o])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::rotary::RotaryFrequencies;
    use crate::testing::{assert_same_gradients_within, random};

    fn run(
        t: &[Tensor],
        d: usize,
        rotation: Option<&RotaryTable>,
        scores: AttentionParams,
        visible: &AttentionMask,
    ) -> Result<Tensor> {
        let weights = AttentionWeights { q: &t[2], k: &t[3], v: &t[4], o: &t[5] };
        attention_block(&t[0], (&t[1], 1e-5), weights, d, rotation, scores, visible)
    }

    #[test]
    fn it_equals_its_steps_in_f64() -> Result<()> {
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
            // Rows of packed documents: some begin in the middle.
            let first: Arc<[u32]> =
                (0..b * t).map(|token| if token % t > t / 3 { (t / 3) as u32 } else { 0 }).collect();
            for visible in [AttentionMask::default(), AttentionMask::from_window_starts(first)] {
                // A query that sees one key has no gradient: there the difference of two equal sums is left.
                for (precision, tolerance, zero) in [(Precision::F32, 5e-5, 1e-5), (Precision::Bf16, 1. / 16., 1e-4)] {
                    let scores = AttentionParams { precision, ..AttentionParams::for_head_dim(d) };
                    assert_same_gradients_within(&inputs, tolerance, zero, |t| {
                        run(t, d, Some(&rotation), scores, &visible)
                    })?;
                    assert_same_gradients_within(&inputs, tolerance, zero, |t| run(t, d, None, scores, &visible))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_an_error() -> Result<()> {
        let (x, norm, w) = (random(&[1, 3, 4], 1, 1.)?, random(&[4], 2, 1.)?, random(&[4, 4], 3, 1.)?);
        let fits = [&x, &norm, &w, &w, &w, &w].map(Clone::clone);
        let run = |t: &[Tensor], d, rotation: Option<&RotaryTable>| {
            run(t, d, rotation, AttentionParams::for_head_dim(2), &AttentionMask::default())
        };
        assert!(run(&fits, 2, None).is_ok());
        assert!(run(&fits, 3, None).is_err(), "four numbers are no heads of three");
        assert!(
            run(&fits, 2, Some(&RotaryFrequencies::new(2, 1e4).table(&[0, 1]))).is_err(),
            "two positions for three tokens"
        );
        let mut wide = fits.clone();
        wide[3] = random(&[6, 4], 3, 1.)?;
        assert!(run(&wide, 2, None).is_err(), "two heads cannot share three");
        Ok(())
    }
}
