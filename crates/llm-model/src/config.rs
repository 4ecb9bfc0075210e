//! What a decoder is made of, in the names of Hugging Face's `config.json`.

use serde::{Deserialize, Serialize};

use crate::families::ModelType;
use crate::{Error, Result, RopeScaling};

/// The shape of a decoder. Defaults are those of a small model of the Llama shape.
///
/// What differs between families is data here; a family's file in [`crate::families`] says which of it the family has,
/// and what it cannot say in its `config.json` is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own in the families' files")]
pub struct ModelConfig {
    /// The family whose names the files use.
    pub model_type: ModelType,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward network.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads of each block.
    pub num_attention_heads: usize,
    /// Key and value heads of each block; divides the query heads.
    pub num_key_value_heads: usize,
    /// Numbers in each head; even, for rotary positions. 0: `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The longest text that the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// What a norm does.
    pub norm: NormKind,
    /// Where the norms of a block stand.
    pub norm_placement: NormPlacement,
    /// Added to the mean square (or the variance) in each norm.
    pub rms_norm_eps: f64,
    /// A norm of queries and keys before they turn.
    pub qk_norm: Option<QkNorm>,
    /// Whether attention and feed-forward read the same input and are added at once (GPT-NeoX).
    pub parallel_residual: bool,
    /// Which projections of the attention have a bias.
    pub attention_bias: AttentionBias,
    /// Whether the matrices of the feed-forward network have biases.
    pub mlp_bias: bool,
    /// Whether the feed-forward network is `down(act(gate(x)) · up(x))`, or `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// The activation of the feed-forward network.
    pub hidden_act: Activation,
    /// Whether positions are learned vectors that are added to the embedding, instead of rotations (GPT-2).
    pub learned_positions: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The share of each head that turns.
    pub partial_rotary_factor: f64,
    /// Base of the rotary frequencies, unscaled, of layers that look through a window (Gemma 3); none: the same.
    pub rope_local_theta: Option<f64>,
    /// Layers without rotary positions (`SmolLM3`), from 0.
    pub layers_without_rope: Vec<usize>,
    /// How many tokens back, itself among them, a token of a sliding layer sees.
    pub sliding_window: Option<usize>,
    /// What each layer sees; empty: all the same, through the window if there is one.
    pub layer_types: Vec<LayerType>,
    /// Scores are divided by the root of this instead of `head_dim`'s (Gemma).
    pub query_pre_attn_scalar: Option<f64>,
    /// Attention scores are held within this by a tanh (Gemma 2).
    pub attn_logit_softcapping: Option<f64>,
    /// Logits are held within this by a tanh (Gemma 2).
    pub final_logit_softcapping: Option<f64>,
    /// Whether embeddings are multiplied by `sqrt(hidden_size)` (Gemma).
    pub scale_embeddings: bool,
    /// Whether the output layer is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Ends a text or a turn; generation stops there.
    pub eos_token_id: Option<u32>,
    /// Fills up short rows of a batch.
    pub pad_token_id: Option<u32>,
    /// How the rotary frequencies are stretched to longer texts.
    pub rope_scaling: RopeScaling,
    /// Feed-forward networks of which each token takes a few, instead of one.
    pub experts: Option<ExpertsConfig>,
}

/// What a norm does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / rms(x) · w`.
    #[default]
    Rms,
    /// `x / rms(x) · (1 + w)` (Gemma).
    RmsPlusOne,
    /// `(x - mean(x)) / std(x) · w + b`.
    Layer,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before attention and before the feed-forward network.
    #[default]
    Pre,
    /// Behind each, before it is added (`OLMo` 2).
    Post,
    /// Both (Gemma).
    Sandwich,
}

/// A norm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Of each head by itself (Qwen3, Gemma 3).
    Head,
    /// Of all heads together (`OLMo` 2).
    Whole,
}

