//! Converts tokenizers from and to the metadata of GGUF files.
//!
//! llama.cpp has two kinds of byte-pair encoding. "gpt2" is byte-level, with a list of merges and a named pre-tokenizer
//! ([`PRE_TOKENIZERS`]). "llama" is that of `SentencePiece`: no pre-tokenizer, a score for each token, and byte tokens as
//! fallback. A `tokenizer.json` that matches neither is an error. "t5", the unigram model of `SentencePiece`, is read only.

mod keys;
mod pieces;
mod pre_tokenizers;

use std::collections::HashMap;

use llm_files::gguf::Metadata;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::chat_template::ChatTemplate;
use crate::config::default_config;
use crate::split::GPT2;
use crate::validate;
use crate::{Error, Result, Tokenizer};
use pieces::{bpe_of_scores, sentence_piece, unigram};
use pre_tokenizers::{PRE_TOKENIZERS, pre_tokenizer_name};

/// The tokenizer metadata of a GGUF file. Each field is the key of the same name under `tokenizer.ggml`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GgufVocabulary {
    /// "gpt2", "llama" or "t5".
    pub model: String,
    /// The name of the pre-tokenizer ("gpt2").
    pub pre: Option<String>,
    /// The text of each id.
    pub tokens: Vec<String>,
    /// The type of each id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_type: Vec<i64>,
    /// The score of each id ("llama", "t5").
    pub scores: Vec<f32>,
    /// The merges, highest priority first, each as two tokens separated by a space ("gpt2").
    pub merges: Vec<String>,
    /// The begin of a text.
    pub bos_token_id: Option<u32>,
    /// The end of a text.
    pub eos_token_id: Option<u32>,
    /// The token for unknown characters.
    pub unknown_token_id: Option<u32>,
    /// The padding of short rows.
    pub padding_token_id: Option<u32>,
    /// Whether `bos_token_id` is added to the begin of each text.
    pub add_bos_token: Option<bool>,
    /// Whether a space is added to the begin of each text ("llama", "t5").
    pub add_space_prefix: Option<bool>,
    /// Whether spaces around a text and repeated spaces are removed ("t5").
    pub remove_extra_whitespaces: bool,
    /// The table of `SentencePiece` by which text is normalized; empty: none ("t5").
    pub precompiled_charsmap: Vec<u8>,
    /// The chat template (`tokenizer.chat_template`).
    pub chat_template: Option<String>,
}

pub(crate) const NORMAL: i64 = 1;
pub(crate) const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
pub(crate) const BYTE: i64 = 6;

/// The space of `SentencePiece`.
pub(crate) const SPACE: &str = "\u{2581}";

/// The maximum length of a token in bytes; bounds the work for a malicious file.
const MAX_TOKEN_BYTES: usize = 1024;

fn unsupported(message: impl Into<String>) -> Error {
    Error::Gguf { message: message.into() }
}

impl Tokenizer {
    /// The metadata of this tokenizer in a GGUF file, for a model with a vocabulary of `rows`.
    pub fn to_gguf(&self, rows: usize) -> Result<Metadata> {
        let vocabulary = self.to_vocabulary(rows)?;
        for warning in self.lost_in_gguf() {
            tracing::warn!("tokenizer: {warning}");
        }
        Ok(vocabulary.into_metadata())
    }

