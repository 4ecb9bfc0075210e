//! The GGUF container: metadata, then names, shapes, types and offsets of the tensors, then their data.
//!
//! The reader of candle is not used: `general.alignment` 0 makes it divide by zero, an array takes 32 bytes of memory per
//! byte of the file, and duplicate tensor names are accepted. This reader checks every length against the rest of the
//! file before it allocates memory, and does not copy tensor data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{BlockFormat, Bytes, Error, WeightDtype};

/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Default alignment of the tensor data, in bytes.
pub(super) const ALIGNMENT: u64 = 32;

/// The value of a key. Integers of all widths have one variant, and so have floats.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A non-negative integer; written as u32 if it fits, else as u64.
    Unsigned(u64),
    /// A negative integer.
    Signed(i64),
    /// A float; written as f32.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of integers; written as i32.
    Integers(Vec<i64>),
    /// An array of floats; written as f32.
    Floats(Vec<f32>),
    /// An array of strings.
    Texts(Vec<String>),
}

/// The metadata of a file: values by key.
pub type Metadata = BTreeMap<String, Value>;

/// The dtypes with `ggml_type` and the `general.file_type` of a file that mostly has this dtype.
const DTYPES: [(WeightDtype, u32, u32); 14] = [
    (WeightDtype::F32, 0, 0),
    (WeightDtype::F16, 1, 1),
    (WeightDtype::Bf16, 30, 32),
    (WeightDtype::Quantized(BlockFormat::Q4_0), 2, 2),
    (WeightDtype::Quantized(BlockFormat::Q8_0), 8, 7),
    (WeightDtype::Quantized(BlockFormat::Q4_K), 12, 14),
    (WeightDtype::Quantized(BlockFormat::Q6_K), 14, 18),
    (WeightDtype::Quantized(BlockFormat::Q4_1), 3, 3),
    (WeightDtype::Quantized(BlockFormat::Q5_0), 6, 8),
    (WeightDtype::Quantized(BlockFormat::Q5_1), 7, 9),
    (WeightDtype::Quantized(BlockFormat::Q2_K), 10, 10),
    (WeightDtype::Quantized(BlockFormat::Q3_K), 11, 12),
    (WeightDtype::Quantized(BlockFormat::Q5_K), 13, 17),
    (WeightDtype::Quantized(BlockFormat::IQ4_NL), 20, 25),
];

/// The `ggml_type` number of a dtype.
pub(super) fn ggml_type(dtype: WeightDtype) -> u32 {
    DTYPES.iter().find(|(known, ..)| *known == dtype).map_or(0, |(_, number, _)| *number)
}

/// The `general.file_type` of a file whose matrices are mostly of this dtype.
pub fn file_type(dtype: WeightDtype) -> u32 {
    DTYPES.iter().find(|(known, ..)| *known == dtype).map_or(0, |(.., number)| *number)
}

/// A tensor of a file, with row-major shape (GGUF stores the dimensions in reverse order).
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// The dtype.
    pub dtype: WeightDtype,
    /// The row-major shape.
    pub shape: Vec<usize>,
    /// The data, memory-mapped.
    pub bytes: Bytes,
}

/// A memory-mapped GGUF file with a validated header.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    metadata: Metadata,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Maps a file and validates its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = Bytes::open(path).map_err(Error::io(path))?;
        Reader { bytes: &bytes, at: 0 }.file(path).map_err(|message| Error::Gguf { path: path.into(), message })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error for this file.
    pub fn broken(&self, message: impl Into<String>) -> Error {
        Error::Gguf { path: self.path.clone(), message: message.into() }
    }
}

/// A bounds-checked reader.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

type Read<T> = Result<T, String>;

/// Dtype, shape and offset of a tensor.
type TensorInfo = (WeightDtype, Vec<usize>, u64);

