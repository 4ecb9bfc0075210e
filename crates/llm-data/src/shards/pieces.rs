//! Cuts long documents into pieces, so that several threads can tokenize one document.

use llm_tokenizer::Tokenizer;

use crate::Result;

/// Minimum size of a piece in bytes.
const PIECE_BYTES: usize = 128 << 10;

/// A piece of a document, tokenized by one thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    pub ends_document: bool,
}

/// Cuts a document into pieces. The concatenated ids of the pieces are the ids of the whole document.
pub(super) fn pieces<'a>(tokenizer: &Tokenizer, document: &'a str) -> Result<Vec<Piece<'a>>> {
    let (mut pieces, mut rest) = (Vec::new(), document);
    while let Some(cut) = safe_cut(tokenizer, rest)? {
        let (text, later) = rest.split_at(cut);
        pieces.push(Piece { text, ends_document: false });
        rest = later;
    }
    pieces.push(Piece { text: rest, ends_document: true });
    Ok(pieces)
}

/// The first position after [`PIECE_BYTES`] where a long text can be cut without changing its ids: after a single line end between
/// two characters that are not white space, if no token of the surrounding lines crosses it. `None` if the text is short or has
/// no such position.
fn safe_cut(tokenizer: &Tokenizer, text: &str) -> Result<Option<usize>> {
    if text.len() < 2 * PIECE_BYTES {
        return Ok(None);
    }
    let is_word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    let starts = text.as_bytes().iter().enumerate().skip(PIECE_BYTES).take(PIECE_BYTES / 2);
    for cut in starts.filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1) {
        let (head, tail) = text.split_at(cut);
        if !(is_word(head[..cut - 1].chars().next_back()) && is_word(tail.chars().next())) {
            continue;
        }
        let before = &head[head[..cut - 1].rfind('\n').map_or(0, |at| at + 1)..];
        let after = &tail[..tail.find('\n').map_or(tail.len(), |at| at + 1)];
        let both = tokenizer.encode(&[before, after].concat())?;
        if both == [tokenizer.encode(before)?, tokenizer.encode(after)?].concat() {
            return Ok(Some(cut));
        }
    }
    Ok(None)
}