    /// Builds the tokenizer of a GGUF file from its metadata.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let mut vocabulary = GgufVocabulary::read(metadata)?;
        for warning in vocabulary.drop_unknown_ids() {
            tracing::warn!("tokenizer of a GGUF file: {warning}");
        }
        Self::from_vocabulary(&vocabulary)
    }

    /// The properties of added tokens that a GGUF file cannot express.
    fn lost_in_gguf(&self) -> Vec<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut lost: Vec<_> =
            added.iter().filter(|(_, token)| token.lstrip || token.rstrip || token.single_word).collect();
        lost.sort_by_key(|(id, _)| **id);
        let warning = |token: &AddedToken| {
            let text = &token.content;
            format!(
                "\"lstrip\", \"rstrip\" and \"single_word\" of the token {text:?} are lost: GGUF cannot express them"
            )
        };
        lost.into_iter().map(|(_, token)| warning(token)).collect()
    }

    fn to_vocabulary(&self, rows: usize) -> Result<GgufVocabulary> {
        let text = self.inner.to_string(false).map_err(|cause| Error::Serialize { cause })?;
        let json: Value = serde_json::from_str(&text).map_err(|cause| Error::Serialize { cause: cause.into() })?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(unsupported(format!(
                "a tokenizer of the type {} is not supported; it must be BPE",
                model["type"]
            )));
        }
        for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !matches!(&model[key], Value::Null) && model[key] != "" {
                return Err(unsupported(format!("\"{key}\" of tokenizer.json is {}; it must be null", model[key])));
            }
        }
        let mut vocabulary = GgufVocabulary {
            bos_token_id: self.bos_id(),
            eos_token_id: self.eos_id(),
            padding_token_id: self.pad_id(),
            unknown_token_id: model["unk_token"].as_str().and_then(|token| self.token_id(token)),
            add_bos_token: Some(self.adds_bos()),
            chat_template: self.chat.as_ref().and_then(|chat| chat.source()).map(str::to_owned),
            ..GgufVocabulary::default()
        };
        self.list_tokens(rows, &json["added_tokens"], &mut vocabulary)?;
        let merges = pairs(&model["merges"])?;
        if model["byte_fallback"] == true {
            "llama".clone_into(&mut vocabulary.model);
            vocabulary.pre = Some("default".to_owned());
            vocabulary.add_space_prefix = Some(space_prefix(&json["normalizer"], &json["pre_tokenizer"])?);
            vocabulary.scores = self.scores(&vocabulary, &merges);
        } else {
            "gpt2".clone_into(&mut vocabulary.model);
            vocabulary.pre = Some(pre_tokenizer_name(&json)?.to_owned());
            vocabulary.merges = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        }
        Ok(vocabulary)
    }

    /// Adds the tokens and their types to `vocabulary`. Ids that the tokenizer does not have get the type "unused".
    fn list_tokens(&self, rows: usize, added: &Value, vocabulary: &mut GgufVocabulary) -> Result<()> {
        if self.vocab_size() > rows {
            return Err(unsupported(format!("{} tokens for a model with a vocabulary of {rows}", self.vocab_size())));
        }
        let added: HashMap<u64, bool> = added
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|token| Some((token["id"].as_u64()?, token["special"] == true)))
            .collect();
        for id in 0..rows as u32 {
            let token = self.token(id);
            let kind = match (&token, added.get(&u64::from(id))) {
                (None, _) => UNUSED,
                _ if vocabulary.unknown_token_id == Some(id) => UNKNOWN,
                (_, Some(true)) => CONTROL,
                (_, Some(false)) => USER_DEFINED,
                (Some(token), None) if byte(token).is_some() => BYTE,
                _ => NORMAL,
            };
            vocabulary.tokens.push(token.unwrap_or_else(|| format!("[PAD{id}]")));
            vocabulary.token_type.push(kind);
        }
        Ok(())
    }

    /// The scores of the tokens. `SentencePiece` merges the pair whose token has the highest score first, so earlier merges get
    /// higher scores.
    fn scores(&self, vocabulary: &GgufVocabulary, merges: &[(String, String)]) -> Vec<f32> {
        let mut scores = vec![0.; vocabulary.tokens.len()];
        for (rank, (a, b)) in merges.iter().enumerate().rev() {
            if let Some(score) = self.token_id(&format!("{a}{b}")).and_then(|id| scores.get_mut(id as usize)) {
                *score = -(rank as f32 + 1.);
            }
        }
        let lowest = -(merges.len() as f32 + 1.); // for tokens that no merge produces
        for (score, kind) in scores.iter_mut().zip(&vocabulary.token_type) {
            if *kind == NORMAL && *score == 0. {
                *score = lowest;
            }
        }
        scores
    }

    pub(crate) fn from_vocabulary(vocabulary: &GgufVocabulary) -> Result<Self> {
        let GgufVocabulary { tokens, token_type, .. } = vocabulary;
        let kind = |id: usize| token_type.get(id).copied().unwrap_or(NORMAL);
        if let Some(long) = tokens.iter().find(|token| token.len() > MAX_TOKEN_BYTES) {
            return Err(unsupported(format!("a token has {} bytes; the maximum is {MAX_TOKEN_BYTES}", long.len())));
        }
        let (mut vocab, mut added) = (Map::new(), Vec::new());
        for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kind(*id) != UNUSED) {
            if vocab.insert(token.clone(), json!(id)).is_some() {
                return Err(unsupported(format!("the token {token:?} occurs twice")));
            }
            if matches!(kind(id), CONTROL | USER_DEFINED | UNKNOWN) {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind(id) != USER_DEFINED,
                }));
            }
        }
        let token = |id: Option<u32>| -> Result<Option<&String>> {
            let text = |id: u32| tokens.get(id as usize).ok_or_else(|| unsupported(format!("there is no token {id}")));
            id.map(text).transpose()
        };
        let mut json = match vocabulary.model.as_str() {
            "gpt2" => byte_level(vocabulary)?,
            "llama" => sentence_piece(vocabulary, bpe_of_scores(vocabulary, token(vocabulary.unknown_token_id)?)?),
            "t5" => sentence_piece(vocabulary, unigram(vocabulary)?),
            other => {
                return Err(unsupported(format!(
                    "the model \"{other}\" is not supported; it must be gpt2, llama or t5"
                )));
            }
        };
        if json["model"]["vocab"].is_null() {
            json["model"]["vocab"] = Value::Object(vocab);
        }
        json["added_tokens"] = Value::Array(added);
        let inner =
            validate::parse_tokenizer(&json, &json.to_string()).map_err(|cause| unsupported(cause.to_string()))?;
        let mut config = default_config();
        for (key, id) in [
            ("bos_token", vocabulary.bos_token_id),
            ("eos_token", vocabulary.eos_token_id),
            ("pad_token", vocabulary.padding_token_id),
        ] {
            if let Some(text) = token(id)? {
                config.insert(key.into(), text.clone().into());
            }
        }
        config.insert("add_bos_token".into(), vocabulary.add_bos_token.unwrap_or(false).into());
        if let Some(template) = &vocabulary.chat_template {
            config.insert("chat_template".into(), template.clone().into());
        }
        Self::new(inner, config, vocabulary.chat_template.as_deref().map(ChatTemplate::new))
    }
}

