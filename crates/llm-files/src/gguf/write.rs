//! Writing a GGUF file: the header, then the tensors.

use std::io::{BufWriter, Write};
use std::path::Path;

use super::read::{ALIGNMENT, MAGIC, Metadata, Value, ggml_type};
use crate::{Bytes, Error, WeightDtype};

/// A tensor to write; its data is computed when it is written.
pub struct PendingTensor<'a, E> {
    /// The name.
    pub name: String,
    /// The dtype.
    pub dtype: WeightDtype,
    /// The row-major shape.
    pub shape: Vec<usize>,
    /// Computes the data.
    pub bytes: Box<dyn FnOnce() -> Result<Bytes, E> + 'a>,
}

/// Writes a file under a temporary name, one tensor at a time, then renames it; `path` must not exist.
pub fn write<E: From<Error>>(path: &Path, metadata: &Metadata, tensors: Vec<PendingTensor<E>>) -> Result<(), E> {
    let file = crate::temp_file(path).map_err(Error::io(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file());
    let io = || Error::io(path);
    let header = header(path, metadata, &tensors)?;
    out.write_all(&header).map_err(io())?;
    for tensor in tensors {
        let bytes = (tensor.bytes)()?;
        debug_assert_eq!(Some(bytes.len()), size(tensor.dtype, &tensor.shape));
        let padding = bytes.len().next_multiple_of(ALIGNMENT as usize) - bytes.len();
        out.write_all(&bytes).and_then(|()| out.write_all(&[0; ALIGNMENT as usize][..padding])).map_err(io())?;
    }
    out.flush().map_err(io())?;
    drop(out);
    file.as_file().sync_all().map_err(io())?;
    file.persist_noclobber(path).map_err(|e| io()(e.error))?;
    Ok(())
}

fn size(dtype: WeightDtype, shape: &[usize]) -> Option<usize> {
    let row = dtype.row_bytes(*shape.last()?)?;
    shape.iter().rev().skip(1).try_fold(row, |size, n| size.checked_mul(*n))
}

fn header<E>(path: &Path, metadata: &Metadata, tensors: &[PendingTensor<E>]) -> Result<Vec<u8>, Error> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(ggml_type(tensor.dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        let size = size(tensor.dtype, &tensor.shape).ok_or_else(|| {
            let PendingTensor { name, shape, dtype, .. } = tensor;
            let message = format!("tensor \"{name}\": shape {shape:?} is not valid for type {dtype}");
            Error::Gguf { path: path.into(), message }
        })?;
        offset += (size as u64).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let array = |out: &mut Vec<u8>, of: u32, count: usize| {
        kind(out, 9);
        kind(out, of);
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => [4, n].into_iter().for_each(|n| out.extend(n.to_le_bytes())),
            Err(_) => {
                kind(out, 10);
                out.extend(n.to_le_bytes());
            }
        },
        Value::Signed(n) => {
            kind(out, 11);
            out.extend(n.to_le_bytes());
        }
        Value::Float(x) => {
            kind(out, 6);
            out.extend((*x as f32).to_le_bytes());
        }
        Value::Bool(yes) => {
            kind(out, 7);
            out.push(u8::from(*yes));
        }
        Value::Text(text) => {
            kind(out, 8);
            put_text(out, text);
        }
        Value::Integers(all) => {
            array(out, 5, all.len());
            all.iter().for_each(|n| out.extend((*n as i32).to_le_bytes()));
        }
        Value::Floats(all) => {
            array(out, 6, all.len());
            all.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Texts(all) => {
            array(out, 8, all.len());
            all.iter().for_each(|text| put_text(out, text));
        }
    }
}
