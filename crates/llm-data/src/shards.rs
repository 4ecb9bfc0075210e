//! Token shards: a folder with `manifest.json` and, for each split, files of little-endian token ids.
//!
//! Every document ends with the tokenizer's end-of-document token. Ids take two bytes where the vocabulary allows it.

use std::collections::BTreeMap;
use std::path::Path;

use llm_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::files::{read_text, write_atomic};
use crate::{Error, Result};

/// Tokens of a shard file at most.
const SHARD_TOKENS: usize = 100_000_000;

/// Bytes of text that all threads together tokenise before the ids are stored.
const BATCH_BYTES: usize = 8 << 20;

/// Bytes of the piece of a long document that one thread tokenises at a time.
const PIECE_BYTES: usize = 128 << 10;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format: 1.
    pub version: u32,
    /// The fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: usize,
    /// "u16" or "u32", little-endian.
    pub dtype: String,
    /// The splits by name.
    pub splits: BTreeMap<String, SplitInfo>,
}

/// What a manifest says of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// Its files, in order.
    pub files: Vec<String>,
    /// Tokens in all, those that end documents included.
    pub tokens: usize,
    /// Bytes of text in all.
    pub bytes: usize,
    /// Documents.
    pub documents: usize,
}

/// Writes the documents of each split as token shards into `dir`; the manifest, which makes them readable, comes last.
/// Tokenises on all threads; the files do not depend on their number. `on_bytes` is told how many bytes of text are done.
pub fn prepare(
    tokenizer: &Tokenizer,
    splits: &[(&str, &[String])],
    dir: &Path,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let vocab_size = tokenizer.vocab_size();
    let Some(end) = tokenizer.document_end_id() else {
        return Err(Error::Input("the tokenizer has no token that ends a document; add \"<|endoftext|>\"".to_owned()));
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

/// Text that is tokenised at once.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    ends_document: bool,
}

/// The documents in pieces whose ids, one after the other, are those of the whole documents.
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

/// A line's start, [`PIECE_BYTES`] into a long text or soon after, where the ids of the two parts are those of the whole:
/// a single line end between two characters that are not white space, over which no token reaches, as the lines around it
/// show. None if the text is short, or has no such place.
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

/// The tokens of one split.
#[derive(Debug, Clone)]
pub struct TokenDataset {
    tokens: Vec<u32>,
    bytes: usize,
    manifest: Manifest,
}

impl TokenDataset {
    /// Reads a split of what [`prepare`] wrote.
    pub fn open(dir: &Path, split: &str) -> Result<Self> {
        let path = dir.join("manifest.json");
        if !path.exists() {
            return Err(Error::unusable(dir, "holds no manifest.json; write token shards with `llm-train prepare`"));
        }
        let manifest: Manifest = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| Error::unusable(&path, format!("{e}; prepare again")))?;
        let known: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
        let Some(info) = manifest.splits.get(split) else {
            return Err(Error::unusable(&path, format!("has no split \"{split}\", but {}", known.join(", "))));
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
                format!("split \"{split}\" holds {is} tokens, the manifest says {wanted}; prepare again"),
            ));
        }
        if let Some(bad) = tokens.iter().find(|&&id| id as usize >= manifest.vocab_size) {
            let vocab = manifest.vocab_size;
            return Err(Error::unusable(
                dir,
                format!("token id {bad} is outside the vocabulary of {vocab}; prepare again"),
            ));
        }
        Ok(Self { tokens, bytes: info.bytes, manifest })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Bytes of the text.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The manifest of the folder.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All tokens, documents laid end to end.
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
    fn shards_hold_the_documents_with_an_end_behind_each() {
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
    fn long_documents_in_pieces_have_the_ids_of_the_whole() {
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
    fn damaged_shards_are_refused_with_their_name() {
        let (dir, _) = dataset(&["one two three"]);
        let message = |split: &str| TokenDataset::open(dir.path(), split).unwrap_err().to_string();
        assert!(message("test").contains("has no split \"test\", but train"));
        let file = dir.path().join("train-00000.bin");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 2]).unwrap();
        assert!(message("train").contains("the manifest says"));
        let mut wrong = bytes.clone();
        wrong[1] = 0xff;
        std::fs::write(&file, wrong).unwrap();
        assert!(message("train").contains("outside the vocabulary"));
        assert!(
            TokenDataset::open(&dir.path().join("none"), "train")
                .unwrap_err()
                .to_string()
                .contains("llm-train prepare")
        );
    }
}
