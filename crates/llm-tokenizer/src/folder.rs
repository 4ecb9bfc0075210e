//! Reads and writes the folder of a tokenizer in Hugging Face's format.
//!
//! `tokenizer.json` contains the vocabulary, the merges, the normalizer, the pre-tokenizer and the decoder;
//! `tokenizer_config.json` contains the begin, end and padding tokens and the chat template. Newer folders have the template in
//! `chat_template.jinja`, which takes precedence.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use llm_files::gguf::GgufFile;
use serde_json::{Value, json};
use tokenizers::AddedToken;

use crate::chat_template::ChatTemplate;
use crate::config::{chat_template, default_config, special_tokens};
use crate::special_tokens::{DOCUMENT_END, PAD};
use crate::validate;
use crate::{Error, Result, Tokenizer};

const TOKENIZER_FILE: &str = "tokenizer.json";
/// The file of the `sentencepiece` library, in older folders without `tokenizer.json`.
const PIECES_FILE: &str = "tokenizer.model";
const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Further templates, each in a file with its name.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";

impl Tokenizer {
    /// Reads a tokenizer from a folder: `tokenizer.json`, or `tokenizer.model` if there is no `tokenizer.json`; and
    /// `tokenizer_config.json` and `chat_template.jinja` if they exist.
    ///
    /// The path of a `.gguf` file gives the tokenizer of that file.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if dir.extension().is_some_and(|extension| extension == "gguf") && dir.is_file() {
            return Self::from_gguf(
                GgufFile::open(dir).map_err(|cause| Error::Gguf { message: cause.to_string() })?.metadata(),
            );
        }
        let path = dir.join(TOKENIZER_FILE);
        let (mut inner, default) = match read(&path)? {
            Some(text) => (parse(&text).map_err(|cause| Error::Parse { path: path.clone(), cause })?, default_config()),
            None => {
                let pieces = dir.join(PIECES_FILE);
                let bytes = fs::read(&pieces).map_err(|cause| match cause.kind() {
                    io::ErrorKind::NotFound if !dir.exists() => Error::NoFolder { dir: dir.to_owned() },
                    io::ErrorKind::NotFound => Error::Missing { path: path.clone() },
                    _ => Error::Read { path: pieces.clone(), cause },
                })?;
                let tokenizer = crate::sentencepiece::read(&bytes, &pieces)?;
                (Arc::unwrap_or_clone(tokenizer.inner), tokenizer.config)
            }
        };
        // Padding and truncation are settings of the last call before the file was saved, not properties of the tokenizer.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|cause| Error::Parse { path, cause })?;

        let path = dir.join(CONFIG_FILE);
        let mut config = match read(&path)? {
            Some(text) => {
                serde_json::from_str(&text).map_err(|cause| Error::Parse { path: path.clone(), cause: cause.into() })?
            }
            None => default,
        };
        if let Some(templates) = template_files(dir)? {
            config.insert("chat_template".into(), templates);
        }
        let chat = chat_template(&config, &path)?;
        let special = special_tokens(&config, &path)?;
        mark_special(&mut inner, special).map_err(|cause| Error::Parse { path, cause })?;
        Self::new(inner, config, chat)
    }

    /// A newly trained tokenizer, with `<|endoftext|>` as begin and end of text.
    pub(crate) fn from_trained(inner: tokenizers::Tokenizer) -> Result<Self> {
        let mut config = default_config();
        config.insert("bos_token".into(), DOCUMENT_END.into());
        config.insert("eos_token".into(), DOCUMENT_END.into());
        config.insert("pad_token".into(), PAD.into());
        Self::new(inner, config, None)
    }

    /// Writes a folder that [`Tokenizer::load`] and the Python libraries can read. Creates the folder if it does not exist;
    /// writes each file atomically.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|cause| Error::Write { path: dir.to_owned(), cause })?;
        let vocabulary = self.inner.to_string(true).map_err(|cause| Error::Serialize { cause })?;
        let config =
            serde_json::to_string_pretty(&self.config).map_err(|cause| Error::Serialize { cause: cause.into() })?;
        replace(&dir.join(TOKENIZER_FILE), &vocabulary)?;
        replace(&dir.join(CONFIG_FILE), &config)?;
        // `chat_template.jinja` takes precedence over the configuration, so an existing one must be replaced.
        match self.chat.as_ref().and_then(ChatTemplate::source) {
            Some(source) if dir.join(TEMPLATE_FILE).exists() => replace(&dir.join(TEMPLATE_FILE), source),
            _ => Ok(()),
        }
    }
}

