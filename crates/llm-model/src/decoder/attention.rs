//! The attention sub-layer of a block: its weights. `llm_kernels::attention_block` computes it.

use candle_core::Tensor;
use llm_kernels::{AttentionBlock, AttentionHeads, AttentionParams};

use super::context::{ForwardContext, RopeKind, TokenContext};
use crate::config::QkNorm;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weight_path::WeightPath;
use crate::{ModelConfig, PagedRows, Result};

/// Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762) with grouped key/value heads (Ainslie et al. 2023, arXiv
/// 2305.13245), with its norms.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    norm: Option<Norm>,
    q_proj: Linear, // (h·d, hidden)
    k_proj: Linear, // (g·d, hidden)
    v_proj: Linear, // (g·d, hidden)
    o_proj: Linear, // (hidden, h·d)
    qk_norm: Option<(QkNorm, Norm, Norm)>,
    output_norm: Option<Norm>,
    params: AttentionParams,
    head_dim: usize,
    rope: RopeKind,
    sliding: bool,
    /// The index in the decoder, and in the KV cache.
    layer: usize,
}

impl Attention {
    /// The attention of the block with the weights `w`.
    pub(super) fn new(config: &ModelConfig, w: &WeightPath, layer: usize) -> Result<Self> {
        let attention = w.pp("self_attn");
        let linear = |name: &str| Linear::new(&attention.pp(name));
        let norm = |name: Option<&str>| name.map(|name| Norm::new(config, &w.pp(name))).transpose();
        let names = config.norm_placement.names();
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
        let head_norm = |name: &str| Norm::new(config, &attention.pp(name));
        let qk_norm = |kind| -> Result<_> { Ok((kind, head_norm("q_norm")?, head_norm("k_norm")?)) };
        Ok(Self {
            norm: norm(names.attention_in)?,
            q_proj,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            o_proj: linear("o_proj")?,
            qk_norm: config.qk_norm.map(qk_norm).transpose()?,
            output_norm: norm(names.attention_out)?,
            params: AttentionParams { scale, soft_cap: config.attn_logit_softcapping, precision },
            head_dim: config.head_dim,
            rope,
            sliding,
            layer,
        })
    }

    /// `x` plus the attention output, `(b, t, hidden)`.
    pub(super) fn forward(&self, x: &Tensor, context: &mut ForwardContext) -> Result<Tensor> {
        let block = self.block(&context.tokens, context.cache)?;
        let Some(inspection) = context.inspection.as_mut() else {
            return Ok(llm_kernels::attention_block(x, &block, None)?);
        };
        let mut hook = |heads: &AttentionHeads| inspection.layer(self.layer, heads, &self.o_proj);
        Ok(llm_kernels::attention_block(x, &block, Some(&mut hook))?)
    }

    fn block<'a>(&'a self, tokens: &'a TokenContext, cache: Option<PagedRows<'a>>) -> Result<AttentionBlock<'a>> {
        let qk_norm = |(kind, q, k): &(QkNorm, Norm, Norm)| -> Result<llm_kernels::QkNorm> {
            Ok(match kind {
                QkNorm::Head => llm_kernels::QkNorm::Head(q.kernel()?, k.kernel()?),
                QkNorm::Whole => llm_kernels::QkNorm::Whole(q.kernel()?, k.kernel()?),
            })
        };
        let projection = |linear: &'a Linear| linear.projection(tokens.dropout);
        Ok(AttentionBlock {
            norm: self.norm.as_ref().map(Norm::kernel).transpose()?,
            q: projection(&self.q_proj)?,
            k: projection(&self.k_proj)?,
            v: projection(&self.v_proj)?,
            o: projection(&self.o_proj)?,
            qk_norm: self.qk_norm.as_ref().map(qk_norm).transpose()?,
            output_norm: self.output_norm.as_ref().map(Norm::kernel).transpose()?,
            head_dim: self.head_dim,
            rotary: tokens.rotary(self.rope),
            params: self.params,
            mask: tokens.mask(self.sliding),
            cache: cache.map(|rows| rows.layer(self.layer)),
        })
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.qk_norm.iter().flat_map(|(_, q_norm, k_norm)| [q_norm, k_norm]);
        let norms = norms.chain(&self.norm).chain(&self.output_norm);
        linears.into_iter().flat_map(Linear::tensors).chain(norms.flat_map(Norm::tensors))
    }
}
