//! Ranges of numbers, and the checks of the keys of one table.

use std::fmt::Display;
use std::ops::RangeInclusive;

use llm_tokenizer::TrainConfig;

use crate::{Error, Result};

/// Counts: rows, steps, tokens.
pub(crate) const COUNT: RangeInclusive<u64> = 1..=1_000_000_000;
/// Counts where 0 means none, never or all.
pub(crate) const COUNT_OR_NONE: RangeInclusive<u64> = 0..=1_000_000_000;
/// Seeds: non-negative TOML integers.
pub(crate) const SEED: RangeInclusive<u64> = 0..=i64::MAX as u64;

/// The allowed range of a real number. Infinities and NaN are never allowed.
#[derive(Clone, Copy)]
pub(crate) enum Real {
    Any,
    Positive,
    NotNegative,
    AtMost(f64),
    Below(f64),
    Within(f64),
}

impl Real {
    fn allows(self, x: f64) -> bool {
        // The models compute with 32 bits.
        x.abs() <= f64::from(f32::MAX)
            && match self {
                Self::Any => true,
                Self::Positive => x > 0.,
                Self::NotNegative => x >= 0.,
                Self::AtMost(high) => (0. ..=high).contains(&x),
                Self::Below(high) => (0. ..high).contains(&x),
                Self::Within(high) => x > 0. && x < high,
            }
    }
}

impl Display for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => write!(f, "a number from -3.4e38 to 3.4e38"),
            Self::Positive => write!(f, "a number above 0 and at most 3.4e38"),
            Self::NotNegative => write!(f, "a number from 0 to 3.4e38"),
            Self::AtMost(high) => write!(f, "a number from 0 to {high}"),
            Self::Below(high) => write!(f, "a number of at least 0 and below {high}"),
            Self::Within(high) => write!(f, "a number above 0 and below {high}"),
        }
    }
}

/// Checks the keys of one table of a recipe. `table` is empty or ends with a dot.
pub(crate) struct Keys<'a> {
    pub(crate) table: &'a str,
}

impl Keys<'_> {
    pub(crate) fn wrong(&self, key: &str, value: impl Display, allowed: impl Display) -> Error {
        Error::BadRequest(format!("{}{key} is {value}; it must be {allowed}", self.table))
    }

    pub(crate) fn whole(&self, key: &str, value: impl TryInto<u64>, range: RangeInclusive<u64>) -> Result<&Self> {
        let value = value.try_into().unwrap_or(u64::MAX);
        if range.contains(&value) {
            return Ok(self);
        }
        Err(self.wrong(key, value, format_args!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// `max_tokens`: 0, or at least `max_length`.
    pub(crate) fn tokens(&self, max_tokens: usize, max_length: usize) -> Result<&Self> {
        if max_tokens == 0 || max_tokens >= max_length {
            return self.whole("max_tokens", max_tokens, COUNT_OR_NONE);
        }
        Err(self.wrong("max_tokens", max_tokens, format_args!("0, or at least max_length, {max_length}")))
    }

    pub(crate) fn real(&self, key: &str, value: f64, range: Real) -> Result<&Self> {
        if range.allows(value) { Ok(self) } else { Err(self.wrong(key, value, range)) }
    }
}

/// Checks the settings of a new tokenizer; `table` (empty, or with a dot at its end) comes before the key in an error.
pub(crate) fn check_tokenizer(config: &TrainConfig, table: &str) -> Result<()> {
    Keys { table }.whole("vocab_size", config.vocab_size, llm_tokenizer::MIN_VOCAB_SIZE as u64..=1 << 24)?.whole(
        "min_frequency",
        config.min_frequency,
        COUNT,
    )?;
    Ok(())
}
