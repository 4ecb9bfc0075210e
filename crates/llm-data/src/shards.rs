//! Token shards: a folder with `manifest.json` and binary files of little-endian token ids for each split.
//!
//! Each document ends with the end-of-document token of the tokenizer. Ids are `u16` if the vocabulary has at most 65,536
//! entries, else `u32`.

use std::collections::BTreeMap;
use std::path::Path;

use llm_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::files::write_atomic;
use crate::source::read_text;
use crate::{Error, Result};

/// Maximum number of tokens in a shard file.
const SHARD_TOKENS: usize = 100_000_000;

/// Bytes of text that are tokenized in parallel before their ids are stored.
const BATCH_BYTES: usize = 8 << 20;

/// Minimum size in bytes of the pieces into which long documents are cut, so that several threads can tokenize one document.
const PIECE_BYTES: usize = 128 << 10;

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format: 1.
    pub version: u32,
    /// The fingerprint of the tokenizer.
    pub tokenizer: String,
    /// The vocabulary size; all ids are less.
    pub vocab_size: usize,
    /// The type of the ids: "u16" or "u32", little-endian.
    pub dtype: String,
    /// The splits by name.
    pub splits: BTreeMap<String, SplitInfo>,
}

/// The entry of a split in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// The shard files, in order.
    pub files: Vec<String>,
    /// Number of tokens, including the end-of-document tokens.
    pub tokens: usize,
    /// Size of the text in bytes.
    pub bytes: usize,
    /// Number of documents.
    pub documents: usize,
}

/// Tokenizes the documents of each split (name, documents) and writes token shards to `dir`. The manifest is written last.
/// Uses all threads; the files do not depend on their number. Calls `on_bytes` with the bytes of text tokenized so far.
pub fn prepare(
    tokenizer: &Tokenizer,
    splits: &[(&str, &[String])],
    dir: impl AsRef<Path>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let dir = dir.as_ref();
    let vocab_size = tokenizer.vocab_size();
    let Some(end) = tokenizer.document_end_id() else {
        return Err(Error::NoEndToken);
    };
    let narrow = vocab_size <= 1 << 16;
    let mut manifest = Manifest {
        version: 1,
        tokenizer: tokenizer.fingerprint(),
        vocab_size,
        dtype: if narrow { "u16" } else { "u32" }.to_owned(),
        splits: BTreeMap::new(),
    };
    let mut done = 0;
    for &(name, documents) in splits {
        let bytes = documents.iter().map(String::len).sum();
        let mut info = SplitInfo { files: Vec::new(), tokens: 0, bytes, documents: documents.len() };
        let mut ids: Vec<u32> = Vec::new();
        let pieces = pieces(tokenizer, documents)?;
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut taken = 0;
            let fits = |piece: &&Piece| {
                let fits = taken < BATCH_BYTES;
                taken += piece.text.len();
                fits
            };
            let (batch, later) = rest.split_at(rest.iter().take_while(fits).count());
            rest = later;
            let encoded = batch.par_iter().map(|piece| tokenizer.encode(piece.text));
            for (piece, encoded) in batch.iter().zip(encoded.collect::<Result<Vec<_>, _>>()?) {
                ids.extend(encoded);
                ids.extend(piece.ends_document.then_some(end));
                done += piece.text.len() as u64;
            }
            on_bytes(done);
            while ids.len() >= SHARD_TOKENS {
                let rest = ids.split_off(SHARD_TOKENS);
                write_shard(dir, name, &mut info, &ids, narrow)?;
                ids = rest;
            }
        }
        write_shard(dir, name, &mut info, &ids, narrow)?;
        manifest.splits.insert(name.to_owned(), info);
    }
    write_atomic(&dir.join("manifest.json"), |out| {
        serde_json::to_writer_pretty(&mut *out, &manifest)?;
        out.write_all(b"\n")
    })?;
    Ok(manifest)
}

