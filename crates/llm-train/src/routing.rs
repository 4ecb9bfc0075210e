//! Router losses and router metrics of a training step of a mixture of experts.

use candle_core::Tensor;
use llm_model::Routing;
use serde_json::{Map, Value, json};

use crate::Result;

/// Router metrics of one step, summed over micro-batches; empty for a model without experts.
#[derive(Debug, Default)]
pub(crate) struct RouterMetrics {
    load_balancing_loss: f64,
    z_loss: f64,
    /// By layer and expert.
    tokens: Vec<Vec<usize>>,
}

impl RouterMetrics {
    /// Returns `loss + weight · routing.loss` for a micro-batch with this share of the step, and records its metrics.
    pub fn add(&mut self, loss: &Tensor, routing: Option<&Routing>, weight: f64) -> Result<Tensor> {
        let Some(routing) = routing else { return Ok(loss.clone()) };
        self.load_balancing_loss += weight * routing.load_balancing_loss;
        self.z_loss += weight * routing.z_loss;
        self.tokens.resize(routing.tokens_per_expert.len(), Vec::new());
        for (sum, layer) in self.tokens.iter_mut().zip(&routing.tokens_per_expert) {
            sum.resize(layer.len(), 0);
            sum.iter_mut().zip(layer).for_each(|(sum, tokens)| *sum += tokens);
        }
        Ok((loss + (&routing.loss * weight)?)?)
    }

    /// The metrics: both router losses, the tokens of each expert summed over layers, and the largest share of its layer's tokens
    /// that any expert has (1 / experts if balanced, at most 1 / k).
    pub fn metrics(&self) -> Map<String, Value> {
        let Some(first) = self.tokens.first() else { return Map::new() };
        let expert_tokens = |expert: usize| self.tokens.iter().map(|layer| layer[expert]).sum::<usize>();
        let busiest = self.tokens.iter().map(|layer| {
            let busiest = layer.iter().max().copied().unwrap_or(0);
            busiest as f64 / layer.iter().sum::<usize>().max(1) as f64
        });
        let metrics = json!({
            "load_balancing_loss": self.load_balancing_loss,
            "router_z_loss": self.z_loss,
            "busiest_expert_share": busiest.fold(0., f64::max),
            "tokens_per_expert": (0..first.len()).map(expert_tokens).collect::<Vec<_>>(),
        });
        metrics.as_object().cloned().unwrap_or_default()
    }
}