/// The byte of a byte token such as `<0x0A>`.
pub(crate) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Parses merges, written as `["a", "b"]` or as `"a b"`.
fn pairs(merges: &Value) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    let all = merges.as_array().into_iter().flatten().map(pair).collect::<Option<Vec<_>>>();
    let all = all.filter(|all| all.iter().all(|(a, b)| !a.contains(' ') && !b.contains(' ')));
    all.ok_or_else(|| unsupported("a merge of tokenizer.json is not a pair of tokens without spaces"))
}

/// Whether a `SentencePiece`-like `tokenizer.json` adds a space to the begin of a text. An error if its normalizer or pre-tokenizer
/// does anything else.
fn space_prefix(normalizer: &Value, pre_tokenizer: &Value) -> Result<bool> {
    let one = std::slice::from_ref(normalizer);
    let (mut prefix, mut spaces) = (false, false);
    for step in normalizer["normalizers"].as_array().map_or(one, Vec::as_slice) {
        match step["type"].as_str() {
            None if step.is_null() => {}
            Some("Prepend") if step["prepend"] == SPACE => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => spaces = true,
            _ => {
                return Err(unsupported(format!(
                    "\"normalizer\" of tokenizer.json is {normalizer}; it must be that of SentencePiece"
                )));
            }
        }
    }
    match pre_tokenizer["type"].as_str() {
        None if pre_tokenizer.is_null() => {}
        Some("Metaspace") if pre_tokenizer["split"] == false => {
            spaces = true;
            prefix |= pre_tokenizer["prepend_scheme"] != "never";
        }
        // The normalizer has replaced all spaces, so this never splits.
        Some("Split") if pre_tokenizer["pattern"]["String"] == " " && spaces => {}
        _ => {
            return Err(unsupported(format!(
                "\"pre_tokenizer\" of tokenizer.json is {pre_tokenizer}; it must be that of SentencePiece"
            )));
        }
    }
    match spaces {
        true => Ok(prefix),
        false => Err(unsupported("tokenizer.json has byte fallback but does not replace spaces")),
    }
}

/// The `tokenizer.json` of a byte-level vocabulary, without the tokens.
fn byte_level(vocabulary: &GgufVocabulary) -> Result<Value> {
    let name = vocabulary.pre.as_deref().unwrap_or_default();
    let Some((_, patterns, whole, composed)) = PRE_TOKENIZERS.iter().find(|(known, ..)| *known == name) else {
        let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, ..)| *name).collect();
        let message = format!("\"tokenizer.ggml.pre\" is \"{name}\"; it must be one of {}", names.join(", "));
        return Err(unsupported(message));
    };
    let mut steps: Vec<Value> = Vec::new();
    for pattern in *patterns {
        steps.push(match *pattern {
            "digits" => json!({"type": "Digits", "individual_digits": true}),
            GPT2 => continue,
            regex => json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
        });
    }
    let regex = patterns.contains(&GPT2);
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex});
    steps.push(bytes.clone());
    let pre_tokenizer =
        if steps.len() == 1 { bytes.clone() } else { json!({"type": "Sequence", "pretokenizers": steps}) };
    let merges = vocabulary.merges.iter().map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b])));
    let merges = merges.collect::<Option<Vec<_>>>().ok_or_else(|| unsupported("a merge is not a pair of tokens"))?;
    Ok(json!({
        "version": "1.0",
        "normalizer": if *composed { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bytes,
        "decoder": bytes,
        "model": {"type": "BPE", "ignore_merges": whole, "merges": merges},
    }))
}

#[cfg(test)]
mod tests;
