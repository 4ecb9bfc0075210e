//! The tokenizer itself: encoding, decoding, and the ids that have a meaning.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::{AddedVocabulary, Model as _, OffsetReferential, OffsetType, PreTokenizer as _};

use crate::chat_format::ChatFormat;
use crate::chat_template::ChatTemplate;
use crate::folder::token_text;
use crate::train::DOCUMENT_END;
use crate::validate::catch_panic;
use crate::{Error, Result};

/// An id, and the bytes of the text that it covers.
pub(crate) type Token = (u32, Range<usize>);

/// Text to ids and back, with the chat template that goes with the vocabulary; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    pub(crate) inner: Arc<tokenizers::Tokenizer>,
    /// The added tokens once more, set so that the text of a special token is ordinary text.
    ordinary: Arc<AddedVocabulary>,
    special_ids: Arc<HashSet<u32>>,
    vocab_size: usize,
    fingerprint: String,
    /// `tokenizer_config.json`, with the keys that this crate does not know.
    pub(crate) config: Map<String, Value>,
    pub(crate) chat: Option<ChatTemplate>,
    /// What the template says, once somebody asked; changes of the configuration clear it.
    pub(crate) chat_format: OnceLock<ChatFormat>,
}

impl Tokenizer {
    /// Puts together what was trained or read.
    pub(crate) fn new(
        inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
        chat: Option<ChatTemplate>,
    ) -> Result<Self> {
        let content = inner.to_string(false).map_err(|cause| Error::Serialize { cause })?;
        let mut ordinary = inner.get_added_vocabulary().clone();
        ordinary.set_encode_special_tokens(true);
        let added = ordinary.get_added_tokens_decoder();
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |last| *last as usize + 1);
        Ok(Self {
            inner: Arc::new(inner),
            ordinary: Arc::new(ordinary),
            special_ids: Arc::new(special_ids),
            vocab_size,
            fingerprint: format!("{:016x}", fnv1a(content.as_bytes())),
            config,
            chat,
            chat_format: OnceLock::new(),
        })
    }

    /// The ids of a text, in which the text of a special token (`<|end|>`) is ordinary text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.run(&self.ordinary, text, OffsetType::None)?;
        if encoding.get_ids().iter().any(|id| self.is_special(*id)) {
            return Ok(self.encode_spans(text)?.into_iter().map(|(id, _)| id).collect());
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text, in which the text of a special token becomes that token: for rendered chat templates and
    /// texts of one's own, never for what a user wrote.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(self.inner.get_added_vocabulary(), text, OffsetType::None)?.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], each id with the range of bytes of `text` that it covers. A token that is a part of a
    /// character has the range of the whole character.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        self.encode_spans(text)
    }

    /// As [`Tokenizer::encode_with_special`], each id with the bytes of the text that it covers.
    pub(crate) fn encode_with_special_spans(&self, text: &str) -> Result<Vec<Token>> {
        Ok(spans(&self.run(self.inner.get_added_vocabulary(), text, OffsetType::Byte)?))
    }

    /// As [`Tokenizer::encode`], each id with the bytes of the text that it covers.
    ///
    /// Some vocabularies have merges that spell a special token. Such a token is cut behind its first character, and the
    /// parts are encoded apart.
    pub(crate) fn encode_spans(&self, text: &str) -> Result<Vec<Token>> {
        let tokens = spans(&self.run(&self.ordinary, text, OffsetType::Byte)?);
        let spelled =
            |(id, span): &&Token| self.is_special(*id) && self.token(*id).as_deref() == text.get(span.clone());
        let cuts = tokens.iter().filter(spelled).filter_map(|(_, span)| {
            let first = text.get(span.clone())?.chars().next()?;
            Some(span.start + first.len_utf8()).filter(|cut| *cut < span.end)
        });
        let cuts: Vec<usize> = cuts.collect();
        if cuts.is_empty() {
            return Ok(tokens);
        }
        let mut tokens = Vec::new();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        for (start, end) in starts.zip(cuts.iter().copied().chain([text.len()])) {
            let part = self.encode_spans(&text[start..end])?;
            tokens.extend(part.into_iter().map(|(id, span)| (id, start + span.start..start + span.end)));
        }
        Ok(tokens)
    }

    /// Where the text of special tokens stands in a text, as the tokenizer itself sees it.
    pub(crate) fn special_spans(&self, text: &str) -> Vec<Token> {
        let added = self.inner.get_added_vocabulary();
        let pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let tokens = splits.into_iter().filter_map(|(_, (start, end), tokens)| {
            let id = tokens.as_ref()?.first()?.id;
            self.is_special(id).then_some((id, start..end))
        });
        tokens.collect()
    }

    /// The steps of the `tokenizers` crate with the added tokens of our choice, and without the begin-of-sequence token
    /// that a `tokenizer.json` may ask for.
    fn run(&self, added: &AddedVocabulary, text: &str, offsets: OffsetType) -> Result<tokenizers::Encoding> {
        let steps = || {
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            self.inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
            pieces.into_encoding(None, 0, offsets)
        };
        catch_panic(steps).map_err(|cause| Error::Encode { bytes: text.len(), cause })
    }

    /// The text of ids; special tokens, and ids that the vocabulary lacks, have none. Bytes that are no UTF-8 come out
    /// as U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        catch_panic(|| self.inner.decode(ids, true)).map_err(|cause| Error::Decode { count: ids.len(), cause })
    }

    /// The number of ids, which is the highest id + 1: a model needs that many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, written as in the vocabulary (a byte-level one writes a space as `Ġ`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The ids of all special tokens, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special_ids.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The id of `bos_token`: the begin of a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id(self.config_token("bos_token")?)
    }

    /// Whether a text begins with that token: as `tokenizer_config.json` says, or as the post-processor does.
    pub fn adds_bos(&self) -> bool {
        let said = self.config.get("add_bos_token").and_then(Value::as_bool);
        said.unwrap_or_else(|| {
            let bos = self.config_token("bos_token");
            let first =
                |processor: &Value| bos.is_some() && processor["single"][0]["SpecialToken"]["id"].as_str() == bos;
            let post_processor = serde_json::to_value(self.inner.get_post_processor()).unwrap_or_default();
            let steps = post_processor["processors"].as_array();
            first(&post_processor) || steps.is_some_and(|steps| steps.iter().any(first))
        })
    }

    /// The id of `eos_token`: the end of what a model writes.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.config_token("eos_token")?)
    }

    /// The id of `pad_token`: what fills a batch's short rows.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_id(self.config_token("pad_token")?)
    }

    /// The id that ends a document: `<|endoftext|>` if the vocabulary has it, else the end of a text.
    pub fn document_end_id(&self) -> Option<u32> {
        self.token_id(DOCUMENT_END).or_else(|| self.eos_id())
    }

    /// The text of a token that `tokenizer_config.json` names.
    pub(crate) fn config_token(&self, key: &str) -> Option<&str> {
        token_text(self.config.get(key)?)
    }

    /// Sets a key of `tokenizer_config.json`.
    pub(crate) fn set_config(&mut self, key: &str, value: &str) {
        self.config.insert(key.into(), value.into());
        self.chat_format = OnceLock::new();
    }

    /// A hash of all that decides which ids a text gets, as 16 hexadecimal digits: equal on every machine, changed by
    /// any change of vocabulary, merges or splitting, and untouched by the chat template.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chat = self.has_chat_template();
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("chat_template", &chat)
            .finish_non_exhaustive()
    }
}

