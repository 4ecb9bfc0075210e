//! The decoder: embedding, blocks of attention and MLP, final norm.
//!
//! b: batch, t: sequence, s: cached and new tokens, h: query heads, g: key/value heads, d: head size, e: experts.

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
use crate::rotary::{RotaryEmbedding, RotaryTables};
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
    /// With activation checkpointing: collects the gradients of the blocks, which are recomputed in the backward.
    pub recomputed: Option<RecomputedGradients>,
}

/// The output of the decoder.
pub(crate) struct DecoderOutput {
    /// Hidden states after the final norm, `(b, t, hidden)`.
    pub hidden: Tensor,
    /// Router logits `(b·t, e)` of each layer with experts.
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

    /// Runs the decoder on a batch. With `output_attentions`, the attention weights `(b, h, t, s)` of each block are
    /// appended to it.
    pub fn forward(
        &self,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        mut output_attentions: Option<&mut Vec<Tensor>>,
    ) -> Result<DecoderOutput> {
        let (_, t) = batch.input_ids.dims2()?;
        let mut x = self.embed(batch)?; // (b, t, hidden)
        let past_len = cache.as_deref().map_or(0, KvCache::len);
        let context = ForwardContext {
            rotary: self.rotary.tables(&batch.positions),
            sliding_mask: self
                .sliding_window
                .map(|window| sliding_window_mask(&batch.mask, batch.positions.len(), t, past_len, window)),
            mask: batch.mask.clone(),
        };
        let mut router_logits = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let logits;
            if let (Some(gradients), None, None) = (&self.recomputed, &cache, &output_attentions) {
                (x, logits) = layer.checkpointed(&x, &context, gradients)?;
            } else {
                let cache = cache.as_deref().map(|cache| (cache, i));
                (x, logits) = layer.forward(&x, &context, cache, output_attentions.as_deref_mut())?;
            }
            router_logits.extend(logits);
        }
        if let Some(cache) = &mut cache {
            cache.advance(t);
        }
        Ok(DecoderOutput { hidden: self.norm.apply(&x)?, router_logits })
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let (b, t) = batch.input_ids.dims2()?;
        let ids = batch.input_ids.flatten_all()?;
        let mut x = self.embed_tokens.gather_rows(&ids)?; // (b·t, hidden)
        if let Some(rows) = &self.embed_rows {
            x = rows.embed(&ids, x)?;
        }
        if let Some(scale) = self.embed_scale {
            x = (x * scale)?;
        }
        if let Some(positions) = &self.embed_positions {
            let max = self.max_position_embeddings;
            if let Some(position) = batch.positions.iter().find(|&&position| position as usize >= max) {
                return Err(Error::Input(format!(
                    "position {position} is outside the {max} learned positions of the model; shorten the input"
                )));
            }
            let ids = Tensor::from_slice(&batch.positions, batch.positions.len(), x.device())?;
            x = (x + positions.gather_rows(&ids)?)?;
        }
        Ok(x.reshape((b, t, ()))?)
    }
}

/// Inputs of a forward pass that all blocks share.
#[derive(Debug, Clone)]
struct ForwardContext {
    rotary: RotaryTables,
    mask: AttentionMask,
    sliding_mask: Option<AttentionMask>,
}

/// `mask` restricted to the last `window` keys of each of `tokens` queries; rows have `t` queries after `past` cached keys.
fn sliding_window_mask(mask: &AttentionMask, tokens: usize, t: usize, past: usize, window: usize) -> AttentionMask {
    let start = |token: usize| {
        let start = mask.window_starts.as_ref().map_or(0, |starts| starts[token]);
        start.max((past + token % t + 1).saturating_sub(window) as u32)
    };
    let window_starts = (0..tokens).map(start).collect::<Arc<[u32]>>();
    AttentionMask { window_starts: Some(window_starts), masked_keys: mask.masked_keys.clone() }
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
    rope: RopeKind,
    sliding: bool,
    experts: usize,
}

/// The rotary embedding of a block.
#[derive(Debug, Clone, Copy)]
enum RopeKind {
    None,
    Global,
    /// With `rope_local_theta`.
    Local,
}

