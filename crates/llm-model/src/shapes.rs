//! Names and shapes of the decoder's tensors. The names are Llama's, with additions for other families.

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

/// Names and shapes in the order of the forward pass.
struct Shapes(Vec<(String, Vec<usize>)>);

impl Shapes {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[out, input]);
        if bias {
            self.add(format!("{name}.bias"), &[out]);
        }
    }

    fn norm(&mut self, name: &str, width: usize, kind: NormKind) {
        self.add(format!("{name}.weight"), &[width]);
        if kind == NormKind::Layer {
            self.add(format!("{name}.bias"), &[width]);
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

    /// The name and shape of every tensor of a model with this decoder and `head`, in the order of the forward pass.
    ///
    /// These are the decoder's names; the files of a family may use other names.
    pub fn tensor_shapes(&self, head: Head) -> Vec<(String, Vec<usize>)> {
        let width = self.hidden_size;
        let mut shapes = Shapes(Vec::new());
        shapes.linear("model.embed_tokens", self.vocab_size, width, false);
        if self.learned_positions {
            shapes.linear("model.embed_positions", self.max_position_embeddings, width, false);
        }
        for layer in 0..self.num_hidden_layers {
            self.block_shapes(layer, &mut shapes);
        }
        shapes.norm("model.norm", width, self.norm);
        match head {
            Head::LanguageModel if self.tie_word_embeddings => {}
            Head::LanguageModel => shapes.linear("lm_head", self.vocab_size, width, false),
            Head::Sequence => shapes.linear("score", 1, width, false),
            Head::Token => shapes.linear("score", 1, width, true),
        }
        shapes.0
    }

    fn block_shapes(&self, layer: usize, shapes: &mut Shapes) {
        let (width, names) = (self.hidden_size, self.norm_placement.names());
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let full = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |shapes: &mut Shapes, name: Option<&str>| {
            if let Some(name) = name {
                shapes.norm(&full(name), width, self.norm);
            }
        };
        norm(shapes, names.attention_in);
        let bias = self.attention_bias != AttentionBias::None;
        shapes.linear(&full("self_attn.q_proj"), q, width, bias);
        shapes.linear(&full("self_attn.k_proj"), kv, width, bias);
        shapes.linear(&full("self_attn.v_proj"), kv, width, bias);
        if let Some(kind) = self.qk_norm {
            let (q, kv) = if kind == QkNorm::Head { (self.head_dim, self.head_dim) } else { (q, kv) };
            shapes.norm(&full("self_attn.q_norm"), q, self.norm);
            shapes.norm(&full("self_attn.k_norm"), kv, self.norm);
        }
        shapes.linear(&full("self_attn.o_proj"), width, q, self.attention_bias == AttentionBias::All);
        norm(shapes, names.attention_out);
        norm(shapes, names.mlp_in);
        match self.experts_of(layer) {
            Some(experts) => {
                shapes.linear(&full("mlp.gate"), experts.num_experts, width, false);
                for expert in 0..experts.num_experts {
                    self.mlp_shapes(&full(&format!("mlp.experts.{expert}")), experts.moe_intermediate_size, shapes);
                }
            }
            None => self.mlp_shapes(&full("mlp"), self.intermediate_size, shapes),
        }
        norm(shapes, names.mlp_out);
    }

    fn mlp_shapes(&self, name: &str, inner: usize, shapes: &mut Shapes) {
        let (width, bias) = (self.hidden_size, self.mlp_bias);
        if self.gated_mlp {
            shapes.linear(&format!("{name}.gate_proj"), inner, width, bias);
        }
        shapes.linear(&format!("{name}.up_proj"), inner, width, bias);
        shapes.linear(&format!("{name}.down_proj"), width, inner, bias);
    }
}