/// Validates and parses a `tokenizer.json`.
fn parse(text: &str) -> std::result::Result<tokenizers::Tokenizer, tokenizers::Error> {
    validate::parse_tokenizer(&serde_json::from_str(text)?, text)
}

/// The chat templates in files of their own: `chat_template.jinja`, or a list of named templates if there are others in
/// `additional_chat_templates`.
fn template_files(dir: &Path) -> Result<Option<Value>> {
    let default = read(&dir.join(TEMPLATE_FILE))?;
    let mut named: Vec<(String, String)> = default.iter().map(|text| ("default".to_owned(), text.clone())).collect();
    let folder = dir.join(TEMPLATE_FOLDER);
    let mut paths: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(cause) => return Err(Error::Read { path: folder, cause }),
    };
    paths.sort();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "jinja")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        named.extend(read(&path)?.map(|text| (name, text)));
    }
    let list = |named: Vec<(String, String)>| {
        named.into_iter().map(|(name, template)| json!({"name": name, "template": template})).collect()
    };
    Ok(match (default, named.len()) {
        (_, 0) => None,
        (Some(text), 1) => Some(text.into()),
        _ => Some(list(named)),
    })
}

/// Marks tokens of the vocabulary as special that `tokenizer.json` does not mark, as transformers does.
fn mark_special(inner: &mut tokenizers::Tokenizer, tokens: Vec<String>) -> std::result::Result<(), tokenizers::Error> {
    let known =
        |token: &String| inner.token_to_id(token).is_some() && !inner.get_added_vocabulary().is_special_token(token);
    let new: Vec<_> = tokens.into_iter().filter(known).map(|token| AddedToken::from(token, true)).collect();
    if !new.is_empty() {
        inner.add_special_tokens(new)?;
    }
    Ok(())
}

/// Reads a file; returns `None` if it does not exist.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::Read { path: path.to_owned(), cause }),
    }
}

