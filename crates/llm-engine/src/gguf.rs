//! GGUF files with model and tokenizer: `llm-model` reads and writes the model; this module converts the metadata keys of
//! the tokenizer for `llm-tokenizer`.

use std::path::Path;

use llm_model::gguf::{GgufFile, Metadata, Value};
use llm_model::{Model, WeightDtype};
use llm_tokenizer::{GgufVocabulary, Tokenizer};

use crate::{Error, Result, TextModel};

const TEMPLATE: &str = "tokenizer.chat_template";

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

impl TextModel {
    /// Opens a GGUF file with memory-mapped matrices.
    pub fn from_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let vocabulary = vocabulary(&file)?;
        let model = Model::from_gguf(&file)?;
        Self::checked(model, Tokenizer::from_gguf(&vocabulary)?, path)
    }

    /// Writes a GGUF file with matrices in `dtype`, or in their current dtype if it is none; `path` must not exist.
    pub fn save_gguf(&self, path: &Path, dtype: Option<WeightDtype>) -> Result<()> {
        let vocabulary = self.tokenizer.to_gguf(self.model.config().vocab_size)?;
        Ok(self.model.save_gguf(path, dtype, metadata(vocabulary))?)
    }
}

fn metadata(vocabulary: GgufVocabulary) -> Metadata {
    let id = |id: Option<u32>| id.map(|id| Value::Unsigned(id.into()));
    let list = |texts: Vec<String>| (!texts.is_empty()).then_some(Value::Texts(texts));
    let scores = (!vocabulary.scores.is_empty()).then_some(Value::Floats(vocabulary.scores));
    let keys = [
        ("model", Some(Value::Text(vocabulary.model))),
        ("pre", vocabulary.pre.map(Value::Text)),
        ("tokens", list(vocabulary.tokens)),
        ("token_type", Some(Value::Integers(vocabulary.token_type))),
        ("scores", scores),
        ("merges", list(vocabulary.merges)),
        ("bos_token_id", id(vocabulary.bos_token_id)),
        ("eos_token_id", id(vocabulary.eos_token_id)),
        ("unknown_token_id", id(vocabulary.unknown_token_id)),
        ("padding_token_id", id(vocabulary.padding_token_id)),
        ("add_bos_token", vocabulary.add_bos_token.map(Value::Bool)),
        ("add_space_prefix", vocabulary.add_space_prefix.map(Value::Bool)),
    ];
    let mut metadata: Metadata = keys.into_iter().filter_map(|(name, value)| Some((key(name), value?))).collect();
    metadata.extend(vocabulary.chat_template.map(|text| (TEMPLATE.to_owned(), Value::Text(text))));
    metadata
}

fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary> {
    let get = |name: &str| file.metadata().get(&key(name));
    let wrong = |name: &str, expected: &str| {
        let path = file.path().display();
        Error::Input(format!("{path}: \"{}\" must be {expected}; convert the model again", key(name)))
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
    let chat_template = match file.metadata().get(TEMPLATE) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    Ok(GgufVocabulary {
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
        chat_template,
    })
}
