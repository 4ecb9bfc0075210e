//! The Hugging Face folder of a model: `config.json`, `generation_config.json`, `model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::families::{self, Described};
use crate::{Error, Head, Model, Params, Result};

/// Writes `bytes` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io(dir))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io(path))?;
    file.persist(path).map_err(|e| Error::Io { path: path.into(), source: e.error })?;
    Ok(())
}

/// Writes named tensors as a safetensors file; the same tensors give the same bytes.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors.iter().map(|(name, t)| (name.as_str(), t)), Some(metadata))
        .map_err(|e| Error::Safetensors { path: path.into(), message: e.to_string() })?;
    write_atomic(path, &bytes)
}

/// Reads every tensor of a safetensors file; half precisions become f32.
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let broken = |message: String| Error::Safetensors { path: path.into(), message };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let dtype = DType::try_from(view.dtype()).map_err(|_| broken(format!("\"{name}\" is {:?}", view.dtype())))?;
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        let half = matches!(dtype, DType::BF16 | DType::F16);
        tensors.insert(name.to_owned(), if half { tensor.to_dtype(DType::F32)? } else { tensor });
    }
    Ok(tensors)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.into(), source })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json { path: path.into(), source })?;
    write_atomic(path, format!("{text}\n").as_bytes())
}

pub(crate) fn save(model: &Model, dir: &Path) -> Result<()> {
    if let Some(name) = model.params().quantized().keys().next() {
        let dir = dir.display();
        return Err(Error::Input(format!(
            "{dir}: \"{name}\" is held in blocks, which a Hugging Face folder has not; save the model in f32 or bf16"
        )));
    }
    let tensors = families::to_files(model.params().tensors(), model.config(), model.head())?;
    write_safetensors(&dir.join("model.safetensors"), &tensors)?;
    write_json(&dir.join("config.json"), &model.config_json()?)?;
    if model.head() == Head::LanguageModel {
        let config = model.config();
        let generation = json!({
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        });
        write_json(&dir.join("generation_config.json"), &generation)?;
    }
    Ok(())
}

/// What a `config.json`, or that of a folder, says of its model; no weights are read.
pub fn read_config(path: &Path) -> Result<Described> {
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    families::from_json(&read_json(&path)?, &path.display().to_string())
}

pub(crate) fn load(dir: &Path) -> Result<Model> {
    if !dir.is_dir() {
        let message = "no such folder; a model is a folder with config.json and model.safetensors";
        return Err(Error::config(dir.display().to_string(), message));
    }
    let Described { config, head, spelled, extra } = read_config(dir)?;
    let mut tensors = BTreeMap::new();
    for file in weight_files(dir)? {
        tensors.extend(read_safetensors(&file)?);
    }
    let origin = dir.join("model.safetensors").display().to_string();
    let params = Params::new(families::from_files(tensors, &config, head, &origin)?);
    Ok(Model::new(config, head, params)?.described_by(spelled, extra))
}

pub(crate) fn random(path: &Path, seed: u64) -> Result<Model> {
    let Described { config, head, .. } = read_config(path)?;
    let params = Params::init(&config, head, seed)?;
    Model::new(config, head, params)
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    let json = read_json(&index)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::config(index.display().to_string(), "\"weight_map\" is missing"));
    };
    let mut files: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    files.sort_unstable();
    files.dedup();
    if let Some(bad) = files.iter().find(|name| name.contains(['/', '\\'])) {
        return Err(Error::config(index.display().to_string(), format!("\"{bad}\" is not a file of this folder")));
    }
    Ok(files.into_iter().map(|name| dir.join(name)).collect())
}
