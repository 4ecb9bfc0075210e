//! Tensors and weights of safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llm_files::{SafetensorsFile, SafetensorsTensor};
use llm_kernels::MappedWeight;
use safetensors::Dtype;

use crate::weight::Weight;
use crate::{Error, Result};

/// Reads all tensors of a safetensors file; bf16 and f16 are converted to f32.
pub fn read_safetensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, Tensor>> {
    let path = path.as_ref();
    let file = open(path)?;
    file.tensors().iter().map(|(name, entry)| Ok((name.clone(), tensor(entry)?))).collect()
}

/// Writes named tensors, on any device, as a safetensors file; the same tensors give the same bytes.
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let path = path.as_ref();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let on_cpu = |(name, tensor): (_, &Tensor)| Ok((name, tensor.to_device(&Device::Cpu)?));
    let tensors = tensors.iter().map(on_cpu).collect::<Result<Vec<(&String, Tensor)>>>()?;
    let bytes = safetensors::serialize(tensors.iter().map(|(name, t)| (name.as_str(), t)), Some(metadata))
        .map_err(|e| Error::Safetensors { path: path.into(), message: e.to_string() })?;
    llm_files::write_atomic(path, |out| out.write_all(&bytes)).map_err(Error::io(path))
}

/// Maps a file and checks that this program has its dtypes.
pub(crate) fn open(path: &Path) -> Result<SafetensorsFile> {
    let file = SafetensorsFile::open(path)?;
    for (name, SafetensorsTensor { dtype, .. }) in file.tensors() {
        if supported(*dtype).is_none() {
            let supported = "F64, F32, F16, BF16, I64, U32, U8";
            return Err(file.broken(format!("tensor \"{name}\" has dtype {dtype:?}; supported: {supported}")).into());
        }
    }
    Ok(file)
}

/// A tensor in memory; bf16 and f16 are converted to f32.
pub(crate) fn tensor(entry: &SafetensorsTensor) -> Result<Tensor> {
    let dtype = supported(entry.dtype).unwrap_or(DType::U8);
    let tensor = Tensor::from_raw_buffer(&entry.bytes, dtype, &entry.shape, &Device::Cpu)?;
    let half = matches!(dtype, DType::BF16 | DType::F16);
    Ok(if half { tensor.to_dtype(DType::F32)? } else { tensor })
}

/// A weight: matrices stay memory-mapped, other tensors are copied.
pub(crate) fn weight(entry: &SafetensorsTensor) -> Result<Weight> {
    match (entry.shape.as_slice(), supported(entry.dtype)) {
        (&[rows, cols], Some(dtype @ (DType::F32 | DType::BF16 | DType::F16))) => {
            Ok(Weight::Mapped(MappedWeight::new(entry.bytes.clone(), (rows, cols), dtype)?))
        }
        _ => Ok(Weight::from(tensor(entry)?)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_dtype_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let header = r#"{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
        std::fs::write(&path, bytes).unwrap();
        let error = read_safetensors(&path).unwrap_err().to_string();
        assert!(error.contains("not a valid safetensors file: tensor \"a\" has dtype I8; supported: F64"), "{error}");
    }
}
