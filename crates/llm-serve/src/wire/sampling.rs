//! The keys of a request that say how tokens are sampled.

use std::collections::BTreeMap;

use llm_engine::{SamplerOrder, Sampling};
use llm_model::GenerationConfig;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{ApiError, Result};

/// How tokens are sampled. A key that is missing has the value of the model's `generation_config.json`, else no effect.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub(crate) struct SamplingFields {
    /// Divisor of the logits, 0 or more; 0: the most likely token.
    #[schema(minimum = 0)]
    temperature: Option<f64>,
    /// Sample from the smallest set of tokens with at least this total probability; 0: the most likely token.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Sample from the k most likely tokens; 0 or -1: all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Sample from the tokens with at least this share of the highest probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// Sample from the tokens whose information is nearest to the entropy, up to this total probability.
    #[serde(alias = "typ_p")]
    #[schema(maximum = 1)]
    typical_p: Option<f64>,
    /// Sample from the tokens with a logit at most this many standard deviations below the highest.
    #[schema(minimum = 0)]
    top_n_sigma: Option<f64>,
    /// Half the width of the range of a temperature that follows the entropy.
    #[schema(minimum = 0)]
    dynatemp_range: Option<f64>,
    /// Exponent of the relative entropy in the dynamic temperature.
    dynatemp_exponent: Option<f64>,
    /// Probability of leaving out the top choices of a token.
    #[schema(minimum = 0, maximum = 1)]
    xtc_probability: Option<f64>,
    /// The probability that makes a token a top choice.
    #[schema(minimum = 0, maximum = 1)]
    xtc_threshold: Option<f64>,
    /// Divisor of positive logits, and factor of the others, of tokens of the prompt or the answer.
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f64>,
    /// Subtracted from the logits of the answer's tokens.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Subtracted from the logits of the answer's tokens for each time they occur in it.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// The three penalties see the last tokens only, this many; 0: all.
    #[serde(alias = "repeat_last_n")]
    penalty_window: Option<usize>,
    /// Penalty of a token that would continue a repeated sequence.
    #[schema(minimum = 0)]
    dry_multiplier: Option<f64>,
    /// The penalty grows by this factor with each further token of the sequence.
    #[schema(minimum = 1)]
    dry_base: Option<f64>,
    /// Sequences of this many tokens may be continued without a penalty.
    #[schema(minimum = 1)]
    dry_allowed_length: Option<usize>,
    /// Repetitions are looked for in the last tokens only, this many; 0: all.
    dry_window: Option<usize>,
    /// A repeated sequence does not reach over these texts.
    #[serde(alias = "dry_sequence_breakers")]
    dry_breakers: Option<Vec<String>>,
    /// The surprise in bits that mirostat 2 aims at; 0: off.
    #[schema(minimum = 0)]
    mirostat_tau: Option<f64>,
    /// Learning rate of mirostat 2.
    mirostat_eta: Option<f64>,
    /// The samplers in the order in which they are applied: a list of names, `openai`, `vllm` or `llama.cpp`.
    #[schema(value_type = Option<Object>)]
    samplers: Option<SamplerOrder>,
    /// Added to the logits of these token ids, from -100 to 100.
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<BTreeMap<u32, f32>>,
    /// Token ids that are never sampled.
    banned_token_ids: Option<Vec<u32>>,
    /// The only token ids that are sampled.
    allowed_token_ids: Option<Vec<u32>>,
    /// The end tokens are not sampled, and stop strings not searched for, before this many tokens.
    min_tokens: Option<usize>,
    /// `raw_logprobs` (default): those of the model; `processed_logprobs`: those of the distribution that was sampled from.
    logprobs_mode: Option<LogprobsMode>,
    /// The same seed gives the same answers [default: another one each time].
    seed: Option<i64>,
    /// Token ids that end an answer, besides those of the model.
    stop_token_ids: Option<Vec<u32>>,
    /// The end tokens of the model do not end an answer.
    ignore_eos: Option<bool>,
}

/// Which log-probabilities are returned.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum LogprobsMode {
    RawLogprobs,
    ProcessedLogprobs,
}

/// Sets the fields of the settings that the request has.
macro_rules! set {
    ($sampling:ident, $fields:ident: $($name:ident)*) => {
        $(if let Some(value) = $fields.$name.clone() {
            $sampling.$name = value;
        })*
    };
}

impl SamplingFields {
    /// The settings: those of the request, else those of the model, else those of the API.
    pub(crate) fn sampling(&self, model: &GenerationConfig) -> Result<Sampling> {
        let mut sampling = Sampling::default();
        let (temperature, top_k, top_p) = model.sampling();
        sampling.temperature = temperature.unwrap_or(sampling.temperature);
        sampling.top_p = top_p.unwrap_or(sampling.top_p);
        sampling.top_k = match self.top_k {
            Some(k @ ..-1) => {
                return Err(ApiError::invalid("top_k", format!("\"top_k\" is {k}; it must be -1 or more")));
            }
            Some(k) => usize::try_from(k).unwrap_or(0),
            None => top_k.unwrap_or(sampling.top_k),
        };
        set!(sampling, self: temperature top_p min_p typical_p top_n_sigma dynatemp_range dynatemp_exponent xtc_probability
            xtc_threshold repetition_penalty presence_penalty frequency_penalty penalty_window dry_multiplier dry_base
            dry_allowed_length dry_window dry_breakers mirostat_tau mirostat_eta samplers logit_bias min_tokens);
        sampling.banned_ids = self.banned_token_ids.clone().unwrap_or_default();
        sampling.allowed_ids.clone_from(&self.allowed_token_ids);
        sampling.processed_logprobs = self.logprobs_mode == Some(LogprobsMode::ProcessedLogprobs);
        sampling.seed = self.seed.map(i64::cast_unsigned);
        Ok(sampling.seeded())
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
