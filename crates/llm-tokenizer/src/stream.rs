//! Ids to text while they arrive: an id may end in the middle of a character, so text is held back until it is whole.

use crate::{Error, Result, Tokenizer};

impl Tokenizer {
    /// Starts decoding ids one at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, ids: Vec::new(), context: 0, shown: String::new() }
    }
}

/// Decodes ids one at a time; all the texts it gives, joined, are what [`Tokenizer::decode`] gives for all the ids.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids whose text was given out last, kept because some decoders treat the first id of a text in its own way
    /// (a leading space is dropped), then ids whose text is still held back.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    context: usize,
    /// What those decode to.
    shown: String,
}

impl StreamDecoder<'_> {
    /// Takes the next id; gives the text that is now certain, or `None` while a character is incomplete.
    ///
    /// Special tokens and ids that the vocabulary lacks have no text, as in [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.token(id) else { return Ok(None) };
        if self.tokenizer.is_special(id) {
            return Ok(None);
        }
        self.ids.push(id);
        // A byte outside UTF-8's rules decodes to the replacement character, and so does the beginning of a character
        // that the next id may complete.
        if is_byte_fallback(&token) {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        let new = text.strip_prefix(&self.shown).ok_or(Error::Stream { id })?;
        if new.is_empty() {
            return Ok(None);
        }
        let new = new.to_owned();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids)?;
        Ok(Some(new))
    }

    /// Ends the stream; gives what was still held back, with U+FFFD for what never became a character.
    pub fn finish(self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.ids)?;
        let last = self.ids.last().copied().unwrap_or_default();
        let rest = text.strip_prefix(&self.shown).ok_or(Error::Stream { id: last })?;
        Ok((!rest.is_empty()).then(|| rest.to_owned()))
    }
}

/// Whether a token is one raw byte, written `<0xE2>`: such bytes are decoded together, up to the next ordinary token.
fn is_byte_fallback(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{TrainConfig, train_bpe};

    /// `count` ids below `bound`, others for each seed (Knuth's linear congruential generator).
    fn any_ids(seed: u64, count: usize, bound: u32) -> Vec<u32> {
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

    /// A SentencePiece-like vocabulary: `▁` for spaces, the first one dropped, and bytes for what is not in it.
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
        Tokenizer::from_dir(folder.path()).unwrap()
    }

    /// All that the stream gives, each text non-empty, joined.
    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.stream();
        let mut texts: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
        texts.extend(stream.finish().unwrap());
        assert!(texts.iter().all(|text| !text.is_empty()), "an empty text is `None`");
        texts.concat()
    }

    #[test]
    fn a_stream_gives_what_decode_gives_wherever_it_begins_and_ends() {
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
    fn a_stream_gives_what_decode_gives_for_broken_sequences() {
        // Beyond the vocabulary too, and with enough bytes that most runs are no UTF-8.
        for (tokenizer, bound) in [(trained(), 295), (sentencepiece(), 17)] {
            let mut broken = 0;
            for seed in 0..300 {
                let ids = any_ids(seed, 40, bound);
                let whole = tokenizer.decode(&ids).unwrap();
                broken += usize::from(whole.contains(char::REPLACEMENT_CHARACTER));
                assert_eq!(streamed(&tokenizer, &ids), whole, "seed {seed}: {ids:?}");
            }
            assert!(broken > 200, "only {broken} of 300 were broken");
        }
    }

    #[test]
    fn text_comes_as_soon_as_its_characters_are_whole() {
        let tokenizer = trained();
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode("a👩b").unwrap();
        let texts: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        // The four bytes are three tokens: the first two, which all emoji of the training text share, are merged.
        let expected = [Some("a"), None, None, Some("👩"), Some("b")];
        assert_eq!(texts.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
        assert_eq!(stream.finish().unwrap(), None);
    }

    #[test]
    fn an_unfinished_character_is_given_at_the_end() {
        let tokenizer = trained();
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode("👩").unwrap();
        assert_eq!(stream.push(ids[0]).unwrap(), None);
        assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{FFFD}"));
    }
}
