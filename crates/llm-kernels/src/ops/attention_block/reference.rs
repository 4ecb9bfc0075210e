//! The attention block as single operations, for all weights, dtypes and devices.

use candle_core::{Result, Tensor, bail};

use super::{AttentionBlock, AttentionHeads, HeadHook, QkNorm};
use crate::ops::attention::{attention, paged_attention};
use crate::ops::norm::apply_norm;
use crate::ops::projection::Projection;
use crate::ops::rotary::rope;

/// [`super::attention_block`].
pub fn attention_block(x: &Tensor, block: &AttentionBlock, hook: Option<&mut HeadHook>) -> Result<Tensor> {
    let AttentionBlock { params, mask, .. } = *block;
    let (q, k, v) = queries_keys_values(&apply_norm(block.norm.as_ref(), x)?, block)?;
    let y = match (block.cache, &mask.sequences, hook) {
        (Some(cache), Some(sequences), None) => {
            cache.pages.append(cache.tables, [&k, &v], sequences)?;
            paged_attention(&q, cache, params, mask)?
        }
        (Some(_), ..) => bail!("attention_block: a cache needs the sequences of the batch, and its heads are not read"),
        (None, _, hook) => {
            let y = attention(&q, &k, &v, params, mask)?;
            match hook {
                Some(hook) => hook(&AttentionHeads { q: &q, k: &k, v: &v, y: &y, params, mask })?,
                None => y,
            }
        }
    }; // (b, t, h, d)
    match &block.output_norm {
        Some(norm) => x + norm.forward(&block.o.forward(&y.flatten_from(2)?)?)?,
        None => block.o.forward_residual(&y, x),
    }
}

/// Rotated queries `(b, t, h, d)`, rotated keys and values `(b, t, g, d)` of the normed input `(b, t, hidden)`.
fn queries_keys_values(x: &Tensor, block: &AttentionBlock) -> Result<(Tensor, Tensor, Tensor)> {
    let ((b, t, _), d) = (x.dims3()?, block.head_dim.max(1));
    let (h, g) = (block.q.out_features()? / d, block.k.out_features()? / d);
    let (head_norms, whole_norms) = match &block.qk_norm {
        Some(QkNorm::Head(q, k)) => ([Some(q), Some(k)], [None; 2]),
        Some(QkNorm::Whole(q, k)) => ([None; 2], [Some(q), Some(k)]),
        None => ([None; 2], [None; 2]),
    };
    let joint = Projection::forward_joint([&block.q, &block.k, &block.v], x)?;
    let whole = |i: usize, projection: &Projection| match &joint {
        Some(all) => Ok(all[i].clone()),
        None => projection.forward(x),
    };
    let heads = |i: usize, projection: &Projection, heads: usize| match &joint {
        Some(all) => all[i].reshape((b, t, heads, d)),
        None => projection.forward_heads(x, heads, d),
    };
    let project = |i: usize, projection: &Projection, count: usize| {
        let y = match whole_norms[i] {
            Some(norm) => norm.forward(&whole(i, projection)?)?.reshape((b, t, count, d))?,
            None => apply_norm(head_norms[i], &heads(i, projection, count)?)?,
        };
        block.rotary.map_or_else(|| Ok(y.clone()), |rotary| rope(&y, rotary))
    };
    Ok((project(0, &block.q, h)?, project(1, &block.k, g)?, heads(2, &block.v, g)?))
}
