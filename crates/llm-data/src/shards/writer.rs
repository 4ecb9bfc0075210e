//! Writes token shards as a stream: documents are tokenized in parallel, and only the current ones are in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llm_tokenizer::Tokenizer;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::manifest::{FILE, FileInfo, Manifest, SplitInfo, TokenDtype};
use super::pieces::{Piece, pieces};
use crate::files::write_atomic;
use crate::{Error, Result};

/// Maximum number of tokens in a shard file.
const SHARD_TOKENS: usize = 100_000_000;

/// Bytes of text that are tokenized in parallel before their ids are written.
const BATCH_BYTES: usize = 8 << 20;

/// Writes a folder of token shards. The folder has its name only after [`ShardWriter::finish`]; until then, and after an error, it is a
/// temporary folder that is deleted when the writer is dropped.
#[derive(Debug)]
pub struct ShardWriter<'a> {
    tokenizer: &'a Tokenizer,
    out: PathBuf,
    dir: TempDir,
    manifest: Manifest,
    splits: BTreeMap<String, SplitWriter>,
    bytes: u64,
    encoding: Duration,
}

impl<'a> ShardWriter<'a> {
    /// A writer of the splits with these names. An error if `out` exists and is not empty, or if the tokenizer has no end-of-document
    /// token.
    pub fn create(tokenizer: &'a Tokenizer, out: impl AsRef<Path>, splits: &[&str]) -> Result<Self> {
        let out = out.as_ref().to_owned();
        if out.exists() && std::fs::read_dir(&out).map_err(Error::io(&out))?.next().is_some() {
            return Err(Error::unusable(out, "already exists and is not empty; choose another folder"));
        }
        let separator = tokenizer.document_end_id().ok_or(Error::NoEndToken)?;
        let manifest = Manifest::new(tokenizer.fingerprint(), separator, tokenizer.vocab_size());
        let dir = llm_files::temp_folder(&out).map_err(Error::io(&out))?;
        let writers = splits.iter().map(|name| {
            let writer = SplitWriter::create(dir.path(), name, manifest.dtype)?;
            Ok(((*name).to_owned(), writer))
        });
        let splits = writers.collect::<Result<_>>()?;
        Ok(Self { tokenizer, out, dir, manifest, splits, bytes: 0, encoding: Duration::ZERO })
    }

    /// Tokenizes documents with all threads, each given as (split, text), and appends them to their splits, each with a separator
    /// after it. Documents without text are left out. The files do not depend on the number of threads, nor on how the documents
    /// are divided into calls.
    pub fn write<T: AsRef<str>>(&mut self, documents: &[(&str, T)]) -> Result<()> {
        let mut all: Vec<(&str, Piece)> = Vec::with_capacity(documents.len());
        for (split, text) in documents.iter().map(|(split, text)| (*split, text.as_ref())) {
            if !text.is_empty() {
                all.extend(pieces(self.tokenizer, text)?.into_iter().map(|piece| (split, piece)));
            }
        }
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let mut taken = 0;
            let fits = |(_, piece): &&(&str, Piece)| {
                let fits = taken < BATCH_BYTES;
                taken += piece.text.len();
                fits
            };
            let (batch, later) = rest.split_at(rest.iter().take_while(fits).count());
            rest = later;
            let tokenizer = self.tokenizer;
            let encoded = batch.par_iter().map(|(_, piece)| {
                let started = Instant::now();
                Ok((tokenizer.encode(piece.text)?, started.elapsed()))
            });
            // In order, so that an error is always that of the first piece.
            for ((split, piece), encoded) in batch.iter().zip(encoded.collect::<Vec<Result<_>>>()) {
                let (ids, time) = encoded?;
                self.encoding += time;
                let separator = self.manifest.separator_id;
                self.bytes += piece.text.len() as u64;
                let split = self.split(split)?;
                split.append(&ids, piece.text.len())?;
                if piece.ends_document {
                    split.end_document(separator)?;
                }
            }
        }
        Ok(())
    }

    /// Appends a document that is already tokenized, without its separator, and the size of its text in bytes.
    pub fn write_ids(&mut self, split: &str, ids: &[u32], bytes: usize) -> Result<()> {
        let separator = self.manifest.separator_id;
        self.bytes += bytes as u64;
        let split = self.split(split)?;
        split.append(ids, bytes)?;
        split.end_document(separator)
    }

    fn split(&mut self, name: &str) -> Result<&mut SplitWriter> {
        let out = &self.out;
        self.splits.get_mut(name).ok_or_else(|| Error::unusable(out, format!("has no split \"{name}\"")))
    }

    /// Bytes of text written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The time that all threads together spent in the tokenizer.
    pub fn encoding_time(&self) -> Duration {
        self.encoding
    }

    /// Writes the manifest, syncs all files to disk and gives the folder its name.
    pub fn finish(self) -> Result<Manifest> {
        let Self { out, dir, mut manifest, splits, .. } = self;
        for (name, split) in splits {
            manifest.splits.insert(name, split.finish()?);
        }
        write_atomic(&dir.path().join(FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, &manifest)?;
            file.write_all(b"\n")
        })?;
        keep(dir, &out)?;
        Ok(manifest)
    }
}

