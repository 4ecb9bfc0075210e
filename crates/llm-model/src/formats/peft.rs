//! Adapter files in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

mod config;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use self::config::{config_json, read_config};
use super::families;
use super::json::{read_json, write_json};
use super::safetensors::{read_safetensors, write_safetensors};
use crate::lora::{Adapter, Layout, OUTPUT, TargetKind};
use crate::weight::Weight;
use crate::{Error, Head, Model, ModelConfig, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// The prefix that PEFT adds to the names of transformers.
const PREFIX: &str = "base_model.model.";

/// Reads the adapter in `dir` for a model. Missing, unexpected or misshapen tensors and unsupported settings are errors.
pub(crate) fn load(dir: &Path, model: &Model) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    if !dir.is_dir() {
        let message = format!("no such folder; an adapter is a folder with {CONFIG} and {TENSORS}");
        return Err(Error::config(dir.display().to_string(), message));
    }
    let origin = path.display().to_string();
    let config = read_config(&read_json(&path)?, model.config(), model.head(), &origin)?;
    let layout = Layout::new(&config, model.config(), model.head(), &origin)?;
    let path = dir.join(TENSORS);
    let mut files = Files { found: read_safetensors(&path)?, problems: Vec::new() };
    if model.head() != Head::LanguageModel {
        // An adapter of a language model can have an output layer, which this model does not have.
        let output = format!("{PREFIX}{}.", families::location(model.config(), Head::LanguageModel, OUTPUT).0);
        files.found.retain(|name, _| !name.starts_with(&output));
    }
    let mut weights = BTreeMap::new();
    for (name, shape) in Adapter::tensors(&layout, &config, model.config().hidden_size) {
        if let Some(tensor) = files.take(&name, &shape)? {
            weights.insert(name, Weight::Dense(tensor));
        }
    }
    for saved in &layout.saved {
        let Some(same_as) = &saved.same_as else { continue };
        let Some(tensor) = files.take(&saved.key, &saved.shape)? else { continue };
        if weights.get(same_as).and_then(Weight::tensor).is_some_and(|other| !near(&tensor, other, 0.).unwrap_or(false))
        {
            files.problems.push(format!("\"{}\" and \"{same_as}\" differ; \"ensure_weight_tying\" is true", saved.key));
        }
    }
    for target in layout.targets.iter().filter(|target| !matches!(target.kind, TargetKind::Experts(_))) {
        // PEFT also writes the unchanged weights of an adapted embedding.
        let name = format!("{PREFIX}{}.base_layer.weight", target.name);
        let (Some(tensor), [part]) = (files.found.remove(&name), target.parts.as_slice()) else { continue };
        let weight = match model.params().get(&format!("{}.weight", part.name)) {
            Ok(weight) => weight,
            Err(_) => model.params().tied_output()?,
        };
        // The model can be rounded to bf16 or quantised.
        if !near(&tensor, &weight.to_dense()?, 0.1)? {
            files.problems.push(format!(
                "\"{name}\" is not the weight of this model; use the model that the adapter was trained on"
            ));
        }
    }
    let Files { found, mut problems } = files;
    problems
        .extend(found.keys().map(|name| format!("tensor \"{name}\" is not part of an adapted module of this model")));
    if problems.is_empty() {
        Ok(Adapter { config, layout: Arc::new(layout), weights })
    } else {
        Err(Error::Tensors { origin: path.display().to_string(), problems })
    }
}

/// The tensors of a file that are not used yet, and what is wrong with the others.
struct Files {
    found: BTreeMap<String, Tensor>,
    problems: Vec<String>,
}

impl Files {
    /// The tensor of this name, without prefix, in f32; a problem if it is missing or does not have this shape.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let name = format!("{PREFIX}{name}");
        let Some(tensor) = self.found.remove(&name) else {
            self.problems.push(format!("tensor \"{name}\" {shape:?} is missing"));
            return Ok(None);
        };
        if tensor.dims() != shape {
            let found = tensor.dims();
            self.problems.push(format!("tensor \"{name}\" has shape {found:?}; {CONFIG} and the model say {shape:?}"));
        } else if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
            self.problems.push(format!("tensor \"{name}\" is {:?}; expected a floating-point dtype", tensor.dtype()));
        } else {
            return Ok(Some(tensor.to_dtype(DType::F32)?));
        }
        Ok(None)
    }
}

/// Whether the tensors have one shape, and the norm of their difference is at most `share` of the norm of `b`.
fn near(a: &Tensor, b: &Tensor, share: f64) -> Result<bool> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    let norm = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
    let b = b.detach().to_dtype(DType::F32)?;
    Ok(norm(&(a.to_device(b.device())?.to_dtype(DType::F32)? - &b)?)? <= share * norm(&b)?)
}

/// Writes an adapter; `base` is the folder or name of the base model for PEFT.
pub(crate) fn save(adapter: &Adapter, dir: &Path, base: &str, model: &ModelConfig, head: Head) -> Result<()> {
    let Adapter { config, layout, weights } = adapter;
    let mut tensors = BTreeMap::new();
    for (name, weight) in weights {
        tensors.insert(format!("{PREFIX}{name}"), weight.to_dense()?);
    }
    for saved in &layout.saved {
        if let Some(weight) = saved.same_as.as_ref().and_then(|key| weights.get(key)) {
            tensors.insert(format!("{PREFIX}{}", saved.key), weight.to_dense()?);
        }
    }
    write_safetensors(&dir.join(TENSORS), &tensors)?;
    write_json(&dir.join(CONFIG), &config_json(config, base, model, head))
}
