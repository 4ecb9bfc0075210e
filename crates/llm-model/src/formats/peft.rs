//! Adapter files in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::hf::{read_json, write_json};
use super::safetensors::{read_safetensors, write_safetensors};
use crate::lora::{Adapter, LoraConfig, TokenTarget};
use crate::weight::Weight;
use crate::{Error, Head, ModelConfig, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// The prefix that PEFT adds to the names of transformers.
const PREFIX: &str = "base_model.model.";

/// Keys that do not change the result of a loaded adapter.
const IGNORED_KEYS: [&str; 8] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// Reads the adapter in `dir` for a model. Missing, unexpected or misshapen tensors and unsupported settings are errors.
pub(crate) fn load(dir: &Path, model: &ModelConfig, head: Head) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    if !dir.is_dir() {
        let message = format!("no such folder; an adapter is a folder with {CONFIG} and {TENSORS}");
        return Err(Error::config(dir.display().to_string(), message));
    }
    let origin = path.display().to_string();
    let config = read_config(&read_json(&path)?, &origin)?;
    let path = dir.join(TENSORS);
    let mut found = read_safetensors(&path)?;
    let (mut weights, mut problems) = (BTreeMap::new(), Vec::new());
    for Part { ours, theirs, shape } in parts(&config, model, head, &origin)? {
        let name = format!("{PREFIX}{theirs}");
        let Some(tensor) = found.remove(&name) else {
            problems.push(format!("tensor \"{name}\" {shape:?} is missing"));
            continue;
        };
        if tensor.dims() != shape {
            let found = tensor.dims();
            problems.push(format!("tensor \"{name}\" has shape {found:?}; {CONFIG} and the model say {shape:?}"));
        } else if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
            problems.push(format!("tensor \"{name}\" is {:?}; expected a floating-point dtype", tensor.dtype()));
        } else {
            weights.insert(ours, Weight::Dense(tensor.to_dtype(DType::F32)?));
        }
    }
    problems
        .extend(found.keys().map(|name| format!("tensor \"{name}\" is not part of an adapted module of this model")));
    if problems.is_empty() {
        Ok(Adapter { config, weights })
    } else {
        Err(Error::Tensors { origin: path.display().to_string(), problems })
    }
}

/// A tensor of an adapter.
struct Part {
    /// The name in [`Adapter::weights`].
    ours: String,
    /// The name in PEFT's file, without [`PREFIX`].
    theirs: String,
    shape: Vec<usize>,
}

/// The tensors of an adapter with this configuration for a model.
fn parts(config: &LoraConfig, model: &ModelConfig, head: Head, origin: &str) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for target in config.targets(model, head, origin)? {
        let part = |(part, shape)| Part {
            ours: format!("{}.{part}", target.name),
            theirs: format!("{}.{part}", target.module),
            shape,
        };
        parts.extend(target.shapes(config).into_iter().map(part));
    }
    for target in config.token_targets(model, origin)? {
        let [ours, theirs] = [&target.name, &target.module].map(|name| TokenTarget::tensor(name));
        parts.push(Part { ours, theirs, shape: vec![target.ids.len(), model.hidden_size] });
    }
    Ok(parts)
}

/// Writes an adapter; `base` is the folder or name of the base model for PEFT.
pub(crate) fn save(adapter: &Adapter, dir: &Path, base: &str, model: &ModelConfig, head: Head) -> Result<()> {
    let config = &adapter.config;
    let parts = parts(config, model, head, "adapter configuration")?;
    let tensor = |part: Part| Ok((format!("{PREFIX}{}", part.theirs), adapter.weights[&part.ours].to_dense()?));
    let tensors = parts.into_iter().map(tensor).collect::<Result<BTreeMap<_, _>>>()?;
    write_safetensors(&dir.join(TENSORS), &tensors)?;
    write_json(&dir.join(CONFIG), &config_json(config, base))
}

fn config_json(config: &LoraConfig, base: &str) -> Value {
    let LoraConfig { r, lora_alpha, target_modules, use_rslora, use_dora, trainable_token_indices } = config;
    let whole = lora_alpha.fract() == 0. && lora_alpha.abs() < 1e9;
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": if whole { json!(*lora_alpha as i64) } else { json!(lora_alpha) },
        "target_modules": target_modules,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "trainable_token_indices": trainable_token_indices,
        "inference_mode": true,
    })
}

/// Reads an `adapter_config.json`; errors name `origin`.
fn read_config(json: &Value, origin: &str) -> Result<LoraConfig> {
    let Some(map) = json.as_object() else {
        return Err(Error::config(origin, "the file is not a JSON object"));
    };
    let wrong = |key: &str, supported: &str| {
        let value = map.get(key).unwrap_or(&Value::Null);
        Err(Error::config(origin, format!("\"{key}\" is {value}; it must be {supported}")))
    };
    let mut ours = Map::new();
    for (key, value) in map {
        match (key.as_str(), value) {
            ("r" | "lora_alpha" | "target_modules" | "use_rslora" | "use_dora" | "trainable_token_indices", _) => {
                let ours_too = json!({key: value});
                if serde_json::from_value::<LoraConfig>(ours_too).is_err() {
                    let supported = match key.as_str() {
                        "r" => "an integer",
                        "lora_alpha" => "a number",
                        "target_modules" => "a list of names",
                        "trainable_token_indices" => {
                            "null, a list of token ids, or an object of such lists by module name"
                        }
                        _ => "true or false",
                    };
                    return wrong(key, supported);
                }
                ours.insert(key.clone(), value.clone());
            }
            ("peft_type", Value::String(kind)) if kind == "LORA" => {}
            ("peft_type", _) => return wrong(key, "\"LORA\""),
            ("task_type", Value::String(task)) if task == "CAUSAL_LM" => {}
            ("task_type", Value::Null) => {}
            ("task_type", _) => return wrong(key, "\"CAUSAL_LM\""),
            // Dropout applies to training only, and a loaded adapter is frozen.
            ("lora_dropout", value) if value.as_f64().is_some_and(|share| (0. ..1.).contains(&share)) => {}
            ("lora_dropout", _) => return wrong(key, "at least 0 and less than 1"),
            ("bias", Value::String(bias)) if bias == "none" => {}
            ("bias", _) => return wrong(key, "\"none\""),
            // The other initialisations change the base weights.
            ("init_lora_weights", Value::String(kind)) if kind != "gaussian" => {
                return wrong(key, "true, false or \"gaussian\" (the others change the base weights)");
            }
            (key, _) if IGNORED_KEYS.contains(&key) => {}
            (_, Value::Null | Value::Bool(false)) => {}
            (_, Value::Array(items)) if items.is_empty() => {}
            (_, Value::Object(items)) if items.is_empty() => {}
            (key, _) => return wrong(key, "absent (this key is not supported)"),
        }
    }
    for key in ["peft_type", "r", "lora_alpha", "target_modules"] {
        if !map.contains_key(key) {
            return Err(Error::config(origin, format!("\"{key}\" is missing")));
        }
    }
    serde_json::from_value(Value::Object(ours)).map_err(|e| Error::config(origin, e.to_string()))
}