/// A piece of a document, tokenized by one thread.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    ends_document: bool,
}

/// Cuts the documents into pieces. The concatenated ids of the pieces are the ids of the whole documents.
fn pieces<'a>(tokenizer: &Tokenizer, documents: &'a [String]) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::with_capacity(documents.len());
    for document in documents {
        let mut rest = document.as_str();
        while let Some(cut) = safe_cut(tokenizer, rest)? {
            let (text, later) = rest.split_at(cut);
            pieces.push(Piece { text, ends_document: false });
            rest = later;
        }
        pieces.push(Piece { text: rest, ends_document: true });
    }
    Ok(pieces)
}

/// The first position after [`PIECE_BYTES`] where a long text can be cut without changing its ids: after a single line end between
/// two characters that are not white space, if no token of the surrounding lines crosses it. `None` if the text is short or has
/// no such position.
fn safe_cut(tokenizer: &Tokenizer, text: &str) -> Result<Option<usize>> {
    if text.len() < 2 * PIECE_BYTES {
        return Ok(None);
    }
    let is_word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    let starts = text.as_bytes().iter().enumerate().skip(PIECE_BYTES).take(PIECE_BYTES / 2);
    for cut in starts.filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1) {
        let (head, tail) = text.split_at(cut);
        if !(is_word(head[..cut - 1].chars().next_back()) && is_word(tail.chars().next())) {
            continue;
        }
        let before = &head[head[..cut - 1].rfind('\n').map_or(0, |at| at + 1)..];
        let after = &tail[..tail.find('\n').map_or(tail.len(), |at| at + 1)];
        let both = tokenizer.encode(&[before, after].concat())?;
        if both == [tokenizer.encode(before)?, tokenizer.encode(after)?].concat() {
            return Ok(Some(cut));
        }
    }
    Ok(None)
}

fn write_shard(dir: &Path, split: &str, info: &mut SplitInfo, ids: &[u32], narrow: bool) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let file = format!("{split}-{:05}.bin", info.files.len());
    let bytes: Vec<u8> = match narrow {
        true => ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect(),
        false => ids.iter().flat_map(|&id| id.to_le_bytes()).collect(),
    };
    write_atomic(&dir.join(&file), |out| out.write_all(&bytes))?;
    info.files.push(file);
    info.tokens += ids.len();
    Ok(())
}

/// The tokens of one split, in memory.
#[derive(Debug, Clone)]
pub struct TokenDataset {
    tokens: Vec<u32>,
    bytes: usize,
    manifest: Manifest,
}

impl TokenDataset {
    /// Reads a split that [`prepare`] wrote. An error if a file is missing, damaged, or has ids outside the vocabulary.
    pub fn open(dir: impl AsRef<Path>, split: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("manifest.json");
        if !path.exists() {
            return Err(Error::unusable(dir, "contains no manifest.json; write token shards with `llm-train prepare`"));
        }
        let manifest: Manifest = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| Error::unusable(&path, format!("{e}; run `llm-train prepare` again")))?;
        let known: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        let Some(info) = manifest.splits.get(split) else {
            return Err(Error::unusable(
                &path,
                format!("has no split \"{split}\"; its splits are {}", known.join(", ")),
            ));
        };
        let width = match manifest.dtype.as_str() {
            "u16" => 2,
            "u32" => 4,
            other => return Err(Error::unusable(&path, format!("\"dtype\" is \"{other}\"; it must be u16 or u32"))),
        };
        let mut tokens = Vec::with_capacity(info.tokens.min(SHARD_TOKENS));
        for name in &info.files {
            let file = dir.join(name);
            let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
            tokens.extend(bytes.chunks_exact(width).map(|c| c.iter().rev().fold(0, |id, &b| id << 8 | u32::from(b))));
        }
        if tokens.len() != info.tokens {
            let (is, wanted) = (tokens.len(), info.tokens);
            return Err(Error::unusable(
                dir,
                format!("split \"{split}\" has {is} tokens; the manifest says {wanted}; run `llm-train prepare` again"),
            ));
        }
        if let Some(bad) = tokens.iter().find(|&&id| id as usize >= manifest.vocab_size) {
            let vocab = manifest.vocab_size;
            return Err(Error::unusable(
                dir,
                format!("token id {bad} is outside the vocabulary of {vocab}; run `llm-train prepare` again"),
            ));
        }
        Ok(Self { tokens, bytes: info.bytes, manifest })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the split has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Size of the text in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The manifest of the folder.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All tokens; each document ends with the end-of-document token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use llm_tokenizer::{TrainConfig, train_bpe};

