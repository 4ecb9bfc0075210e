//! Reads `tokenizer.model`, the file of the `sentencepiece` library (Kudo and Richardson 2018), used by Llama 1 and 2, Gemma and T5.
//!
//! The file is a protocol buffer (`sentencepiece_model.proto`): pieces with scores and types, trainer settings, and normalizer
//! settings. Byte-pair encoding and unigram models are supported; settings that would change the result are errors that name the
//! setting. As in llama.cpp, and in the `tokenizer.json` that transformers converts from such a file, a space is also added after
//! each special token.
//!
//! The `tokenizers` crate applies the table of a normalizer to whole grapheme clusters of less than 6 bytes, or to single characters.
//! So its ids can differ from those of `sentencepiece` for characters with several combining marks, half-width Katakana with a sound
//! mark and conjoining Hangul; transformers gives the same ids as this crate.

use std::path::Path;

use crate::gguf::GgufVocabulary;
use crate::{Error, Result, Tokenizer};

/// The value of a field of a protocol buffer message.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    /// A signed number: 64 bits in two's complement.
    fn signed(&self) -> Option<i64> {
        match self {
            Self::Number(n) => Some(*n as i64),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// Parses the bytes of a `tokenizer.model`. `path` is used in errors.
pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Tokenizer> {
    let invalid = |cause: &str| Error::Parse { path: path.to_owned(), cause: cause.into() };
    let vocabulary = vocabulary(bytes).map_err(|cause| invalid(&cause))?;
    Tokenizer::from_vocabulary(&vocabulary).map_err(|cause| invalid(&cause.to_string()))
}

fn vocabulary(bytes: &[u8]) -> std::result::Result<GgufVocabulary, String> {
    let mut vocabulary = GgufVocabulary { model: "llama".to_owned(), ..GgufVocabulary::default() };
    // The defaults of the format: a unigram model, and these ids.
    let (mut kind, mut ids) = (1, [0, 1, 2, -1]);
    let (mut prefix, mut squeezed, mut escaped) = (true, true, true);
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                let (mut text, mut score, mut kind) = (String::new(), 0., 1);
                for field in fields(piece) {
                    match field? {
                        (1, value) => value.text().ok_or("a piece is not UTF-8")?.clone_into(&mut text),
                        (2, Field::Float(value)) => score = value,
                        (3, value) => kind = value.signed().ok_or("the type of a piece is not a number")?,
                        _ => {}
                    }
                }
                vocabulary.tokens.push(text);
                vocabulary.scores.push(score);
                vocabulary.token_type.push(kind);
            }
            (2, Field::Bytes(training)) => {
                for field in fields(training) {
                    let (number, value) = field?;
                    match (number, value.signed()) {
                        (3, Some(value)) => kind = value,
                        (24, Some(1)) => return Err("\"treat_whitespace_as_suffix\" is not supported".to_owned()),
                        (number @ 40..=43, Some(id)) => ids[number as usize - 40] = id,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                for field in fields(normalizer) {
                    match field? {
                        (2, Field::Bytes(map)) => vocabulary.precompiled_charsmap = map.to_vec(),
                        (3, value) => prefix = value.signed() == Some(1),
                        (4, value) => squeezed = value.signed() == Some(1),
                        (5, value) => escaped = value.signed() == Some(1),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    match kind {
        1 => "t5".clone_into(&mut vocabulary.model),
        2 if !vocabulary.precompiled_charsmap.is_empty() => {
            return Err("text is normalized by a table; byte-pair encoding supports \"identity\" only".to_owned());
        }
        2 if squeezed => return Err("\"remove_extra_whitespaces\" must be false for byte-pair encoding".to_owned()),
        2 => {}
        _ => {
            return Err(format!(
                "\"model_type\" is {kind}; only 1 (unigram) and 2 (byte-pair encoding) are supported: convert the tokenizer to \
                 a tokenizer.json"
            ));
        }
    }
    if !escaped {
        return Err("\"escape_whitespaces\" must be true".to_owned());
    }
    vocabulary.remove_extra_whitespaces = squeezed;
    vocabulary.add_space_prefix = Some(prefix);
    let id = |id: i64| u32::try_from(id).ok();
    vocabulary.unknown_token_id = id(ids[0]);
    vocabulary.bos_token_id = id(ids[1]);
    vocabulary.eos_token_id = id(ids[2]);
    vocabulary.padding_token_id = id(ids[3]);
    vocabulary.add_bos_token = Some(vocabulary.bos_token_id.is_some());
    Ok(vocabulary)
}

/// The fields of a message as (field number, value).
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = std::result::Result<(u64, Field<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| "a field is truncated or has an unknown type".to_owned()))
    })
}

/// Parses a field and removes it from `bytes`.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let length = match tag & 7 {
        0 => return Some((tag >> 3, Field::Number(varint(bytes)?))),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((
        tag >> 3,
        match tag & 7 {
            5 => Field::Float(f32::from_le_bytes(*value.first_chunk()?)),
            _ => Field::Bytes(value),
        },
    ))
}

/// Parses a varint and removes it from `bytes`: 7 bits per byte, lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 127) << shift;
        if *byte < 128 {
            return Some(number);
        }
    }
    None
}
