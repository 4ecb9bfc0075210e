//! The configuration of a decoder. Field names follow the `config.json` of Hugging Face.

mod kinds;
mod model_type;
mod rope_scaling;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};
pub use kinds::{Activation, AttentionBias, ExpertsConfig, LayerType, NormKind, NormPlacement, QkNorm};
pub use model_type::ModelType;
pub use rope_scaling::RopeScaling;

/// The architecture and sizes of a decoder. The default is a small Llama.
///
/// The differences between families are fields here. The family's module in [`crate::families`] maps them to its
/// `config.json`; a value that the family cannot express is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a separate key of config.json")]
pub struct ModelConfig {
    /// The model family; it decides the keys of `config.json` and the tensor names.
    pub model_type: ModelType,
    /// Number of token ids (rows of the embedding).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Hidden width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers (transformer blocks).
    pub num_hidden_layers: usize,
    /// Query heads per layer.
    pub num_attention_heads: usize,
    /// Key/value heads per layer; must divide the number of query heads.
    pub num_key_value_heads: usize,
    /// Size of each head; even with rotary embeddings. 0: `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Maximum context length, in tokens.
    pub max_position_embeddings: usize,
    /// The kind of the norms.
    pub norm: NormKind,
    /// The position of the norms in a block.
    pub norm_placement: NormPlacement,
    /// Epsilon of the norms, added to the mean square (or the variance).
    pub rms_norm_eps: f64,
    /// Norm of queries and keys before the rotary embedding, if any.
    pub qk_norm: Option<QkNorm>,
    /// Whether attention and MLP have the same input and are added in parallel (GPT-NeoX).
    pub parallel_residual: bool,
    /// The attention projections that have a bias.
    pub attention_bias: AttentionBias,
    /// Whether the MLP projections have biases.
    pub mlp_bias: bool,
    /// True: the MLP is `down(act(gate(x)) · up(x))`; false: `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// Activation function of the MLP.
    pub hidden_act: Activation,
    /// Whether the model has learned position embeddings instead of rotary ones (GPT-2).
    pub learned_positions: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Fraction of each head that is rotated, in (0, 1].
    pub partial_rotary_factor: f64,
    /// Base of the unscaled rotary frequencies of sliding-window layers (Gemma 3); none: `rope_theta` for all layers.
    pub rope_local_theta: Option<f64>,
    /// Layers without rotary embeddings (`SmolLM3`), counted from 0.
    pub layers_without_rope: Vec<usize>,
    /// Window of sliding-window attention: number of keys per query, the query's own token included.
    pub sliding_window: Option<usize>,
    /// Attention type of each layer; empty: all layers use `sliding_window` if it is set, else full attention.
    pub layer_types: Vec<LayerType>,
    /// Attention scores are divided by the square root of this instead of `head_dim` (Gemma).
    pub query_pre_attn_scalar: Option<f64>,
    /// Soft cap of the attention scores: `cap · tanh(score / cap)` (Gemma 2).
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of the logits: `cap · tanh(logit / cap)` (Gemma 2).
    pub final_logit_softcapping: Option<f64>,
    /// Whether embeddings are multiplied by `sqrt(hidden_size)` (Gemma).
    pub scale_embeddings: bool,
    /// Whether the output layer shares the weight of the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the weights at initialisation.
    pub initializer_range: f64,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence token; generation stops at it.
    pub eos_token_id: Option<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Scaling of the rotary frequencies for contexts longer than in pretraining.
    pub rope_scaling: RopeScaling,
    /// Mixture of experts instead of one MLP per layer, if any.
    pub experts: Option<ExpertsConfig>,
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

/// Upper limits for sizes read from files: they bound memory and prevent overflow.
pub(crate) const MAX_LAYERS: usize = 1 << 16;
const MAX_EXPERTS: usize = 1 << 18; // over all layers
const MAX_WIDTH: usize = 1 << 20;
const MAX_IDS: usize = u32::MAX as usize; // tokens and positions

impl ModelConfig {
    /// The attention window of `layer`; none with full attention.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.layer_types.get(layer) != Some(&LayerType::FullAttention))
    }

