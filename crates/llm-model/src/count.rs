//! How many parameters a model has, and where.

use serde::Serialize;

use crate::{Head, ModelConfig};

/// Parameters by part. Each is counted once; a tied output layer is the embedding and adds nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ParamCount {
    /// The token embedding, and learned positions.
    pub embedding: usize,
    /// The four projections of every attention, with their biases and the norms of queries and keys.
    pub attention: usize,
    /// The feed-forward networks of layers without experts.
    pub mlp: usize,
    /// The routers of layers with experts.
    pub routers: usize,
    /// All experts of all layers.
    pub experts: usize,
    /// Those of the experts that one token takes.
    pub active_experts: usize,
    /// All other norms.
    pub norms: usize,
    /// An output layer or score head of its own.
    pub head: usize,
    /// Those of the embedding that serve as output layer too.
    pub tied: usize,
}

impl ParamCount {
    /// Counts the tensors of `config` with `head`; nothing is allocated but their names.
    pub fn of(config: &ModelConfig, head: Head) -> Self {
        let mut count = Self::default();
        for (name, shape) in config.tensor_shapes(head) {
            let part = match name.as_str() {
                name if name.starts_with("model.embed") => &mut count.embedding,
                name if name.contains(".self_attn.") => &mut count.attention,
                name if name.contains(".mlp.experts.") => &mut count.experts,
                name if name.contains(".mlp.gate.") => &mut count.routers,
                name if name.contains(".mlp.") => &mut count.mlp,
                name if name.contains("norm.") => &mut count.norms,
                _ => &mut count.head,
            };
            *part += shape.iter().product::<usize>();
        }
        if let Some(experts) = &config.experts {
            count.active_experts = count.experts / experts.num_experts * experts.num_experts_per_tok;
        }
        if head == Head::LanguageModel && config.tie_word_embeddings {
            count.tied = config.vocab_size * config.hidden_size;
        }
        count
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.embedding + self.attention + self.mlp + self.routers + self.experts + self.norms + self.head
    }

    /// The parameters that one token meets: all but the experts that it does not take.
    pub fn active(&self) -> usize {
        self.total() - self.experts + self.active_experts
    }
}
