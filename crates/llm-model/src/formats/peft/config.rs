//! `adapter_config.json`: the configuration of an adapter in the format of PEFT.

use serde_json::{Map, Value, json};

use crate::{Error, Head, LoraConfig, ModelConfig, ModelType, Result};

/// Keys that do not change the result of a loaded adapter.
const IGNORED_KEYS: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    // Follows from the class of the layer.
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// The keys of [`LoraConfig`], and what they must be.
const OUR_KEYS: [(&str, &str); 12] = [
    ("r", "an integer"),
    ("lora_alpha", "a number"),
    ("target_modules", "a list of names, or \"all-linear\""),
    ("target_parameters", "null, or a list of names"),
    ("rank_pattern", "an object of integers by module name"),
    ("alpha_pattern", "an object of numbers by module name"),
    ("lora_dropout", "a number of at least 0 and less than 1"),
    ("use_rslora", "true or false"),
    ("use_dora", "true or false"),
    ("modules_to_save", "null, or a list of names"),
    ("ensure_weight_tying", "true or false"),
    ("trainable_token_indices", "null, a list of token ids, or an object of such lists by module name"),
];

/// The `task_type` of a head.
fn task_of(head: Head) -> &'static str {
    match head {
        Head::LanguageModel => "CAUSAL_LM",
        Head::Sequence | Head::Scores(_) => "SEQ_CLS",
        Head::Token => "TOKEN_CLS",
    }
}

/// The `adapter_config.json` of an adapter; `base` is the folder or name of the base model.
pub(super) fn config_json(config: &LoraConfig, base: &str, model: &ModelConfig, head: Head) -> Value {
    let whole = |alpha: f64| match alpha.fract() == 0. && alpha.abs() < 1e9 {
        true => json!(alpha as i64),
        false => json!(alpha),
    };
    let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
    let alphas: Map<String, Value> = config.alpha_pattern.iter().map(|(name, &a)| (name.clone(), whole(a))).collect();
    json!({
        "peft_type": "LORA",
        "task_type": task_of(head),
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": whole(config.lora_alpha),
        "target_modules": config.target_modules,
        "target_parameters": list(&config.target_parameters),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": alphas,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        // The files of GPT-2 store matrices as (in, out).
        "fan_in_fan_out": model.model_type == ModelType::Gpt2,
        "modules_to_save": list(&config.modules_to_save),
        "ensure_weight_tying": config.ensure_weight_tying,
        "trainable_token_indices": config.trainable_token_indices,
        "inference_mode": true,
    })
}

/// Reads an `adapter_config.json` for a model; errors name `origin`.
pub(super) fn read_config(json: &Value, model: &ModelConfig, head: Head, origin: &str) -> Result<LoraConfig> {
    let Some(map) = json.as_object() else {
        return Err(Error::config(origin, "the file is not a JSON object"));
    };
    let wrong = |key: &str, supported: &str| {
        let value = map.get(key).unwrap_or(&Value::Null);
        Err(Error::config(origin, format!("\"{key}\" is {value}; it must be {supported}")))
    };
    let task = task_of(head);
    let mut ours = Map::new();
    for (key, value) in map {
        if let Some((_, supported)) = OUR_KEYS.iter().find(|(known, _)| known == key) {
            if serde_json::from_value::<LoraConfig>(json!({key: value})).is_err() {
                return wrong(key, supported);
            }
            ours.insert(key.clone(), value.clone());
            continue;
        }
        match (key.as_str(), value) {
            ("peft_type", Value::String(kind)) if kind == "LORA" => {}
            ("peft_type", _) => return wrong(key, "\"LORA\""),
            // An adapter of a language model also fits a score head.
            ("task_type", Value::String(found)) if found == task || found == "CAUSAL_LM" => {}
            ("task_type", Value::Null) => {}
            ("task_type", _) => return wrong(key, &format!("\"{task}\"")),
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
    let config: LoraConfig =
        serde_json::from_value(Value::Object(ours)).map_err(|e| Error::config(origin, e.to_string()))?;
    // PEFT saves the head of a classifier without naming it.
    let of_classifier = map.get("task_type").and_then(Value::as_str) == Some(task);
    let head = if of_classifier { head } else { Head::LanguageModel };
    Ok(config.resolved(model, head))
}