/// Renames a complete temporary folder to `out`, which must not exist, or be empty.
pub(super) fn keep(dir: TempDir, out: &Path) -> Result<()> {
    if out.exists() {
        std::fs::remove_dir(out).map_err(Error::io(out))?;
    }
    std::fs::rename(dir.path(), out).map_err(Error::io(out))?;
    // It is no longer there, so there is nothing to delete.
    let _ = dir.keep();
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    llm_files::sync_folder(parent).map_err(Error::io(out))
}

/// The files of one split.
#[derive(Debug)]
struct SplitWriter {
    dir: PathBuf,
    name: String,
    dtype: TokenDtype,
    shard_tokens: usize,
    /// The current shard file, with its number of tokens.
    shard: Option<(Output, usize)>,
    files: Vec<FileInfo>,
    index: Output,
    tokens: usize,
    bytes: usize,
    documents: usize,
    buffer: Vec<u8>,
}

impl SplitWriter {
    fn create(dir: &Path, name: &str, dtype: TokenDtype) -> Result<Self> {
        let mut index = Output::create(dir, format!("{name}-documents.bin"))?;
        index.write(&0_u64.to_le_bytes())?;
        Ok(Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            dtype,
            shard_tokens: SHARD_TOKENS,
            shard: None,
            files: Vec::new(),
            index,
            tokens: 0,
            bytes: 0,
            documents: 0,
            buffer: Vec::new(),
        })
    }

    /// Appends the ids of a document, or of a part of it.
    fn append(&mut self, mut ids: &[u32], bytes: usize) -> Result<()> {
        self.bytes += bytes;
        self.tokens += ids.len();
        while !ids.is_empty() {
            let (mut output, already) = match self.shard.take() {
                Some(shard) => shard,
                None => (Output::create(&self.dir, format!("{}-{:05}.bin", self.name, self.files.len()))?, 0),
            };
            let (now, later) = ids.split_at(ids.len().min(self.shard_tokens - already));
            ids = later;
            self.buffer.clear();
            self.dtype.encode(now, &mut self.buffer);
            output.write(&self.buffer)?;
            match already + now.len() {
                full if full == self.shard_tokens => self.files.push(output.finish()?),
                tokens => self.shard = Some((output, tokens)),
            }
        }
        Ok(())
    }

    fn end_document(&mut self, separator: u32) -> Result<()> {
        self.append(&[separator], 0)?;
        self.documents += 1;
        self.index.write(&(self.tokens as u64).to_le_bytes())
    }

    fn finish(mut self) -> Result<SplitInfo> {
        if let Some((output, _)) = self.shard.take() {
            self.files.push(output.finish()?);
        }
        let Self { files, index, tokens, bytes, documents, .. } = self;
        Ok(SplitInfo { files, index: index.finish()?, tokens, bytes, documents })
    }
}

/// A file that is hashed while it is written.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    hash: Sha256,
}

impl Output {
    fn create(dir: &Path, name: String) -> Result<Self> {
        let path = dir.join(&name);
        let file = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
        Ok(Self { path, name, file, hash: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }

    fn finish(self) -> Result<FileInfo> {
        let Self { path, name, file, hash } = self;
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).map_err(Error::io(path))?;
        Ok(FileInfo { name, sha256: hexadecimal(&hash.finalize()) })
    }
}

/// Bytes in hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::TokenDataset;
    use crate::shards::tests::tokenizer;

    #[test]
    fn a_split_is_cut_into_files_that_read_as_one() {
        let texts = ["one two three", "four", "five six seven eight"];
        let tokenizer = tokenizer(&texts);
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for shard_tokens in [1, 3, 7, 1000] {
            let out = dir.path().join(format!("shards-{shard_tokens}"));
            let mut writer = ShardWriter::create(&tokenizer, &out, &["train", "held_out"]).unwrap();
            writer.split("train").unwrap().shard_tokens = shard_tokens;
            writer.write(&texts.map(|text| ("train", text))).unwrap();
            assert!(!out.exists(), "the folder is atomic");
            let manifest = writer.finish().unwrap();
            let data = TokenDataset::open(&out, "train").unwrap();
            assert_eq!(manifest.splits["train"].files.len(), data.len().div_ceil(shard_tokens));
            if expected.is_empty() {
                let encoded = texts.map(|text| tokenizer.encode(text).unwrap());
                expected = encoded.map(|ids| [ids, vec![manifest.separator_id]].concat()).concat();
            }
            assert_eq!(data.tokens(), expected);
            for (start, end) in [(0, 1), (2, 9), (3, 3), (expected.len() - 4, expected.len())] {
                assert_eq!(data.ids(start..end), expected[start..end], "{start}..{end}");
            }
            let held_out = TokenDataset::open(&out, "held_out").unwrap();
            assert!(held_out.is_empty() && held_out.documents() == 0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "no temporary folder is left");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_without_finish() {
        let tokenizer = tokenizer(&["one two"]);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("shards");
        drop(ShardWriter::create(&tokenizer, &out, &["train"]).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("mine"), "").unwrap();
        let message = ShardWriter::create(&tokenizer, &out, &["train"]).unwrap_err().to_string();
        assert!(message.ends_with("shards: already exists and is not empty; choose another folder"), "{message}");
    }
}
