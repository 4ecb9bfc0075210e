//! The decoder: embedding, blocks of attention and feed-forward, norm.
//!
//! Letters: b batch, t tokens, h query heads, g key/value heads, d head size, e experts.

use std::sync::Arc;

use candle_core::{D, Tensor};
use llm_kernels::{
    AttentionMask, AttentionParams, AttentionWeights, MlpWeights, Precision, RecomputedGradients, RotaryTable,
    activate, attention, attention_block, attention_weights, gated_activation, join, mlp_block, recompute, rope,
};

use crate::config::QkNorm;
use crate::experts::Experts;
use crate::linear::Linear;
use crate::matrix::Matrix;
use crate::norm::Norm;
use crate::rotary::{RotaryEmbedding, Rotations};
use crate::token_rows::{EMBEDDING, TokenRows};
use crate::{Batch, Error, KvCache, ModelConfig, Params, Result};

#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    pub embed_tokens: Matrix, // (vocab, hidden)
    pub embed_rows: Option<TokenRows>,
    embed_scale: Option<f64>,
    embed_positions: Option<Matrix>, // (max_position_embeddings, hidden)
    layers: Vec<Block>,
    norm: Norm,
    rotary: RotaryEmbedding,
    sliding_window: Option<usize>,
    max_position_embeddings: usize,
    /// Gradients of the blocks, if these keep nothing but their input and run again in the backward.
    pub recomputed: Option<RecomputedGradients>,
}

/// What the decoder gives.
pub(crate) struct Decoded {
    /// The normed hidden states `(b, t, hidden)`.
    pub hidden: Tensor,
    /// The router's logits `(b·t, e)` of each layer with experts.
    pub router_logits: Vec<Tensor>,
}

impl Decoder {
    pub fn new(config: &ModelConfig, params: &Params) -> Result<Self> {
        let layers = (0..config.num_hidden_layers).map(|i| Block::new(config, params, i)).collect::<Result<_>>()?;
        let positions = config.learned_positions.then(|| params.matrix("model.embed_positions.weight"));
        Ok(Self {
            embed_tokens: params.matrix("model.embed_tokens.weight")?,
            embed_rows: TokenRows::new(config, params, EMBEDDING)?,
            embed_scale: config.scale_embeddings.then(|| (config.hidden_size as f64).sqrt()),
            embed_positions: positions.transpose()?,
            layers,
            norm: Norm::new(config, params, "model.norm")?,
            rotary: RotaryEmbedding::new(config),
            sliding_window: config.sliding_window,
            max_position_embeddings: config.max_position_embeddings,
            recomputed: None,
        })
    }

    /// Reads a batch; with `look`, every block's attention weights `(b, h, t, s)` are pushed to it.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        mut look: Option<&mut Vec<Tensor>>,
    ) -> Result<Decoded> {
        let (_, t) = batch.input_ids.dims2()?;
        let mut x = self.embed(batch)?; // (b, t, hidden)
        let past_len = cache.as_deref().map_or(0, KvCache::len);
        let sight = Sight {
            rotations: self.rotary.at(&batch.positions),
            windowed: self
                .sliding_window
                .map(|window| windowed(&batch.visible, batch.positions.len(), t, past_len, window)),
            visible: batch.visible.clone(),
        };
        let mut router_logits = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let routed;
            if let (Some(gradients), None, None) = (&self.recomputed, &cache, &look) {
                (x, routed) = layer.recomputed(&x, &sight, gradients)?;
            } else {
                let past = cache.as_deref().map(|cache| (cache, i));
                (x, routed) = layer.forward(&x, &sight, past, look.as_deref_mut())?;
            }
            router_logits.extend(routed);
        }
        if let Some(cache) = &mut cache {
            cache.advance(t);
        }
        Ok(Decoded { hidden: self.norm.apply(&x)?, router_logits })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let (b, t) = batch.input_ids.dims2()?;
        let ids = batch.input_ids.flatten_all()?;
        let mut x = self.embed_tokens.rows(&ids)?; // (b·t, hidden)
        if let Some(rows) = &self.embed_rows {
            x = rows.embed(&ids, x)?;
        }
        if let Some(scale) = self.embed_scale {
            x = (x * scale)?;
        }
        if let Some(positions) = &self.embed_positions {
            let room = self.max_position_embeddings;
            if let Some(far) = batch.positions.iter().find(|&&position| position as usize >= room) {
                return Err(Error::Input(format!("position {far} lies behind the {room} that the model has learnt")));
            }
            let ids = Tensor::from_slice(&batch.positions, batch.positions.len(), x.device())?;
            x = (x + positions.rows(&ids)?)?;
        }
        Ok(x.reshape((b, t, ()))?)
    }
}

