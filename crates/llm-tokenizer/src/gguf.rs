//! Converts tokenizers from and to the metadata of GGUF files.
//!
//! llama.cpp has two kinds of byte-pair encoding. "gpt2" is byte-level, with a list of merges and a named pre-tokenizer
//! ([`PRE_TOKENIZERS`]). "llama" is that of `SentencePiece`: no pre-tokenizer, a score for each token, and byte tokens as
//! fallback. A `tokenizer.json` that matches neither is an error.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::chat_template::ChatTemplate;
use crate::folder::default_config;
use crate::validate;
use crate::{Error, Result, Tokenizer};

/// The tokenizer metadata of a GGUF file. Each field is the key of the same name under `tokenizer.ggml`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// "gpt2" or "llama".
    pub model: String,
    /// The name of the pre-tokenizer ("gpt2").
    pub pre: Option<String>,
    /// The text of each id.
    pub tokens: Vec<String>,
    /// The type of each id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_type: Vec<i64>,
    /// The score of each id ("llama").
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
    /// Whether a space is added to the begin of each text ("llama").
    pub add_space_prefix: Option<bool>,
    /// The chat template (`tokenizer.chat_template`).
    pub chat_template: Option<String>,
}

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// The space of `SentencePiece`.
const SPACE: &str = "\u{2581}";

/// The maximum length of a token in bytes; bounds the work for a malicious file.
const MAX_TOKEN_BYTES: usize = 1024;

/// The maximum number of bytes in all merges per byte in all tokens; bounds the work for a malicious file. Real tokenizers are far
/// below: a token of `n` characters has at most `n - 1` merges, and only if all its parts are tokens.
const MAX_MERGE_BYTES: usize = 32;

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizers: name in llama.cpp, patterns (`digits` splits into single digits), whether merges are ignored if a word is a
/// token (`ignore_merges`), whether text is normalized to Unicode NFC.
///
/// If two entries are equal, the name of the first is written.
const PRE_TOKENIZERS: [(&str, &[&str], bool, bool); 7] = [
    ("gpt-2", &[GPT2], false, false),
    ("smollm", &["digits", GPT2], false, false),
    ("llama-bpe", &[LLAMA3], true, false),
    ("dbrx", &[LLAMA3], false, false),
    ("qwen2", &[QWEN2], false, true),
    ("olmo", &[GPT2], false, false),
    ("llama3", &[LLAMA3], true, false),
];

fn unsupported(message: impl Into<String>) -> Error {
    Error::Gguf { message: message.into() }
}

impl Tokenizer {
    /// Converts this tokenizer to GGUF metadata, for a model with a vocabulary of `rows`.
    pub fn to_gguf(&self, rows: usize) -> Result<GgufVocabulary> {
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
            chat_template: self.chat.as_ref().map(|chat| chat.source.clone()),
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

    /// Builds a tokenizer from GGUF metadata.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
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
            "llama" => sentence_piece(vocabulary, token(vocabulary.unknown_token_id)?)?,
            other => {
                return Err(unsupported(format!("the model \"{other}\" is not supported; it must be gpt2 or llama")));
            }
        };
        json["model"]["vocab"] = Value::Object(vocab);
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
fn byte(token: &str) -> Option<u8> {
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

/// The name in llama.cpp of the pre-tokenizer of a byte-level `tokenizer.json`.
fn pre_tokenizer_name(json: &Value) -> Result<&'static str> {
    let unknown = |key: &str| {
        let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, ..)| *name).collect();
        let names = names.join(", ");
        unsupported(format!("\"{key}\" of tokenizer.json is {}; supported are those of {names}", json[key]))
    };
    let composed = match &json["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        _ => return Err(unknown("normalizer")),
    };
    let (mut patterns, mut bytes) = (Vec::new(), false);
    let one = std::slice::from_ref(&json["pre_tokenizer"]);
    for step in json["pre_tokenizer"]["pretokenizers"].as_array().map_or(one, Vec::as_slice) {
        match step["type"].as_str() {
            Some("Digits") if step["individual_digits"] == true => patterns.push("digits"),
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] == false => {
                patterns.push(step["pattern"]["Regex"].as_str().ok_or_else(|| unknown("pre_tokenizer"))?);
            }
            Some("ByteLevel") if step["add_prefix_space"] == false => {
                bytes = true;
                if step["use_regex"] != false {
                    patterns.push(GPT2);
                }
            }
            _ => return Err(unknown("pre_tokenizer")),
        }
    }
    let whole = json["model"]["ignore_merges"] == true;
    // llama.cpp has no NFC normalization and ignores that of Qwen, so a tokenizer with NFC matches an entry with NFC only, but
    // one without NFC matches any entry.
    let found = PRE_TOKENIZERS.iter().find(|(_, p, w, c)| *p == patterns && *w == whole && (*c || !composed));
    found.filter(|_| bytes).map(|(name, ..)| *name).ok_or_else(|| unknown("pre_tokenizer"))
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

