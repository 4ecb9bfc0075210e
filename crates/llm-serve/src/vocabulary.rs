//! The text of each token.

use llm_tokenizer::Tokenizer;

use crate::error::{ApiError, Result};

/// The bytes of all tokens, by id.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    texts: Vec<Vec<u8>>,
    special: Vec<u32>,
}

impl Vocabulary {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        Self { texts: tokenizer.token_texts(), special: tokenizer.special_ids() }
    }

    /// The bytes of a token; none for an id without a token.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The text of a token; one that is no whole character is written `bytes:\xe4`, so that two tokens differ.
    pub(crate) fn text(&self, id: u32) -> String {
        match std::str::from_utf8(self.bytes(id)) {
            Ok(text) => text.to_owned(),
            Err(_) => self.bytes(id).iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
        }
    }

    /// Whether an id is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// The text of ids, with special tokens as they are spelled.
    pub(crate) fn decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
        let parts = ids.chunk_by(|a, b| self.is_special(*a) == self.is_special(*b)).map(|part| match part {
            [first, ..] if self.is_special(*first) => Ok(part.iter().map(|id| self.text(*id)).collect()),
            _ => tokenizer.decode(part).map_err(|error| ApiError::of(error, "tokens")),
        });
        parts.collect()
    }
}
