//! What the routers of a mixture of experts add to a training step: their part of the loss, and their line in the log.

use candle_core::Tensor;
use llm_model::Routing;
use serde_json::{Map, Value, json};

use crate::Result;

/// The routers' figures of one step, over its micro-batches; nothing for a model without experts.
#[derive(Debug, Default)]
pub(crate) struct RouterLog {
    load_balancing_loss: f64,
    z_loss: f64,
    /// Of each layer and expert.
    tokens: Vec<Vec<usize>>,
}

impl RouterLog {
    /// `loss + weight · routing.loss` of a micro-batch that is `weight` of the step.
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

    /// What a line of the log says: both losses, the tokens of each expert over all layers, and the largest share that an
    /// expert has of its layer's places (1 / experts if all are alike, 1 / k at most).
    pub fn figures(&self) -> Map<String, Value> {
        let Some(first) = self.tokens.first() else { return Map::new() };
        let of_expert = |expert: usize| self.tokens.iter().map(|layer| layer[expert]).sum::<usize>();
        let busiest = self.tokens.iter().map(|layer| {
            let busiest = layer.iter().max().copied().unwrap_or(0);
            busiest as f64 / layer.iter().sum::<usize>().max(1) as f64
        });
        let figures = json!({
            "load_balancing_loss": self.load_balancing_loss,
            "router_z_loss": self.z_loss,
            "busiest_expert_share": busiest.fold(0., f64::max),
            "tokens_per_expert": (0..first.len()).map(of_expert).collect::<Vec<_>>(),
        });
        figures.as_object().cloned().unwrap_or_default()
    }
}
