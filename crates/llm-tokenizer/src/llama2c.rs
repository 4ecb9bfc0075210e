//! Reads the tokenizer of a llama2.c checkpoint (`tokenizer.bin`, `tok512.bin`): the pieces and scores of a `SentencePiece` model with
//! byte-pair encoding.
//!
//! Format (`tokenizer.py` and `run.c` of <https://github.com/karpathy/llama2.c>): the length of the longest piece (i32), then for each
//! piece its score (f32), its length (i32) and its text, with spaces for the space symbol of `SentencePiece`.

use std::fs;
use std::path::Path;

use crate::gguf::{BYTE, CONTROL, GgufVocabulary, NORMAL, SPACE, UNKNOWN, byte};
use crate::{Error, Result, Tokenizer};

impl Tokenizer {
    /// Reads the tokenizer of a llama2.c checkpoint. Its token 1 begins a text, and ends it, as in the training data.
    pub fn from_llama2c(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })?;
        let invalid = |cause: String| Error::Parse { path: path.to_owned(), cause: cause.into() };
        let mut vocabulary = GgufVocabulary {
            model: "llama".to_owned(),
            unknown_token_id: Some(0),
            bos_token_id: Some(1),
            eos_token_id: Some(1),
            add_bos_token: Some(true),
            ..GgufVocabulary::default()
        };
        let (_, mut rest) = bytes.split_at_checked(4).ok_or_else(|| invalid("it is empty".to_owned()))?;
        while !rest.is_empty() {
            let id = vocabulary.tokens.len();
            let piece = piece(&mut rest);
            let (score, text) = piece.ok_or_else(|| invalid(format!("piece {id} is truncated or not UTF-8")))?;
            let (text, kind) = match id {
                0 => (text, UNKNOWN),
                // Written between line breaks.
                1 | 2 => (text.trim(), CONTROL),
                _ if byte(text).is_some() => (text, BYTE),
                _ => (text, NORMAL),
            };
            vocabulary.tokens.push(text.replace(' ', SPACE));
            vocabulary.token_type.push(kind);
            vocabulary.scores.push(score);
        }
        Self::from_vocabulary(&vocabulary).map_err(|cause| invalid(cause.to_string()))
    }
}

/// The next score and text; removes them from `bytes`.
fn piece<'a>(bytes: &mut &'a [u8]) -> Option<(f32, &'a str)> {
    let (score, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::try_from(i32::from_le_bytes(*length)).ok()?)?;
    *bytes = rest;
    Some((f32::from_le_bytes(*score), std::str::from_utf8(text).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pieces: &[(&str, f32)]) -> Vec<u8> {
        let mut bytes = 9i32.to_le_bytes().to_vec();
        for (text, score) in pieces {
            bytes.extend(score.to_le_bytes());
            bytes.extend((text.len() as i32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn pieces_are_merged_by_score_after_a_space() {
        let mut pieces = vec![("<unk>", 0.), ("\n<s>\n", 0.), ("\n</s>\n", 0.)];
        let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
        pieces.extend(bytes.iter().map(|text| (text.as_str(), 0.)));
        pieces.extend([(" t", -0.), ("he", -1.), (" the", -2.), (" ", -3.), ("t", -4.), ("h", -5.), ("e", -6.)]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tok.bin");
        let good = file(&pieces);
        fs::write(&path, &good).unwrap();
        let tokenizer = Tokenizer::from_llama2c(&path).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()), (Some(1), Some(1), 266));
        assert_eq!(tokenizer.encode("the the\n").unwrap(), [261, 261, 13]);
        assert_eq!(tokenizer.decode(&[261, 261, 13]).unwrap(), "the the\n");
        for bad in [&good[..good.len() - 1], &[0; 3], &[good.clone(), vec![0; 8], vec![1]].concat()] {
            fs::write(&path, bad).unwrap();
            let error = Tokenizer::from_llama2c(&path).unwrap_err().to_string();
            assert!(error.contains("tok.bin"), "{error}");
        }
    }
}
