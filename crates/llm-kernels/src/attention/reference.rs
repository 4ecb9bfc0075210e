//! Attention composed of candle's operations, for every dtype and device: the oracle of the fused path, and the one that looks at
//! weights and hides keys. All weights `(b, h, t, s)` are in memory.
//!
//! What is infinite or NaN is taken out before it is multiplied and put back where a query sees it: 0 times infinity is NaN.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{AttentionMask, AttentionParams, Dims};

/// [`super::attention`].
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scores: AttentionParams,
    visible: &AttentionMask,
) -> Result<Tensor> {
    let dims = Dims::of(q, k, v, visible)?;
    let weights = attention_weights(q, k, scores, visible)?; // (b, h, t, s)
    let v = repeat_heads(v, dims.h / dims.g)?; // (b, h, s, d)
    let y = match broken(&v)? {
        None => weights.matmul(&v)?,
        Some(broken) => {
            let y = weights.matmul(&without(&v, &broken)?)?;
            let seen =
                mask(visible, dims, v.device())?.to_dtype(v.dtype())?.broadcast_as(weights.shape())?.contiguous()?;
            let seen = seen.matmul(&broken.to_dtype(v.dtype())?)?.gt(0.)?; // (b, h, t, d)
            (&y * put_into(&seen, &y.ones_like()?)?)?
        }
    };
    y.transpose(1, 2)?.contiguous()
}

/// The weights of [`super::attention`] themselves, `(b, h, t, s)`, for those who want to look at them; rows sum to one.
pub fn attention_weights(q: &Tensor, k: &Tensor, scores: AttentionParams, visible: &AttentionMask) -> Result<Tensor> {
    let dims = Dims::of(q, k, k, visible)?;
    let Dims { b, t, s, h, g, .. } = dims;
    let q = q.transpose(1, 2)?.contiguous()?; // (b, h, t, d)
    let k = repeat_heads(k, h / g)?; // (b, h, s, d)
    let mask = mask(visible, dims, q.device())?.broadcast_as((b, h, t, s))?;
    let (broken_q, broken_k) = (broken(&q)?, broken(&k)?);
    let [q, k] = [(q, &broken_q), (k, &broken_k)].map(|(x, broken)| match broken {
        Some(broken) => without(&x, broken),
        None => Ok(x),
    });
    let (q, k) = (q?, k?);
    let AttentionParams { scale, soft_cap, .. } = scores;
    let scores = (q.matmul(&k.t()?)? * scale)?; // (b, h, t, s)
    let scores = match soft_cap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let low = Tensor::full(-1e30f32, (b, h, t, s), q.device())?.to_dtype(q.dtype())?;
    let mut scores = mask.where_cond(&scores, &low)?;
    let rows = |broken: Option<Tensor>| broken.map(|broken| broken.max_keepdim(D::Minus1)).transpose();
    for broken in [rows(broken_q)?, rows(broken_k)?.map(|rows| rows.t()).transpose()?].into_iter().flatten() {
        let seen = (broken.broadcast_as((b, h, t, s))? * &mask)?;
        scores = put_into(&seen, &scores)?;
    }
    let weights = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let weights = (weights * mask.to_dtype(q.dtype())?)?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    // A row that sees nothing has sum 0: divide by 1 there, and it stays zero.
    let sum = sum.eq(0.)?.where_cond(&sum.ones_like()?, &sum)?;
    weights.broadcast_div(&sum)
}

/// Which keys each query sees, `(b, 1, t, s)`: 1 or 0.
fn mask(visible: &AttentionMask, Dims { b, t, s, .. }: Dims, device: &Device) -> Result<Tensor> {
    let mut mask = Vec::with_capacity(b * t * s);
    for (row, i) in (0..b).flat_map(|row| (0..t).map(move |i| (row, i))) {
        let (start, end) = visible.range(row, i, t, s);
        mask.extend((0..s).map(|j| u8::from(start <= j && j < end && !visible.hides(row, j))));
    }
    Tensor::from_vec(mask, (b, 1, t, s), device)
}

/// `(b, s, g, d)` to `(b, g * times, s, d)`: each key/value head serves `times` query heads that stand together.
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, s, g, d) = x.dims4()?;
    x.transpose(1, 2)?.unsqueeze(2)?.broadcast_as((b, g, times, s, d))?.contiguous()?.reshape((b, g * times, s, d))
}

/// Which numbers are infinite or NaN, 1 or 0, if any is.
fn broken(x: &Tensor) -> Result<Option<Tensor>> {
    let broken = (x.detach() * 0.)?.ne(0.)?;
    let any = broken.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? > 0.;
    Ok(any.then_some(broken))
}

/// `x` with zeros in place of what is broken.
fn without(x: &Tensor, broken: &Tensor) -> Result<Tensor> {
    broken.where_cond(&x.zeros_like()?, x)
}

/// `x` with NaN where `seen` is 1.
fn put_into(seen: &Tensor, x: &Tensor) -> Result<Tensor> {
    let nan = Tensor::full(f32::NAN, x.shape(), x.device())?.to_dtype(x.dtype())?;
    seen.where_cond(&nan, x)
}
