//! Scaling of rotary position embeddings.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Scaling of the rotary frequencies, with the keys of `rope_parameters` in transformers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    Default,
    /// Position interpolation: positions are divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// Factor of context extension.
        factor: f64,
    },
    /// Dynamic NTK: the base grows with the sequence length beyond `max_position_embeddings`.
    Dynamic {
        /// Growth factor of the base.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high frequencies are kept, with a smooth transition.
    Llama3 {
        /// Factor of context extension.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
    /// `YaRN`: a linear ramp between low and high frequencies, and scaled attention (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// Factor of context extension.
        factor: f64,
        /// Context length of pretraining; none: `max_position_embeddings`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        original_max_position_embeddings: Option<usize>,
        /// Factor of queries and keys; none: computed from `factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        attention_factor: Option<f64>,
        /// Frequencies with more rotations than this over the pretraining context are kept; none: 32.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        beta_fast: Option<f64>,
        /// Frequencies with fewer rotations than this are divided by `factor`; none: 1.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        beta_slow: Option<f64>,
        /// With `mscale_all_dim`, determines `attention_factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        mscale: Option<f64>,
        /// With `mscale`, determines `attention_factor`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        mscale_all_dim: Option<f64>,
        /// Whether the bounds of the ramp are rounded to integers; none: true.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        truncate: Option<bool>,
    },
    /// `LongRoPE`: a divisor for each frequency, with one set for sequences up to the pretraining context and one for longer
    /// ones (Ding et al. 2024, arXiv 2402.13753). Early Phi-3 files call it "su".
    #[serde(alias = "su")]
    LongRope {
        /// Divisors for short sequences, `rotary_dim / 2` values.
        short_factor: Vec<f64>,
        /// Divisors for long sequences, `rotary_dim / 2` values.
        long_factor: Vec<f64>,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
        /// Factor of context extension; none: computed from `max_position_embeddings`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        factor: Option<f64>,
        /// Factor of queries and keys; none: computed from the extension factor.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        attention_factor: Option<f64>,
    },
}

impl RopeScaling {
    /// Checks lengths and ranges; errors name `origin`.
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
                        "\"short_factor\" and \"long_factor\" have {short} and {long} entries; each must have {}",
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
                Err(Error::config(origin, format!("\"{key}\" of the rotary embedding is {value}; it must be positive")))
            }
            None => Ok(()),
        }
    }
}
