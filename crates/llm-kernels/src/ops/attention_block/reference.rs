//! The attention block as single operations, for all weights, dtypes and devices.

use candle_core::{Result, Tensor};

use super::{AttentionBlock, AttentionHeads, HeadHook, QkNorm};
use crate::ops::attention::attention;
use crate::ops::kv_append::kv_append;
use crate::ops::norm::{Norm, apply_norm};
use crate::ops::projection::Projection;
use crate::ops::rotary::rope;

/// [`super::attention_block`].
pub fn attention_block(x: &Tensor, block: &AttentionBlock, hook: Option<&mut HeadHook>) -> Result<Tensor> {
    let AttentionBlock { params, mask, .. } = *block;
    let (q, k, v) = queries_keys_values(&apply_norm(block.norm.as_ref(), x)?, block)?;
    let (k, v) = match (block.cache, &mask.sequences) {
        (Some((keys, values)), Some(sequences)) => {
            kv_append(keys, &k, sequences)?;
            kv_append(values, &v, sequences)?;
            let cached = |all: &Tensor| all.narrow(2, 0, sequences.max_keys())?.transpose(1, 2);
            (cached(keys)?, cached(values)?) // (b, s, g, d)
        }
        _ => (k, v),
    };
    let y = attention(&q, &k, &v, params, mask)?; // (b, t, h, d)
    let y = match hook {
        Some(hook) => hook(&AttentionHeads { q: &q, k: &k, v: &v, y: &y, params, mask })?,
        None => y,
    };
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
    let project = |projection: &Projection, heads: usize, head_norm: Option<&Norm>, whole_norm: Option<&Norm>| {
        let y = match whole_norm {
            Some(norm) => norm.forward(&projection.forward(x)?)?.reshape((b, t, heads, d))?,
            None => apply_norm(head_norm, &projection.forward_heads(x, heads, d)?)?,
        };
        block.rotary.map_or_else(|| Ok(y.clone()), |rotary| rope(&y, rotary))
    };
    let queries = || project(&block.q, h, head_norms[0], whole_norms[0]);
    let keys = || project(&block.k, g, head_norms[1], whole_norms[1]);
    let values = || block.v.forward_heads(x, g, d);
    let ((q, k), v) = crate::join(b * t, || crate::join(b * t, queries, keys), values);
    Ok((q?, k?, v?))
}
