//! Indexed datasets of Megatron-LM (`megatron/core/datasets/indexed_dataset.py` there): `PREFIX.bin` with token ids, and `PREFIX.idx`.
//!
//! The index, little-endian: `MMIDIDX\0\0`, the version 1 (u64), the code of the type (u8), the number of sequences and the number of
//! document boundaries (u64); then the lengths of the sequences in ids (i32), their positions in bytes (i64), and the number of
//! sequences before each document, followed by that of all (i64).

use std::ops::Range;
use std::path::Path;

use llm_files::Bytes;

use super::dataset::TokenDataset;
use super::manifest::TokenDtype;
use crate::files::write_atomic;
use crate::{Error, Result};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";

/// Bytes before the lengths.
const HEADER: usize = 34;

/// The type of the ids in a file of Megatron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    U8,
    I16,
    I32,
    I64,
    U16,
}

impl Ids {
    /// The codes; 2 is i8, 6 and 7 are floats.
    fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::U8,
            3 => Self::I16,
            4 => Self::I32,
            5 => Self::I64,
            8 => Self::U16,
            _ => return None,
        })
    }

    fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The ids of these bytes; `None` for one that is negative or too large.
    fn decode(self, bytes: &[u8]) -> Option<Vec<u32>> {
        match self {
            Self::U8 => Some(bytes.iter().map(|&id| u32::from(id)).collect()),
            Self::U16 => Some(bytes.as_chunks().0.iter().map(|&id| u32::from(u16::from_le_bytes(id))).collect()),
            Self::I16 => bytes.as_chunks().0.iter().map(|&id| u32::try_from(i16::from_le_bytes(id)).ok()).collect(),
            Self::I32 => bytes.as_chunks().0.iter().map(|&id| u32::try_from(i32::from_le_bytes(id)).ok()).collect(),
            Self::I64 => bytes.as_chunks().0.iter().map(|&id| u32::try_from(i64::from_le_bytes(id)).ok()).collect(),
        }
    }
}

/// An opened dataset.
pub(super) struct Indexed {
    ids: Ids,
    lengths: Bytes,
    pointers: Bytes,
    documents: Bytes,
    data: Bytes,
}

impl Indexed {
    /// Opens `index` (`PREFIX.idx`) and `data` (`PREFIX.bin`), and checks that all positions are within the data.
    pub fn open(index: &Path, data: &Path) -> Result<Self> {
        let bytes = Bytes::open(index).map_err(Error::io(index))?;
        let wrong = |message: &str| Error::unusable(index, format!("{message}; write it again with Megatron-LM"));
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if !bytes.starts_with(MAGIC) || long(9) != Some(1) {
            return Err(wrong("is not an index of Megatron-LM of version 1"));
        }
        let code = bytes.get(17).copied().unwrap_or_default();
        let ids = Ids::of_code(code)
            .ok_or_else(|| wrong(&format!("has values of the type {code}, which are no token ids")))?;
        let count = |at| long(at).and_then(|count| usize::try_from(count).ok()).filter(|&count| count < 1 << 48);
        let (Some(sequences), Some(boundaries)) = (count(18), count(26)) else { return Err(wrong("is too short")) };
        let (pointers, documents) = (HEADER + 4 * sequences, HEADER + 12 * sequences);
        let part =
            |range: Range<usize>| bytes.slice(range).ok_or_else(|| wrong("is too short for its number of sequences"));
        let opened = Self {
            ids,
            lengths: part(HEADER..pointers)?,
            pointers: part(pointers..documents)?,
            documents: part(documents..documents + 8 * boundaries)?,
            data: Bytes::open(data).map_err(Error::io(data))?,
        };
        let is_within = |sequence| opened.bytes_of(sequence).is_some_and(|range| range.end <= opened.data.len());
        let boundary = |at: usize| opened.boundary(at);
        let increases = (1..boundaries).all(|at| boundary(at - 1) <= boundary(at));
        let spans = boundaries > 0 && boundary(0) == Some(0) && boundary(boundaries - 1) == Some(sequences);
        if !(increases && spans && (0..sequences).all(is_within)) {
            return Err(wrong(&format!("has positions outside of {}", data.display())));
        }
        Ok(opened)
    }

    /// The number of documents.
    pub fn documents(&self) -> usize {
        (self.documents.len() / 8).saturating_sub(1)
    }

    /// The ids of the sequences of a document; `None` if one is negative.
    pub fn document(&self, number: usize) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        for sequence in self.boundary(number)?..self.boundary(number + 1)? {
            ids.extend(self.ids.decode(self.data.get(self.bytes_of(sequence)?)?)?);
        }
        Some(ids)
    }

    /// The number of sequences before a document.
    fn boundary(&self, at: usize) -> Option<usize> {
        usize::try_from(i64::from_le_bytes(*self.documents.as_chunks().0.get(at)?)).ok()
    }

    fn bytes_of(&self, sequence: usize) -> Option<Range<usize>> {
        let start = usize::try_from(i64::from_le_bytes(*self.pointers.as_chunks().0.get(sequence)?)).ok()?;
        let length = usize::try_from(i32::from_le_bytes(*self.lengths.as_chunks().0.get(sequence)?)).ok()?;
        Some(start..start.checked_add(length.checked_mul(self.ids.width())?)?)
    }
}

/// Writes a split: each document with its separator is one sequence.
pub(super) fn write(data: &TokenDataset, index: &Path, tokens: &Path) -> Result<()> {
    let dtype = data.dtype();
    let (code, width) = match dtype {
        TokenDtype::U16 => (8_u8, 2),
        TokenDtype::U32 => (4, 4),
    };
    let ranges = || (0..data.documents()).filter_map(|number| data.document(number));
    if let Some(range) = ranges().find(|range| range.len() > i32::MAX as usize) {
        let message = format!("has a document of {} tokens; Megatron-LM reads at most {}", range.len(), i32::MAX);
        return Err(Error::unusable(data.dir(), message));
    }
    write_atomic(tokens, |out| {
        let mut bytes = Vec::new();
        for range in ranges() {
            bytes.clear();
            dtype.encode(&data.ids(range), &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    })?;
    write_atomic(index, |out| {
        let documents = data.documents() as u64;
        out.write_all(MAGIC)?;
        out.write_all(&1_u64.to_le_bytes())?;
        out.write_all(&[code])?;
        out.write_all(&documents.to_le_bytes())?;
        out.write_all(&(documents + 1).to_le_bytes())?;
        ranges().try_for_each(|range| out.write_all(&(range.len() as i32).to_le_bytes()))?;
        ranges().try_for_each(|range| out.write_all(&((range.start * width) as i64).to_le_bytes()))?;
        (0..=documents as i64).try_for_each(|number| out.write_all(&number.to_le_bytes()))
    })
}
