//! The decoder: embedding, blocks of attention and feed-forward, norm.
//!
//! Letters: b batch, t tokens, h query heads, g key/value heads, d head size.

use candle_core::Tensor;
use llm_kernels::{
    Recomputed, Rotary, Rotation, Scores, Visible, attention, attention_weights, recompute, rms_norm, rope, swiglu,
};

use crate::params::Matrix;
use crate::{Batch, KvCache, ModelConfig, Params, Result};

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub embed_tokens: Matrix, // (vocab, hidden)
    layers: Vec<Block>,
    norm: Tensor,
    rotary: Rotary,
    eps: f64,
    /// Gradients of the blocks, if these keep nothing but their input and run again in the backward.
    pub recomputed: Option<Recomputed>,
}

impl Decoder {
    pub fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let layers = (0..config.num_hidden_layers).map(|i| Block::new(config, params, i)).collect::<Result<_>>()?;
        Ok(Self {
            embed_tokens: params.matrix("model.embed_tokens.weight")?,
            layers,
            norm: params.get("model.norm.weight")?,
            rotary: Rotary::new(config.head_dim, config.rope_theta),
            eps: config.rms_norm_eps,
            recomputed: None,
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
        let mut x = self.embed_tokens.rows(&ids)?.reshape((b, t, ()))?; // (b, t, hidden)
        let rotation = self.rotary.at(&batch.positions);
        for (i, layer) in self.layers.iter().enumerate() {
            if let (Some(gradients), None, None) = (&self.recomputed, &cache, &look) {
                let (block, rotation, visible) = (layer.clone(), rotation.clone(), batch.visible.clone());
                let run = move |x: &Tensor| {
                    block.forward(x, &rotation, &visible, None, None).map_err(candle_core::Error::wrap)
                };
                x = recompute(&x, layer.params(), gradients, run)?;
                continue;
            }
            let past = cache.as_deref().map(|cache| (cache, i));
            x = layer.forward(&x, &rotation, &batch.visible, past, look.as_deref_mut())?;
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
    eps: f64,
}

impl Block {
    fn new(config: &ModelConfig, params: &Params, layer: usize) -> Result<Self> {
        let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let (get, matrix) = (|name: &str| params.get(&full(name)), |name: &str| params.matrix(&full(name)));
        Ok(Self {
            input_layernorm: get("input_layernorm")?,
            attention: Attention {
                q_proj: matrix("self_attn.q_proj")?,
                k_proj: matrix("self_attn.k_proj")?,
                v_proj: matrix("self_attn.v_proj")?,
                o_proj: matrix("self_attn.o_proj")?,
                h: config.num_attention_heads,
                g: config.num_key_value_heads,
                d: config.head_dim,
            },
            post_attention_layernorm: get("post_attention_layernorm")?,
            mlp: Mlp {
                gate_proj: matrix("mlp.gate_proj")?,
                up_proj: matrix("mlp.up_proj")?,
                down_proj: matrix("mlp.down_proj")?,
            },
            eps: config.rms_norm_eps,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        visible: &Visible,
        past: Option<(&KvCache, usize)>,
        look: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let y = rms_norm(x, &self.input_layernorm, self.eps)?;
        let x = (x + self.attention.forward(&y, rotation, visible, past, look)?)?;
        let y = rms_norm(&x, &self.post_attention_layernorm, self.eps)?;
        Ok((&x + self.mlp.forward(&y)?)?)
    }

    fn params(&self) -> Vec<Tensor> {
        let (attention, mlp) = (&self.attention, &self.mlp);
        let matrices = [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj];
        let norms = [&self.input_layernorm, &self.post_attention_layernorm];
        let matrices = matrices.into_iter().chain([&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj]);
        let dense = matrices.filter_map(|matrix| match matrix {
            Matrix::Dense(w) => Some(w),
            Matrix::Blocks(_) | Matrix::Stored(_) => None,
        });
        dense.chain(norms).cloned().collect()
    }
}

/// Self-attention: each token asks (q) what earlier tokens offer (k) and takes a mixture of what they hold (v).
#[derive(Debug, Clone)]
struct Attention {
    q_proj: Matrix, // (h·d, hidden)
    k_proj: Matrix, // (g·d, hidden)
    v_proj: Matrix, // (g·d, hidden)
    o_proj: Matrix, // (hidden, h·d)
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
        let q = self.q_proj.apply(x)?.reshape((b, t, self.h, self.d))?;
        let k = self.k_proj.apply(x)?.reshape((b, t, self.g, self.d))?;
        let v = self.v_proj.apply(x)?.reshape((b, t, self.g, self.d))?;
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
        self.o_proj.apply(&y.reshape((b, t, self.h * self.d))?)
    }
}

/// The feed-forward network: `down(silu(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
struct Mlp {
    gate_proj: Matrix, // (intermediate, hidden)
    up_proj: Matrix,   // (intermediate, hidden)
    down_proj: Matrix, // (hidden, intermediate)
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = swiglu(&self.gate_proj.apply(x)?, &self.up_proj.apply(x)?)?;
        self.down_proj.apply(&y)
    }
}
