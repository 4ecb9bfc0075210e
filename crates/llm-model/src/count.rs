//! How many parameters a model has, and where.

use serde::Serialize;

use crate::{Head, ModelConfig};

/// Parameters by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ParamCount {
    /// The token embedding (shared with a tied output layer), and learned positions.
    pub embedding: usize,
    /// The four projections of every attention, with their biases and the norms of queries and keys.
    pub attention: usize,
    /// Every feed-forward network, with all experts and routers.
    pub mlp: usize,
    /// All other norms.
    pub norms: usize,
    /// An output layer or score head of its own.
    pub head: usize,
}

impl ParamCount {
    /// Counts the tensors of `config` with `head`.
    pub fn of(config: &ModelConfig, head: Head) -> Self {
        let mut count = Self { embedding: 0, attention: 0, mlp: 0, norms: 0, head: 0 };
        for (name, shape) in config.tensor_shapes(head) {
            let part = match name.as_str() {
                name if name.starts_with("model.embed") => &mut count.embedding,
                name if name.contains(".self_attn.") => &mut count.attention,
                name if name.contains(".mlp.") => &mut count.mlp,
                name if name.contains("norm.") => &mut count.norms,
                _ => &mut count.head,
            };
            *part += shape.iter().product::<usize>();
        }
        count
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.embedding + self.attention + self.mlp + self.norms + self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smollm2_135m_has_its_published_size() {
        let config = ModelConfig {
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            ..ModelConfig::default()
        };
        let config = config.validated("test").unwrap();
        assert_eq!(ParamCount::of(&config, Head::LanguageModel).total(), 134_515_008);
    }
}
