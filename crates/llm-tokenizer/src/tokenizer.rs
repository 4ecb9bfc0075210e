//! [`Tokenizer`]: encoding, decoding, and the ids of special tokens.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::normalizer::Range as Bounds;
use tokenizers::{AddedVocabulary, Model as _, OffsetReferential, OffsetType, PreTokenizer as _};

use crate::chat_template::{ChatTemplate, Settings};
use crate::config::token_text;
use crate::fast::Fast;
use crate::fingerprint::fnv1a;
use crate::special_tokens::{ChatFormat, DOCUMENT_END};
use crate::validate::catch_panic;
use crate::{Error, Result};

/// An id, and the byte range of the text that it covers.
pub(crate) type Token = (u32, Range<usize>);

/// A tokenizer with its chat template. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    pub(crate) inner: Arc<tokenizers::Tokenizer>,
    /// A copy of the added tokens that treats the text of special tokens as ordinary text.
    ordinary: Arc<AddedVocabulary>,
    fast: Arc<Fast>,
    special_ids: Arc<HashSet<u32>>,
    vocab_size: usize,
    fingerprint: String,
    /// `tokenizer_config.json`, including keys that this crate does not use.
    pub(crate) config: Map<String, Value>,
    pub(crate) chat: Option<ChatTemplate>,
    pub(crate) template_settings: Settings,
    /// The control tokens of chats, computed at first use.
    control_ids: OnceLock<HashSet<u32>>,
    /// The tokens of the chat template, computed at first use. Cleared when the configuration changes.
    pub(crate) chat_format: OnceLock<ChatFormat>,
}

