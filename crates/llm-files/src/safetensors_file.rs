//! Memory-mapped safetensors files: a JSON header with names, dtypes, shapes and offsets, then the data.
//!
//! The header is validated before use: the `safetensors` crate checks that the data ranges match shape and dtype, do not
//! overlap and cover the file; this module also rejects duplicate names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::{Bytes, Error};

/// A memory-mapped file with a validated header.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    tensors: BTreeMap<String, SafetensorsTensor>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct SafetensorsTensor {
    /// The dtype.
    pub dtype: Dtype,
    /// The row-major shape.
    pub shape: Vec<usize>,
    /// The data, memory-mapped.
    pub bytes: Bytes,
}

impl SafetensorsFile {
    /// Maps a file and validates its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = Bytes::open(path).map_err(Error::io(path))?;
        let broken = |message: String| Error::Safetensors { path: path.into(), message };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let start = 8 + header;
        serde_json::from_slice::<DistinctNames>(&bytes[8..start]).map_err(|e| broken(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let bytes = bytes.slice(range).ok_or_else(|| broken(format!("tensor \"{name}\" is outside the file")))?;
            tensors.insert(name, SafetensorsTensor { dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        Ok(Self { path: path.into(), tensors })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, SafetensorsTensor> {
        &self.tensors
    }

    /// An error for this file.
    pub fn broken(&self, message: impl Into<String>) -> Error {
        Error::Safetensors { path: self.path.clone(), message: message.into() }
    }
}

/// A JSON object without duplicate keys: with a duplicate tensor name, readers could disagree on the tensor.
struct DistinctNames;

impl<'de> Deserialize<'de> for DistinctNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for DistinctNames {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
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
    fn open(header: &str, data: usize) -> Result<SafetensorsFile, Error> {
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
        assert_eq!(open(&format!("{{{good}}}"), 24).unwrap().tensors()["a"].shape, [2, 3]);
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
            ("overlap", format!("{good},{overlap}"), 24),
            ("twice", format!("{good},{good}"), 24),
            ("no object", "1".to_owned(), 24),
        ] {
            let error = open(&format!("{{{entries}}}"), data).expect_err(what).to_string();
            assert!(error.contains("model.safetensors: not a valid safetensors file: "), "{what}: {error}");
        }
    }
}
