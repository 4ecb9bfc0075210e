//! The settings of sampling and the order of the samplers. docs/sampling.md has the rule and the reference of each.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the next token is chosen. The default is the model's own distribution: temperature 1, everything else off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The samplers in the order in which they are applied; one that is not in the list is off.
    pub samplers: SamplerOrder,
    /// Divisor of the logits, 0 or more; 0: greedy decoding, the first of the most likely tokens.
    pub temperature: f64,
    /// Half the width of the range of a temperature that follows the entropy, 0 or more; 0: a fixed temperature.
    pub dynatemp_range: f64,
    /// Exponent of the relative entropy in the dynamic temperature, above 0.
    pub dynatemp_exponent: f64,
    /// Sample from the k most likely tokens only; 0: all.
    pub top_k: usize,
    /// Sample from the smallest set of tokens with at least this total probability, from 0 to 1; 1: all, 0: the most likely one.
    pub top_p: f64,
    /// Sample from the tokens with at least this share of the highest probability, from 0 to 1; 0: all.
    pub min_p: f64,
    /// Sample from the tokens whose information is nearest to the entropy, up to this total probability, above 0 and up to 1; 1: all.
    pub typical_p: f64,
    /// Sample from the tokens with a logit at most this many standard deviations below the highest, 0 or more; 0: all.
    pub top_n_sigma: f64,
    /// Probability of leaving out the top choices of a token, from 0 to 1; 0: never.
    pub xtc_probability: f64,
    /// The probability that makes a token a top choice, from 0 to 1; above 0.5: none.
    pub xtc_threshold: f64,
    /// Divisor of positive logits, and factor of the others, of tokens of the prompt or the answer, above 0; 1: off.
    pub repetition_penalty: f64,
    /// Subtracted from the logits of the answer's tokens, from -2 to 2; 0: off.
    pub presence_penalty: f64,
    /// Subtracted from the logits of the answer's tokens for each time they occur in it, from -2 to 2; 0: off.
    pub frequency_penalty: f64,
    /// The three penalties see the last tokens only, this many of prompt and answer; 0: all.
    pub penalty_window: usize,
    /// Penalty of a token that would continue a repeated sequence, 0 or more; 0: off (DRY).
    pub dry_multiplier: f64,
    /// The penalty grows by this factor with each further token of the sequence, 1 or more.
    pub dry_base: f64,
    /// Sequences of this many tokens may be continued without a penalty, 1 or more.
    pub dry_allowed_length: usize,
    /// Repetitions are looked for in the last tokens only, this many of prompt and answer; 0: all.
    pub dry_window: usize,
    /// A repeated sequence does not reach over these texts.
    pub dry_breakers: Vec<String>,
    /// The surprise in bits that mirostat 2 aims at, 0 or more; 0: off. It takes the place of all samplers that leave tokens out.
    pub mirostat_tau: f64,
    /// Learning rate of mirostat 2, above 0.
    pub mirostat_eta: f64,
    /// Added to the logits of these token ids, from -100 to 100, before anything else.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Token ids that are never sampled.
    pub banned_ids: Vec<u32>,
    /// The only token ids that are sampled, at least one; none: all.
    pub allowed_ids: Option<Vec<u32>>,
    /// The end tokens are not sampled, and stop strings not searched for, before this many tokens.
    pub min_tokens: usize,
    /// Log-probabilities are those of the distribution that was sampled from, and not those of the model.
    pub processed_logprobs: bool,
    /// Random seed; the same seed gives the same text. None: another text each time.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            samplers: SamplerOrder::default(),
            temperature: 1.,
            dynatemp_range: 0.,
            dynatemp_exponent: 1.,
            top_k: 0,
            top_p: 1.,
            min_p: 0.,
            typical_p: 1.,
            top_n_sigma: 0.,
            xtc_probability: 0.,
            xtc_threshold: 0.1,
            repetition_penalty: 1.,
            presence_penalty: 0.,
            frequency_penalty: 0.,
            penalty_window: 0,
            dry_multiplier: 0.,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_window: 0,
            dry_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            mirostat_tau: 0.,
            mirostat_eta: 0.1,
            logit_bias: BTreeMap::new(),
            banned_ids: Vec::new(),
            allowed_ids: None,
            min_tokens: 0,
            processed_logprobs: false,
            seed: None,
        }
    }
}

/// A sampler of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerName {
    /// `repetition_penalty`, `presence_penalty` and `frequency_penalty`.
    Penalties,
    /// `dry_multiplier`.
    Dry,
    /// `top_n_sigma`.
    TopNSigma,
    /// `temperature`, `dynatemp_range`.
    Temperature,
    /// `min_p`.
    MinP,
    /// `top_k`.
    TopK,
    /// `typical_p`.
    #[serde(alias = "typ_p")]
    TypicalP,
    /// `top_p`.
    TopP,
    /// `xtc_probability`.
    Xtc,
}

/// The order of the samplers: a preset, or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SamplerOrder {
    /// That of another program.
    Preset(SamplerPreset),
    /// A list, the first sampler first; each at most once.
    List(Vec<SamplerName>),
}