#[derive(Debug, Clone)]
enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

fn apply_norm(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.apply(x))
}

impl Block {
    fn new(config: &ModelConfig, params: &Params, layer: usize) -> Result<Self> {
        let full = |name: &str| format!("model.layers.{layer}.{name}");
        let names = config.norm_placement.names();
        let norm = |name: Option<&str>| name.map(|name| Norm::new(config, params, &full(name))).transpose();
        let sliding = config.window_of(layer).is_some();
        let rope = match config.rope_local_theta {
            _ if config.learned_positions || config.layers_without_rope.contains(&layer) => RopeKind::None,
            Some(_) if sliding => RopeKind::Local,
            _ => RopeKind::Global,
        };
        let experts = config.experts_of(layer);
        Ok(Self {
            attention_in: norm(names.attention_in)?,
            attention: Attention::new(config, params, &full("self_attn"))?,
            attention_out: norm(names.attention_out)?,
            mlp_in: norm(names.mlp_in)?,
            feed_forward: match experts {
                Some(experts) => FeedForward::Experts(Experts::new(config, experts, params, &full("mlp"))?),
                None => FeedForward::Dense(Mlp::new(config, params, &full("mlp"))?),
            },
            mlp_out: norm(names.mlp_out)?,
            parallel_residual: config.parallel_residual,
            rope,
            sliding,
            experts: experts.map_or(0, |experts| experts.num_experts),
        })
    }

    /// The output `(b, t, hidden)`, and the router logits `(b·t, e)` of a layer with experts.
    fn forward(
        &self,
        x: &Tensor,
        context: &ForwardContext,
        cache: Option<(&KvCache, usize)>,
        output_attentions: Option<&mut Vec<Tensor>>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let mask = if self.sliding { context.sliding_mask.as_ref() } else { None }.unwrap_or(&context.mask);
        let rotary = match self.rope {
            RopeKind::None => None,
            RopeKind::Global => Some(&context.rotary.global),
            RopeKind::Local => context.rotary.local.as_ref(),
        };
        let attended = self.forward_attention(x, rotary, mask, cache, output_attentions)?;
        match &self.feed_forward {
            FeedForward::Dense(mlp) => Ok((self.forward_mlp(mlp, x, &attended)?, None)),
            FeedForward::Experts(experts) => {
                let (y, logits) = experts.forward(&self.mlp_input(x, &attended)?)?;
                Ok(((attended + apply_norm(self.mlp_out.as_ref(), &y)?)?, Some(logits)))
            }
        }
    }

    /// The attention sub-layer: `x` plus the attention output, `(b, t, hidden)`; fused where the block allows it.
    fn forward_attention(
        &self,
        x: &Tensor,
        rotary: Option<&RotaryTable>,
        mask: &AttentionMask,
        cache: Option<(&KvCache, usize)>,
        output_attentions: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let attention = &self.attention;
        if let (Some(norm), None, None, None) = (&self.attention_in, &self.attention_out, cache, &output_attentions)
            && let (Some((norm, eps)), Some(weights)) = (norm.rms()?, attention.plain_weights())
        {
            let (d, params) = (attention.d, attention.params);
            return Ok(attention_block(x, (&norm, eps), weights, d, rotary, params, mask)?);
        }
        let y = apply_norm(self.attention_in.as_ref(), x)?;
        let y = attention.forward(&y, rotary, mask, cache, output_attentions)?;
        match &self.attention_out {
            Some(norm) => Ok((x + norm.apply(&attention.o_proj.apply(&y.flatten_from(2)?)?)?)?),
            None => attention.o_proj.apply_residual(&y, x),
        }
    }

    /// The MLP sub-layer: `attended` plus the MLP output, `(b, t, hidden)`; fused where the block allows it.
    fn forward_mlp(&self, mlp: &Mlp, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        if let (Some(norm), None, false) = (&self.mlp_in, &self.mlp_out, self.parallel_residual)
            && let (Some((norm, eps)), Some((weights, precision))) = (norm.rms()?, mlp.plain_weights())
        {
            return Ok(mlp_block(attended, Some((&norm, eps)), weights, mlp.activation, precision)?);
        }
        let y = self.mlp_input(x, attended)?;
        match &self.mlp_out {
            Some(norm) => Ok((attended + norm.apply(&mlp.forward(&y)?)?)?),
            None => mlp.down_proj.apply_residual(&mlp.inner(&y)?, attended),
        }
    }