/// What the tokens of a batch see and how they turn.
#[derive(Debug, Clone)]
struct Sight {
    rotations: Rotations,
    visible: AttentionMask,
    windowed: Option<AttentionMask>,
}

/// `visible` cut to the last `window` keys of each of `tokens` queries, in rows of `t` behind `past` keys.
fn windowed(visible: &AttentionMask, tokens: usize, t: usize, past: usize, window: usize) -> AttentionMask {
    let first = |token: usize| {
        let begin = visible.window_starts.as_ref().map_or(0, |first| first[token]);
        begin.max((past + token % t + 1).saturating_sub(window) as u32)
    };
    let window_starts = (0..tokens).map(first).collect::<Arc<[u32]>>();
    AttentionMask { window_starts: Some(window_starts), masked_keys: visible.masked_keys.clone() }
}

#[derive(Debug, Clone)]
struct Block {
    attention_in: Option<Norm>,
    attention: Attention,
    attention_out: Option<Norm>,
    mlp_in: Option<Norm>,
    feed_forward: FeedForward,
    mlp_out: Option<Norm>,
    parallel_residual: bool,
    turn: Turn,
    sliding: bool,
    experts: usize,
}

/// How queries and keys turn with their position.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Not,
    Globally,
    Locally,
}

#[derive(Debug, Clone)]
enum FeedForward {
    One(Mlp),
    Many(Experts),
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.apply(x))
}

impl Block {
    fn new(config: &ModelConfig, params: &Params, layer: usize) -> Result<Self> {
        let full = |name: &str| format!("model.layers.{layer}.{name}");
        let names = config.norm_placement.names();
        let norm = |name: Option<&str>| name.map(|name| Norm::new(config, params, &full(name))).transpose();
        let sliding = config.window_of(layer).is_some();
        let turn = match config.rope_local_theta {
            _ if config.learned_positions || config.layers_without_rope.contains(&layer) => Turn::Not,
            Some(_) if sliding => Turn::Locally,
            _ => Turn::Globally,
        };
        let experts = config.experts_of(layer);
        Ok(Self {
            attention_in: norm(names.attention_in)?,
            attention: Attention::new(config, params, &full("self_attn"))?,
            attention_out: norm(names.attention_out)?,
            mlp_in: norm(names.mlp_in)?,
            feed_forward: match experts {
                Some(experts) => FeedForward::Many(Experts::new(config, experts, params, &full("mlp"))?),
                None => FeedForward::One(Mlp::new(config, params, &full("mlp"))?),
            },
            mlp_out: norm(names.mlp_out)?,
            parallel_residual: config.parallel_residual,
            turn,
            sliding,
            experts: experts.map_or(0, |experts| experts.num_experts),
        })
    }

    /// The next hidden states, and the router's logits if there is a router.
    fn forward(
        &self,
        x: &Tensor,
        sight: &Sight,
        past: Option<(&KvCache, usize)>,
        look: Option<&mut Vec<Tensor>>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let visible = if self.sliding { sight.windowed.as_ref() } else { None }.unwrap_or(&sight.visible);
        let rotation = match self.turn {
            Turn::Not => None,
            Turn::Globally => Some(&sight.rotations.global),
            Turn::Locally => sight.rotations.local.as_ref(),
        };
        let attended = self.attend(x, rotation, visible, past, look)?;
        match &self.feed_forward {
            FeedForward::One(mlp) => Ok((self.feed(mlp, x, &attended)?, None)),
            FeedForward::Many(experts) => {
                let (y, logits) = experts.forward(&self.fed(x, &attended)?)?;
                Ok(((attended + normed(self.mlp_out.as_ref(), &y)?)?, Some(logits)))
            }
        }
    }

