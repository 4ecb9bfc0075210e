//! Model folders of Hugging Face: `config.json`, `generation_config.json`, `model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llm_files::gguf::GgufFile;
use llm_files::{SafetensorsFile, SafetensorsTensor, WeightDtype};
use serde::Deserialize;
use serde_json::Value;

use super::families::{self, ParsedConfig};
use super::generation::{self, GenerationConfig, ids_json};
use super::gguf::is_gguf;
use super::json::{parse_json, read_json, write_json};
use super::safetensors::{self, write_safetensors};
use super::tensors;
use crate::weight::Weight;
use crate::{Error, Head, Model, Params, Result};

impl Model {
    /// Loads the frozen model of a Hugging Face folder or a `.gguf` file into memory, in f32.
    #[tracing::instrument(level = "debug", skip_all, fields(path = %dir.as_ref().display()))]
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        if is_gguf(&dir) {
            return Self::from_gguf(&GgufFile::open(dir)?)?.frozen_as(WeightDtype::F32);
        }
        read(dir.as_ref(), |entry| safetensors::tensor(entry).map(Weight::from))
    }

    /// Opens the frozen model of a Hugging Face folder or a `.gguf` file with memory-mapped matrices in the precision of the
    /// file. Pages are read on first use; matrices are not copied.
    #[tracing::instrument(level = "debug", skip_all, fields(path = %path.as_ref().display()))]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if is_gguf(path) { Self::from_gguf(&GgufFile::open(path)?) } else { read(path, safetensors::weight) }
    }

    /// A frozen model with random weights and the configuration of a `config.json`, for benchmarks.
    pub fn random(config: impl AsRef<Path>, seed: u64) -> Result<Self> {
        let config = config.as_ref();
        let ParsedConfig { config, head, .. } = read_config(config)?;
        let params = Params::init(&config, head, seed)?;
        Self::new(config, head, params)
    }

    /// Saves `config.json`, `generation_config.json` and `model.safetensors` to `dir`, which is created if needed.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        save(self, dir.as_ref())
    }

    /// Writes `generation_config.json` to `dir`, which names the tokens that end a generation: for the folder of an adapter.
    pub fn save_generation(&self, dir: impl AsRef<Path>) -> Result<()> {
        let json = self.generation().to_json(self.config(), &self.eos_token_ids());
        write_json(&dir.as_ref().join(generation::FILE), &json)
    }

    /// The `config.json` of this model: the original one if it still describes the model, else a new one.
    fn config_json(&self) -> Result<Value> {
        let read = families::from_json(&Value::Object(self.raw_config.clone()), "config.json");
        let mut json = match read {
            Ok(read) if read.config == *self.config() && read.head == self.head() => {
                Value::Object(self.raw_config.clone())
            }
            _ => {
                let mut json = families::to_json(self.config(), self.head())?;
                json["eos_token_id"] = ids_json(&self.eos_token_ids());
                json
            }
        };
        let dtype = self.params().get("model.embed_tokens.weight")?.dtype();
        let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        json[key] = Value::from(match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        });
        if let Value::Object(map) = &mut json {
            map.extend(self.extra.clone());
        }
        Ok(json)
    }
}

fn save(model: &Model, dir: &Path) -> Result<()> {
    if !model.params().adapters().is_empty() {
        let dir = dir.display();
        return Err(Error::Input(format!(
            "{dir}: an adapter is active; save it with `save_adapter` or merge it first"
        )));
    }
    let mut tensors = BTreeMap::new();
    for (name, weight) in model.params().iter() {
        let tensor = match weight {
            Weight::Trainable(var) => var.as_tensor().clone(),
            Weight::Dense(tensor) => tensor.clone(),
            Weight::Mapped(w) => {
                Tensor::from_raw_buffer(w.bytes(), w.dtype(), &[w.shape().0, w.shape().1], &Device::Cpu)?
            }
            Weight::Quantized(_) => {
                let dir = dir.display();
                return Err(Error::Input(format!(
                    "{dir}: \"{name}\" is quantised, which a Hugging Face folder does not support; save the model in f32 or bf16"
                )));
            }
        };
        tensors.insert(name.to_owned(), tensor);
    }
    let tensors = tensors::to_files(&tensors, model.config(), model.head())?;
    write_safetensors(&dir.join("model.safetensors"), &tensors)?;
    write_json(&dir.join("config.json"), &model.config_json()?)?;
    if model.head() == Head::LanguageModel {
        model.save_generation(dir)?;
    }
    Ok(())
}

