//! Streaming decode: an id may end in the middle of a character, so text is buffered until the character is complete.

use crate::{Result, Tokenizer};

impl Tokenizer {
    /// Starts a streaming decoder.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, ids: Vec::new(), context: 0, returned: String::new() }
    }

    /// Starts a streaming decoder for text that continues `prompt`: a blank at its start stays, which a decoder of `SentencePiece` removes
    /// from the start of a text. After a special token a new text begins.
    pub fn stream_after(&self, prompt: &[u32]) -> Result<StreamDecoder<'_>> {
        let is_text = |id: &&u32| !self.is_special(**id) && self.token(**id).is_some();
        let tail = prompt.iter().rev().take(CONTEXT).take_while(is_text).count();
        let ids = prompt[prompt.len() - tail..].to_vec();
        let returned = self.decode(&ids)?;
        if returned.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(self.stream()); // an incomplete character
        }
        Ok(StreamDecoder { tokenizer: self, context: ids.len(), ids, returned })
    }
}

/// The tokens of a prompt that the text after it can depend on.
const CONTEXT: usize = 6;

/// Decodes ids one at a time. The concatenated results are equal to [`Tokenizer::decode`] of all ids, if that of more ids only appends
/// text. Text that was returned is not changed by a decoder that does.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the text that was returned last, needed because some decoders treat the first id differently (they remove a
    /// leading space), then the ids of buffered text.
    ids: Vec<u32>,
    /// Number of leading `ids` whose text was returned.
    context: usize,
    /// The text of these.
    returned: String,
}

impl StreamDecoder<'_> {
    /// Takes the next id. Returns the new text, or `None` if there is none or a character is incomplete.
    ///
    /// Skips special tokens and ids that are not in the vocabulary, as [`Tokenizer::decode`] does.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.token(id) else { return Ok(None) };
        if self.tokenizer.is_special(id) {
            return Ok(None);
        }
        self.ids.push(id);
        // An invalid byte decodes to the replacement character, and so does an incomplete character that the next id may
        // complete.
        if is_byte_fallback(&token) {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let new = after_common(&text, &self.returned);
        if new.is_empty() {
            return Ok(None);
        }
        let new = new.to_owned();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.returned = self.tokenizer.decode(&self.ids)?;
        Ok(Some(new))
    }

    /// Ends the stream and returns the buffered text, with U+FFFD for incomplete characters.
    pub fn finish(self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.ids)?;
        let rest = after_common(&text, &self.returned);
        Ok((!rest.is_empty()).then(|| rest.to_owned()))
    }
}

/// What follows the beginning of `text` that it has in common with `before`.
fn after_common<'a>(text: &'a str, before: &str) -> &'a str {
    let common: usize = text.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    &text[common..]
}