    /// The residual stream with what attention adds to it: in one operation, if nothing stands between its parts.
    fn attend(
        &self,
        x: &Tensor,
        rotation: Option<&RotaryTable>,
        visible: &AttentionMask,
        past: Option<(&KvCache, usize)>,
        look: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let attention = &self.attention;
        if let (Some(norm), None, None, None) = (&self.attention_in, &self.attention_out, past, &look)
            && let (Some((norm, eps)), Some(weights)) = (norm.rms()?, attention.alone())
        {
            let (d, scores) = (attention.d, attention.scores);
            return Ok(attention_block(x, (&norm, eps), weights, d, rotation, scores, visible)?);
        }
        let y = normed(self.attention_in.as_ref(), x)?;
        let y = attention.forward(&y, rotation, visible, past, look)?;
        match &self.attention_out {
            Some(norm) => Ok((x + norm.apply(&attention.o_proj.apply(&y.flatten_from(2)?)?)?)?),
            None => attention.o_proj.apply_and_add(&y, x),
        }
    }

    /// The residual stream with what the feed-forward network adds to it, in the same way.
    fn feed(&self, mlp: &Mlp, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        if let (Some(norm), None, false) = (&self.mlp_in, &self.mlp_out, self.parallel_residual)
            && let (Some((norm, eps)), Some((weights, precision))) = (norm.rms()?, mlp.alone())
        {
            return Ok(mlp_block(attended, Some((&norm, eps)), weights, mlp.activation, precision)?);
        }
        let y = self.fed(x, attended)?;
        match &self.mlp_out {
            Some(norm) => Ok((attended + norm.apply(&mlp.forward(&y)?)?)?),
            None => mlp.down_proj.apply_and_add(&mlp.inner(&y)?, attended),
        }
    }

    /// What the feed-forward network reads.
    fn fed(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        normed(self.mlp_in.as_ref(), if self.parallel_residual { x } else { attended })
    }

    /// The same, keeping `x` alone for the backward. The router's logits travel as further columns of the one result.
    fn recomputed(
        &self,
        x: &Tensor,
        sight: &Sight,
        gradients: &RecomputedGradients,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (block, sight) = (self.clone(), sight.clone());
        let run = move |x: &Tensor| {
            let (y, logits) = block.forward(x, &sight, None, None).map_err(candle_core::Error::wrap)?;
            match logits {
                Some(logits) => {
                    let (b, t, _) = y.dims3()?;
                    Tensor::cat(&[y, logits.reshape((b, t, ()))?], D::Minus1)
                }
                None => Ok(y),
            }
        };
        let y = recompute(x, self.tensors(), gradients, run)?;
        if self.experts == 0 {
            return Ok((y, None));
        }
        let width = y.dim(D::Minus1)? - self.experts;
        let logits = y.narrow(D::Minus1, width, self.experts)?.flatten(0, 1)?;
        Ok((y.narrow(D::Minus1, 0, width)?.contiguous()?, Some(logits)))
    }

    /// The tensors that may train.
    fn tensors(&self) -> Vec<Tensor> {
        let norms = [&self.attention_in, &self.attention_out, &self.mlp_in, &self.mlp_out];
        let mut tensors: Vec<Tensor> = norms.into_iter().flatten().flat_map(Norm::tensors).cloned().collect();
        tensors.extend(self.attention.tensors().cloned());
        match &self.feed_forward {
            FeedForward::One(mlp) => tensors.extend(mlp.tensors().cloned()),
            FeedForward::Many(experts) => tensors.extend(experts.tensors().cloned()),
        }
        tensors
    }
}

/// Self-attention: each token asks (q) what earlier tokens offer (k) and takes a mixture of what they hold (v).
#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear, // (h·d, hidden)
    k_proj: Linear, // (g·d, hidden)
    v_proj: Linear, // (g·d, hidden)
    o_proj: Linear, // (hidden, h·d)
    qk_norm: Option<(QkNorm, Norm, Norm)>,
    scores: AttentionParams,
    h: usize,
    g: usize,
    d: usize,
}

impl Attention {
    fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Self> {
        let linear = |part: &str| Linear::new(params, &format!("{name}.{part}"));
        let norm = |part: &str| Norm::new(config, params, &format!("{name}.{part}"));
        let scale = config.query_pre_attn_scalar.unwrap_or(config.head_dim as f64).powf(-0.5);
        let q_proj = linear("q_proj")?;
        // Queries that were made of rounded numbers are rounded like them.
        let precision = q_proj.weight.rounding();
        Ok(Self {
            q_proj,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            o_proj: linear("o_proj")?,
            qk_norm: match config.qk_norm {
                Some(kind) => Some((kind, norm("q_norm")?, norm("k_norm")?)),
                None => None,
            },
            scores: AttentionParams { scale, soft_cap: config.attn_logit_softcapping, precision },
            h: config.num_attention_heads,
            g: config.num_key_value_heads,
            d: config.head_dim,
        })
    }