/// The order of the samplers of another program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SamplerPreset {
    /// The temperature before the samplers that leave tokens out, as in transformers and vLLM.
    #[default]
    #[serde(rename = "openai", alias = "vllm")]
    OpenAi,
    /// The temperature last.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl Default for SamplerOrder {
    fn default() -> Self {
        Self::Preset(SamplerPreset::default())
    }
}

impl SamplerOrder {
    /// The samplers, the first one first.
    pub fn names(&self) -> &[SamplerName] {
        use SamplerName::{Dry, MinP, Penalties, Temperature, TopK, TopNSigma, TopP, TypicalP, Xtc};
        match self {
            Self::Preset(SamplerPreset::OpenAi) => {
                &[Penalties, Dry, TopNSigma, Temperature, MinP, TopK, TypicalP, TopP, Xtc]
            }
            Self::Preset(SamplerPreset::LlamaCpp) => {
                &[Penalties, Dry, TopNSigma, TopK, TypicalP, TopP, MinP, Xtc, Temperature]
            }
            Self::List(names) => names,
        }
    }
}

impl FromStr for SamplerOrder {
    type Err = Error;

    /// A preset (`openai`, `vllm`, `llama.cpp`) or names with commas: `top_k,temperature`.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |_| Error::UnknownSamplers { text: text.to_owned() };
        if let Ok(preset) = serde_json::from_value(text.into()) {
            return Ok(Self::Preset(preset));
        }
        let names = text.split(',').map(|name| serde_json::from_value(name.trim().into()));
        names.collect::<std::result::Result<_, _>>().map(Self::List).map_err(invalid)
    }
}

impl Sampling {
    /// Checks the ranges of the settings, and that all token ids are in a vocabulary of `vocab` tokens.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        self.check_ranges()?;
        let biased = self.logit_bias.keys().map(|id| ("logit_bias", id));
        let banned = self.banned_ids.iter().map(|id| ("banned_ids", id));
        let allowed = self.allowed_ids.iter().flatten().map(|id| ("allowed_ids", id));
        for (name, &id) in biased.chain(banned).chain(allowed) {
            if id as usize >= vocab {
                return Err(Error::TokenOutsideVocabulary { name, id, vocab_size: vocab });
            }
        }
        if self.allowed_ids.as_ref().is_some_and(|ids| ids.iter().all(|id| self.banned_ids.contains(id))) {
            return Err(Error::NoTokenAllowed);
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<()> {
        let (positive, share) = ("0 or more", "from 0 to 1");
        let is_positive = |x: f64| x.is_finite() && x >= 0.;
        let is_share = |x: f64| (0. ..=1.).contains(&x);
        let is_penalty = |x: f64| (-2. ..=2.).contains(&x);
        let checks = [
            ("temperature", self.temperature, is_positive(self.temperature), positive),
            ("dynatemp_range", self.dynatemp_range, is_positive(self.dynatemp_range), positive),
            ("dynatemp_exponent", self.dynatemp_exponent, is_above_zero(self.dynatemp_exponent), "greater than 0"),
            ("top_p", self.top_p, is_share(self.top_p), share),
            ("min_p", self.min_p, is_share(self.min_p), share),
            (
                "typical_p",
                self.typical_p,
                is_share(self.typical_p) && self.typical_p > 0.,
                "greater than 0 and at most 1",
            ),
            ("top_n_sigma", self.top_n_sigma, is_positive(self.top_n_sigma), positive),
            ("xtc_probability", self.xtc_probability, is_share(self.xtc_probability), share),
            ("xtc_threshold", self.xtc_threshold, is_share(self.xtc_threshold), share),
            ("repetition_penalty", self.repetition_penalty, is_above_zero(self.repetition_penalty), "greater than 0"),
            ("presence_penalty", self.presence_penalty, is_penalty(self.presence_penalty), "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, is_penalty(self.frequency_penalty), "from -2 to 2"),
            ("dry_multiplier", self.dry_multiplier, is_positive(self.dry_multiplier), positive),
            ("dry_base", self.dry_base, self.dry_base.is_finite() && self.dry_base >= 1., "1 or more"),
            ("dry_allowed_length", self.dry_allowed_length as f64, self.dry_allowed_length > 0, "1 or more"),
            ("mirostat_tau", self.mirostat_tau, is_positive(self.mirostat_tau), positive),
            ("mirostat_eta", self.mirostat_eta, is_above_zero(self.mirostat_eta), "greater than 0"),
        ];
        let biases = self.logit_bias.values().map(|&bias| f64::from(bias));
        let biases = biases.map(|bias| ("logit_bias", bias, (-100. ..=100.).contains(&bias), "from -100 to 100"));
        for (name, value, is_valid, expected) in checks.into_iter().chain(biases) {
            if !is_valid {
                return Err(Error::InvalidOption { name, value, expected });
            }
        }
        let names = self.samplers.names();
        if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            let name = serde_json::to_value(name).map(|name| name.to_string()).unwrap_or_default();
            return Err(Error::SamplerTwice { name });
        }
        if self.dry_breakers.iter().any(String::is_empty) {
            return Err(Error::EmptyText { name: "dry_breakers" });
        }
        if self.allowed_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::NoTokenAllowed);
        }
        Ok(())
    }

    /// The settings with a seed: a new one, less than 2^53 so that every JSON reader keeps it, if there is none.
    #[must_use]
    pub fn seeded(mut self) -> Self {
        // The standard library keys each `RandomState` with the random numbers of the operating system.
        self.seed.get_or_insert_with(|| RandomState::new().hash_one(SystemTime::now()) >> 11);
        self
    }

    /// Whether the most likely token is chosen. Less than 1e-5 counts as 0, as in vLLM: a quotient would overflow.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature < 1e-5
    }
}