/// Writes a file atomically.
fn replace(path: &Path, text: &str) -> Result<()> {
    llm_files::write_atomic(path, |out| out.write_all(text.as_bytes()))
        .map_err(|cause| Error::Write { path: path.to_owned(), cause })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{ChatMessage, TrainConfig, train_bpe};

    fn trained() -> Tokenizer {
        let texts = ["the cat sat on the mat <|end|>", "the dog sat on the log <|end|> <|end|>"];
        train_bpe(&TrainConfig { vocab_size: 300, min_frequency: 2 }, texts.iter()).unwrap()
    }

    /// A folder with a tokenizer for the letters of `<s>` with two merges, and the given `tokenizer_config.json`.
    pub(crate) fn folder(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let vocabulary = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
            "added_tokens": [
                {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                 "special": true}],
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0],
                "tokens": ["<s>"]}}},
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "vocab": {"<s>": 0, "<": 1, "s": 2, ">": 3, "s>": 4, "<e>": 9},
                "merges": [["s", ">"], ["<", "s>"]]},
        });
        fs::write(dir.path().join(TOKENIZER_FILE), vocabulary.to_string()).unwrap();
        fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
        dir
    }

    #[test]
    fn truncation_and_begin_of_sequence_of_a_file_are_not_applied() {
        let tokenizer = Tokenizer::load(folder("{}").path()).unwrap();
        assert_eq!(tokenizer.encode("s<s").unwrap(), [2, 1, 2]);
    }

    #[test]
    fn adds_bos_follows_the_configuration_then_the_post_processor() {
        for (config, adds) in [
            (r#"{"bos_token": "<s>"}"#, true),
            (r#"{"bos_token": "<s>", "add_bos_token": false}"#, false),
            (r#"{"bos_token": "<e>"}"#, false),
            (r#"{"bos_token": "<e>", "add_bos_token": true}"#, true),
            ("{}", false),
        ] {
            assert_eq!(Tokenizer::load(folder(config).path()).unwrap().adds_bos(), adds, "{config}");
        }
    }

    #[test]
    fn the_tokens_of_the_configuration_are_special() {
        let dir = folder(r#"{"eos_token": {"content": "<e>"}, "pad_token": null}"#);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.bos_id()), (Some(9), None, None));
        assert_eq!(tokenizer.document_end_id(), Some(9));
        assert_eq!(tokenizer.decode(&[2, 9]).unwrap(), "s");
        let plain = Tokenizer::load(folder("{}").path()).unwrap();
        assert_eq!(plain.decode(&[2, 9]).unwrap(), "s<e>");
    }

    #[test]
    fn saving_and_loading_preserves_the_tokenizer_and_its_bytes() {
        let tokenizer = trained().with_default_chat_template().unwrap();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tokenizer.save(first.path()).unwrap();
        let loaded = Tokenizer::load(first.path()).unwrap();
        loaded.save(second.path()).unwrap();
        for file in [TOKENIZER_FILE, CONFIG_FILE] {
            let bytes = |dir: &tempfile::TempDir| fs::read(dir.path().join(file)).unwrap();
            assert_eq!(bytes(&first), bytes(&second), "{file}");
        }
        assert_eq!(fs::read_dir(first.path()).unwrap().count(), 2, "no temporary files are left");
        let text = "the cat <|user|> 猫";
        assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        let chat = [ChatMessage::new("user", text)];
        assert_eq!(loaded.encode_chat(&chat, true).unwrap(), tokenizer.encode_chat(&chat, true).unwrap());
        assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
        assert_eq!((loaded.eos_id(), loaded.bos_id(), loaded.pad_id()), (Some(5), Some(0), Some(1)));
    }

    #[test]
    fn unknown_keys_of_the_configuration_are_preserved() {
        let dir = folder(r#"{"tokenizer_class": "LlamaTokenizer", "legacy": true, "eos_token": "<e>"}"#);
        let (from, to) = (dir.path(), dir.path().join("new/folder"));
        Tokenizer::load(from).unwrap().save(&to).unwrap();
        let config: Value = serde_json::from_str(&fs::read_to_string(to.join(CONFIG_FILE)).unwrap()).unwrap();
        assert_eq!(config, json!({"tokenizer_class": "LlamaTokenizer", "legacy": true, "eos_token": "<e>"}));
    }

    #[test]
    fn a_template_file_takes_precedence_over_the_configuration_also_after_saving() {
        let dir = folder(r#"{"chat_template": "old"}"#);
        fs::write(dir.path().join(TEMPLATE_FILE), "new").unwrap();
        let mut tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.render_chat(&[] as &[ChatMessage], false).unwrap(), "new");
        tokenizer.chat = Some(ChatTemplate::new("newest"));
        tokenizer.save(dir.path()).unwrap();
        assert_eq!(Tokenizer::load(dir.path()).unwrap().render_chat(&[] as &[ChatMessage], false).unwrap(), "newest");
    }

    #[test]
    fn the_template_named_default_is_used() {
        let templates =
            r#"{"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#;
        let tokenizer = Tokenizer::load(folder(templates).path()).unwrap();
        assert_eq!(tokenizer.render_chat(&[] as &[ChatMessage], false).unwrap(), "b");
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_fix() {
        let empty = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(empty.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: no such file; give a folder"), "{error}");

        let error = Tokenizer::load(folder(r#"{"eos_token": 3}"#).path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: \"eos_token\" must be"), "{error}");

        let error = Tokenizer::load(folder("{").path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: not a valid file"), "{error}");

        let dir = folder("{}");
        fs::write(dir.path().join(TOKENIZER_FILE), r#"{"version": "1.0", "model": {"type": "BPE"}}"#).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: not a valid file"), "{error}");

        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = trained().save(file.join("below")).unwrap_err().to_string();
        assert!(error.contains("below: cannot be written"), "{error}");
    }
}
