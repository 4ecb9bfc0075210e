//! `manifest.json` of a folder of token shards.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::source::read_text;
use crate::{Error, Result};

/// The version of the format that this crate reads and writes.
const VERSION: u64 = 2;

/// The name of the file.
pub(super) const FILE: &str = "manifest.json";

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format: 2.
    pub version: u64,
    /// The fingerprint of the tokenizer.
    pub tokenizer: String,
    /// The id of the token at the end of each document.
    pub separator_id: u32,
    /// The vocabulary size; all ids are less.
    pub vocab_size: usize,
    /// The type of the ids, little-endian.
    pub dtype: TokenDtype,
    /// The splits by name.
    pub splits: BTreeMap<String, SplitInfo>,
}

/// The type of token ids in a file, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenDtype {
    /// Two bytes: vocabularies of at most 65,536 tokens.
    U16,
    /// Four bytes.
    U32,
}

/// The entry of a split in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// The files of token ids, in order.
    pub files: Vec<FileInfo>,
    /// The document index: for each document the number of tokens before it, then the number of all tokens; u64, little-endian.
    pub index: FileInfo,
    /// Number of tokens, including the separators.
    pub tokens: usize,
    /// Size of the text in bytes.
    pub bytes: usize,
    /// Number of documents.
    pub documents: usize,
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The name in the folder.
    pub name: String,
    /// The SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

impl TokenDtype {
    /// The smallest type for a vocabulary of this size.
    pub(super) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of an id.
    pub(super) fn width(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Appends ids as bytes.
    pub(super) fn encode(self, ids: &[u32], bytes: &mut Vec<u8>) {
        match self {
            Self::U16 => bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Self::U32 => bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
    }

    /// Appends the ids of bytes. A last incomplete id is left out.
    pub(super) fn decode(self, bytes: &[u8], ids: &mut Vec<u32>) {
        match self {
            Self::U16 => ids.extend(bytes.as_chunks().0.iter().map(|&id| u32::from(u16::from_le_bytes(id)))),
            Self::U32 => ids.extend(bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id))),
        }
    }

    /// The largest id.
    pub(super) fn largest(self, bytes: &[u8]) -> Option<u32> {
        match self {
            Self::U16 => bytes.as_chunks().0.iter().map(|&id| u16::from_le_bytes(id)).max().map(u32::from),
            Self::U32 => bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).max(),
        }
    }
}

impl Manifest {
    /// A manifest without splits.
    pub(super) fn new(tokenizer: String, separator_id: u32, vocab_size: usize) -> Self {
        let dtype = TokenDtype::of(vocab_size);
        Self { version: VERSION, tokenizer, separator_id, vocab_size, dtype, splits: BTreeMap::new() }
    }

    /// Reads the manifest of a folder. It is an error if there is none, or if it has another version.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(Error::unusable(dir, "contains no manifest.json; write token shards with `llm-train prepare`"));
        }
        let again = |what: String| Error::unusable(&path, format!("{what}; run `llm-train prepare` again"));
        let value: Value = serde_json::from_str(&read_text(&path)?).map_err(|e| again(e.to_string()))?;
        let version = value.get("version").and_then(Value::as_u64);
        if version != Some(VERSION) {
            let found = version.map_or("missing".to_owned(), |version| version.to_string());
            return Err(again(format!("\"version\" is {found}; it must be {VERSION}")));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| again(e.to_string()))?;
        let files = manifest.splits.values().flat_map(|split| split.files.iter().chain([&split.index]));
        for FileInfo { name, .. } in files {
            if Path::new(name).file_name().is_none_or(|file| file != name.as_str()) {
                return Err(again(format!("\"{name}\" is not the name of a file in the folder")));
            }
        }
        Ok(manifest)
    }
}
