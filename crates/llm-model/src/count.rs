//! Parameter counts.

use serde::Serialize;

use crate::{Head, ModelConfig, Role};

/// Number of parameters by part. Each parameter is counted once: a tied output layer counts as embedding only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ParamCount {
    /// Token embedding and learned position embedding.
    pub embedding: usize,
    /// Attention projections with biases, and the norms of queries and keys.
    pub attention: usize,
    /// MLPs of dense layers.
    pub mlp: usize,
    /// Routers.
    pub routers: usize,
    /// All experts of all layers.
    pub experts: usize,
    /// The experts that are active for one token.
    pub active_experts: usize,
    /// All other norms.
    pub norms: usize,
    /// Untied output layer or score head.
    pub head: usize,
    /// The part of the embedding that is also the output layer.
    pub tied: usize,
}

impl ParamCount {
    /// Counts the parameters of a model with `config` and `head`, without allocating tensors.
    pub fn of(config: &ModelConfig, head: Head) -> Self {
        let mut count = Self::default();
        for spec in config.tensor_specs(head) {
            *match spec.role {
                Role::Embedding | Role::PositionEmbedding => &mut count.embedding,
                Role::Query | Role::Key | Role::Value | Role::AttentionOutput | Role::QueryNorm | Role::KeyNorm => {
                    &mut count.attention
                }
                Role::Expert(_) => &mut count.experts,
                Role::Router => &mut count.routers,
                Role::Mlp(_) => &mut count.mlp,
                Role::Norm => &mut count.norms,
                Role::Output | Role::Score => &mut count.head,
            } += spec.elements();
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

    /// Active parameters per token: all except the experts that are not selected.
    pub fn active(&self) -> usize {
        self.total() - self.experts + self.active_experts
    }
}
