//! Trains a tokenizer on text: byte-level byte-pair encoding (BPE), unigram, `WordPiece`, words or characters.
//!
//! [`Trainer`] counts the pieces of whole documents while they are read, so that training sees the pieces that encoding will see, and
//! learns the vocabulary from the counts.

mod kinds;
mod merges;
mod pieces;
mod settings;
#[cfg(test)]
mod tests;
mod trainer;
mod unigram;

pub use merges::Ties;
pub use settings::{Kind, Split, TrainConfig, TrainSettings};
pub use trainer::{Estimate, LongestPiece, TrainReport, Trainer};

use std::path::Path;
use std::sync::Arc;

use crate::special_tokens::{DOCUMENT_END, PAD, ROLES, TURN_END};
use crate::{Result, Tokenizer};

/// The special tokens of a trained vocabulary; the index is the id.
const SPECIAL: [&str; 6] = [DOCUMENT_END, PAD, ROLES[0], ROLES[1], ROLES[2], TURN_END];
/// What cannot be encoded, in vocabularies without bytes; its id comes after those of the special tokens.
const UNKNOWN: &str = "<unk>";

/// The minimum size of a byte-level vocabulary: the special tokens and the 256 bytes.
pub const MIN_VOCAB_SIZE: usize = SPECIAL.len() + 256;

/// Trains a byte-level BPE tokenizer on `texts`, with the pieces of GPT-2. It can encode any text, and decoding returns the text
/// unchanged. [`Trainer`] has more settings and tells what it found.
///
/// Ids 0 to 5 are `<|endoftext|>` (begin and end of documents), `<|pad|>`, `<|system|>`, `<|user|>`, `<|assistant|>` and
/// `<|end|>`, followed by the 256 bytes and the merges, most frequent first. The result does not depend on the order of the
/// texts.
pub fn train_bpe(
    config: &TrainConfig,
    texts: impl Iterator<Item = impl AsRef<str> + Send> + Send,
) -> Result<Tokenizer> {
    let mut trainer = Trainer::new(&TrainSettings::from(config))?;
    let source: Arc<Path> = Path::new("").into();
    for text in texts {
        trainer.add(text.as_ref(), &source);
    }
    Ok(trainer.finish()?.0)
}
