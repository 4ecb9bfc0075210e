//! Trains a tokenizer: byte-level byte-pair encoding as in GPT-2 (Sennrich et al. 2016, "Neural Machine Translation of Rare
//! Words with Subword Units"; Radford et al. 2019).

use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::special_tokens::{DOCUMENT_END, PAD, ROLES, TURN_END};
use crate::{Error, Result, Tokenizer};

/// The special tokens of a trained vocabulary; the index is the id.
const SPECIAL: [&str; 6] = [DOCUMENT_END, PAD, ROLES[0], ROLES[1], ROLES[2], TURN_END];

/// The minimum vocabulary size: the special tokens and the 256 bytes.
pub const MIN_VOCAB_SIZE: usize = SPECIAL.len() + 256;

/// The settings of [`train_bpe`].
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

/// Trains a byte-level BPE tokenizer on `texts`. It can encode any text, and decoding returns the text unchanged.
///
/// Ids 0 to 5 are `<|endoftext|>` (begin and end of documents), `<|pad|>`, `<|system|>`, `<|user|>`, `<|assistant|>` and
/// `<|end|>`, followed by the 256 bytes and the merges, most frequent first. The result does not depend on the order of the
/// texts.
pub fn train_bpe(
    config: &TrainConfig,
    texts: impl Iterator<Item = impl AsRef<str> + Send> + Send,
) -> Result<Tokenizer> {
    let least = MIN_VOCAB_SIZE;
    if config.vocab_size < least {
        return Err(Error::VocabSize { asked: config.vocab_size, least });
    }
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(config.vocab_size)
        .min_frequency(config.min_frequency)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.train(&mut trainer, texts).map_err(|cause| Error::Train { cause })?;
    Tokenizer::from_trained(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] =
        ["the cat sat on the mat", "the dog sat on the log <|end|><|end|><|end|>", "der Hund, die Katze: 猫 🐈"];

    fn train(vocab_size: usize) -> Tokenizer {
        train_bpe(&TrainConfig { vocab_size, min_frequency: 2 }, TEXTS.iter()).unwrap()
    }

    #[test]
    fn training_does_not_depend_on_the_order_of_texts() {
        let many = || (0..200).map(|i| format!("{} {} {}", TEXTS[i % 3], i * 7919, TEXTS[(i * 5) % 3]));
        let config = TrainConfig { vocab_size: 600, min_frequency: 2 };
        let first = train_bpe(&config, many()).unwrap();
        let backwards = train_bpe(&config, many().collect::<Vec<_>>().into_iter().rev()).unwrap();
        assert_eq!(first.fingerprint(), backwards.fingerprint());
        let other = train_bpe(&config, many().skip(100)).unwrap();
        assert_ne!(first.fingerprint(), other.fingerprint(), "different text, same fingerprint");
    }

    #[test]
    fn special_tokens_have_the_first_ids() {
        let tokenizer = train(280);
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_id(token), Some(id as u32), "{token}");
            assert_eq!(tokenizer.token(id as u32).as_deref(), Some(*token));
        }
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(0), Some(1)));
        assert_eq!(tokenizer.document_end_id(), Some(0));
    }

    #[test]
    fn merges_fill_the_vocabulary_and_shorten_the_encoding() {
        assert_eq!(train(262).vocab_size(), 262);
        assert_eq!(train(270).vocab_size(), 270);
        assert_eq!(train(262).encode("the the").unwrap().len(), 7);
        assert_eq!(train(280).encode("the the").unwrap().len(), 2);
    }

    #[test]
    fn a_vocabulary_below_the_minimum_size_is_an_error() {
        let config = TrainConfig { vocab_size: 261, min_frequency: 2 };
        let error = train_bpe(&config, TEXTS.iter()).unwrap_err().to_string();
        assert!(error.contains("vocab_size = 261") && error.contains("at least 262"), "{error}");
    }

    #[test]
    fn unknown_settings_are_errors_and_missing_ones_have_defaults() {
        let config: TrainConfig = serde_json::from_str(r#"{"vocab_size": 300}"#).unwrap();
        assert_eq!(config, TrainConfig { vocab_size: 300, ..TrainConfig::default() });
        assert!(serde_json::from_str::<TrainConfig>(r#"{"vocabsize": 300}"#).is_err());
    }
}
