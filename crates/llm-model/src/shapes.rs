//! Names, shapes, roles and initialisation of the decoder's tensors. The names are Llama's, with additions for other families.

use candle_nn::Init;
use llm_files::WeightDtype;

use crate::config::{AttentionBias, NormKind, NormPlacement, QkNorm};
use crate::{Error, Head, ModelConfig, Result};

/// The names of the norms of a block.
pub(crate) struct BlockNorms {
    pub attention_in: Option<&'static str>,
    pub attention_out: Option<&'static str>,
    pub mlp_in: Option<&'static str>,
    pub mlp_out: Option<&'static str>,
}

impl NormPlacement {
    pub(crate) fn names(self) -> BlockNorms {
        let (attention_in, attention_out, mlp_in, mlp_out) = match self {
            Self::Pre => (Some("input_layernorm"), None, Some("post_attention_layernorm"), None),
            Self::Post => (None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm")),
            Self::Sandwich => (
                Some("input_layernorm"),
                Some("post_attention_layernorm"),
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ),
        };
        BlockNorms { attention_in, attention_out, mlp_in, mlp_out }
    }
}

/// A tensor of a model.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// The decoder's name; the files of a family may use another one.
    pub name: String,
    /// The shape: `(out, in)` for matrices.
    pub shape: Vec<usize>,
    /// The layer it belongs to.
    pub role: Role,
    /// Whether it is the bias of the layer instead of its weight.
    pub is_bias: bool,
    /// The distribution of the initial values. It is a description only: [`crate::Params::init`] draws the values, because
    /// candle cannot seed the random numbers of a CPU.
    pub init: Init,
}

/// The layer of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding; also the output layer if the model ties them.
    Embedding,
    /// Learned position embedding.
    PositionEmbedding,
    /// A norm of a block, or the final norm.
    Norm,
    /// `q_proj`.
    Query,
    /// `k_proj`.
    Key,
    /// `v_proj`.
    Value,
    /// `o_proj`.
    AttentionOutput,
    /// Norm of the queries.
    QueryNorm,
    /// Norm of the keys.
    KeyNorm,
    /// The router of a mixture of experts. It is always f32: it is small, and rounding would change the selected experts.
    Router,
    /// `gate_proj`, `up_proj` or `down_proj` of a dense MLP.
    Mlp(Projection),
    /// `gate_proj`, `up_proj` or `down_proj` of an expert.
    Expert(Projection),
    /// Output layer of a language model (`lm_head`).
    Output,
    /// Score head.
    Score,
}

/// A projection of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the name of a projection")]
pub enum Projection {
    Gate,
    Up,
    Down,
}

impl Role {
    /// Whether it is a norm.
    pub fn is_norm(self) -> bool {
        matches!(self, Self::Norm | Self::QueryNorm | Self::KeyNorm)
    }
}

impl TensorSpec {
    /// Whether it is a matrix.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }

    /// Whether it is a matrix of a block's attention, MLP or expert: those that Muon trains. Embeddings, routers and heads are not.
    pub fn is_hidden_matrix(&self) -> bool {
        let attention = matches!(self.role, Role::Query | Role::Key | Role::Value | Role::AttentionOutput);
        !self.is_bias && (attention || matches!(self.role, Role::Mlp(_) | Role::Expert(_)))
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The dtype of this tensor in a model in memory with matrices in `dtype`: norms, biases and routers are f32.
    pub(crate) fn dtype_in(&self, dtype: WeightDtype) -> WeightDtype {
        match self.shape.as_slice() {
            &[_, row] if self.role != Role::Router => dtype.for_rows_of(row),
            _ => WeightDtype::F32,
        }
    }
}

/// The specifications in the order of the forward pass.
struct Specs<'a> {
    config: &'a ModelConfig,
    all: Vec<TensorSpec>,
}

impl Specs<'_> {
    fn add(&mut self, name: String, shape: &[usize], role: Role, is_bias: bool) {
        let init = if is_bias { candle_nn::init::ZERO } else { self.config.init_of(role) };
        self.all.push(TensorSpec { name, shape: shape.to_vec(), role, is_bias, init });
    }

    fn linear(&mut self, name: &str, role: Role, (out, input): (usize, usize), bias: bool) {
        self.add(format!("{name}.weight"), &[out, input], role, false);
        if bias {
            self.add(format!("{name}.bias"), &[out], role, true);
        }
    }

    fn norm(&mut self, name: &str, role: Role, width: usize) {
        self.add(format!("{name}.weight"), &[width], role, false);
        if self.config.norm == NormKind::Layer {
            self.add(format!("{name}.bias"), &[width], role, true);
        }
    }
}

