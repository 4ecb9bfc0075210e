//! Rotary frequencies, stretched to texts that are longer than those of the training.

use llm_kernels::{RotaryFrequencies, RotaryTable};
use serde::{Deserialize, Serialize};

use crate::{Error, ModelConfig, Result};

/// How the rotary frequencies are stretched; the keys of transformers' `rope_parameters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// Every position divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// How many times longer texts become.
        factor: f64,
    },
    /// A base that grows with the text once that is longer than `max_position_embeddings` (dynamic NTK).
    Dynamic {
        /// How fast it grows.
        factor: f64,
    },
    /// Slow frequencies divided by `factor`, fast ones kept, a smooth change between (Llama 3.1).
    Llama3 {
        /// How many times longer texts become.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings` by this are slow.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings` by this are fast.
        high_freq_factor: f64,
        /// The longest text of the first training.
        original_max_position_embeddings: usize,
    },
    /// The same with a straight ramp, and longer queries and keys (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// How many times longer texts become.
        factor: f64,
        /// The longest text of the first training; none: `max_position_embeddings`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        original_max_position_embeddings: Option<usize>,
        /// Queries and keys are made longer by this; none: from `factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        attention_factor: Option<f64>,
        /// Turns within the first training's texts from which on a frequency is kept.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        beta_fast: Option<f64>,
        /// Turns up to which a frequency is divided by `factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        beta_slow: Option<f64>,
        /// With `mscale_all_dim`, another way to `attention_factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        mscale: Option<f64>,
        /// With `mscale`, another way to `attention_factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        mscale_all_dim: Option<f64>,
        /// Whether the ends of the ramp are whole numbers; none: they are.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        truncate: Option<bool>,
    },
    /// A divisor for each frequency, one set for texts up to the first training's and one for longer (Ding et al. 2024,
    /// arXiv 2402.13753; Phi-3, whose first files call it "su").
    #[serde(alias = "su")]
    LongRope {
        /// Divisors for short texts, `rotary_dim / 2`.
        short_factor: Vec<f64>,
        /// Divisors for long texts, `rotary_dim / 2`.
        long_factor: Vec<f64>,
        /// The longest text of the first training.
        original_max_position_embeddings: usize,
        /// How many times longer texts become; none: by `max_position_embeddings`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        factor: Option<f64>,
        /// Queries and keys are made longer by this; none: from the factor.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        attention_factor: Option<f64>,
    },
}

impl RopeScaling {
    /// Refuses numbers that cannot be meant.
    pub(crate) fn check(&self, rotary_dim: usize, origin: &str) -> Result<()> {
        let mut positive = Vec::new();
        match self {
            Self::Default => {}
            Self::Linear { factor } | Self::Dynamic { factor } => positive.push(("factor", *factor)),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                positive.extend([("factor", *factor), ("low_freq_factor", *low_freq_factor)]);
                positive.push(("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor));
                positive.push(("original_max_position_embeddings", *original_max_position_embeddings as f64));
            }
            Self::Yarn { factor, original_max_position_embeddings, attention_factor, .. } => {
                positive.push(("factor", *factor));
                positive.push(("attention_factor", attention_factor.unwrap_or(1.)));
                let original = original_max_position_embeddings.unwrap_or(1);
                positive.push(("original_max_position_embeddings", original as f64));
            }
            Self::LongRope { short_factor, long_factor, original_max_position_embeddings: original, .. } => {
                let (short, long) = (short_factor.len(), long_factor.len());
                if short != rotary_dim / 2 || long != rotary_dim / 2 {
                    let message = format!(
                        "\"short_factor\" and \"long_factor\" have {short} and {long} entries, not {}",
                        rotary_dim / 2
                    );
                    return Err(Error::config(origin, message));
                }
                positive.extend(short_factor.iter().chain(long_factor).map(|&divisor| ("factor", divisor)));
                positive.push(("original_max_position_embeddings - 1", *original as f64 - 1.));
            }
        }
        match positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.)) {
            Some((key, value)) => {
                Err(Error::config(origin, format!("\"{key}\" of the rotary positions is {value}; it must be positive")))
            }
            None => Ok(()),
        }
    }
}

/// The rotations of a decoder's layers.
#[derive(Debug, Clone)]
pub(crate) struct RotaryEmbedding {
    theta: f64,
    dim: usize,
    max_position_embeddings: usize,
    scaling: RopeScaling,
    /// For texts of usual length.
    rotary: RotaryFrequencies,
    /// For layers that look through a window, if they turn by another base.
    local: Option<RotaryFrequencies>,
}

/// The rotations of one batch.
#[derive(Debug, Clone)]
pub(crate) struct Rotations {
    pub global: RotaryTable,
    pub local: Option<RotaryTable>,
}

impl RotaryEmbedding {
    pub fn new(config: &ModelConfig) -> Self {
        let dim = config.rotary_dim();
        let mut embedding = Self {
            theta: config.rope_theta,
            dim,
            max_position_embeddings: config.max_position_embeddings,
            scaling: config.rope_scaling.clone(),
            rotary: RotaryFrequencies::new(dim, config.rope_theta),
            local: config.rope_local_theta.map(|theta| RotaryFrequencies::new(dim, theta)),
        };
        embedding.rotary = embedding.for_length(0);
        embedding
    }

