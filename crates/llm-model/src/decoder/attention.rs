//! Self-attention with grouped key/value heads.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size.

use candle_core::Tensor;
use llm_kernels::{
    AttentionMask, AttentionParams, AttentionWeights, RotaryTable, attention, attention_weights, join, rope,
};

use crate::config::QkNorm;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::{KvCache, ModelConfig, Params, Result};

/// Multi-head self-attention, `softmax(q · kᵀ · scale + mask) · v` (Vaswani et al. 2017, arXiv 1706.03762), with grouped
/// key/value heads (Ainslie et al. 2023, arXiv 2305.13245).
#[derive(Debug, Clone)]
pub(super) struct Attention {
    q_proj: Linear,            // (h·d, hidden)
    k_proj: Linear,            // (g·d, hidden)
    v_proj: Linear,            // (g·d, hidden)
    pub(super) o_proj: Linear, // (hidden, h·d)
    qk_norm: Option<(QkNorm, Norm, Norm)>,
    pub(super) params: AttentionParams,
    h: usize,
    g: usize,
    pub(super) d: usize,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Self> {
        let linear = |part: &str| Linear::new(params, &format!("{name}.{part}"));
        let norm = |part: &str| Norm::new(config, params, &format!("{name}.{part}"));
        let scale = config.query_pre_attn_scalar.unwrap_or(config.head_dim as f64).powf(-0.5);
        let q_proj = linear("q_proj")?;
        // Attention has the precision of the projections.
        let precision = q_proj.activation_precision();
        Ok(Self {
            q_proj,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            o_proj: linear("o_proj")?,
            qk_norm: match config.qk_norm {
                Some(kind) => Some((kind, norm("q_norm")?, norm("k_norm")?)),
                None => None,
            },
            params: AttentionParams { scale, soft_cap: config.attn_logit_softcapping, precision },
            h: config.num_attention_heads,
            g: config.num_key_value_heads,
            d: config.head_dim,
        })
    }

    /// The attention output `(b, t, h, d)` before `o_proj`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rotary: Option<&RotaryTable>,
        mask: &AttentionMask,
        cache: Option<(&KvCache, usize)>,
        output_attentions: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let project = |projection: &Linear, heads: usize, norm: Option<(QkNorm, &Norm)>| -> Result<Tensor> {
            let y = match norm {
                None => projection.apply_to_heads(x, heads, self.d)?,
                Some((QkNorm::Head, norm)) => norm.apply(&projection.apply_to_heads(x, heads, self.d)?)?,
                Some((QkNorm::Whole, norm)) => norm.apply(&projection.apply(x)?)?.reshape((b, t, heads, self.d))?,
            };
            Ok(match rotary {
                Some(rotary) => rope(&y, rotary)?,
                None => y,
            })
        };
        let norms = self.qk_norm.as_ref();
        let queries = || project(&self.q_proj, self.h, norms.map(|(kind, norm, _)| (*kind, norm)));
        let keys = || project(&self.k_proj, self.g, norms.map(|(kind, _, norm)| (*kind, norm)));
        let ((q, k), v) = join(b * t, || join(b * t, queries, keys), || self.v_proj.apply_to_heads(x, self.g, self.d));
        let (q, k, v) = (q?, k?, v?); // (b, t, h, d), (b, t, g, d), (b, t, g, d)
        let (k, v) = match cache {
            Some((cache, layer)) => cache.append(layer, &k, &v)?, // (b, s, g, d)
            None => (k, v),
        };
        if let Some(attentions) = output_attentions {
            attentions.push(attention_weights(&q, &k, self.params, mask)?);
        }
        Ok(attention(&q, &k, &v, self.params, mask)?)
    }

    /// The weights, if they are dense and there are no biases, norms or adapters.
    pub(super) fn plain_weights(&self) -> Option<AttentionWeights<'_>> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let [q, k, v, o] = linears.map(|linear| linear.plain_weight().map(|(weight, _)| weight));
        if self.qk_norm.is_some() { None } else { Some(AttentionWeights { q: q?, k: k?, v: v?, o: o? }) }
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.qk_norm.iter().flat_map(|(_, q_norm, k_norm)| [q_norm, k_norm]);
        linears.into_iter().flat_map(Linear::tensors).chain(norms.flat_map(Norm::tensors))
    }
}
