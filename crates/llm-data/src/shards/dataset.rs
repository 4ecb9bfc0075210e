//! The tokens of one split, in memory-mapped files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use llm_files::Bytes;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::manifest::{FILE, FileInfo, Manifest, TokenDtype};
use super::writer::hexadecimal;
use crate::{Error, Result};

/// The tokens of one split. The files are memory-mapped: the system reads them as they are used.
#[derive(Debug, Clone)]
pub struct TokenDataset {
    dir: PathBuf,
    /// Each file with the number of tokens before it.
    files: Vec<(usize, Bytes)>,
    /// u64, little-endian: the number of tokens before each document, then of all.
    index: Bytes,
    tokens: usize,
    bytes: usize,
    documents: usize,
    manifest: Manifest,
}

impl TokenDataset {
    /// Opens a split of a folder that [`crate::ShardWriter`] wrote. Reads all its files once, in parallel, and compares their SHA-256
    /// with the manifest; the error names the file that is missing or damaged.
    pub fn open(dir: impl AsRef<Path>, split: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let manifest = Manifest::read(dir)?;
        let Some(info) = manifest.splits.get(split) else {
            let known: Vec<&str> = manifest.splits.keys().map(String::as_str).collect();
            let message = format!("has no split \"{split}\"; its splits are {}", known.join(", "));
            return Err(Error::unusable(dir.join(FILE), message));
        };
        let dtype = manifest.dtype;
        let opened = info.files.par_iter().map(|file| {
            let bytes = open_intact(dir, file)?;
            match dtype.largest(&bytes) {
                Some(id) if id as usize >= manifest.vocab_size => Err(damaged(
                    &dir.join(&file.name),
                    &format!("token id {id} is outside the vocabulary of {}", manifest.vocab_size),
                )),
                _ => Ok(bytes),
            }
        });
        // The first damaged file, whichever thread finds one first.
        let opened = opened.collect::<Vec<_>>().into_iter().collect::<Result<Vec<Bytes>>>()?;
        let index = open_intact(dir, &info.index)?;
        let mut tokens = 0;
        let files = opened.into_iter().map(|bytes| {
            let before = tokens;
            tokens += bytes.len() / dtype.width();
            (before, bytes)
        });
        let files: Vec<(usize, Bytes)> = files.collect();
        if tokens != info.tokens {
            let message = format!("split \"{split}\" has {tokens} tokens; the manifest says {}", info.tokens);
            return Err(damaged(dir, &message));
        }
        let (bytes, documents) = (info.bytes, info.documents);
        let dataset = Self { dir: dir.to_owned(), files, index, tokens, bytes, documents, manifest: manifest.clone() };
        if !dataset.has_valid_index() {
            let message = format!("is not an index of {documents} documents with {tokens} tokens");
            return Err(damaged(&dir.join(&info.index.name), &message));
        }
        Ok(dataset)
    }

    fn has_valid_index(&self) -> bool {
        let (offsets, rest) = self.index.as_chunks::<8>();
        let is_increasing = offsets.windows(2).all(|pair| u64::from_le_bytes(pair[0]) < u64::from_le_bytes(pair[1]));
        rest.is_empty()
            && Some(offsets.len()) == self.documents.checked_add(1)
            && (self.offset(0), self.offset(self.documents)) == (0, self.tokens)
            && is_increasing
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether the split has no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Size of the text in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The manifest of the folder.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The type of the ids in the files.
    pub(super) fn dtype(&self) -> TokenDtype {
        self.manifest.dtype
    }

    /// A copy of the ids of these tokens. Those after the last token are left out.
    pub fn ids(&self, range: Range<usize>) -> Vec<u32> {
        let width = self.manifest.dtype.width();
        let mut ids = Vec::with_capacity(range.len().min(self.tokens));
        let first = self.files.partition_point(|(before, _)| *before <= range.start).saturating_sub(1);
        for (before, bytes) in &self.files[first..] {
            let end = range.end.saturating_sub(*before).saturating_mul(width).min(bytes.len());
            let start = range.start.saturating_sub(*before).saturating_mul(width).min(end);
            self.manifest.dtype.decode(&bytes[start..end], &mut ids);
            if range.end <= before + bytes.len() / width {
                break;
            }
        }
        ids
    }

    /// A copy of all ids; each document ends with the separator.
    pub fn tokens(&self) -> Vec<u32> {
        self.ids(0..self.tokens)
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// The tokens of a document, including its separator; `None` if there are fewer documents.
    pub fn document(&self, number: usize) -> Option<Range<usize>> {
        (number < self.documents).then(|| self.offset(number)..self.offset(number + 1))
    }

    /// The number of the document that contains a token; of a token after the last one, the number of documents.
    pub fn document_of(&self, token: usize) -> usize {
        let (mut low, mut high) = (0, self.documents);
        // Documents before `low` end at or before the token, those from `high` on after it.
        while low < high {
            let middle = low.midpoint(high);
            if self.offset(middle + 1) <= token { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The number of tokens before a document; 0 if the index is too short.
    fn offset(&self, document: usize) -> usize {
        let bytes = self.index.as_chunks::<8>().0.get(document).copied().unwrap_or_default();
        u64::from_le_bytes(bytes) as usize
    }
}

/// Maps a file and compares it with its SHA-256.
fn open_intact(dir: &Path, file: &FileInfo) -> Result<Bytes> {
    let path = dir.join(&file.name);
    let bytes = Bytes::open(&path).map_err(Error::io(&path))?;
    if hexadecimal(&Sha256::digest(&*bytes)) != file.sha256 {
        return Err(damaged(&path, "differs from the SHA-256 in the manifest: the file is damaged"));
    }
    Ok(bytes)
}

fn damaged(path: &Path, message: &str) -> Error {
    Error::unusable(path, format!("{message}; run `llm-train prepare` again"))
}