    /// By what scaling divides each frequency for texts of usual length.
    pub fn frequency_divisors(config: &ModelConfig) -> Vec<f32> {
        let plain = RotaryFrequencies::new(config.rotary_dim(), config.rope_theta);
        let scaled = Self::new(config).rotary;
        let both = plain.inverse_frequencies().iter().zip(scaled.inverse_frequencies());
        both.map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }

    /// The rotations at these positions.
    pub fn at(&self, positions: &[u32]) -> Rotations {
        let length = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let limit = match self.scaling {
            RopeScaling::Dynamic { .. } => self.max_position_embeddings,
            RopeScaling::LongRope { original_max_position_embeddings, .. } => original_max_position_embeddings,
            _ => usize::MAX,
        };
        let global =
            if length > limit { self.for_length(length).table(positions) } else { self.rotary.table(positions) };
        Rotations { global, local: self.local.as_ref().map(|local| local.table(positions)) }
    }

    /// The frequencies for a text of `length` tokens.
    fn for_length(&self, length: usize) -> RotaryFrequencies {
        let plain = RotaryFrequencies::new(self.dim, self.theta);
        let frequencies = plain.inverse_frequencies();
        match &self.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => {
                RotaryFrequencies::from_inverse_frequencies(frequencies.iter().map(|f| f / factor).collect(), 1.)
            }
            RopeScaling::Dynamic { factor } => {
                let usual = self.max_position_embeddings as f64;
                let growth = factor * (length as f64).max(usual) / usual - (factor - 1.);
                let dim = self.dim as f64;
                RotaryFrequencies::new(self.dim, self.theta * growth.powf(dim / (dim - 2.)))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let scaled = frequencies.iter().map(|&frequency| {
                    // How often the wave turns within a text of the first training.
                    let turns = *original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0., 1.);
                    kept * frequency + (1. - kept) * frequency / factor
                });
                RotaryFrequencies::from_inverse_frequencies(scaled.collect(), 1.)
            }
            RopeScaling::Yarn { .. } => self.yarn(frequencies),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                factor,
                attention_factor,
            } => {
                let original = *original_max_position_embeddings as f64;
                let factor = factor.unwrap_or(self.max_position_embeddings as f64 / original);
                let usual = if factor <= 1. { 1. } else { (1. + factor.ln() / original.ln()).sqrt() };
                let divisors = if length > *original_max_position_embeddings { long_factor } else { short_factor };
                let scaled = frequencies.iter().zip(divisors).map(|(frequency, divisor)| frequency / divisor);
                RotaryFrequencies::from_inverse_frequencies(scaled.collect(), attention_factor.unwrap_or(usual))
            }
        }
    }

    fn yarn(&self, frequencies: &[f64]) -> RotaryFrequencies {
        let RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } = &self.scaling
        else {
            return RotaryFrequencies::new(self.dim, self.theta);
        };
        let (original, dim) = (original.unwrap_or(self.max_position_embeddings) as f64, self.dim as f64);
        // The pair that turns so often within a text of the first training.
        let pair = |turns: f64| dim * (original / (turns * std::f64::consts::TAU)).ln() / (2. * self.theta.ln());
        let (mut low, mut high) = (pair(beta_fast.unwrap_or(32.)), pair(beta_slow.unwrap_or(1.)));
        if truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.), high.min(dim - 1.));
        if low == high {
            high += 0.001;
        }
        let scaled = frequencies.iter().enumerate().map(|(i, frequency)| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0., 1.);
            divided * frequency / factor + (1. - divided) * frequency
        });
        let stretch = |by: f64| if *factor <= 1. { 1. } else { 0.1 * by * factor.ln() + 1. };
        let both = mscale.filter(|&m| m != 0.).zip(mscale_all_dim.filter(|&m| m != 0.));
        let usual = both.map_or(stretch(1.), |(mscale, all)| stretch(mscale) / stretch(all));
        RotaryFrequencies::from_inverse_frequencies(scaled.collect(), attention_factor.unwrap_or(usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(rope_scaling: RopeScaling, length: usize) -> Vec<f64> {
        let config = ModelConfig { head_dim: 8, max_position_embeddings: 100, rope_scaling, ..ModelConfig::default() };
        RotaryEmbedding::new(&config).for_length(length).inverse_frequencies().to_vec()
    }

    #[test]
    fn the_fastest_wave_is_kept_and_the_slowest_divided() {
        let plain = frequencies(RopeScaling::Default, 0);
        let llama3 = RopeScaling::Llama3 {
            factor: 4.,
            low_freq_factor: 1.,
            high_freq_factor: 4.,
            original_max_position_embeddings: 100,
        };
        let yarn = r#"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}"#;
        for scaling in [llama3, serde_json::from_str(yarn).unwrap()] {
            let scaled = frequencies(scaling, 0);
            assert_eq!(scaled[0], plain[0]);
            assert!((scaled[3] - plain[3] / 4.).abs() < 1e-12);
        }
        let linear = frequencies(RopeScaling::Linear { factor: 4. }, 0);
        assert!(linear.iter().zip(&plain).all(|(l, p)| (l - p / 4.).abs() < 1e-12));
    }

    #[test]
    fn dynamic_frequencies_change_once_the_text_is_longer_than_usual() {
        let dynamic = RopeScaling::Dynamic { factor: 2. };
        assert_eq!(frequencies(dynamic.clone(), 100), frequencies(RopeScaling::Default, 0));
        assert!(frequencies(dynamic.clone(), 200)[3] < frequencies(dynamic, 100)[3]);
    }
}