/// Reads a `config.json`, given its path or its folder. No weights are read.
pub fn read_config(path: impl AsRef<Path>) -> Result<ParsedConfig> {
    let path = path.as_ref();
    if path.join("adapter_config.json").exists() && !path.join("config.json").exists() {
        let message = "this folder is an adapter, not a model; merge it into its base model with `llm-infer merge` and use the result";
        return Err(Error::config(path.display().to_string(), message));
    }
    if path.is_dir() && !path.join("config.json").exists() {
        return Err(Error::config(path.display().to_string(), no_config(path)));
    }
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    families::from_json(&read_json(&path)?, &path.display().to_string())
}

/// What is wrong with a folder without `config.json`. A run of several stages has models in the folders below.
fn no_config(dir: &Path) -> String {
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let models = below.filter(|entry| entry.path().join("config.json").exists());
    let mut names: Vec<_> = models.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.is_empty() {
        true => {
            "no config.json; a model is a folder with config.json and model.safetensors, or a .gguf file".to_owned()
        }
        false => format!("no config.json; choose a model in this folder: {}", names.join(", ")),
    }
}

fn read(dir: &Path, weight: impl Fn(&SafetensorsTensor) -> Result<Weight>) -> Result<Model> {
    if !dir.is_dir() {
        let hint = llm_files::hub_hint(dir);
        let message = format!(
            "no such folder; a model is a folder with config.json and model.safetensors, or a .gguf file{hint}"
        );
        return Err(Error::config(dir.display().to_string(), message));
    }
    let ParsedConfig { config, head, raw_config, extra, warnings } = read_config(dir)?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", dir.join("config.json").display());
    }
    let origin = dir.join("model.safetensors").display().to_string();
    let files = weight_files(dir)?;
    let found: usize = files.iter().map(|file| file.tensors().len()).sum();
    config.check_count(found, &origin)?;
    let mut matrices = BTreeMap::new();
    for file in &files {
        for (name, entry) in file.tensors() {
            matrices.insert(name.clone(), weight(entry)?);
        }
    }
    let params = tensors::from_files(matrices, &config, head, &origin)?;
    let generation = GenerationConfig::read(dir, &raw_config, config.vocab_size)?;
    Ok(Model::new(config, head, params)?.with_raw_config(raw_config, extra).with_generation(generation))
}

/// The index of a sharded model. Its size is not limited as that of other JSON files, because it lists all tensors.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// `model.safetensors`, or the shards listed in `model.safetensors.index.json`. The tensors of each shard must match it.
fn weight_files(dir: &Path) -> Result<Vec<SafetensorsFile>> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![safetensors::open(&dir.join("model.safetensors"))?]);
    }
    let origin = index.display().to_string();
    let Index { weight_map } = parse_json(&index)?;
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        if shard.contains(['/', '\\']) || shard == ".." {
            return Err(Error::config(origin, format!("\"{shard}\" is not a file name in this folder")));
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for (shard, expected) in shards {
        let file = safetensors::open(&dir.join(shard))?;
        let found: BTreeSet<&str> = file.tensors().keys().map(String::as_str).collect();
        let missing = expected.difference(&found);
        problems.extend(missing.map(|name| format!("{shard} lacks the tensor \"{name}\"")));
        let extra = found.difference(&expected);
        problems
            .extend(extra.map(|name| format!("{shard} has a tensor \"{name}\" that the index does not list for it")));
        files.push(file);
    }
    if problems.is_empty() { Ok(files) } else { Err(Error::Tensors { origin, problems }) }
}