    use super::*;

    pub(crate) fn dataset(documents: &[&str]) -> (tempfile::TempDir, Tokenizer) {
        let dir = tempfile::tempdir().unwrap();
        let config = TrainConfig { vocab_size: 300, ..TrainConfig::default() };
        let tokenizer = train_bpe(&config, documents.iter().copied()).unwrap();
        let documents: Vec<String> = documents.iter().map(|&d| d.to_owned()).collect();
        prepare(&tokenizer, &[("train", &documents)], dir.path(), &mut |_| ()).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn each_document_in_the_shards_ends_with_the_end_token() {
        let (dir, tokenizer) = dataset(&["one two", "", "three é"]);
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let end = tokenizer.document_end_id().unwrap();
        let parts: Vec<String> =
            data.tokens().split(|&id| id == end).map(|ids| tokenizer.decode(ids).unwrap()).collect();
        assert_eq!(parts, ["one two", "", "three é", ""]);
        assert_eq!(data.bytes(), 15);
        assert_eq!(data.manifest().splits["train"].documents, 3);
    }

    #[test]
    fn long_documents_cut_into_pieces_have_the_same_ids() {
        let lines = ["one two  three", "", "  spaces \t", "it's 1984, é!", "\u{3000}wide", "...", "x"];
        let text: String = (0..60_000).map(|i| format!("{} {}\n", lines[i * i % 7], i % 11)).collect();
        let blank: String = "word \n\n ".repeat(60_000);
        let documents = [text, blank, "short".to_owned()];
        let config = TrainConfig { vocab_size: 400, ..TrainConfig::default() };
        let tokenizer = train_bpe(&config, documents.iter().map(|d| &d[..2000.min(d.len())])).unwrap();
        let cut = pieces(&tokenizer, &documents).unwrap();
        assert!(cut.len() > 5, "{} pieces", cut.len());
        assert!(cut.iter().filter(|piece| piece.ends_document).count() == 3);
        let dir = tempfile::tempdir().unwrap();
        prepare(&tokenizer, &[("train", &documents)], dir.path(), &mut |_| ()).unwrap();
        let end = tokenizer.document_end_id().unwrap();
        let whole = documents.iter().flat_map(|d| [tokenizer.encode(d).unwrap(), vec![end]].concat());
        assert_eq!(TokenDataset::open(dir.path(), "train").unwrap().tokens(), whole.collect::<Vec<_>>());
    }

    #[test]
    fn damaged_shards_are_errors() {
        let (dir, _) = dataset(&["one two three"]);
        let message = |split: &str| TokenDataset::open(dir.path(), split).unwrap_err().to_string();
        assert!(message("test").contains("has no split \"test\"; its splits are train"));
        let file = dir.path().join("train-00000.bin");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 2]).unwrap();
        assert!(message("train").contains("the manifest says"));
        let mut wrong = bytes.clone();
        wrong[1] = 0xff;
        std::fs::write(&file, wrong).unwrap();
        assert!(message("train").contains("outside the vocabulary"));
        assert!(
            TokenDataset::open(dir.path().join("none"), "train").unwrap_err().to_string().contains("llm-train prepare")
        );
    }
}
