//! The settings of tokenizer training.

use serde::{Deserialize, Serialize};

use super::merges::Ties;
use super::{MIN_VOCAB_SIZE, SPECIAL};
use crate::split::{DIGITS2, GPT2, LLAMA3};
use crate::{Error, Result};

/// The settings of [`train_bpe`](crate::train_bpe).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The vocabulary size, including the special tokens and the 256 bytes. The result is smaller if the text has too few pairs
    /// that occur `min_frequency` times.
    pub vocab_size: usize,
    /// The minimum number of occurrences of a pair to be merged.
    pub min_frequency: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self { vocab_size: 2048, min_frequency: 2 }
    }
}

/// What the tokens of a vocabulary are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Byte-pair encoding of bytes (Sennrich et al. 2016; Radford et al. 2019): frequent pairs are merged. Encodes any text.
    #[default]
    Bpe,
    /// The unigram language model (Kudo 2018, arXiv 1804.10959) on bytes: the most probable segmentation. Encodes any text.
    Unigram,
    /// `WordPiece` of BERT: the longest prefix of a word, then of its rest; a token inside of a word begins with `##`.
    WordPiece,
    /// Words and runs of punctuation. Other words are `<unk>`.
    Word,
    /// Characters. Other characters are `<unk>`.
    Char,
}

impl Kind {
    /// All kinds, with their names.
    pub const ALL: [(&str, Self); 5] = [
        ("bpe", Self::Bpe),
        ("unigram", Self::Unigram),
        ("wordpiece", Self::WordPiece),
        ("word", Self::Word),
        ("char", Self::Char),
    ];

    /// Whether every text can be encoded, as the bytes are tokens.
    pub fn is_byte_level(self) -> bool {
        matches!(self, Self::Bpe | Self::Unigram)
    }
}

/// The pieces of a text that a byte-level tokenizer encodes separately: the pattern of a published tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// GPT-2: a word or a number with the blank before it.
    #[default]
    Gpt2,
    /// GPT-4 (cl100k): at most three digits; a line end is not part of what follows.
    Gpt4,
    /// Llama 3: the pattern of GPT-4.
    Llama3,
    /// The pattern of GPT-4 with at most two digits.
    Digits2,
}

impl Split {
    /// All splits, with their names.
    pub const ALL: [(&str, Self); 4] =
        [("gpt2", Self::Gpt2), ("gpt4", Self::Gpt4), ("llama3", Self::Llama3), ("digits2", Self::Digits2)];

    pub(super) fn pattern(self) -> &'static str {
        match self {
            Self::Gpt2 => GPT2,
            Self::Gpt4 | Self::Llama3 => LLAMA3,
            Self::Digits2 => DIGITS2,
        }
    }
}

/// The settings of [`Trainer`](crate::Trainer).
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSettings {
    /// What the tokens are.
    pub kind: Kind,
    /// The pieces of a text; for the byte-level kinds.
    pub split: Split,
    /// The maximum vocabulary size, including the special tokens, and the bytes of the byte-level kinds.
    pub vocab_size: usize,
    /// The minimum number of occurrences of a pair to be merged, and of a word or character to be a token.
    pub min_frequency: u64,
    /// The maximum length of a token that is learned, in bytes; from 2 to 1024. Not for words.
    pub max_token_length: usize,
    /// Which of several pairs with the same count is merged first; for BPE and `WordPiece`.
    pub ties: Ties,
}

impl TrainSettings {
    /// The maximum of `max_token_length`: the length at which pieces are cut, in bytes.
    pub const MAX_TOKEN_LENGTH: usize = super::pieces::MAX_PIECE;

    /// Checks the ranges.
    pub(super) fn check(&self) -> Result<()> {
        let (least, what) = match self.kind.is_byte_level() {
            true => (MIN_VOCAB_SIZE, "the 256 bytes and the special tokens"),
            false => (SPECIAL.len() + 2, "the special tokens, <unk> and one other token"),
        };
        if self.vocab_size < least {
            return Err(Error::VocabSize { asked: self.vocab_size, least, what });
        }
        if !(2..=Self::MAX_TOKEN_LENGTH).contains(&self.max_token_length) {
            return Err(Error::TokenLength { asked: self.max_token_length });
        }
        Ok(())
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self { max_token_length: 32, ..Self::from(&TrainConfig::default()) }
    }
}

impl From<&TrainConfig> for TrainSettings {
    /// BPE with the pieces of GPT-2 and tokens of any length.
    fn from(config: &TrainConfig) -> Self {
        Self {
            kind: Kind::Bpe,
            split: Split::Gpt2,
            vocab_size: config.vocab_size,
            min_frequency: config.min_frequency,
            max_token_length: Self::MAX_TOKEN_LENGTH,
            ties: Ties::Ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_settings_are_errors_and_missing_ones_have_defaults() {
        let config: TrainConfig = serde_json::from_str(r#"{"vocab_size": 300}"#).unwrap();
        assert_eq!(config, TrainConfig { vocab_size: 300, ..TrainConfig::default() });
        assert!(serde_json::from_str::<TrainConfig>(r#"{"vocabsize": 300}"#).is_err());
    }

    #[test]
    fn settings_outside_their_range_are_errors() {
        let settings = |kind, vocab_size, max_token_length| {
            let settings = TrainSettings { kind, vocab_size, max_token_length, ..TrainSettings::default() };
            settings.check().map_err(|e| e.to_string())
        };
        assert_eq!((settings(Kind::Bpe, 262, 2), settings(Kind::Char, 8, 1024)), (Ok(()), Ok(())));
        let error = settings(Kind::Unigram, 261, 32).unwrap_err();
        assert!(error.contains("vocab_size = 261") && error.contains("at least 262"), "{error}");
        let error = settings(Kind::Word, 7, 32).unwrap_err();
        assert!(error.contains("vocab_size = 7") && error.contains("at least 8"), "{error}");
        for length in [1, 1025] {
            let error = settings(Kind::Bpe, 300, length).unwrap_err();
            assert!(error.contains(&format!("max_token_length is {length}")), "{error}");
        }
    }
}