    /// The input of the MLP or the experts.
    fn mlp_input(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        apply_norm(self.mlp_in.as_ref(), if self.parallel_residual { x } else { attended })
    }

    /// [`Self::forward`] with activation checkpointing: only `x` is saved for the backward. The router logits are
    /// concatenated to the output, because `recompute` supports one output.
    fn checkpointed(
        &self,
        x: &Tensor,
        context: &ForwardContext,
        gradients: &RecomputedGradients,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (block, context) = (self.clone(), context.clone());
        let run = move |x: &Tensor| {
            let (y, logits) = block.forward(x, &context, None, None).map_err(candle_core::Error::wrap)?;
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

    /// The tensors that may be trainable.
    fn tensors(&self) -> Vec<Tensor> {
        let norms = [&self.attention_in, &self.attention_out, &self.mlp_in, &self.mlp_out];
        let mut tensors: Vec<Tensor> = norms.into_iter().flatten().flat_map(Norm::tensors).cloned().collect();
        tensors.extend(self.attention.tensors().cloned());
        match &self.feed_forward {
            FeedForward::Dense(mlp) => tensors.extend(mlp.tensors().cloned()),
            FeedForward::Experts(experts) => tensors.extend(experts.tensors().cloned()),
        }
        tensors
    }
}

/// Multi-head self-attention, `softmax(q · kᵀ · scale + mask) · v` (Vaswani et al. 2017, arXiv 1706.03762), with grouped
/// key/value heads (Ainslie et al. 2023, arXiv 2305.13245).
#[derive(Debug, Clone)]
struct Attention {
    q_proj: Linear, // (h·d, hidden)
    k_proj: Linear, // (g·d, hidden)
    v_proj: Linear, // (g·d, hidden)
    o_proj: Linear, // (hidden, h·d)
    qk_norm: Option<(QkNorm, Norm, Norm)>,
    params: AttentionParams,
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
        // Attention has the precision of the projections.
        let precision = q_proj.weight.activation_precision();
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
    fn forward(
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
    fn plain_weights(&self) -> Option<AttentionWeights<'_>> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let [q, k, v, o] = linears.map(|linear| linear.plain_weight().map(|(weight, _)| weight));
        if self.qk_norm.is_some() { None } else { Some(AttentionWeights { q: q?, k: k?, v: v?, o: o? }) }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        let norms = self.qk_norm.iter().flat_map(|(_, q_norm, k_norm)| [q_norm, k_norm]);
        linears.into_iter().flat_map(Linear::tensors).chain(norms.flat_map(Norm::tensors))
    }
}

/// The MLP: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
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
        match self.plain_weights() {
            Some((weights, precision)) => Ok(mlp_block(x, None, weights, self.activation, precision)?),
            None => self.down_proj.apply(&self.inner(x)?),
        }
    }

    /// The input of `down_proj`, `(…, intermediate)`.
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let Some(gate) = &self.gate_proj else {
            return Ok(activate(&self.up_proj.apply(x)?, self.activation)?);
        };
        let rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
        let (gate, up) = join(rows, || gate.apply(x), || self.up_proj.apply(x));
        Ok(gated_activation(&gate?, &up?, self.activation)?)
    }

    /// The weights and their precision, if there is a gate, they are dense, and there are no biases or adapters.
    fn plain_weights(&self) -> Option<(MlpWeights<'_>, Precision)> {
        let (gate, precision) = self.gate_proj.as_ref()?.plain_weight()?;
        let (up, down) = (self.up_proj.plain_weight()?.0, self.down_proj.plain_weight()?.0);
        Some((MlpWeights { gate, up, down }, precision))
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj]).flat_map(Linear::tensors)
    }
}