/// Which projections of the attention have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionBias {
    /// None.
    #[default]
    None,
    /// Queries, keys and values (Qwen2).
    Qkv,
    /// These and the output.
    All,
}

/// What a layer's tokens see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// Everything before them.
    FullAttention,
    /// The last `sliding_window` tokens.
    SlidingAttention,
}

/// The activation of a feed-forward network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// Its approximation by a tanh.
    GeluPytorchTanh,
}

impl Activation {
    pub(crate) fn kernel(self) -> llm_kernels::Activation {
        match self {
            Self::Silu => llm_kernels::Activation::Silu,
            Self::Gelu => llm_kernels::Activation::Gelu,
            Self::GeluPytorchTanh => llm_kernels::Activation::GeluTanh,
        }
    }
}

/// A mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): each token takes the networks that a router chooses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertsConfig {
    /// Networks of a layer.
    pub num_experts: usize,
    /// Networks that each token takes.
    pub num_experts_per_tok: usize,
    /// Width inside each of them.
    pub moe_intermediate_size: usize,
    /// Whether the shares of the chosen ones are scaled to sum to one.
    pub norm_topk_prob: bool,
    /// Coefficient of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961).
    pub router_aux_loss_coef: f64,
    /// Coefficient of the router's z-loss (Zoph et al. 2022, arXiv 2202.08906).
    pub router_z_loss_coef: f64,
    /// Layers with one network of `intermediate_size` all the same, from 0.
    pub dense_layers: Vec<usize>,
}

impl Default for ExpertsConfig {
    fn default() -> Self {
        Self {
            num_experts: 8,
            num_experts_per_tok: 2,
            moe_intermediate_size: 512,
            norm_topk_prob: true,
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.001,
            dense_layers: Vec::new(),
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            model_type: ModelType::Llama,
            vocab_size: 2048,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 6,
            num_key_value_heads: 3,
            head_dim: 0,
            max_position_embeddings: 1024,
            norm: NormKind::Rms,
            norm_placement: NormPlacement::Pre,
            rms_norm_eps: 1e-5,
            qk_norm: None,
            parallel_residual: false,
            attention_bias: AttentionBias::None,
            mlp_bias: false,
            gated_mlp: true,
            hidden_act: Activation::Silu,
            learned_positions: false,
            rope_theta: 10_000.,
            partial_rotary_factor: 1.,
            rope_local_theta: None,
            layers_without_rope: Vec::new(),
            sliding_window: None,
            layer_types: Vec::new(),
            query_pre_attn_scalar: None,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            scale_embeddings: false,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            rope_scaling: RopeScaling::Default,
            experts: None,
        }
    }
}

/// No model is as large; a bound on what a file can ask for, and on what is computed from it.
pub(crate) const MOST_LAYERS: usize = 1 << 16;
const MOST_EXPERTS: usize = 1 << 18; // of all layers
const WIDEST: usize = 1 << 20;
const MOST_IDS: usize = u32::MAX as usize; // tokens and positions

