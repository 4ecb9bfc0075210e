//! A sampled reply and what is known about it.

use crate::rollout::Reply;

/// A prompt, a sampled reply and what the update needs of it. The lists have one entry per token of the reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// The token ids up to the reply.
    pub query: Vec<u32>,
    /// The reply, including its end token if it has one.
    pub response: Vec<u32>,
    /// Whether the reply ends with the end token.
    pub has_eos: bool,
    /// The reward of the sources.
    pub score: f64,
    /// The reward after the change for a missing end token, of RLOO with the KL penalty.
    pub reward: f64,
    /// How much better the reply is than the others to its prompt.
    pub advantage: f64,
    /// Log-probabilities of the engine while it sampled.
    pub engine_logprobs: Vec<f32>,
    /// Log-probabilities under the policy that sampled the reply; none if the only step of the update starts from this policy.
    pub old_logprobs: Option<Vec<f64>>,
    /// Log-probabilities under the reference; none without a KL penalty.
    pub ref_logprobs: Option<Vec<f64>>,
}

impl Episode {
    /// Query and reply as a pair.
    pub(super) fn reply(&self) -> Reply<'_> {
        (&self.query, &self.response)
    }
}