/// Whether a token is one byte, written `<0xE2>` (byte fallback). Such bytes are decoded together, up to the next other token.
fn is_byte_fallback(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{TrainConfig, train_bpe};

    /// `count` pseudo-random ids less than `bound` (linear congruential generator, Knuth's MMIX constants).
    fn random_ids(seed: u64, count: usize, bound: u32) -> Vec<u32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % bound
        };
        (0..count).map(|_| next()).collect()
    }

    fn trained() -> Tokenizer {
        let texts = ["the cat 🐈 sat", "the dog 🐕 sat", "日本語 日本"];
        train_bpe(&TrainConfig { vocab_size: 290, min_frequency: 2 }, texts.iter()).unwrap()
    }

    /// A SentencePiece-like vocabulary: `▁` for spaces, the first space removed, byte fallback.
    fn sentencepiece() -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let mut vocabulary = json!({"<s>": 0, "▁": 1, "a": 2, "▁a": 3, "é": 4, "▁▁": 5});
        for (index, byte) in [0x0A, 0x41, 0xC3, 0xA9, 0xF0, 0x9F, 0x90, 0x88, 0xE2].iter().enumerate() {
            vocabulary[format!("<0x{byte:02X}>")] = (6 + index).into();
        }
        let file = json!({
            "version": "1.0",
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []},
        });
        fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    }

    /// The concatenated results of the stream; checks that each is non-empty.
    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.stream();
        let mut texts: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
        texts.extend(stream.finish().unwrap());
        assert!(texts.iter().all(|text| !text.is_empty()), "an empty text is `None`");
        texts.concat()
    }

    #[test]
    fn streaming_equals_decode_for_every_slice_of_ids() {
        let tokenizer = trained();
        let ids = tokenizer.encode_with_special("the 🐈 sat\t<|end|>日本語 e\u{301}\u{FFFD} 👩‍👩‍👧<|end|> x").unwrap();
        for start in 0..ids.len() {
            for end in start..=ids.len() {
                let part = &ids[start..end];
                assert_eq!(streamed(&tokenizer, part), tokenizer.decode(part).unwrap(), "{start}..{end}");
            }
        }
    }

    #[test]
    fn streaming_equals_decode_for_invalid_utf8() {
        // The bounds exceed the vocabularies, and most sequences are not valid UTF-8.
        for (tokenizer, bound) in [(trained(), 295), (sentencepiece(), 17)] {
            let mut broken = 0;
            for seed in 0..300 {
                let ids = random_ids(seed, 40, bound);
                let whole = tokenizer.decode(&ids).unwrap();
                broken += usize::from(whole.contains(char::REPLACEMENT_CHARACTER));
                assert_eq!(streamed(&tokenizer, &ids), whole, "seed {seed}: {ids:?}");
            }
            assert!(broken > 200, "only {broken} of 300 were broken");
        }
    }

    #[test]
    fn text_is_returned_as_soon_as_its_characters_are_complete() {
        let tokenizer = trained();
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode("a👩b").unwrap();
        let texts: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        // The four bytes are three tokens: the first two bytes, common to all emoji of the training text, are merged.
        let expected = [Some("a"), None, None, Some("👩"), Some("b")];
        assert_eq!(texts.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        assert_eq!(stream.finish().unwrap(), None);
    }

    #[test]
    fn text_that_continues_a_prompt_keeps_its_first_blank() {
        let tokenizer = sentencepiece();
        let first = |prompt: &[u32]| tokenizer.stream_after(prompt).unwrap().push(3).unwrap();
        assert_eq!(first(&[3, 2]).as_deref(), Some(" a"), "within a text");
        assert_eq!(first(&[0, 3]).as_deref(), Some(" a"));
        assert_eq!(first(&[3, 0]).as_deref(), Some("a"), "after a special token");
        assert_eq!(first(&[]).as_deref(), Some("a"));
        // The first byte of é: the text is that of the new ids.
        assert_eq!(first(&[2, 8]).as_deref(), Some("a"));
        let trained = trained();
        let ids = trained.encode("the 🐈 sat on 日本").unwrap();
        for split in 0..ids.len() {
            let mut stream = trained.stream_after(&ids[..split]).unwrap();
            let mut text = trained.decode(&ids[..split]).unwrap();
            let texts = ids[split..].iter().filter_map(|id| stream.push(*id).unwrap()).collect::<Vec<_>>();
            if !text.ends_with(char::REPLACEMENT_CHARACTER) {
                text.extend(texts);
                assert_eq!(text, "the 🐈 sat on 日本", "split at {split}");
            }
        }
    }

    #[test]
    fn a_decoder_that_changes_earlier_text_does_not_end_the_stream() {
        assert_eq!(after_common("say, é", "say ,"), ", é");
        assert_eq!(after_common("ab", "ab"), "");
        assert_eq!(after_common("é", "è"), "é");
    }

    #[test]
    fn an_incomplete_character_is_returned_at_the_end() {
        let tokenizer = trained();
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode("👩").unwrap();
        assert_eq!(stream.push(ids[0]).unwrap(), None);
        assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{FFFD}"));
    }
}
