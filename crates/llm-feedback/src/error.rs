//! Errors of annotators and rankings.

/// An error of this crate. All are the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting of an annotator is out of range.
    #[error("{key} is {value}; it must be a number from {low} to {high}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: f64,
        /// The least value.
        low: f64,
        /// The greatest value.
        high: f64,
    },
    /// The utilities do not match the answers.
    #[error("{utilities} utilities for {answers} answers; each answer needs one finite utility")]
    Utilities {
        /// Number of utilities.
        utilities: usize,
        /// Number of answers.
        answers: usize,
    },
    /// Two rankings cannot be compared.
    #[error("cannot compare the rankings {one:?} and {other:?}: both must rank the same answers, at least two")]
    Rankings {
        /// The first ranking.
        one: Vec<usize>,
        /// The second ranking.
        other: Vec<usize>,
    },
}

impl Error {
    /// Whether the caller can fix it: always.
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::Setting { .. } | Self::Utilities { .. } | Self::Rankings { .. } => true,
        }
    }
}