impl Reader<'_> {
    fn file(mut self, path: &Path) -> Read<GgufFile> {
        if self.take(4)? != MAGIC {
            return Err("it does not start with \"GGUF\"".to_owned());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} is not supported; supported: 2 and 3 (little-endian)"));
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        let mut metadata = Metadata::new();
        for _ in 0..keys {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|message| format!("\"{key}\": {message}"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("duplicate key \"{key}\""));
            }
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let name = self.text()?;
            let info = self.tensor_info().map_err(|message| format!("tensor \"{name}\": {message}"))?;
            infos.push((name, info));
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 16 => *n,
            Some(other) => {
                return Err(format!("\"general.alignment\" is {other:?}; expected a power of two up to 65536"));
            }
        };
        let start = (self.at as u64).next_multiple_of(alignment);
        let tensors = locate_tensors(self.bytes, start, alignment, infos)?;
        Ok(GgufFile { path: path.into(), metadata, tensors })
    }

    fn take(&mut self, count: usize) -> Read<&[u8]> {
        let left = self.bytes.len() - self.at;
        let part = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        self.at += count.min(left);
        part.ok_or_else(|| format!("unexpected end of file: {count} bytes needed, {left} left"))
    }

    fn number<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N)?);
        Ok(number)
    }

    fn u32(&mut self) -> Read<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.number().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Read<String> {
        let length = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        // Copy before the check: another process could change the mapped file after it.
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|e| format!("a string is not UTF-8: {e}"))
    }

    /// A value of the GGUF type `kind`.
    fn value(&mut self, kind: u32) -> Read<Value> {
        Ok(match kind {
            6 => Value::Float(from_f32(f32::from_le_bytes(self.number()?))),
            7 => match self.number::<1>()? {
                [bit @ (0 | 1)] => Value::Bool(bit == 1),
                [byte] => return Err(format!("{byte} is not a boolean")),
            },
            8 => Value::Text(self.text()?),
            9 => self.array()?,
            12 => Value::Float(f64::from_le_bytes(self.number()?)),
            10 => Value::Unsigned(self.u64()?),
            _ => match self.integer(kind)? {
                n @ 0.. => Value::Unsigned(n as u64),
                n => Value::Signed(n),
            },
        })
    }

    fn integer(&mut self, kind: u32) -> Read<i64> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.number()?).into(),
            1 => i8::from_le_bytes(self.number()?).into(),
            2 => u16::from_le_bytes(self.number()?).into(),
            3 => i16::from_le_bytes(self.number()?).into(),
            4 => u32::from_le_bytes(self.number()?).into(),
            5 => i32::from_le_bytes(self.number()?).into(),
            7 => i64::from(self.number::<1>()?[0] != 0),
            11 => i64::from_le_bytes(self.number()?),
            10 => i64::try_from(self.u64()?).map_err(|e| e.to_string())?,
            _ => return Err(format!("unknown value type {kind}")),
        })
    }

    fn array(&mut self) -> Read<Value> {
        let (kind, count) = (self.u32()?, self.u64()?);
        // Minimum bytes per element, to check the length before memory is allocated.
        let element_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(format!("unknown array type {kind}")),
        };
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(count).ok().filter(|count| *count <= left / element_bytes);
        let count = count.ok_or_else(|| format!("an array is longer than the remaining {left} bytes"))?;
        Ok(match kind {
            6 => Value::Floats(self.list(count, |file| file.number().map(f32::from_le_bytes))?),
            8 => Value::Texts(self.list(count, Self::text)?),
            12 => Value::Floats(self.list(count, |file| Ok(f64::from_le_bytes(file.number()?) as f32))?),
            _ => Value::Integers(self.list(count, |file| file.integer(kind))?),
        })
    }

    /// `count` elements; the caller has checked `count` against the size of the file.
    fn list<T>(&mut self, count: usize, mut read: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(read(self)?);
        }
        Ok(all)
    }

    fn tensor_info(&mut self) -> Read<TensorInfo> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("it has {rank} dimensions; expected 1 to 4"));
        }
        let sizes: Read<Vec<u64>> = (0..rank).map(|_| self.u64()).collect();
        let shape: Vec<usize> = sizes?.into_iter().rev().map(|n| n as usize).collect();
        let number = self.u32()?;
        let Some((dtype, ..)) = DTYPES.into_iter().find(|(_, n, _)| *n == number) else {
            let known = DTYPES.map(|(dtype, ..)| dtype.name()).join(", ");
            return Err(format!("ggml type {number} is not supported; supported: {known}"));
        };
        Ok((dtype, shape, self.u64()?))
    }
}

/// Slices the tensor data of each info. Tensors must be aligned, inside the file and must not overlap.
fn locate_tensors(
    bytes: &Bytes,
    start: u64,
    alignment: u64,
    infos: Vec<(String, TensorInfo)>,
) -> Read<BTreeMap<String, GgufTensor>> {
    let (mut tensors, mut ranges) = (BTreeMap::new(), Vec::new());
    for (name, (dtype, shape, offset)) in infos {
        let row = shape.last().and_then(|row| dtype.row_bytes(*row));
        let size = shape.iter().rev().skip(1).try_fold(row.unwrap_or(0), |size, n| size.checked_mul(*n));
        let (Some(_), Some(size)) = (row, size) else {
            return Err(format!("tensor \"{name}\": shape {shape:?} is not valid for type {dtype}"));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor \"{name}\": offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let from = start.checked_add(offset).and_then(|from| usize::try_from(from).ok());
        let part = from.and_then(|from| bytes.slice(from..from.checked_add(size)?));
        let (Some(from), Some(part)) = (from, part) else {
            return Err(format!("tensor \"{name}\": its {size} bytes extend past the end of the file"));
        };
        ranges.push((from, from + size, name.clone()));
        if tensors.insert(name.clone(), GgufTensor { dtype, shape, bytes: part }).is_some() {
            return Err(format!("duplicate tensor \"{name}\""));
        }
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("tensors \"{}\" and \"{}\" overlap", pair[0].2, pair[1].2)),
        None => Ok(tensors),
    }
}

/// The f64 with the same shortest decimal text: the f32 1e-5 becomes 1e-5, not 9.99999975e-6.
fn from_f32(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}
