//! Token files of llm.c (`dev/data/data_common.py` there): 256 numbers of 32 bits, then the token ids.
//!
//! The first number is the magic number, the second the version, the third the number of ids; the others are 0. Each document begins
//! with the separator.

use std::path::Path;

use llm_files::Bytes;

use super::dataset::TokenDataset;
use super::manifest::TokenDtype;
use crate::files::write_atomic;
use crate::{Error, Result};

/// Bytes of the header.
const HEADER: usize = 1024;

/// The magic number, the version and the type of the ids: GPT-2, Llama 3.
const KINDS: [(u32, u32, TokenDtype); 2] = [(20_240_520, 1, TokenDtype::U16), (20_240_801, 7, TokenDtype::U32)];

/// The largest number of ids of a file: llm.c reads it as i32.
const MOST: usize = i32::MAX as usize;

/// Whether these are the first bytes of such a file.
pub(super) fn is_llm_c(bytes: &[u8]) -> bool {
    number(bytes, 0).is_some_and(|magic| KINDS.iter().any(|kind| kind.0 == magic))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.as_chunks().0.get(at).map(|&bytes| u32::from_le_bytes(bytes))
}

/// The ids of a file, and their type.
pub(super) fn open(path: &Path, bytes: &Bytes) -> Result<(Bytes, TokenDtype)> {
    let header = [0, 1, 2].map(|at| number(bytes, at));
    let kind = KINDS.iter().find(|kind| header[0] == Some(kind.0) && header[1] == Some(kind.1));
    let (Some((.., dtype)), Some(count)) = (kind, header[2]) else {
        return Err(Error::unusable(
            path,
            "has a header of llm.c with an unknown version; known are 1 (GPT-2) and 7 (Llama 3)",
        ));
    };
    let size = HEADER + count as usize * dtype.width();
    match bytes.slice(HEADER..bytes.len()).filter(|_| bytes.len() == size) {
        Some(ids) => Ok((ids, *dtype)),
        None => {
            let message =
                format!("has {} bytes; its header says {count} token ids, {size} bytes; fetch it again", bytes.len());
            Err(Error::unusable(path, message))
        }
    }
}

/// Writes a split: the same stream, but with the separator before each document instead of after it.
pub(super) fn write(data: &TokenDataset, path: &Path) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let dtype = data.dtype();
    if data.len() > MOST {
        let message = format!("has {} tokens; a file of llm.c has at most {MOST}", data.len());
        return Err(Error::unusable(data.dir(), message));
    }
    let [gpt2, llama] = KINDS;
    let (magic, version, _) = if dtype == TokenDtype::U16 { gpt2 } else { llama };
    write_atomic(path, |out| {
        let mut header = [0_u8; HEADER];
        for (at, number) in [magic, version, data.len() as u32].into_iter().enumerate() {
            header[4 * at..4 * at + 4].copy_from_slice(&number.to_le_bytes());
        }
        out.write_all(&header)?;
        let mut bytes = Vec::new();
        dtype.encode(
            if data.is_empty() { &[] } else { std::slice::from_ref(&data.manifest().separator_id) },
            &mut bytes,
        );
        let last = data.len().saturating_sub(1);
        for start in (0..last).step_by(CHUNK) {
            dtype.encode(&data.ids(start..(start + CHUNK).min(last)), &mut bytes);
            out.write_all(&bytes)?;
            bytes.clear();
        }
        out.write_all(&bytes)
    })
}
