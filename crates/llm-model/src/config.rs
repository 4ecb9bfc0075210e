//! What a decoder is made of, in the names of Hugging Face's `config.json`.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, model::Head};

/// The shape of a decoder. Defaults are those of a small model of the Llama shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
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
    /// Added to the mean square in each norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 6,
            num_key_value_heads: 3,
            head_dim: 0,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        }
    }
}

impl ModelConfig {
    /// Fills in `head_dim` and checks that the numbers fit together; `origin` is named in the error.
    pub fn validated(mut self, origin: &str) -> Result<Self> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::config(origin, format!("\"{key}\" is 0; it must be at least 1")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
            let message =
                format!("\"num_key_value_heads\" is {groups}; it must divide \"num_attention_heads\" {heads}");
            return Err(Error::config(origin, message));
        }
        if self.head_dim == 0 {
            if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
                let (width, heads) = (self.hidden_size, self.num_attention_heads);
                let message = format!(
                    "\"hidden_size\" {width} is not a multiple of \"num_attention_heads\" {heads}; set \"head_dim\""
                );
                return Err(Error::config(origin, message));
            }
            self.head_dim = self.hidden_size / self.num_attention_heads;
        }
        if !self.head_dim.is_multiple_of(2) {
            let message = format!("\"head_dim\" is {}; rotary positions need an even number", self.head_dim);
            return Err(Error::config(origin, message));
        }
        for (key, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value.is_finite() && value > 0.) {
                return Err(Error::config(origin, format!("\"{key}\" is {value}; it must be a positive number")));
            }
        }
        for (key, id) in [("bos", self.bos_token_id), ("eos", self.eos_token_id), ("pad", self.pad_token_id)] {
            if id.is_some_and(|id| id as usize >= self.vocab_size) {
                let message = format!("\"{key}_token_id\" lies outside \"vocab_size\" {}", self.vocab_size);
                return Err(Error::config(origin, message));
            }
        }
        Ok(self)
    }

    /// The name and shape of every tensor of a model with this decoder and `head`, in the order of the forward pass.
    pub fn tensor_shapes(&self, head: Head) -> Vec<(String, Vec<usize>)> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, width])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[width]);
            add("self_attn.q_proj", &[q, width]);
            add("self_attn.k_proj", &[kv, width]);
            add("self_attn.v_proj", &[kv, width]);
            add("self_attn.o_proj", &[width, q]);
            add("post_attention_layernorm", &[width]);
            add("mlp.gate_proj", &[inner, width]);
            add("mlp.up_proj", &[inner, width]);
            add("mlp.down_proj", &[width, inner]);
        }
        shapes.push(("model.norm.weight".to_owned(), vec![width]));
        match head {
            Head::LanguageModel if self.tie_word_embeddings => {}
            Head::LanguageModel => shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, width])),
            Head::Sequence => shapes.push(("score.weight".to_owned(), vec![1, width])),
            Head::Token => {
                shapes.push(("score.weight".to_owned(), vec![1, width]));
                shapes.push(("score.bias".to_owned(), vec![1]));
            }
        }
        shapes
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
        assert!(message(ModelConfig { pad_token_id: Some(2048), ..config }).contains("pad_token_id"));
    }
}
