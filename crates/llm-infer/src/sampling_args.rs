//! The options of sampling, the same for every command that generates text.

use std::collections::BTreeMap;

use clap::Args;
use llm_engine::SamplerOrder;
use serde::Serialize;

/// The options of sampling. One that is not given is not a key of its JSON; the others have the names of
/// [`llm_engine::Sampling`].
#[derive(Debug, Clone, Default, Args, Serialize)]
#[command(next_help_heading = "Sampling options")]
#[allow(clippy::doc_markdown, reason = "help texts have no backticks")]
pub(crate) struct SamplingArgs {
    /// Sampling temperature, 0 or more; 0: greedy decoding; higher values give more random text [default: that of the model's
    /// generation_config.json or GGUF metadata, else 0.7]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// Sample from the k most likely tokens only; 0: all tokens [default: that of the model, else 0]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,
    /// Sample from the smallest set of tokens with at least this total probability, from 0 to 1; 1: all tokens [default: that of the
    /// model, else 1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    /// Sample from the tokens with at least this share of the highest probability, from 0 to 1 [default: 0, all tokens]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f64>,
    /// Sample from the tokens whose information is nearest to the entropy, up to this total probability, above 0 and up to 1
    /// [default: 1, all tokens]
    #[arg(long, hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    typical_p: Option<f64>,
    /// Sample from the tokens with a logit at most this many standard deviations below the highest, 0 or more [default: 0, all
    /// tokens]
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_n_sigma: Option<f64>,
    /// Half the width of the range of a temperature that follows the entropy, 0 or more [default: 0, a fixed temperature]
    #[arg(long, value_name = "RANGE", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dynatemp_range: Option<f64>,
    /// Exponent of the relative entropy in the dynamic temperature, above 0 [default: 1]
    #[arg(long, value_name = "EXPONENT", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dynatemp_exponent: Option<f64>,
    /// Probability of leaving out the top choices of a token, from 0 to 1 [default: 0]
    #[arg(long, value_name = "P", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    xtc_probability: Option<f64>,
    /// The probability that makes a token a top choice, from 0 to 1 [default: 0.1]
    #[arg(long, value_name = "P", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    xtc_threshold: Option<f64>,
    /// Divides the positive logits of tokens of the prompt and the answer, and multiplies the others, above 0 [default: 1, off]
    #[arg(long, value_name = "FACTOR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f64>,
    /// Subtracted from the logits of tokens of the answer, from -2 to 2 [default: 0]
    #[arg(long, value_name = "PENALTY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f64>,
    /// Subtracted from the logits of tokens of the answer for each time they occur in it, from -2 to 2 [default: 0]
    #[arg(long, value_name = "PENALTY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f64>,
    /// The penalties see this many of the last tokens of prompt and answer; 0: all [default: 0]
    #[arg(long, value_name = "TOKENS", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    penalty_window: Option<usize>,
    /// Penalty of a token that would continue a repeated sequence (DRY), 0 or more [default: 0, off]
    #[arg(long, value_name = "X", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_multiplier: Option<f64>,
    /// The DRY penalty grows by this factor with each token of the sequence, 1 or more [default: 1.75]
    #[arg(long, value_name = "X", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_base: Option<f64>,
    /// Sequences of this many tokens may be continued without the DRY penalty, 1 or more [default: 2]
    #[arg(long, value_name = "TOKENS", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_allowed_length: Option<usize>,
    /// Repetitions are looked for in this many of the last tokens; 0: all [default: 0]
    #[arg(long, value_name = "TOKENS", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_window: Option<usize>,
    /// The surprise in bits that mirostat 2 aims at, 0 or more; it replaces all samplers that leave tokens out [default: 0, off]
    #[arg(long, value_name = "BITS", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mirostat_tau: Option<f64>,
    /// Learning rate of mirostat 2, above 0 [default: 0.1]
    #[arg(long, value_name = "RATE", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    mirostat_eta: Option<f64>,
    /// The order of the samplers: openai (temperature before the samplers that leave tokens out), llama.cpp (temperature last), or
    /// a list such as top_k,top_p,temperature; a sampler that is not in the list is off [default: openai]
    #[arg(long, value_name = "ORDER", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    samplers: Option<SamplerOrder>,
    /// Added to the logit of a token id, from -100 to 100 (repeatable)
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, hide_short_help = true)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    logit_bias: Vec<(u32, f32)>,
    /// Token ids that are never sampled, comma-separated
    #[arg(long, value_name = "IDS", value_delimiter = ',', hide_short_help = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    banned_ids: Vec<u32>,
    /// The only token ids that are sampled, comma-separated
    #[arg(long, value_name = "IDS", value_delimiter = ',', hide_short_help = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_ids: Vec<u32>,
    /// The end tokens are not sampled, and stop strings not searched for, before this many tokens [default: 0]
    #[arg(long, value_name = "TOKENS", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tokens: Option<usize>,
    /// Random seed; the same seed gives the same text [default: 42; in a chat, another one each time]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Stop string: generation ends before it (repeatable) [default: those of the model]
    #[arg(long)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    /// Maximum number of tokens to generate [default: that of the model, else 256]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_new_tokens: Option<usize>,
}

/// Parses `--logit-bias`.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected ID=BIAS, such as 17=-100".to_owned())
}

/// Pairs as an object.
fn as_map<S: serde::Serializer>(pairs: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
    pairs.iter().copied().collect::<BTreeMap<u32, f32>>().serialize(serializer)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use llm_engine::Sampling;
    use serde_json::{Map, Value};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    /// The JSON of the options on a command line.
    fn given(words: &[&str]) -> Map<String, Value> {
        let program = Program::parse_from(["program"].iter().chain(words));
        serde_json::from_value(serde_json::to_value(program.sampling).unwrap()).unwrap()
    }

    #[test]
    fn every_setting_of_the_engine_is_an_option() {
        assert!(given(&[]).is_empty());
        let command = <Program as clap::CommandFactory>::command();
        let options: Vec<String> = command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
        let settings: Map<String, Value> =
            serde_json::from_value(serde_json::to_value(Sampling::default()).unwrap()).unwrap();
        // Texts of DRY and the kind of reported log-probabilities are settings of requests and prompt files only.
        let library = ["dry_breakers", "processed_logprobs"];
        let missing: Vec<&String> =
            settings.keys().filter(|key| !options.contains(key) && !library.contains(&key.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn an_option_has_the_form_of_the_setting() {
        let words = "--samplers top_k,temperature --logit-bias 3=-1.5 --logit-bias 4=2 --banned-ids 1,2 --min-p 0.1";
        let given = given(&words.split(' ').collect::<Vec<_>>());
        let sampling: Sampling = serde_json::from_value(Value::Object(given)).unwrap();
        assert_eq!(sampling.samplers, "top_k,temperature".parse().unwrap());
        assert_eq!(sampling.logit_bias, [(3, -1.5), (4, 2.)].into());
        assert_eq!((sampling.banned_ids, sampling.min_p), (vec![1, 2], 0.1));
        assert!(bias("17").is_err() && bias("-1=2").is_err() && bias("1=x").is_err());
    }
}
