//! The metadata keys of the tokenizer of a GGUF file.

use llm_files::gguf::{Metadata, Value};

use super::{GgufVocabulary, unsupported};
use crate::Result;

const TEMPLATE: &str = "tokenizer.chat_template";

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl GgufVocabulary {
    /// The metadata of a file.
    pub(super) fn into_metadata(self) -> Metadata {
        let id = |id: Option<u32>| id.map(|id| Value::Unsigned(id.into()));
        let list = |texts: Vec<String>| (!texts.is_empty()).then_some(Value::Texts(texts));
        let scores = (!self.scores.is_empty()).then_some(Value::Floats(self.scores));
        let keys = [
            ("model", Some(Value::Text(self.model))),
            ("pre", self.pre.map(Value::Text)),
            ("tokens", list(self.tokens)),
            ("token_type", Some(Value::Integers(self.token_type))),
            ("scores", scores),
            ("merges", list(self.merges)),
            ("bos_token_id", id(self.bos_token_id)),
            ("eos_token_id", id(self.eos_token_id)),
            ("unknown_token_id", id(self.unknown_token_id)),
            ("padding_token_id", id(self.padding_token_id)),
            ("add_bos_token", self.add_bos_token.map(Value::Bool)),
            ("add_space_prefix", self.add_space_prefix.map(Value::Bool)),
        ];
        let mut metadata: Metadata = keys.into_iter().filter_map(|(name, value)| Some((key(name), value?))).collect();
        metadata.extend(self.chat_template.map(|text| (TEMPLATE.to_owned(), Value::Text(text))));
        metadata
    }

    /// Removes the ids that no token has, as llama.cpp does. Returns a warning for each.
    pub(super) fn drop_unknown_ids(&mut self) -> Vec<String> {
        let size = self.tokens.len();
        let ids = [
            ("bos_token_id", &mut self.bos_token_id),
            ("eos_token_id", &mut self.eos_token_id),
            ("unknown_token_id", &mut self.unknown_token_id),
            ("padding_token_id", &mut self.padding_token_id),
        ];
        let unknown = ids.into_iter().filter_map(|(name, id)| {
            let id = id.take_if(|id| *id as usize >= size)?;
            Some(format!("\"{}\" is {id}, but there are {size} tokens; it is ignored", key(name)))
        });
        unknown.collect()
    }

    /// Reads the metadata of a file.
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        let get = |name: &str| metadata.get(&key(name));
        let wrong = |name: &str, expected: &str| {
            unsupported(format!("\"{}\" must be {expected}; convert the model again", key(name)))
        };
        let text = |name: &str| match get(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(wrong(name, "a string")),
        };
        let texts = |name: &str| match get(name) {
            None => Ok(Vec::new()),
            Some(Value::Texts(texts)) => Ok(texts.clone()),
            Some(_) => Err(wrong(name, "a list of strings")),
        };
        let id = |name: &str| match get(name) {
            None => Ok(None),
            Some(Value::Unsigned(id)) if u32::try_from(*id).is_ok() => Ok(Some(*id as u32)),
            Some(_) => Err(wrong(name, "a token id")),
        };
        let flag = |name: &str| match get(name) {
            None => Ok(None),
            Some(Value::Bool(yes)) => Ok(Some(*yes)),
            Some(_) => Err(wrong(name, "true or false")),
        };
        let token_type = match get("token_type") {
            None => Vec::new(),
            Some(Value::Integers(kinds)) => kinds.clone(),
            Some(_) => return Err(wrong("token_type", "a list of integers")),
        };
        let scores = match get("scores") {
            None => Vec::new(),
            Some(Value::Floats(scores)) => scores.clone(),
            Some(_) => return Err(wrong("scores", "a list of numbers")),
        };
        let precompiled_charsmap = match get("precompiled_charsmap") {
            None => Vec::new(),
            // Bytes, in some files as signed integers.
            Some(Value::Integers(bytes)) => bytes.iter().map(|byte| *byte as u8).collect(),
            Some(_) => return Err(wrong("precompiled_charsmap", "a list of bytes")),
        };
        let chat_template = match metadata.get(TEMPLATE) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        Ok(Self {
            model: text("model")?.ok_or_else(|| wrong("model", "present"))?,
            pre: text("pre")?,
            tokens: texts("tokens")?,
            token_type,
            scores,
            merges: texts("merges")?,
            bos_token_id: id("bos_token_id")?,
            eos_token_id: id("eos_token_id")?,
            unknown_token_id: id("unknown_token_id")?,
            padding_token_id: id("padding_token_id")?,
            add_bos_token: flag("add_bos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces")?.unwrap_or(false),
            precompiled_charsmap,
            chat_template,
        })
    }
}