impl ModelConfig {
    /// Rejects a configuration with more layers or experts than the file has tensors, before names are allocated.
    pub(crate) fn check_count(&self, tensors: usize, origin: &str) -> Result<()> {
        let with_experts = |layer: &usize| self.experts_of(*layer).is_some();
        let (layers, experts) =
            (self.num_hidden_layers, self.experts.as_ref().map_or(0, |experts| experts.num_experts));
        // Each layer and each expert has more than one tensor.
        let few = |what: &str, count: usize| {
            let problem = format!("{tensors} tensors are too few for {what} {count}");
            Err(Error::Tensors { origin: origin.to_owned(), problems: vec![problem] })
        };
        if layers > tensors {
            return few("\"num_hidden_layers\"", layers);
        }
        let all = (0..layers).filter(with_experts).count().saturating_mul(experts);
        if all > tensors { few("\"num_experts\" of all layers,", all) } else { Ok(()) }
    }

    /// All tensors of a model with this decoder and `head`, in the order of the forward pass.
    pub fn tensor_specs(&self, head: Head) -> Vec<TensorSpec> {
        let width = self.hidden_size;
        let mut specs = Specs { config: self, all: Vec::new() };
        specs.linear("model.embed_tokens", Role::Embedding, (self.vocab_size, width), false);
        if self.learned_positions {
            let shape = (self.max_position_embeddings, width);
            specs.linear("model.embed_positions", Role::PositionEmbedding, shape, false);
        }
        for layer in 0..self.num_hidden_layers {
            self.block_specs(layer, &mut specs);
        }
        specs.norm("model.norm", Role::Norm, width);
        match head {
            Head::LanguageModel if self.tie_word_embeddings => {}
            Head::LanguageModel => specs.linear("lm_head", Role::Output, (self.vocab_size, width), false),
            Head::Sequence => specs.linear("score", Role::Score, (1, width), false),
            Head::Scores(count) => specs.linear("score", Role::Score, (count, width), false),
            Head::Token => specs.linear("score", Role::Score, (1, width), true),
        }
        specs.all
    }

    /// The initial values of the weight of a layer. Norms start as the identity. Matrices are normal with standard deviation
    /// `initializer_range`, divided by `sqrt(2 · layers)` where the output is added to the residual stream, as in GPT-2; the
    /// score head with `1 / sqrt(hidden_size + 1)` (Stiennon et al. 2020, arXiv 2009.01325).
    fn init_of(&self, role: Role) -> Init {
        let stdev = match role {
            role if role.is_norm() && self.norm == NormKind::RmsPlusOne => return candle_nn::init::ZERO,
            role if role.is_norm() => return candle_nn::init::ONE,
            Role::Score => 1. / ((self.hidden_size + 1) as f64).sqrt(),
            Role::AttentionOutput | Role::Mlp(Projection::Down) | Role::Expert(Projection::Down) => {
                self.initializer_range / (2. * self.num_hidden_layers as f64).sqrt()
            }
            _ => self.initializer_range,
        };
        Init::Randn { mean: 0., stdev }
    }

    fn block_specs(&self, layer: usize, specs: &mut Specs) {
        let (width, names) = (self.hidden_size, self.norm_placement.names());
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let full = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |specs: &mut Specs, name: Option<&str>| {
            if let Some(name) = name {
                specs.norm(&full(name), Role::Norm, width);
            }
        };
        norm(specs, names.attention_in);
        let bias = self.attention_bias != AttentionBias::None;
        specs.linear(&full("self_attn.q_proj"), Role::Query, (q, width), bias);
        specs.linear(&full("self_attn.k_proj"), Role::Key, (kv, width), bias);
        specs.linear(&full("self_attn.v_proj"), Role::Value, (kv, width), bias);
        if let Some(kind) = self.qk_norm {
            let (q, kv) = if kind == QkNorm::Head { (self.head_dim, self.head_dim) } else { (q, kv) };
            specs.norm(&full("self_attn.q_norm"), Role::QueryNorm, q);
            specs.norm(&full("self_attn.k_norm"), Role::KeyNorm, kv);
        }
        let bias = self.attention_bias == AttentionBias::All;
        specs.linear(&full("self_attn.o_proj"), Role::AttentionOutput, (width, q), bias);
        norm(specs, names.attention_out);
        norm(specs, names.mlp_in);
        match self.experts_of(layer) {
            Some(experts) => {
                specs.linear(&full("mlp.gate"), Role::Router, (experts.num_experts, width), false);
                for expert in 0..experts.num_experts {
                    let name = full(&format!("mlp.experts.{expert}"));
                    self.mlp_specs(&name, Role::Expert, experts.moe_intermediate_size, specs);
                }
            }
            None => self.mlp_specs(&full("mlp"), Role::Mlp, self.intermediate_size, specs),
        }
        norm(specs, names.mlp_out);
    }

    fn mlp_specs(&self, name: &str, role: fn(Projection) -> Role, inner: usize, specs: &mut Specs) {
        let (width, bias) = (self.hidden_size, self.mlp_bias);
        if self.gated_mlp {
            specs.linear(&format!("{name}.gate_proj"), role(Projection::Gate), (inner, width), bias);
        }
        specs.linear(&format!("{name}.up_proj"), role(Projection::Up), (inner, width), bias);
        specs.linear(&format!("{name}.down_proj"), role(Projection::Down), (width, inner), bias);
    }
}
