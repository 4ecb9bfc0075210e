//! Errors of evaluation.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] llm_model::Error),
    /// An error of the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] llm_tokenizer::Error),
    /// An error in data files.
    #[error(transparent)]
    Data(#[from] llm_data::Error),
    /// An error during generation.
    #[error(transparent)]
    Engine(#[from] llm_engine::Error),
    /// Lists that must have one entry per value have other lengths.
    #[error("a bootstrap of {values} values with {clusters} cluster numbers; give one per value")]
    Lengths {
        /// Number of values.
        values: usize,
        /// Number of cluster numbers.
        clusters: usize,
    },
    /// Too few values for a statistic.
    #[error("{statistic} of {n} {unit}; give at least 2")]
    TooFew {
        /// The statistic.
        statistic: &'static str,
        /// Number of units.
        n: usize,
        /// What the statistic counts.
        unit: &'static str,
    },
    /// A statistic is NaN or infinite.
    #[error("a bootstrap statistic is not finite: a value is not finite, or the mean of a denominator is 0")]
    StatisticNotFinite,
    /// The model computed log-probabilities that are NaN.
    #[error("the model's log-probabilities are NaN; are its weights damaged?")]
    LogprobsNaN,
}

impl Error {
    /// Whether the caller can fix it: a missing or invalid file, too little data. Other errors come from the machine or from the
    /// computation.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Candle(_) | Self::StatisticNotFinite | Self::LogprobsNaN => false,
            Self::Model(error) => error.is_callers_fault(),
            Self::Tokenizer(error) => error.is_callers_fault(),
            Self::Data(error) => error.is_callers_fault(),
            Self::Engine(error) => error.is_callers_fault(),
            Self::Lengths { .. } | Self::TooFew { .. } => true,
        }
    }
}