/// The tokens of an encoding that was made with byte offsets.
fn spans(encoding: &tokenizers::Encoding) -> Vec<Token> {
    let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end);
    encoding.get_ids().iter().copied().zip(spans).collect()
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::folder;
    use crate::{TrainConfig, train_bpe};

    fn trained() -> Tokenizer {
        let texts = ["the cat sat on the mat <|end|>", "the dog sat on the log <|end|> <|end|>"];
        train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, texts.iter()).unwrap()
    }

    #[test]
    fn any_text_comes_back_unchanged() {
        let tokenizer = trained();
        let texts =
            ["", " ", "the cat", "\t\ttabs\r\n\n", "日本語の文章", "👩‍👩‍👧 🏳️‍🌈", "e\u{301}\0\u{FFFD}\u{10FFFF}", "<|end|>"];
        for text in texts {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn the_text_of_a_special_token_is_ordinary_unless_asked_for() {
        let tokenizer = trained();
        let text = "the<|end|>the<|endoftext|>";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id > 5), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let ids = tokenizer.encode_with_special(text).unwrap();
        assert_eq!(ids.iter().filter(|id| **id <= 5).copied().collect::<Vec<_>>(), [5, 0]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "thethe", "special tokens are skipped");
    }

    #[test]
    fn merges_that_spell_a_special_token_do_not_make_one() {
        let dir = folder("{}");
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let raw = tokenizer.run(&tokenizer.ordinary, "<s>", OffsetType::None).unwrap();
        assert_eq!(raw.get_ids(), [0], "the case must be one where the merges spell it");
        assert_eq!(tokenizer.encode("s><s><s>").unwrap(), [4, 1, 4, 1, 4]);
        let spans: Vec<_> = tokenizer.encode_spans("<s>s").unwrap();
        assert_eq!(spans, [(1, 0..1), (4, 1..3), (2, 3..4)]);
    }

    #[test]
    fn offsets_are_the_bytes_that_each_token_stands_for() {
        let tokenizer = trained();
        for text in ["the cat sat", "the<|end|>  dög 日本", ""] {
            let tokens = tokenizer.encode_with_offsets(text).unwrap();
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, tokenizer.encode(text).unwrap());
            let mut end = 0;
            for (id, span) in tokens {
                assert!(span.start <= end && span.end >= end, "{text}: a gap before {span:?}");
                end = span.end;
                let written = tokenizer.decode(&[id]).unwrap();
                assert!(written == text[span.clone()] || written.contains('\u{FFFD}'), "{text}: {span:?}");
            }
            assert_eq!(end, text.len());
        }
    }

    #[test]
    fn the_vocabulary_size_covers_the_highest_id() {
        assert_eq!(Tokenizer::from_dir(folder("{}").path()).unwrap().vocab_size(), 10);
    }

    #[test]
    fn the_fingerprint_is_the_published_hash_and_ignores_the_chat_template() {
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        let tokenizer = trained();
        let with_template = tokenizer.clone().with_default_chat_template().unwrap();
        assert_eq!(tokenizer.fingerprint(), with_template.fingerprint());
    }

    #[test]
    fn a_tokenizer_can_be_shared_between_threads() {
        fn shared<T: Send + Sync + Clone>(_: &T) {}
        shared(&trained());
    }
}
