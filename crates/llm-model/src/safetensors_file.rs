//! Memory-mapped safetensors files: a JSON header with names, dtypes, shapes and offsets, then the data.
//!
//! The header is validated before use: the `safetensors` crate checks that the data ranges match shape and dtype, do not
//! overlap and cover the file; this module also rejects duplicate names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llm_kernels::{Bytes, MappedWeight};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::weight::Weight;
use crate::{Error, Result};

/// A memory-mapped file with a validated header.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Reads all tensors of a safetensors file; bf16 and f16 are converted to f32.
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = SafetensorsFile::open(path)?;
    file.names().map(|name| Ok((name.to_owned(), file.tensor(name)?))).collect()
}

impl SafetensorsFile {
    /// Maps a file and validates its header.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::open(path).map_err(Error::io(path))?;
        let broken = |message: String| Error::Safetensors { path: path.into(), message };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let start = 8 + header;
        serde_json::from_slice::<DistinctNames>(&bytes[8..start]).map_err(|e| broken(e.to_string()))?;
        let mut entries = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let dtype = supported(info.dtype).ok_or_else(|| {
                broken(format!(
                    "tensor \"{name}\" has dtype {:?}; supported: F64, F32, F16, BF16, I64, U32, U8",
                    info.dtype
                ))
            })?;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            entries.insert(name, Entry { dtype, shape: info.shape.clone(), range });
        }
        Ok(Self { path: path.into(), bytes, entries })
    }

    /// The tensor names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    fn entry(&self, name: &str) -> Result<(&Entry, Bytes)> {
        let found = self.entries.get(name).and_then(|entry| Some((entry, self.bytes.slice(entry.range.clone())?)));
        let message = || format!("tensor \"{name}\" is missing");
        found.ok_or_else(|| Error::Safetensors { path: self.path.clone(), message: message() })
    }

    /// A tensor, copied to memory; bf16 and f16 are converted to f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (entry, bytes) = self.entry(name)?;
        let tensor = Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.shape, &Device::Cpu)?;
        let half = matches!(entry.dtype, DType::BF16 | DType::F16);
        Ok(if half { tensor.to_dtype(DType::F32)? } else { tensor })
    }

    /// A weight: matrices stay memory-mapped, other tensors are copied.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let (entry, bytes) = self.entry(name)?;
        match (entry.shape.as_slice(), entry.dtype) {
            (&[rows, cols], DType::F32 | DType::BF16 | DType::F16) => {
                Ok(Weight::Mapped(MappedWeight::new(bytes, (rows, cols), entry.dtype)?))
            }
            _ => Ok(Weight::from(self.tensor(name)?)),
        }
    }
}

fn supported(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::U32 => DType::U32,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}

/// A JSON object without duplicate keys: with a duplicate tensor name, readers could disagree on the tensor.
struct DistinctNames;

impl<'de> Deserialize<'de> for DistinctNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for DistinctNames {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("duplicate tensor \"{name}\"")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and `data` zero bytes.
    fn open(header: &str, data: usize) -> Result<SafetensorsFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    #[test]
    fn an_inconsistent_header_is_rejected() {
        let one = |dtype: &str, shape: &str, from: u64, to: u64| {
            format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
        };
        let good = one("F32", "[2,3]", 0, 24);
        assert_eq!(open(&format!("{{{good}}}"), 24).unwrap().tensor("a").unwrap().dims(), [2, 3]);
        let overlap = good.replace("\"a\"", "\"b\"");
        for (what, entries, data) in [
            ("too long", one("F32", "[2,3]", 0, 24), 20),
            ("not covered", one("F32", "[2,3]", 0, 24), 28),
            ("a hole before it", one("F32", "[2,3]", 4, 28), 28),
            ("shape and size differ", one("F32", "[2,4]", 0, 24), 24),
            ("backwards", one("F32", "[2,3]", 24, 0), 24),
            ("sizes that overflow", one("F32", "[9223372036854775807,9223372036854775807,2]", 0, 24), 24),
            ("negative", one("F32", "[-2,3]", 0, 24), 24),
            ("unknown type", one("F31", "[2,3]", 0, 24), 24),
            ("a type without numbers here", one("I8", "[24]", 0, 24), 24),
            ("overlap", format!("{good},{overlap}"), 24),
            ("twice", format!("{good},{good}"), 24),
            ("no object", "1".to_owned(), 24),
        ] {
            let error = open(&format!("{{{entries}}}"), data).expect_err(what).to_string();
            assert!(error.contains("model.safetensors: not a valid safetensors file: "), "{what}: {error}");
        }
    }
}
