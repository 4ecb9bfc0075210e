//! Replies sampled from a policy in the batched steps of the engine, and their difference from the trainer.

use llm_engine::{FinishReason, GenerateOptions, SampledReply, Sampling, generate_batch};
use llm_model::Model;

use crate::{Error, Result};

/// How replies are sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutOptions {
    /// Replies to each query, at least 1; they share the keys and values of the query.
    pub num_generations: usize,
    /// Token limit of a reply.
    pub max_new_tokens: usize,
    /// The token that ends a reply.
    pub eos: u32,
    /// Temperature and seed. Everything that leaves tokens out or changes their odds is refused.
    pub sampling: Sampling,
}

impl RolloutOptions {
    /// One reply to each query, sampled from the whole distribution at this temperature.
    pub fn new(max_new_tokens: usize, eos: u32, temperature: f64, seed: u64) -> Self {
        let sampling = Sampling { temperature, seed: Some(seed), ..Sampling::default() };
        Self { num_generations: 1, max_new_tokens, eos, sampling }
    }
}

/// The keys of [`Sampling`] that change the distribution that is sampled from.
pub(crate) const FILTERS: [&str; 16] = [
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "dynatemp_range",
    "mirostat_tau",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "logit_bias",
    "banned_ids",
    "allowed_ids",
    "min_tokens",
];

/// Why rollouts are sampled without the filter `key`; none if it is no filter.
pub(crate) fn why_refused(key: &str) -> Option<String> {
    FILTERS.contains(&key).then(|| {
        format!(
            "{key} is not for rollouts: the probability ratio compares log-probabilities of the whole distribution, and the tokens \
             that {key} makes more or less likely would have a wrong one; set temperature only"
        )
    })
}

/// Samples replies to each query, in the order of the queries. The same seed gives the same replies, whatever the number of queries; the
/// weights of the policy are not copied. It is an error if `options` has a filter, or temperature 0.
pub fn sample_replies(
    policy: &Model,
    queries: &[Vec<u32>],
    options: &RolloutOptions,
) -> Result<Vec<Vec<SampledReply>>> {
    check(&options.sampling)?;
    let sampling = options.sampling.clone();
    let generate =
        GenerateOptions { max_new_tokens: options.max_new_tokens, stop_ids: Some(vec![options.eos]), sampling };
    Ok(generate_batch(&policy.detached()?, queries, options.num_generations, &generate)?)
}

fn check(sampling: &Sampling) -> Result<()> {
    if sampling.temperature < 1e-5 {
        let message = "temperature is 0; it must be above 0 for rollouts, which are samples of the policy";
        return Err(Error::BadRequest(message.to_owned()));
    }
    let table = |sampling: &Sampling| {
        serde_json::to_value(sampling).map_err(|e| Error::Internal(format!("the sampling settings: {e}")))
    };
    let (given, plain) = (table(sampling)?, table(&Sampling::default())?);
    match FILTERS.iter().find(|key| given[**key] != plain[**key]) {
        Some(key) => Err(Error::BadRequest(why_refused(key).unwrap_or_default())),
        None => Ok(()),
    }
}

/// Whether a reply ends with its end token.
pub(crate) fn has_eos(reply: &SampledReply) -> bool {
    reply.reason == FinishReason::Stop
}

/// The difference of the log-probabilities of engine and trainer, `Δ` of each sampled token. It is 0 if both compute alike; else the
/// policy that is trained is not the one that sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LogprobDifference {
    tokens: f64,
    sum: f64,
    max: f64,
    exp_sum: f64,
}

/// The largest healthy mean of `exp |Δ|`.
pub const HEALTHY_DIFFERENCE: f64 = 1.05;

impl LogprobDifference {
    /// Adds the tokens of a reply.
    pub fn add(&mut self, engine: &[f32], trainer: &[f64]) {
        for (&engine, trainer) in engine.iter().zip(trainer) {
            let difference = (f64::from(engine) - trainer).abs();
            self.tokens += 1.;
            self.sum += difference;
            self.max = self.max.max(difference);
            self.exp_sum += difference.exp();
        }
    }

    /// The mean of `|Δ|`, its maximum and the mean of `exp |Δ|`.
    pub fn metrics(&self) -> [(&'static str, f64); 3] {
        let tokens = self.tokens.max(1.);
        let exp = if self.tokens > 0. { self.exp_sum / tokens } else { 1. };
        [
            ("sampling/logprob_diff_mean", self.sum / tokens),
            ("sampling/logprob_diff_max", self.max),
            ("sampling/logprob_diff_exp", exp),
        ]
    }

    /// Logs a warning if the difference is not healthy.
    pub(crate) fn warn(&self) {
        let [_, _, (_, exp)] = self.metrics();
        if exp > HEALTHY_DIFFERENCE {
            tracing::warn!(
                "the mean of exp |engine - trainer| of the log-probabilities is {exp:.3}, above {HEALTHY_DIFFERENCE}: the replies are \
                 not samples of the policy that is trained; set optimizer.precision = \"f32\""
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_filter_is_refused_by_name_with_the_reason() {
        let given = serde_json::json!({
            "top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "top_n_sigma": 1.0, "xtc_probability": 0.5,
            "dynatemp_range": 0.2, "mirostat_tau": 3.0, "repetition_penalty": 1.1, "presence_penalty": 0.5,
            "frequency_penalty": 0.5, "dry_multiplier": 0.8, "logit_bias": {"3": 1.0}, "banned_ids": [3],
            "allowed_ids": [3], "min_tokens": 2
        });
        for key in FILTERS {
            let one = serde_json::json!({ key: given[key] });
            let error = check(&serde_json::from_value(one).unwrap()).unwrap_err();
            assert!(error.is_callers_fault() && error.to_string().starts_with(key), "{key}: {error}");
            assert!(error.to_string().contains("probability ratio"), "{error}");
        }
        check(&Sampling { temperature: 0.7, seed: Some(3), ..Sampling::default() }).unwrap();
        let greedy = check(&Sampling { temperature: 0., ..Sampling::default() }).unwrap_err().to_string();
        assert!(greedy.contains("above 0"), "{greedy}");
    }

    /// Differences 0.1, 0.2 and 1.5: the mean of `exp` is 2.269.
    #[test]
    fn the_difference_has_golden_values() {
        let mut difference = LogprobDifference::default();
        difference.add(&[-1.0, -2.0], &[-1.1, -1.8]);
        difference.add(&[-0.5], &[-2.0]);
        let [(_, mean), (_, max), (_, exp)] = difference.metrics();
        assert!((mean - 0.6).abs() < 1e-6 && (max - 1.5).abs() < 1e-6, "{mean} {max}");
        assert!((exp - (0.1f64.exp() + 0.2f64.exp() + 1.5f64.exp()) / 3.).abs() < 1e-6, "{exp}");
        assert_eq!(LogprobDifference::default().metrics().map(|(_, x)| x), [0., 0., 1.]);
    }
}