/// The `tokenizer.json` of a `SentencePiece` vocabulary, without the tokens.
fn sentence_piece(vocabulary: &GgufVocabulary, unknown: Option<&String>) -> Result<Value> {
    let GgufVocabulary { tokens, scores, .. } = vocabulary;
    if scores.len() != tokens.len() {
        return Err(unsupported(format!("{} tokens but {} scores", tokens.len(), scores.len())));
    }
    let prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            "merges": merges_of_scores(vocabulary)?,
        },
    }))
}

/// All pairs of tokens whose concatenation is a token, sorted by the score of that token, highest first.
fn merges_of_scores(vocabulary: &GgufVocabulary) -> Result<Vec<(&str, &str)>> {
    let kind = |id: usize| vocabulary.token_type.get(id).copied().unwrap_or(NORMAL);
    let normal = || vocabulary.tokens.iter().enumerate().filter(|(id, _)| kind(*id) == NORMAL);
    let ids: HashMap<&str, usize> = normal().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    let mut left = MAX_MERGE_BYTES * (1024 + vocabulary.tokens.iter().map(String::len).sum::<usize>());
    for (id, token) in normal() {
        for (at, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(a), ids.get(b)) {
                let Some(rest) = left.checked_sub(token.len()) else {
                    return Err(unsupported(format!(
                        "too many merges: the token {token:?} and others are concatenations of too many pairs of tokens"
                    )));
                };
                left = rest;
                merges.push((vocabulary.scores[id], (first, second), (a, b)));
            }
        }
    }
    merges.sort_by(|(one, ids, _), (other, others, _)| other.total_cmp(one).then(ids.cmp(others)));
    let mut seen = HashSet::new();
    Ok(merges.into_iter().map(|(.., pair)| pair).filter(|pair| seen.insert(*pair)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatMessage, TrainConfig, train_bpe};

    const TEXTS: [&str; 5] =
        ["the cat sat on the mat 2024", "It's  12345\n\n we'll", "日本語 👩‍👧 e\u{301}", "", " <|user|> the<|end|>"];

    fn trained() -> Tokenizer {
        let config = TrainConfig { vocab_size: 320, min_frequency: 2 };
        train_bpe(&config, ["the cat sat on the mat", "the dog's log 20 20"].iter()).unwrap()
    }

    #[test]
    fn a_byte_level_tokenizer_survives_the_round_trip() {
        let tokenizer = trained().with_default_chat_template().unwrap();
        let vocabulary = tokenizer.to_gguf(330).unwrap();
        assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref()), ("gpt2", Some("gpt-2")));
        assert_eq!((vocabulary.tokens.len(), &vocabulary.token_type[4..7]), (330, &[CONTROL, CONTROL, NORMAL][..]));
        assert_eq!((vocabulary.tokens[329].as_str(), vocabulary.token_type[329]), ("[PAD329]", UNUSED));
        let back = Tokenizer::from_gguf(&vocabulary).unwrap();
        for text in TEXTS {
            assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
            assert_eq!(back.encode_with_special(text).unwrap(), tokenizer.encode_with_special(text).unwrap(), "{text}");
            assert_eq!(back.decode(&back.encode(text).unwrap()).unwrap(), text);
        }
        let chat = [ChatMessage::new("user", "the cat?")];
        assert_eq!(back.encode_chat(&chat, true).unwrap(), tokenizer.encode_chat(&chat, true).unwrap());
        assert_eq!((back.bos_id(), back.eos_id(), back.pad_id()), (tokenizer.bos_id(), tokenizer.eos_id(), Some(1)));
        assert_eq!(back.to_gguf(330).unwrap(), vocabulary);
    }

    #[test]
    fn every_named_pre_tokenizer_splits_digits_as_expected() {
        let mut vocabulary = trained().to_gguf(320).unwrap();
        for (name, ..) in PRE_TOKENIZERS {
            vocabulary.pre = Some(name.to_owned());
            let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
            let digits = tokenizer.encode("2020").unwrap().len();
            let expected = match name {
                "smollm" | "qwen2" => 4,              // one by one
                "llama-bpe" | "dbrx" | "llama3" => 3, // "202" is "20" and "2"
                _ => 2,
            };
            assert_eq!(digits, expected, "{name}");
            let again = tokenizer.to_gguf(320).unwrap().pre.unwrap();
            let first = |name: &str| PRE_TOKENIZERS.iter().find(|s| s.0 == name).map(|s| (s.1, s.2, s.3));
            assert_eq!(first(&again), first(name));
        }
    }

    /// A `SentencePiece` vocabulary of bytes, letters, and words with different scores.
    fn pieces() -> GgufVocabulary {
        let mut vocabulary = GgufVocabulary {
            model: "llama".to_owned(),
            unknown_token_id: Some(0),
            bos_token_id: Some(1),
            eos_token_id: Some(2),
            add_bos_token: Some(true),
            ..GgufVocabulary::default()
        };
        let mut add = |token: String, kind: i64, score: f32| {
            vocabulary.tokens.push(token);
            vocabulary.token_type.push(kind);
            vocabulary.scores.push(score);
        };
        add("<unk>".to_owned(), UNKNOWN, 0.);
        ["<s>", "</s>"].iter().for_each(|token| add((*token).to_owned(), CONTROL, 0.));
        (0..=255).for_each(|byte| add(format!("<0x{byte:02X}>"), BYTE, 0.));
        for (score, token) in ["at", "\u{2581}t", "he", "\u{2581}the", "cat", "\u{2581}cat"].iter().enumerate() {
            add((*token).to_owned(), NORMAL, -(score as f32));
        }
        for letter in "\u{2581}theca".chars() {
            add(letter.to_string(), NORMAL, -100.);
        }
        vocabulary
    }

    #[test]
    fn tokens_are_merged_by_score_with_byte_fallback() {
        let vocabulary = pieces();
        let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
        let tokens = |text: &str| -> Vec<String> {
            tokenizer.encode(text).unwrap().iter().map(|id| tokenizer.token(*id).unwrap()).collect()
        };
        assert_eq!(tokens("the cat"), ["\u{2581}the", "\u{2581}cat"]);
        assert_eq!(tokens("that"), ["\u{2581}t", "h", "at"]);
        assert_eq!(tokens("é"), ["\u{2581}", "<0xC3>", "<0xA9>"]);
        for text in ["the cat", "hat é 猫 the", "  two\n"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));

        let written = tokenizer.to_gguf(vocabulary.tokens.len()).unwrap();
        assert_eq!((&written.tokens, &written.token_type), (&vocabulary.tokens, &vocabulary.token_type));
        assert_eq!((written.add_space_prefix, written.add_bos_token), (Some(true), Some(true)));
        let back = Tokenizer::from_gguf(&written).unwrap();
        for text in ["the cat that he at", "heat catch", "é the"] {
            assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn unsupported_tokenizers_are_errors_that_name_the_key() {
        let with = |change: fn(&mut Value)| {
            let text = trained().inner.to_string(false).unwrap();
            let mut json = serde_json::from_str(&text).unwrap();
            change(&mut json);
            let inner: tokenizers::Tokenizer = json.to_string().parse().unwrap();
            Tokenizer::new(inner, default_config(), None).unwrap().to_gguf(320).unwrap_err().to_string()
        };
        let message = with(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true));
        assert!(message.contains("pre_tokenizer") && message.contains("gpt-2"), "{message}");
        assert!(with(|json| json["normalizer"] = json!({"type": "Lowercase"})).contains("normalizer"));
        assert!(with(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})).contains("Whitespace"));
        assert!(with(|json| json["model"]["dropout"] = json!(0.5)).contains("dropout"));
        assert!(trained().to_gguf(100).unwrap_err().to_string().contains("100"));

        let from = |change: fn(&mut GgufVocabulary)| {
            let mut vocabulary = pieces();
            change(&mut vocabulary);
            Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string()
        };
        assert!(from(|v| v.model = "bert".to_owned()).contains("bert"));
        assert!(from(|v| v.eos_token_id = Some(9999)).contains("9999"));
        assert!(from(|v| v.tokens[5] = "<s>".to_owned()).contains("twice"));
        assert!(from(|v| v.scores.truncate(9)).contains("scores"));
        assert!(from(|v| v.tokens[270] = "a".repeat(2000)).contains("2000 bytes"));
        let many = |v: &mut GgufVocabulary| {
            v.tokens.extend((1..900).map(|n| "z".repeat(n)));
            v.scores.resize(v.tokens.len(), 0.);
        };
        assert!(from(many).contains("too many merges"));
        let gpt2 = |v: &mut GgufVocabulary| v.model = "gpt2".to_owned();
        let mut vocabulary = pieces();
        gpt2(&mut vocabulary);
        vocabulary.pre = Some("klingon".to_owned());
        assert!(Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string().contains("klingon"));
    }
}