    /// The mixture `(b, t, h, d)` that each head makes, before the output map.
    fn forward(
        &self,
        x: &Tensor,
        rotation: Option<&RotaryTable>,
        visible: &AttentionMask,
        past: Option<(&KvCache, usize)>,
        look: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let turned = |projection: &Linear, heads: usize, norm: Option<(QkNorm, &Norm)>| -> Result<Tensor> {
            let y = match norm {
                None => projection.apply_to_heads(x, heads, self.d)?,
                Some((QkNorm::Head, norm)) => norm.apply(&projection.apply_to_heads(x, heads, self.d)?)?,
                Some((QkNorm::Whole, norm)) => norm.apply(&projection.apply(x)?)?.reshape((b, t, heads, self.d))?,
            };
            Ok(match rotation {
                Some(rotation) => rope(&y, rotation)?,
                None => y,
            })
        };
        let norms = self.qk_norm.as_ref();
        let queries = || turned(&self.q_proj, self.h, norms.map(|(kind, norm, _)| (*kind, norm)));
        let keys = || turned(&self.k_proj, self.g, norms.map(|(kind, _, norm)| (*kind, norm)));
        let ((q, k), v) = join(b * t, || join(b * t, queries, keys), || self.v_proj.apply_to_heads(x, self.g, self.d));
        let (q, k, v) = (q?, k?, v?);
        let (k, v) = match past {
            Some((cache, layer)) => cache.append(layer, &k, &v)?, // (b, s, g, d)
            None => (k, v),
        };
        if let Some(look) = look {
            look.push(attention_weights(&q, &k, self.scores, visible)?);
        }
        Ok(attention(&q, &k, &v, self.scores, visible)?)
    }

    /// The weights, if they are tensors and nothing else belongs to it.
    fn alone(&self) -> Option<AttentionWeights<'_>> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let [q, k, v, o] = linears.map(|linear| linear.alone().map(|(weight, _)| weight));
        if self.qk_norm.is_some() { None } else { Some(AttentionWeights { q: q?, k: k?, v: v?, o: o? }) }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.qk_norm.iter().flat_map(|(_, q_norm, k_norm)| [q_norm, k_norm]);
        linears.into_iter().flat_map(Linear::tensors).chain(norms.flat_map(Norm::tensors))
    }
}

/// The feed-forward network: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    gate_proj: Option<Linear>, // (intermediate, hidden)
    up_proj: Linear,           // (intermediate, hidden)
    down_proj: Linear,         // (hidden, intermediate)
    activation: llm_kernels::Activation,
}

impl Mlp {
    pub fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Self> {
        let linear = |part: &str| Linear::new(params, &format!("{name}.{part}"));
        Ok(Self {
            gate_proj: config.gated_mlp.then(|| linear("gate_proj")).transpose()?,
            up_proj: linear("up_proj")?,
            down_proj: linear("down_proj")?,
            activation: config.hidden_act.kernel(),
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.alone() {
            Some((weights, precision)) => Ok(mlp_block(x, None, weights, self.activation, precision)?),
            None => self.down_proj.apply(&self.inner(x)?),
        }
    }

    /// What stands before the last map: `(…, intermediate)`.
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let Some(gate) = &self.gate_proj else {
            return Ok(activate(&self.up_proj.apply(x)?, self.activation)?);
        };
        let rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
        let (gate, up) = join(rows, || gate.apply(x), || self.up_proj.apply(x));
        Ok(gated_activation(&gate?, &up?, self.activation)?)
    }

    /// The weights and their precision, if there is a gate, they are tensors and nothing else belongs to it.
    fn alone(&self) -> Option<(MlpWeights<'_>, Precision)> {
        let (gate, precision) = self.gate_proj.as_ref()?.alone()?;
        let (up, down) = (self.up_proj.alone()?.0, self.down_proj.alone()?.0);
        Some((MlpWeights { gate, up, down }, precision))
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj]).flat_map(Linear::tensors)
    }
}
