//! The keys of a request that say how tokens are sampled.

use std::collections::BTreeMap;

use llm_engine::Sampling;
use llm_model::GenerationConfig;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{ApiError, Result};

/// How tokens are sampled. A key that is missing has the value of the model's `generation_config.json`, else no effect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub(crate) struct SamplingFields {
    /// Divisor of the logits, from 0 to 2 and more; 0: the most likely token.
    #[schema(minimum = 0)]
    temperature: Option<f64>,
    /// Sample from the smallest set of tokens with at least this total probability; 0: the most likely token.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Sample from the k most likely tokens; 0 or -1: all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// The same seed gives the same answers [default: another one each time].
    seed: Option<i64>,
    /// Token ids that end an answer, besides those of the model.
    stop_token_ids: Option<Vec<u32>>,
    /// The end tokens of the model do not end an answer.
    ignore_eos: Option<bool>,
    /// Added to the logits of these token ids, from -100 to 100.
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<BTreeMap<u32, f32>>,
}

impl SamplingFields {
    /// The settings: those of the request, else those of the model, else those of the API.
    pub(crate) fn sampling(&self, model: &GenerationConfig) -> Result<Sampling> {
        let (temperature, top_k, top_p) = model.sampling();
        let mut sampling = Sampling::default();
        sampling.temperature = self.temperature.or(temperature).unwrap_or(sampling.temperature);
        sampling.top_p = self.top_p.or(top_p).unwrap_or(sampling.top_p);
        sampling.top_k = match self.top_k {
            Some(k @ ..-1) => {
                return Err(ApiError::invalid("top_k", format!("\"top_k\" is {k}; it must be -1 or more")));
            }
            Some(k) => usize::try_from(k).unwrap_or(0),
            None => top_k.unwrap_or(sampling.top_k),
        };
        sampling.seed = self.seed.map(i64::cast_unsigned);
        Ok(sampling)
    }

    /// The token ids that end an answer; none: those of the model.
    pub(crate) fn stop_ids(&self, model: impl FnOnce() -> Vec<u32>) -> Option<Vec<u32>> {
        let more = self.stop_token_ids.clone().unwrap_or_default();
        match self.ignore_eos {
            Some(true) => Some(more),
            _ if more.is_empty() => None,
            _ => Some([model(), more].concat()),
        }
    }
}
