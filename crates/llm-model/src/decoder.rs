//! The decoder: embedding, blocks of attention and feed-forward, norm.
//!
//! Letters: b batch, t tokens, h query heads, g key/value heads, d head size.

use candle_core::{DType, Tensor};
use llm_kernels::{Rotary, Rotation, Scores, Visible, attention, attention_weights, linear, rms_norm, rope, swiglu};

use crate::{Batch, KvCache, ModelConfig, Params, Result};

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub embed_tokens: Tensor, // (vocab, hidden)
    layers: Vec<Block>,
    norm: Tensor,
    rotary: Rotary,
    eps: f64,
}

impl Decoder {
    pub fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let layers = (0..config.num_hidden_layers).map(|i| Block::new(config, params, i)).collect::<Result<_>>()?;
        Ok(Self {
            embed_tokens: params.get("model.embed_tokens.weight")?,
            layers,
            norm: params.get("model.norm.weight")?,
            rotary: Rotary::new(config.head_dim, config.rope_theta),
            eps: config.rms_norm_eps,
        })
    }

    /// The normed hidden states `(b, t, hidden)`; with `look`, every block's attention weights `(b, h, t, s)` too.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        mut look: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (b, t) = batch.input_ids.dims2()?;
        let ids = batch.input_ids.flatten_all()?;
        let mut x = self.embed_tokens.index_select(&ids, 0)?.reshape((b, t, ()))?; // (b, t, hidden)
        if x.dtype() == DType::BF16 {
            x = x.to_dtype(DType::F32)?; // weights may be in bf16, what flows between them is not
        }
        let rotation = self.rotary.at(&batch.positions);
        for (i, layer) in self.layers.iter().enumerate() {
            let past = cache.as_deref().map(|cache| (cache, i));
            let y = rms_norm(&x, &layer.input_layernorm, self.eps)?;
            x = (x + layer.attention.forward(&y, &rotation, &batch.visible, past, look.as_deref_mut())?)?;
            let y = rms_norm(&x, &layer.post_attention_layernorm, self.eps)?;
            x = (x + layer.mlp.forward(&y)?)?;
        }
        if let Some(cache) = &mut cache {
            cache.advance(t);
        }
        Ok(rms_norm(&x, &self.norm, self.eps)?)
    }
}

#[derive(Debug, Clone)]
struct Block {
    input_layernorm: Tensor,
    attention: Attention,
    post_attention_layernorm: Tensor,
    mlp: Mlp,
}

impl Block {
    fn new(config: &ModelConfig, params: &Params, layer: usize) -> Result<Self> {
        let get = |name: &str| params.get(&format!("model.layers.{layer}.{name}.weight"));
        Ok(Self {
            input_layernorm: get("input_layernorm")?,
            attention: Attention {
                q_proj: get("self_attn.q_proj")?,
                k_proj: get("self_attn.k_proj")?,
                v_proj: get("self_attn.v_proj")?,
                o_proj: get("self_attn.o_proj")?,
                h: config.num_attention_heads,
                g: config.num_key_value_heads,
                d: config.head_dim,
            },
            post_attention_layernorm: get("post_attention_layernorm")?,
            mlp: Mlp {
                gate_proj: get("mlp.gate_proj")?,
                up_proj: get("mlp.up_proj")?,
                down_proj: get("mlp.down_proj")?,
            },
        })
    }
}

/// Self-attention: each token asks (q) what earlier tokens offer (k) and takes a mixture of what they hold (v).
#[derive(Debug, Clone)]
struct Attention {
    q_proj: Tensor, // (h·d, hidden)
    k_proj: Tensor, // (g·d, hidden)
    v_proj: Tensor, // (g·d, hidden)
    o_proj: Tensor, // (hidden, h·d)
    h: usize,
    g: usize,
    d: usize,
}

impl Attention {
    fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        visible: &Visible,
        past: Option<(&KvCache, usize)>,
        look: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let q = linear(x, &self.q_proj)?.reshape((b, t, self.h, self.d))?;
        let k = linear(x, &self.k_proj)?.reshape((b, t, self.g, self.d))?;
        let v = linear(x, &self.v_proj)?.reshape((b, t, self.g, self.d))?;
        let (q, k) = (rope(&q, rotation)?, rope(&k, rotation)?);
        let (k, v) = match past {
            Some((cache, layer)) => cache.append(layer, &k, &v)?, // (b, s, g, d)
            None => (k, v),
        };
        let scores = Scores::of_head(self.d);
        if let Some(look) = look {
            look.push(attention_weights(&q, &k, scores, visible)?);
        }
        let y = attention(&q, &k, &v, scores, visible)?; // (b, t, h, d)
        Ok(linear(&y.reshape((b, t, self.h * self.d))?, &self.o_proj)?)
    }
}

/// The feed-forward network: `down(silu(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
struct Mlp {
    gate_proj: Tensor, // (intermediate, hidden)
    up_proj: Tensor,   // (intermediate, hidden)
    down_proj: Tensor, // (hidden, intermediate)
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = swiglu(&linear(x, &self.gate_proj)?, &linear(x, &self.up_proj)?)?;
        Ok(linear(&y, &self.down_proj)?)
    }
}
