//! Attention composed of candle operations, for every dtype and device: the reference of the fused path. It also
//! returns weights and supports masked keys. All weights `(b, h, t, s)` are in memory.
//!
//! Infinite and NaN values are removed before a matmul and restored where a query attends to them, because 0 times
//! infinity is NaN.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::{AttentionMask, AttentionParams, Dims, Sequences};

/// [`super::attention`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, params: AttentionParams, mask: &AttentionMask) -> Result<Tensor> {
    let dims = Dims::of(q, k, v, mask)?;
    if let Some(sequences) = &mask.sequences {
        return ragged(q, k, v, params, mask, sequences);
    }
    let weights = attention_weights(q, k, params, mask)?; // (b, h, t, s)
    let v = repeat_heads(v, dims.h / dims.g)?; // (b, h, s, d)
    let y = match non_finite(&v)? {
        None => weights.matmul(&v)?,
        Some(non_finite) => {
            let y = weights.matmul(&zeroed(&v, &non_finite)?)?;
            let attended = mask_tensor(mask, dims, v.device())?
                .to_dtype(v.dtype())?
                .broadcast_as(weights.shape())?
                .contiguous()?;
            let attended = attended.matmul(&non_finite.to_dtype(v.dtype())?)?.gt(0.)?; // (b, h, t, d)
            (&y * with_nan_where(&attended, &y.ones_like()?)?)?
        }
    };
    let y = match without_keys(mask, dims, y.device())? {
        None => y,
        Some(empty) => zeroed(&y, &empty.broadcast_as(y.shape())?)?, // no gradient passes, not even NaN
    };
    y.transpose(1, 2)?.contiguous()
}

/// Attention of a ragged batch: each sequence alone.
fn ragged(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    params: AttentionParams,
    mask: &AttentionMask,
    sequences: &Sequences,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for b in 0..sequences.len() {
        let (queries, keys) = (sequences.queries(b), sequences.keys(b));
        if !queries.is_empty() {
            let q = q.narrow(1, queries.start, queries.len())?;
            let [k, v] = [k, v].map(|x| x.narrow(0, b, 1)?.narrow(1, 0, keys));
            outputs.push(attention(&q, &k?, &v?, params, &mask.alone(b, sequences))?);
        }
    }
    if outputs.is_empty() { q.zeros_like() } else { Tensor::cat(&outputs, 1) }
}

/// The weights of [`super::attention`], `(b, h, t, s)`, for inspection; each row sums to one. It is an error if the batch
/// is ragged.
pub fn attention_weights(q: &Tensor, k: &Tensor, params: AttentionParams, mask: &AttentionMask) -> Result<Tensor> {
    let dims = Dims::of(q, k, k, mask)?;
    if mask.sequences.is_some() {
        bail!("attention_weights: the batch is ragged; give each sequence alone");
    }
    let Dims { b, t, s, h, g, .. } = dims;
    let q = q.transpose(1, 2)?.contiguous()?; // (b, h, t, d)
    let k = repeat_heads(k, h / g)?; // (b, h, s, d)
    let allowed = mask_tensor(mask, dims, q.device())?.broadcast_as((b, h, t, s))?;
    let (bad_q, bad_k) = (non_finite(&q)?, non_finite(&k)?);
    let [q, k] = [(q, &bad_q), (k, &bad_k)].map(|(x, non_finite)| match non_finite {
        Some(non_finite) => zeroed(&x, non_finite),
        None => Ok(x),
    });
    let (q, k) = (q?, k?);
    let AttentionParams { scale, soft_cap, .. } = params;
    let scores = (q.matmul(&k.t()?)? * scale)?; // (b, h, t, s)
    let scores = match soft_cap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let low = Tensor::full(-1e30f32, (b, h, t, s), q.device())?.to_dtype(q.dtype())?;
    let mut scores = allowed.where_cond(&scores, &low)?;
    let rows = |non_finite: Option<Tensor>| non_finite.map(|non_finite| non_finite.max_keepdim(D::Minus1)).transpose();
    for non_finite in [rows(bad_q)?, rows(bad_k)?.map(|rows| rows.t()).transpose()?].into_iter().flatten() {
        let attended = (non_finite.broadcast_as((b, h, t, s))? * &allowed)?;
        scores = with_nan_where(&attended, &scores)?;
    }
    let weights = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let weights = (weights * allowed.to_dtype(q.dtype())?)?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    // A row without keys has sum 0: dividing by 1 keeps it zero.
    let sum = sum.eq(0.)?.where_cond(&sum.ones_like()?, &sum)?;
    weights.broadcast_div(&sum)
}

/// The mask as a tensor `(b, 1, t, s)` of 1 (attend) and 0.
fn mask_tensor(mask: &AttentionMask, Dims { b, t, s, .. }: Dims, device: &Device) -> Result<Tensor> {
    let mut allowed = Vec::with_capacity(b * t * s);
    for (row, i) in (0..b).flat_map(|row| (0..t).map(move |i| (row, i))) {
        let (start, end) = mask.range(row, i, t, s);
        allowed.extend((0..s).map(|j| u8::from(start <= j && j < end && !mask.is_masked(row, j))));
    }
    Tensor::from_vec(allowed, (b, 1, t, s), device)
}

/// A mask `(b, 1, t, 1)` of the queries that attend to no key, or `None` if there are none.
fn without_keys(mask: &AttentionMask, Dims { b, t, s, .. }: Dims, device: &Device) -> Result<Option<Tensor>> {
    let queries = (0..b).flat_map(|row| (0..t).map(move |i| (row, i)));
    let empty = queries.map(|(row, i)| {
        let (start, end) = mask.range(row, i, t, s);
        u8::from((start..end).all(|j| mask.is_masked(row, j)))
    });
    let empty: Vec<u8> = empty.collect();
    if empty.contains(&1) { Tensor::from_vec(empty, (b, 1, t, 1), device).map(Some) } else { Ok(None) }
}

/// `(b, s, g, d)` to `(b, g * times, s, d)`: each key/value head serves `times` consecutive query heads.
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, s, g, d) = x.dims4()?;
    x.transpose(1, 2)?.unsqueeze(2)?.broadcast_as((b, g, times, s, d))?.contiguous()?.reshape((b, g * times, s, d))
}

/// A mask (1 or 0) of the infinite and NaN values, or `None` if there are none.
fn non_finite(x: &Tensor) -> Result<Option<Tensor>> {
    let non_finite = (x.detach() * 0.)?.ne(0.)?;
    let any = non_finite.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? > 0.;
    Ok(any.then_some(non_finite))
}

/// `x` with zeros at the masked values.
fn zeroed(x: &Tensor, non_finite: &Tensor) -> Result<Tensor> {
    non_finite.where_cond(&x.zeros_like()?, x)
}

/// `x` with NaN where `attended` is 1.
fn with_nan_where(attended: &Tensor, x: &Tensor) -> Result<Tensor> {
    let nan = Tensor::full(f32::NAN, x.shape(), x.device())?.to_dtype(x.dtype())?;
    attended.where_cond(&nan, x)
}
