//! Self-attention with grouped key/value heads.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size.

use candle_core::Tensor;
use llm_kernels::{AttentionParams, AttentionWeights, attention, attention_weights, join, rope};

use super::block::RopeKind;
use super::context::ForwardContext;
use crate::config::QkNorm;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::{ModelConfig, Params, Result};

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
    /// The index in the decoder, and in the KV cache.
    layer: usize,
    pub(super) rope: RopeKind,
    pub(super) sliding: bool,
    h: usize,
    g: usize,
    pub(super) d: usize,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, params: &Params, layer: usize) -> Result<Self> {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let linear = |part: &str| Linear::new(params, &name(part));
        let norm = |part: &str| Norm::new(config, params, &name(part));
        let sliding = config.window_of(layer).is_some();
        let rope = match config.rope_local_theta {
            _ if config.learned_positions || config.layers_without_rope.contains(&layer) => RopeKind::None,
            Some(_) if sliding => RopeKind::Local,
            _ => RopeKind::Global,
        };
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
            layer,
            rope,
            sliding,
            h: config.num_attention_heads,
            g: config.num_key_value_heads,
            d: config.head_dim,
        })
    }

    /// The attention output `(b, t, h, d)` before `o_proj`.
    pub(super) fn forward(&self, x: &Tensor, context: &mut ForwardContext) -> Result<Tensor> {
        let (rotary, mask) = (context.tokens.rotary(self.rope), context.tokens.mask(self.sliding));
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
        let (k, v) = match (context.cache, context.tokens.sequences()) {
            (Some(cache), Some(sequences)) => cache.append(self.layer, (&k, &v), sequences)?, // (b, s, g, d)
            _ => (k, v),
        };
        if let Some(attentions) = &mut context.attentions {
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