fn is_above_zero(x: f64) -> bool {
    x.is_finite() && x > 0.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_outside_its_range_is_an_error_that_names_it() {
        let default = serde_json::to_value(Sampling::default()).unwrap();
        let cases = [
            ("temperature", "-1"),
            ("temperature", "1e999"),
            ("dynatemp_range", "-0.1"),
            ("dynatemp_exponent", "0"),
            ("top_p", "1.1"),
            ("min_p", "-0.1"),
            ("typical_p", "0"),
            ("top_n_sigma", "-1"),
            ("xtc_probability", "2"),
            ("xtc_threshold", "-1"),
            ("repetition_penalty", "0"),
            ("presence_penalty", "2.1"),
            ("frequency_penalty", "-2.1"),
            ("dry_multiplier", "-1"),
            ("dry_base", "0.9"),
            ("dry_allowed_length", "0"),
            ("mirostat_tau", "-1"),
            ("mirostat_eta", "0"),
            ("logit_bias", r#"{"3": 101}"#),
            ("dry_breakers", r#"[""]"#),
            ("samplers", r#"["top_k", "top_k"]"#),
            ("allowed_ids", "[]"),
            ("logit_bias", r#"{"10": 1}"#),
            ("banned_ids", "[10]"),
            ("allowed_ids", "[10]"),
        ];
        for (name, value) in cases {
            let Ok(value) = serde_json::from_str::<serde_json::Value>(value) else { continue };
            let mut settings = default.clone();
            settings[name] = value.clone();
            let sampling: Sampling = serde_json::from_value(settings).unwrap();
            let error = sampling.validate(10).unwrap_err();
            assert!(error.is_callers_fault(), "{name}");
            assert!(error.to_string().contains(name) || name == "samplers", "{name} {value}: {error}");
        }
        let nan = Sampling { temperature: f64::NAN, ..Sampling::default() };
        assert!(nan.validate(10).unwrap_err().to_string().starts_with("temperature is NaN"));
        let none = Sampling { allowed_ids: Some(vec![1, 2]), banned_ids: vec![2, 1], ..Sampling::default() };
        assert!(matches!(none.validate(10), Err(Error::NoTokenAllowed)));
        Sampling { logit_bias: [(9, -100.)].into(), ..Sampling::default() }.validate(10).unwrap();
    }

    #[test]
    fn an_order_is_a_preset_or_a_list_of_names() {
        let order = |json: &str| serde_json::from_str::<SamplerOrder>(json).unwrap();
        assert_eq!(order(r#""vllm""#), SamplerOrder::default());
        assert_eq!(order(r#""llama.cpp""#), "llama.cpp".parse().unwrap());
        assert_eq!(order(r#"["top_k", "typ_p"]"#), "top_k, typical_p".parse().unwrap());
        assert_eq!(order(r#""llama.cpp""#).names().last(), Some(&SamplerName::Temperature));
        for preset in [SamplerPreset::OpenAi, SamplerPreset::LlamaCpp].map(SamplerOrder::Preset) {
            let mut names = preset.names().to_vec();
            names.dedup();
            assert_eq!(names.len(), 9, "{preset:?} has each sampler");
            Sampling { samplers: preset, ..Sampling::default() }.validate(1).unwrap();
        }
        let error = "top_k,best".parse::<SamplerOrder>().unwrap_err().to_string();
        assert!(error.contains("top_k,best"), "{error}");
    }

    #[test]
    fn settings_survive_json_and_unknown_keys_are_refused() {
        let sampling = Sampling { logit_bias: [(7, -1.5)].into(), seed: Some(3), ..Sampling::default() };
        let text = serde_json::to_string(&sampling).unwrap();
        assert_eq!(serde_json::from_str::<Sampling>(&text).unwrap(), sampling);
        assert_eq!(serde_json::from_str::<Sampling>("{}").unwrap(), Sampling::default());
        assert!(serde_json::from_str::<Sampling>(r#"{"topk": 3}"#).is_err());
    }

    #[test]
    fn a_missing_seed_is_a_new_one_and_a_given_one_stays() {
        let seeds: Vec<u64> = (0..8).map(|_| Sampling::default().seeded().seed.unwrap()).collect();
        assert!(
            seeds.iter().all(|seed| *seed < 1 << 53) && seeds.windows(2).all(|pair| pair[0] != pair[1]),
            "{seeds:?}"
        );
        assert_eq!(Sampling { seed: Some(5), ..Sampling::default() }.seeded().seed, Some(5));
    }
}