impl Tokenizer {
    /// Builds the tokenizer from its parts.
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
            fast: Arc::default(),
            special_ids: Arc::new(special_ids),
            vocab_size,
            fingerprint: format!("{:016x}", fnv1a(content.as_bytes())),
            config,
            chat,
            template_settings: Settings::default(),
            control_ids: OnceLock::new(),
            chat_format: OnceLock::new(),
        })
    }

    /// Encodes a text. The text of a special token (`<|end|>`) is encoded as ordinary text.
    ///
    /// With most byte-level BPE vocabularies a faster encoder takes over after the first 256 KiB; the ids are the same.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(ids) = self.fast.encode(text, &self.inner, &self.special_ids) {
            return Ok(ids);
        }
        let encoding = self.run(&self.ordinary, text, OffsetType::None)?;
        if encoding.get_ids().iter().any(|id| self.is_special(*id)) {
            return Ok(self.encode_spans(text)?.into_iter().map(|(id, _)| id).collect());
        }
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes a text. The text of a special token becomes that token. Use this for trusted text such as rendered chat templates,
    /// never for user input.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(self.inner.get_added_vocabulary(), text, OffsetType::None)?.get_ids().to_vec())
    }

    /// Like [`Tokenizer::encode`], with the byte range of `text` that each id covers. A token that is part of a character has the
    /// range of the whole character.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        self.encode_spans(text)
    }

    /// Like [`Tokenizer::encode_with_special`], with the byte range of each id.
    pub(crate) fn encode_with_special_spans(&self, text: &str) -> Result<Vec<Token>> {
        Ok(spans(&self.run(self.inner.get_added_vocabulary(), text, OffsetType::Byte)?))
    }

    /// Like [`Tokenizer::encode`], with the byte range of each id.
    ///
    /// Some vocabularies have merges that produce a special token. The text of such a token is cut after its first character, and
    /// the parts are encoded separately.
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

    /// The positions of special tokens in a text, as `encode_with_special` recognises them.
    pub(crate) fn special_spans(&self, text: &str) -> Vec<Token> {
        self.added_spans(text).into_iter().filter(|(id, _)| self.is_special(*id)).collect()
    }

    /// The positions of added tokens in a text.
    fn added_spans(&self, text: &str) -> Vec<Token> {
        let added = self.inner.get_added_vocabulary();
        let pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let added =
            splits.into_iter().map(|(_, (start, end), tokens)| Some((tokens.as_ref()?.first()?.id, start..end)));
        added.flatten().collect()
    }

    /// Whether an id is a control token of chats: a special token, or an added token that is written like one (`<|name|>`) or that
    /// the chat template contains (such as `<think>`). Other added tokens, such as runs of blanks, are ordinary text.
    pub(crate) fn is_control(&self, id: u32) -> bool {
        let control = self.control_ids.get_or_init(|| {
            let sources: Vec<&str> =
                self.chat.iter().flat_map(ChatTemplate::sources).map(|(_, source)| source).collect();
            let is_control = |text: &str| {
                let tag = text.len() > 4 && text.starts_with("<|") && text.ends_with("|>");
                tag || (!text.trim().is_empty() && sources.iter().any(|source| source.contains(text)))
            };
            let added = self.inner.get_added_tokens_decoder();
            added.iter().filter(|(_, token)| token.special || is_control(&token.content)).map(|(id, _)| *id).collect()
        });
        control.contains(&id)
    }

    /// The positions of control tokens in a text, as `encode_with_special` recognises them.
    pub(crate) fn control_spans(&self, text: &str) -> Vec<Token> {
        self.added_spans(text).into_iter().filter(|(id, _)| self.is_control(*id)).collect()
    }

    /// Encodes a text in which each of these characters is a placeholder for another text, with a border between two tokens at each of `cuts`. Added
    /// tokens are found before the characters are replaced. The byte ranges are those of `text`.
    pub(crate) fn encode_with_cuts(
        &self,
        text: &str,
        replaced: &[(char, String)],
        cuts: &[usize],
    ) -> Result<Vec<Token>> {
        let steps = || {
            let mut pieces = self.inner.get_added_vocabulary().extract_and_normalize(self.inner.get_normalizer(), text);
            pieces.normalize(|piece| {
                replaced.iter().try_for_each(|(placeholder, text)| piece.replace(*placeholder, text))
            })?;
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.split(|_, piece| {
                let (start, end) = piece.offsets_original();
                let inside = cuts.iter().copied().filter(|cut| (start + 1..end).contains(cut));
                let mut borders: Vec<usize> = inside.map(|cut| cut - start).collect();
                borders.push(end - start);
                let starts = [0].into_iter().chain(borders.clone());
                let parts = starts.zip(borders).map(|(from, to)| piece.slice(Bounds::Original(from..to)));
                parts.collect::<Option<Vec<_>>>().ok_or_else(|| "a text was cut inside of a character".into())
            })?;
            self.inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
            pieces.into_encoding(None, 0, OffsetType::Byte)
        };
        let encoding = catch_panic(steps).map_err(|cause| Error::Encode { bytes: text.len(), cause })?;
        Ok(spans(&encoding))
    }

    /// Runs the steps of the `tokenizers` crate with the given added tokens, and without the post-processor, which may add a
    /// begin-of-sequence token.
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

    /// Decodes ids. Skips special tokens and ids that are not in the vocabulary. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        catch_panic(|| self.inner.decode(ids, true)).map_err(|cause| Error::Decode { count: ids.len(), cause })
    }

    /// The vocabulary size: the highest id + 1, the number of rows of an embedding matrix.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, spelled as in the vocabulary (byte-level vocabularies write a space as `Ġ`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The ids of all special tokens, in ascending order.
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special_ids.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The id of `bos_token`, the begin of a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id(self.config_token("bos_token")?)
    }

    /// Whether a text begins with `bos_token`: the value of `add_bos_token` in `tokenizer_config.json`, else whether the
    /// post-processor adds it.
    pub fn adds_bos(&self) -> bool {
        let configured = self.config.get("add_bos_token").and_then(Value::as_bool);
        configured.unwrap_or_else(|| {
            let bos = self.config_token("bos_token");
            let first =
                |processor: &Value| bos.is_some() && processor["single"][0]["SpecialToken"]["id"].as_str() == bos;
            let post_processor = serde_json::to_value(self.inner.get_post_processor()).unwrap_or_default();
            let steps = post_processor["processors"].as_array();
            first(&post_processor) || steps.is_some_and(|steps| steps.iter().any(first))
        })
    }

    /// The id of `eos_token`, the end of a generated text.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.config_token("eos_token")?)
    }

    /// The id of `pad_token`, the padding of short rows in a batch.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_id(self.config_token("pad_token")?)
    }

    /// The id of the end-of-document token: `<|endoftext|>` if the vocabulary has it, else `eos_token`.
    pub fn document_end_id(&self) -> Option<u32> {
        self.token_id(DOCUMENT_END).or_else(|| self.eos_id())
    }

    /// The text of a token in `tokenizer_config.json`.
    pub(crate) fn config_token(&self, key: &str) -> Option<&str> {
        token_text(self.config.get(key)?)
    }

    /// All keys of `tokenizer_config.json`, with the chat template.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Sets a key of `tokenizer_config.json`.
    pub(crate) fn set_config(&mut self, key: &str, value: &str) {
        self.config.insert(key.into(), value.into());
        self.forget();
    }

    /// Forgets what was computed from the configuration and the chat template.
    pub(crate) fn forget(&mut self) {
        self.chat_format = OnceLock::new();
        self.control_ids = OnceLock::new();
    }

    /// A hash of `tokenizer.json` as 16 hexadecimal digits. It is the same on every machine, changes with the vocabulary, the
    /// merges or the pre-tokenizer, and does not depend on the chat template.
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

