//! Token files of other programs as documents.

use std::path::{Path, PathBuf};

use llm_files::Bytes;

use super::llm_c;
use super::megatron::Indexed;
use crate::{Error, Result};

/// Whether this is a token file of llm.c (`.bin`) or Megatron-LM (`.bin` or `.idx`, or their common prefix) and not text.
pub fn is_token_file(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    let extension = path.extension().unwrap_or_default();
    extension == "bin" || extension == "idx" || !path.exists() && with_suffix(path, "idx").exists()
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Calls `each` with the token ids of each document of a file, without separators. Documents without tokens are left out.
///
/// An error if an id is not below `vocab_size`: then the file was written with another tokenizer.
pub fn for_each_token_document(
    path: impl AsRef<Path>,
    (separator, vocab_size): (u32, usize),
    each: &mut dyn FnMut(Vec<u32>) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let mut checked = |ids: &[u32]| {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let message =
                format!("token id {id} is outside the vocabulary of {vocab_size}; give the tokenizer of the file");
            return Err(Error::unusable(path, message));
        }
        if ids.is_empty() { Ok(()) } else { each(ids.to_vec()) }
    };
    let prefix = match path.extension() {
        Some(extension) if extension == "bin" || extension == "idx" => path.with_extension(""),
        _ => path.to_owned(),
    };
    let (index, data) = (with_suffix(&prefix, "idx"), with_suffix(&prefix, "bin"));
    if index.exists() {
        let indexed = Indexed::open(&index, &data)?;
        for number in 0..indexed.documents() {
            let ids = indexed.document(number).ok_or_else(|| Error::unusable(&data, "contains negative token ids"))?;
            ids.split(|&id| id == separator).try_for_each(&mut checked)?;
        }
        return Ok(());
    }
    let bytes = Bytes::open(path).map_err(Error::io(path))?;
    if !llm_c::is_llm_c(&bytes) {
        let message = "has neither the header of a token file of llm.c nor a file .idx of Megatron-LM next to it";
        return Err(Error::unusable(path, message));
    }
    let (bytes, dtype) = llm_c::open(path, &bytes)?;
    let mut document = Vec::new();
    for chunk in bytes.chunks(CHUNK) {
        let mut ids = Vec::new();
        dtype.decode(chunk, &mut ids);
        let mut parts = ids.split(|&id| id == separator).peekable();
        while let Some(part) = parts.next() {
            document.extend_from_slice(part);
            if parts.peek().is_some() {
                checked(&document)?;
                document.clear();
            }
        }
    }
    checked(&document)
}

/// Bytes that are decoded at once; a multiple of the width of an id.
const CHUNK: usize = 1 << 20;