    /// The experts of `layer`; none for a dense layer.
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsConfig> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer))
    }

    /// The rotary dimension: the number of elements of each head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Removes the begin, end and padding tokens that the vocabulary does not have: a model without that row never writes them.
    /// The defaults of transformers name such tokens for models with a small vocabulary. Returns a warning for each.
    pub(crate) fn drop_unknown_tokens(&mut self) -> Vec<String> {
        let size = self.vocab_size;
        let tokens = [
            ("bos_token_id", &mut self.bos_token_id),
            ("eos_token_id", &mut self.eos_token_id),
            ("pad_token_id", &mut self.pad_token_id),
        ];
        let unknown = tokens.into_iter().filter_map(|(key, id)| {
            let id = id.take_if(|id| *id as usize >= size)?;
            Some(format!("\"{key}\" is {id}, which is not in the vocabulary of {size} tokens; it is ignored"))
        });
        unknown.collect()
    }

    /// Fills in `head_dim` and checks that the values are consistent; errors name `origin`.
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
        if heads.checked_mul(self.head_dim).is_none_or(|width| width > MAX_WIDTH) {
            return wrong(format!(
                "{heads} heads of \"head_dim\" {} are wider than the maximum of {MAX_WIDTH}",
                self.head_dim
            ));
        }
        self.check_numbers(origin)?;
        self.check_layers(origin)?;
        if self.parallel_residual && self.norm_placement != NormPlacement::Pre {
            return wrong("\"parallel_residual\" needs \"norm_placement\" \"pre\"".to_owned());
        }
        if let Some(experts) = &self.experts {
            let (all, selected) = (experts.num_experts, experts.num_experts_per_tok);
            if selected == 0 || selected > all {
                return wrong(format!(
                    "\"num_experts_per_tok\" is {selected}; it must be from 1 to \"num_experts\" {all}"
                ));
            }
            if experts.moe_intermediate_size == 0 {
                return wrong("\"moe_intermediate_size\" is 0; it must be at least 1".to_owned());
            }
            if !self.gated_mlp || self.mlp_bias {
                return wrong("\"experts\" need \"gated_mlp\" true and \"mlp_bias\" false".to_owned());
            }
        }
        Ok(self)
    }

    /// Rejects sizes above the supported maximum.
    fn check_sizes(&self, origin: &str) -> Result<()> {
        let experts = self.experts.as_ref();
        let all_experts = experts.map_or(0, |experts| experts.num_experts.saturating_mul(self.num_hidden_layers));
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("moe_intermediate_size", experts.map_or(0, |experts| experts.moe_intermediate_size), MAX_WIDTH),
            ("num_experts of all layers", all_experts, MAX_EXPERTS), // num_experts · num_hidden_layers
            ("vocab_size", self.vocab_size, MAX_IDS),
            ("max_position_embeddings", self.max_position_embeddings, MAX_IDS),
        ];
        match sizes.iter().find(|(_, value, max)| value > max) {
            Some((key, value, max)) => {
                Err(Error::config(origin, format!("\"{key}\" is {value}; it must be at most {max}")))
            }
            None => Ok(()),
        }
    }

    fn check_numbers(&self, origin: &str) -> Result<()> {
        let wrong = |message: String| Err(Error::config(origin, message));
        let (dim, rotary) = (self.head_dim, self.rotary_dim());
        let uses_rope = !self.learned_positions;
        if rotary > dim || uses_rope && (!rotary.is_multiple_of(2) || rotary == 0) {
            return match rotary == dim {
                true => wrong(format!("\"head_dim\" is {dim}; rotary embeddings need an even number")),
                false => wrong(format!(
                    "\"partial_rotary_factor\" gives rotary dimension {rotary}; it must be even and from 2 to \
                     \"head_dim\" {dim}"
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
                return wrong(format!("\"{key}_token_id\" must be less than \"vocab_size\" {}", self.vocab_size));
            }
        }
        self.rope_scaling.check(self.rotary_dim(), origin)
    }

    /// Checks the settings of individual layers and normalises them: uniform layers have no `layer_types`.
    fn check_layers(&mut self, origin: &str) -> Result<()> {
        let layers = self.num_hidden_layers;
        if !self.layer_types.is_empty() && self.layer_types.len() != layers {
            let message = format!("\"layer_types\" has {} entries for {layers} layers", self.layer_types.len());
            return Err(Error::config(origin, message));
        }
        let has_sliding = self.layer_types.contains(&LayerType::SlidingAttention);
        if has_sliding && self.sliding_window.is_none() {
            let message = "\"layer_types\" has sliding layers, but \"sliding_window\" is missing";
            return Err(Error::config(origin, message));
        }
        if !self.layer_types.is_empty() && !has_sliding {
            self.sliding_window = None;
        }
        if !self.layer_types.contains(&LayerType::FullAttention) || self.sliding_window.is_none() {
            self.layer_types.clear();
        }
        let dense = self.experts.as_ref().map(|experts| &experts.dense_layers);
        for (key, list) in [("layers_without_rope", Some(&self.layers_without_rope)), ("dense_layers", dense)] {
            if let Some(layer) = list.into_iter().flatten().find(|&&layer| layer >= layers) {
                return Err(Error::config(
                    origin,
                    format!("\"{key}\" names layer {layer} of {layers} (counted from 0)"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inconsistent_settings_are_rejected_by_key() {
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
        assert!(message(ModelConfig { hidden_size: 1 << 40, ..config.clone() }).contains("at most 1048576"));
        assert!(message(ModelConfig { head_dim: 1 << 63, ..config.clone() }).contains("\"head_dim\""));
        assert!(experts(ExpertsConfig { dense_layers: vec![7], ..ExpertsConfig::default() }).contains("dense_layers"));
    }

    #[test]
    fn uniform_layer_types_are_normalised_to_empty() {
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
