//! The bytes of each token: their number for bits per byte, and the bytes themselves for log-probabilities and grammars.

use serde_json::Value;

use crate::Tokenizer;
use crate::byte_level::byte_of;

impl Tokenizer {
    /// The number of bytes of text of each id, by id: 0 for special tokens and ids without a token. It is counted from the
    /// vocabulary and not from decoded text, so a part of a character counts its own bytes.
    ///
    /// Of a vocabulary that keeps every byte (byte-level BPE, `SentencePiece` with byte tokens) the sum over the tokens of a text is its
    /// length, but for a blank that the tokenizer puts in front of the text. `WordPiece` drops blanks: they belong to no token.
    pub fn token_bytes(&self) -> Vec<u32> {
        let decoder = serde_json::to_value(self.inner.get_decoder()).unwrap_or_default();
        let added = self.inner.get_added_tokens_decoder();
        let has_blank = |id: u32| has_type(&decoder, "WordPiece") && !added.contains_key(&id);
        let blank = |text: &[u8], id: u32| usize::from(text.first() == Some(&b' ') && has_blank(id));
        let texts = self.token_texts().into_iter().zip(0..);
        texts.map(|(text, id)| if self.is_special(id) { 0 } else { (text.len() - blank(&text, id)) as u32 }).collect()
    }

    /// The bytes of the text of each id, by id; special tokens as they are spelled, nothing for ids without a token. A token of
    /// `SentencePiece` or `WordPiece` that begins a word begins with a blank.
    pub fn token_texts(&self) -> Vec<Vec<u8>> {
        let decoder = serde_json::to_value(self.inner.get_decoder()).unwrap_or_default();
        let added = self.inner.get_added_tokens_decoder();
        let spelling = Spelling {
            byte_level: has_type(&decoder, "ByteLevel"),
            byte_tokens: has_type(&decoder, "ByteFallback"),
            word_piece: has_type(&decoder, "WordPiece"),
        };
        let bytes = |id: u32| match added.get(&id) {
            Some(token) => token.content.clone().into_bytes(),
            None => self.token(id).map_or_else(Vec::new, |token| spelling.bytes(&token)),
        };
        (0..self.vocab_size()).map(|id| bytes(id as u32)).collect()
    }
}

/// How a vocabulary writes the bytes of a token.
struct Spelling {
    /// Each byte is one character.
    byte_level: bool,
    /// `<0x41>` is a byte.
    byte_tokens: bool,
    /// `##` marks a token that continues a word.
    word_piece: bool,
}

impl Spelling {
    fn bytes(&self, token: &str) -> Vec<u8> {
        let utf8 = |c: char| c.encode_utf8(&mut [0; 4]).as_bytes().to_vec();
        if self.byte_level {
            return token.chars().flat_map(|c| byte_of(c).map_or_else(|| utf8(c), |byte| vec![byte])).collect();
        }
        if self.byte_tokens
            && let Some(digits) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && digits.len() == 2
            && let Ok(byte) = u8::from_str_radix(digits, 16)
        {
            return vec![byte];
        }
        if self.word_piece {
            let begin = || [b" ", token.as_bytes()].concat();
            return token.strip_prefix("##").map_or_else(begin, |rest| rest.as_bytes().to_vec());
        }
        // SentencePiece writes a blank as U+2581.
        token.chars().flat_map(|c| if c == '\u{2581}' { vec![b' '] } else { utf8(c) }).collect()
    }
}

/// Whether a decoder of `tokenizer.json`, or one in a sequence, has this type.
fn has_type(decoder: &Value, name: &str) -> bool {
    let parts = decoder["decoders"].as_array();
    decoder["type"] == name || parts.is_some_and(|parts| parts.iter().any(|part| has_type(part, name)))
}

#[cfg(test)]
mod tests {
    use crate::{Tokenizer, TrainConfig, train_bpe};

    fn sum(tokenizer: &Tokenizer, text: &str) -> usize {
        let bytes = tokenizer.token_bytes();
        tokenizer.encode(text).unwrap().iter().map(|&id| bytes[id as usize] as usize).sum()
    }

    const TEXTS: [&str; 4] = ["one two", "é 🦀\r\n\tx", "日本語", "  "];

    #[test]
    fn the_bytes_of_a_byte_level_text_are_those_of_its_tokens() {
        let config = TrainConfig { vocab_size: 300, ..TrainConfig::default() };
        let tokenizer = train_bpe(&config, ["one two one two three"].iter()).unwrap();
        for text in TEXTS {
            assert_eq!(sum(&tokenizer, text), text.len(), "{text:?}");
            let (ids, texts) = (tokenizer.encode(text).unwrap(), tokenizer.token_texts());
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| texts[id as usize].clone()).collect();
            assert_eq!(bytes, text.as_bytes());
        }
        let end = tokenizer.document_end_id().unwrap() as usize;
        assert_eq!(tokenizer.token_bytes()[end], 0, "a special token");
        assert_eq!(tokenizer.token_bytes().len(), tokenizer.vocab_size());
    }

    /// A character that is cut into byte tokens, and a blank as U+2581.
    #[test]
    fn byte_tokens_and_blanks_of_sentencepiece_count_one_byte() {
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
                "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "\u{2581}": 3, "a": 4, "\u{2581}a": 5, "<0xZZ>": 6},
                "merges": [["\u{2581}", "a"]]},
        });
        let inner: tokenizers::Tokenizer = serde_json::from_value(json).unwrap();
        let tokenizer = Tokenizer::new(inner, serde_json::Map::new(), None).unwrap();
        assert_eq!(tokenizer.token_bytes(), [0, 1, 1, 1, 1, 2, 6]);
        let texts: [&[u8]; 7] = [b"<unk>", b"\xc3", b"\xa9", b" ", b"a", b" a", b"<0xZZ>"];
        assert_eq!(tokenizer.token_texts(), texts);
        assert_eq!(sum(&tokenizer, "a a é"), "a a é".len());
    }
}