/// The tokens of an encoding with byte offsets.
fn spans(encoding: &tokenizers::Encoding) -> Vec<Token> {
    let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end);
    encoding.get_ids().iter().copied().zip(spans).collect()
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
    fn decoding_the_encoding_of_any_text_gives_the_text() {
        let tokenizer = trained();
        let texts =
            ["", " ", "the cat", "\t\ttabs\r\n\n", "日本語の文章", "👩‍👩‍👧 🏳️‍🌈", "e\u{301}\0\u{FFFD}\u{10FFFF}", "<|end|>"];
        for text in texts {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn encode_treats_the_text_of_special_tokens_as_ordinary_text() {
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
    fn merges_cannot_produce_a_special_token() {
        let dir = folder("{}");
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let raw = tokenizer.run(&tokenizer.ordinary, "<s>", OffsetType::None).unwrap();
        assert_eq!(raw.get_ids(), [0], "the merges of this vocabulary produce the special token");
        assert_eq!(tokenizer.encode("s><s><s>").unwrap(), [4, 1, 4, 1, 4]);
        let spans: Vec<_> = tokenizer.encode_spans("<s>s").unwrap();
        assert_eq!(spans, [(1, 0..1), (4, 1..3), (2, 3..4)]);
    }

    #[test]
    fn offsets_are_the_byte_ranges_of_the_tokens() {
        let tokenizer = trained();
        for text in ["the cat sat", "the<|end|>  dög 日本", ""] {
            let tokens = tokenizer.encode_with_offsets(text).unwrap();
            let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, tokenizer.encode(text).unwrap());
            let mut end = 0;
            for (id, span) in tokens {
                assert!(span.start <= end && span.end >= end, "{text}: gap before {span:?}");
                end = span.end;
                let written = tokenizer.decode(&[id]).unwrap();
                assert!(written == text[span.clone()] || written.contains('\u{FFFD}'), "{text}: {span:?}");
            }
            assert_eq!(end, text.len());
        }
    }

    #[test]
    fn the_vocabulary_size_covers_the_highest_id() {
        assert_eq!(Tokenizer::load(folder("{}").path()).unwrap().vocab_size(), 10);
    }

    #[test]
    fn the_fingerprint_ignores_the_chat_template() {
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