impl ModelConfig {
    /// The window of `layer`, if it looks through one.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.layer_types.get(layer) != Some(&LayerType::FullAttention))
    }

    /// The experts of `layer`, if it has them.
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsConfig> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer))
    }

    /// How many numbers of each head turn.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Fills in `head_dim` and checks that the numbers fit together; `origin` is named in the error.
    pub fn validated(mut self, origin: &str) -> Result<Self> {
        let wrong = |message: String| Err(Error::config(origin, message));
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return wrong(format!("\"{key}\" is 0; it must be at least 1"));
        }
        self.check_sizes(origin)?;
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(groups) {
            return wrong(format!(
                "\"num_key_value_heads\" is {groups}; it must divide \"num_attention_heads\" {heads}"
            ));
        }
        if self.head_dim == 0 {
            let width = self.hidden_size;
            if !width.is_multiple_of(heads) {
                return wrong(format!(
                    "\"hidden_size\" {width} is not a multiple of \"num_attention_heads\" {heads}; set \"head_dim\""
                ));
            }
            self.head_dim = width / heads;
        }
        if heads.checked_mul(self.head_dim).is_none_or(|width| width > WIDEST) {
            return wrong(format!("{heads} heads of \"head_dim\" {} are wider than any model is", self.head_dim));
        }
        self.check_numbers(origin)?;
        self.check_layers(origin)?;
        if self.parallel_residual && self.norm_placement != NormPlacement::Pre {
            return wrong("\"parallel_residual\" needs \"norm_placement\" \"pre\"".to_owned());
        }
        if let Some(experts) = &self.experts {
            let (all, taken) = (experts.num_experts, experts.num_experts_per_tok);
            if taken == 0 || taken > all {
                return wrong(format!(
                    "\"num_experts_per_tok\" is {taken}; it must be from 1 to \"num_experts\" {all}"
                ));
            }
            if experts.moe_intermediate_size == 0 {
                return wrong("\"moe_intermediate_size\" is 0; it must be at least 1".to_owned());
            }
            if !self.gated_mlp || self.mlp_bias {
                return wrong("\"experts\" are gated and have no biases".to_owned());
            }
        }
        Ok(self)
    }

    /// Refuses sizes that no model has.
    fn check_sizes(&self, origin: &str) -> Result<()> {
        let experts = self.experts.as_ref();
        let all_experts = experts.map_or(0, |experts| experts.num_experts.saturating_mul(self.num_hidden_layers));
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("hidden_size", self.hidden_size, WIDEST),
            ("intermediate_size", self.intermediate_size, WIDEST),
            ("moe_intermediate_size", experts.map_or(0, |experts| experts.moe_intermediate_size), WIDEST),
            ("num_experts of all layers", all_experts, MOST_EXPERTS),
            ("vocab_size", self.vocab_size, MOST_IDS),
            ("max_position_embeddings", self.max_position_embeddings, MOST_IDS),
        ];
        match sizes.iter().find(|(_, value, most)| value > most) {
            Some((key, value, _)) => Err(Error::config(origin, format!("\"{key}\" is {value}, which no model has"))),
            None => Ok(()),
        }
    }

    fn check_numbers(&self, origin: &str) -> Result<()> {
        let wrong = |message: String| Err(Error::config(origin, message));
        let (dim, rotary) = (self.head_dim, self.rotary_dim());
        let turns = !self.learned_positions;
        if rotary > dim || turns && (!rotary.is_multiple_of(2) || rotary == 0) {
            return match rotary == dim {
                true => wrong(format!("\"head_dim\" is {dim}; rotary positions need an even number")),
                false => wrong(format!(
                    "\"partial_rotary_factor\" lets {rotary} of \"head_dim\" {dim} numbers turn; these must be even"
                )),
            };
        }
        let positive = [
            ("rms_norm_eps", Some(self.rms_norm_eps)),
            ("rope_theta", Some(self.rope_theta)),
            ("rope_local_theta", self.rope_local_theta),
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ];
        for (key, value) in positive {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.)) {
                return wrong(format!("\"{key}\" is {value}; it must be a positive number"));
            }
        }
        for (key, id) in [("bos", self.bos_token_id), ("eos", self.eos_token_id), ("pad", self.pad_token_id)] {
            if id.is_some_and(|id| id as usize >= self.vocab_size) {
                return wrong(format!("\"{key}_token_id\" lies outside \"vocab_size\" {}", self.vocab_size));
            }
        }
        self.rope_scaling.check(self.rotary_dim(), origin)
    }

    /// Checks what is said layer by layer, and says it in the shortest way.
    fn check_layers(&mut self, origin: &str) -> Result<()> {
        let layers = self.num_hidden_layers;
        if !self.layer_types.is_empty() && self.layer_types.len() != layers {
            let message = format!("\"layer_types\" has {} entries for {layers} layers", self.layer_types.len());
            return Err(Error::config(origin, message));
        }
        let slides = self.layer_types.contains(&LayerType::SlidingAttention);
        if slides && self.sliding_window.is_none() {
            let message = "\"layer_types\" has sliding layers, but \"sliding_window\" is missing";
            return Err(Error::config(origin, message));
        }
        if !self.layer_types.is_empty() && !slides {
            self.sliding_window = None;
        }
        if !self.layer_types.contains(&LayerType::FullAttention) || self.sliding_window.is_none() {
            self.layer_types.clear();
        }
        let dense = self.experts.as_ref().map(|experts| &experts.dense_layers);
        for (key, list) in [("layers_without_rope", Some(&self.layers_without_rope)), ("dense_layers", dense)] {
            if let Some(layer) = list.into_iter().flatten().find(|&&layer| layer >= layers) {
                return Err(Error::config(origin, format!("\"{key}\" names layer {layer} of {layers}, from 0")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_named() {
        let message = |config: ModelConfig| config.validated("config.json").unwrap_err().to_string();
        let config = ModelConfig::default();
        assert!(message(ModelConfig { num_key_value_heads: 4, ..config.clone() }).contains("num_key_value_heads"));
        assert!(message(ModelConfig { hidden_size: 190, ..config.clone() }).contains("head_dim"));
        assert!(message(ModelConfig { head_dim: 7, ..config.clone() }).contains("even"));
        assert!(message(ModelConfig { vocab_size: 0, ..config.clone() }).contains("vocab_size"));
        assert!(message(ModelConfig { rope_theta: f64::NAN, ..config.clone() }).contains("rope_theta"));
        assert!(message(ModelConfig { pad_token_id: Some(2048), ..config.clone() }).contains("pad_token_id"));
        assert!(message(ModelConfig { partial_rotary_factor: 0.1, ..config.clone() }).contains("partial_rotary"));
        assert!(
            message(ModelConfig { layer_types: vec![LayerType::FullAttention], ..config.clone() }).contains("1 en")
        );
        let sliding = vec![LayerType::SlidingAttention; 4];
        assert!(message(ModelConfig { layer_types: sliding, ..config.clone() }).contains("sliding_window"));
        assert!(message(ModelConfig { layers_without_rope: vec![4], ..config.clone() }).contains("layer 4 of 4"));
        let experts = |experts| message(ModelConfig { experts: Some(experts), ..config.clone() });
        assert!(experts(ExpertsConfig { num_experts_per_tok: 9, ..ExpertsConfig::default() }).contains("from 1 to"));
        assert!(
            experts(ExpertsConfig { num_experts: 1 << 60, ..ExpertsConfig::default() }).contains("num_experts of all")
        );
        assert!(message(ModelConfig { hidden_size: 1 << 40, ..config.clone() }).contains("no model has"));
        assert!(message(ModelConfig { head_dim: 1 << 63, ..config.clone() }).contains("\"head_dim\""));
        assert!(experts(ExpertsConfig { dense_layers: vec![7], ..ExpertsConfig::default() }).contains("dense_layers"));
    }

    #[test]
    fn layers_that_are_all_alike_are_said_in_the_shortest_way() {
        use LayerType::{FullAttention, SlidingAttention};
        let of = |layer_types: Vec<LayerType>| {
            let config = ModelConfig { sliding_window: Some(8), layer_types, ..ModelConfig::default() };
            let config = config.validated("test").unwrap();
            (config.layer_types.len(), (0..4).map(|layer| config.window_of(layer).is_some()).collect::<Vec<_>>())
        };
        assert_eq!(of(vec![SlidingAttention; 4]), (0, vec![true; 4]));
        assert_eq!(of(vec![FullAttention; 4]), (0, vec![false; 4]));
        let mixed = vec![FullAttention, SlidingAttention, FullAttention, FullAttention];
        assert_eq!(of(mixed), (4, vec![false, true, false, false]));
    }
}
