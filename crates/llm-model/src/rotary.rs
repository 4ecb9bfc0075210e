//! Rotary position embeddings (`RoPE`, Su et al. 2021, arXiv 2104.09864) with scaling to longer contexts.

use llm_kernels::{RotaryCache, RotaryFrequencies, RotaryTable};

use crate::{ModelConfig, RopeScaling};

/// The rotary embedding of a decoder.
#[derive(Debug, Clone)]
pub(crate) struct RotaryEmbedding {
    theta: f64,
    dim: usize,
    max_position_embeddings: usize,
    scaling: RopeScaling,
    /// For sequences within the pretraining context.
    rotary: RotaryCache,
    /// For longer sequences, if the scaling has other frequencies for them that do not depend on the length.
    long: Option<RotaryCache>,
    /// For sliding-window layers, if `rope_local_theta` is set.
    local: Option<RotaryCache>,
}

/// The rotary tables of a batch.
#[derive(Debug, Clone)]
pub(crate) struct RotaryTables {
    pub global: RotaryTable,
    pub local: Option<RotaryTable>,
}

impl RotaryEmbedding {
    pub fn new(config: &ModelConfig) -> Self {
        let dim = config.rotary_dim();
        let plain = RotaryFrequencies::new(dim, config.rope_theta);
        let mut embedding = Self {
            theta: config.rope_theta,
            dim,
            max_position_embeddings: config.max_position_embeddings,
            scaling: config.rope_scaling.clone(),
            rotary: RotaryCache::new(plain),
            long: None,
            local: config.rope_local_theta.map(|theta| RotaryCache::new(RotaryFrequencies::new(dim, theta))),
        };
        embedding.rotary = RotaryCache::new(embedding.for_length(0));
        if matches!(embedding.scaling, RopeScaling::LongRope { .. }) {
            embedding.long = Some(RotaryCache::new(embedding.for_length(usize::MAX)));
        }
        embedding
    }

    /// The divisor that the scaling applies to each frequency, for sequences within the pretraining context.
    pub fn frequency_divisors(config: &ModelConfig) -> Vec<f32> {
        let plain = RotaryFrequencies::new(config.rotary_dim(), config.rope_theta);
        let scaled = Self::new(config).rotary;
        let both = plain.inverse_frequencies().iter().zip(scaled.inverse_frequencies());
        both.map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }

    /// The rotary tables of the tokens at these positions. Tokens of one sequence are consecutive; `lens` are the tokens of
    /// each. Scaling that depends on the length uses that of the sequence of the token.
    pub fn tables(&self, positions: &[u32], lens: &[usize]) -> RotaryTables {
        let limit = match self.scaling {
            RopeScaling::Dynamic { .. } => self.max_position_embeddings,
            RopeScaling::LongRope { original_max_position_embeddings, .. } => original_max_position_embeddings,
            _ => usize::MAX,
        };
        let length = |positions: &[u32]| positions.iter().max().map_or(0, |&last| last as usize + 1);
        let table = |positions: &[u32]| match (length(positions), &self.long) {
            (length, _) if length <= limit => self.rotary.table(positions),
            (_, Some(long)) => long.table(positions),
            (length, None) => self.for_length(length).table(positions),
        };
        let global = if length(positions) <= limit || lens.len() <= 1 {
            table(positions)
        } else {
            let starts = lens.iter().scan(0, |next, &len| Some(std::mem::replace(next, *next + len)));
            let parts = starts.zip(lens).map(|(start, len)| table(&positions[start..start + len]));
            RotaryTable::cat(&parts.collect::<Vec<_>>())
        };
        RotaryTables { global, local: self.local.as_ref().map(|local| local.table(positions)) }
    }

    /// The frequencies for a sequence of `length` tokens.
    fn for_length(&self, length: usize) -> RotaryFrequencies {
        let plain = RotaryFrequencies::new(self.dim, self.theta);
        let frequencies = plain.inverse_frequencies();
        match &self.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => {
                RotaryFrequencies::from_inverse_frequencies(frequencies.iter().map(|f| f / factor).collect(), 1.)
            }
            RopeScaling::Dynamic { factor } => {
                let max = self.max_position_embeddings as f64;
                let growth = factor * (length as f64).max(max) / max - (factor - 1.);
                let dim = self.dim as f64;
                RotaryFrequencies::new(self.dim, self.theta * growth.powf(dim / (dim - 2.)))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let scaled = frequencies.iter().map(|&frequency| {
                    // Number of rotations over the pretraining context.
                    let rotations = *original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
                    let kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0., 1.);
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
                let default = if factor <= 1. { 1. } else { (1. + factor.ln() / original.ln()).sqrt() };
                let divisors = if length > *original_max_position_embeddings { long_factor } else { short_factor };
                let scaled = frequencies.iter().zip(divisors).map(|(frequency, divisor)| frequency / divisor);
                RotaryFrequencies::from_inverse_frequencies(scaled.collect(), attention_factor.unwrap_or(default))
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
        // The frequency index with this number of rotations over the pretraining context.
        let pair =
            |rotations: f64| dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2. * self.theta.ln());
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
        let scale = |by: f64| if *factor <= 1. { 1. } else { 0.1 * by * factor.ln() + 1. };
        let both = mscale.filter(|&m| m != 0.).zip(mscale_all_dim.filter(|&m| m != 0.));
        let default = both.map_or(scale(1.), |(mscale, all)| scale(mscale) / scale(all));
        RotaryFrequencies::from_inverse_frequencies(scaled.collect(), attention_factor.unwrap_or(default))
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
    fn the_highest_frequency_is_kept_and_the_lowest_divided() {
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
    fn dynamic_scaling_starts_beyond_the_maximum_position() {
        let dynamic = RopeScaling::Dynamic { factor: 2. };
        assert_eq!(frequencies(dynamic.clone(), 100), frequencies(RopeScaling::Default, 0));
        assert!(frequencies(dynamic.clone(), 200)[3] < frequencies(dynamic, 100)[3]);
    }
}
