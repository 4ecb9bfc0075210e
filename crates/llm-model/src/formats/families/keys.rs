//! Reading a `config.json`: records the keys that were read and rejects unsupported values.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::config::{Activation, LayerType};
use crate::{Error, ModelConfig, Result, RopeScaling};

/// The keys of a `config.json`.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
    read_keys: RefCell<BTreeSet<String>>,
    warnings: RefCell<Vec<String>>,
}

impl<'a> Keys<'a> {
    pub fn new(map: &'a Map<String, Value>, origin: &'a str) -> Self {
        Self { map, origin, read_keys: RefCell::default(), warnings: RefCell::default() }
    }

    /// Whether `key` was read.
    pub fn knows(&self, key: &str) -> bool {
        self.read_keys.borrow().contains(key)
    }

    /// The value of a key; null counts as defaults.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.read_keys.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Records that a value is ignored: it does not change a result.
    pub fn warn(&self, message: impl Into<String>) {
        self.warnings.borrow_mut().push(message.into());
    }

    /// The values that are ignored.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner()
    }

    /// An error for this file.
    pub fn wrong<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::config(self.origin, message))
    }

    fn read<T: DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match serde_json::from_value(value.clone()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => self.wrong(format!("\"{key}\" is {value}; expected {expected}")),
        }
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.read::<u32>(key, "a count")? {
            Some(value) => Ok(Some(value as usize)),
            None => Ok(None),
        }
    }

    /// A count; none for null, `default` for an absent key.
    pub fn count_or(&self, key: &str, default: usize) -> Result<Option<usize>> {
        Ok(self.count(key)?.or((!self.map.contains_key(key)).then_some(default)))
    }

    /// A number; none for null, `default` for an absent key.
    pub fn float_or(&self, key: &str, default: f64) -> Result<Option<f64>> {
        Ok(self.float(key)?.or((!self.map.contains_key(key)).then_some(default)))
    }

    pub fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.map_or_else(|| self.wrong(format!("\"{key}\" is missing")), Ok)
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number")
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.read(key, "true or false")?.unwrap_or(default))
    }

    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.read(key, "a list of numbers")
    }

    /// Rejects any value of `key` except `supported`.
    pub fn only(&self, key: &str, supported: &Value) -> Result<()> {
        let equal =
            |value: &Value| value == supported || value.as_f64().zip(supported.as_f64()).is_some_and(|(a, b)| a == b);
        match self.get(key).filter(|value| !equal(value)) {
            Some(value) => self.wrong(format!("\"{key}\" is {value}; this decoder supports {supported} only")),
            None => Ok(()),
        }
    }

    /// A token id; the first one of a list (several end-of-turn tokens). A negative number means that there is no such token.
    fn token(&self, key: &str) -> Result<Option<u32>> {
        let first = self.get(key).map(|value| value.get(0).unwrap_or(value));
        match first {
            None | Some(Value::Null) => Ok(None),
            Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(None),
            Some(value) => match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
                Some(id) => Ok(Some(id)),
                None => self.wrong(format!("\"{key}\" is {value}; expected a token id")),
            },
        }
    }

    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(value) = self.get(key) else { return Ok(default) };
        Ok(match value.as_str() {
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Activation::GeluPytorchTanh,
            _ => {
                let known = "\"silu\", \"gelu\", \"gelu_pytorch_tanh\", \"gelu_new\"";
                return self.wrong(format!("\"{key}\" is {value}; this decoder supports {known}"));
            }
        })
    }

    /// `layer_types`; if the key is absent, `default(layer)` for each layer, or empty without a window.
    pub fn layer_types(
        &self,
        layers: usize,
        window: Option<usize>,
        default: impl Fn(usize) -> LayerType,
    ) -> Result<Vec<LayerType>> {
        let expected = "a list of \"full_attention\" and \"sliding_attention\"";
        Ok(match self.read("layer_types", expected)? {
            Some(types) => types,
            None if window.is_none() => Vec::new(),
            None => (0..layers).map(default).collect(),
        })
    }

    /// Reads `rope_scaling` or `rope_parameters` into `config`. The rotary base may be inside or in the key `theta_key`.
    pub fn rope(&self, config: &mut ModelConfig, theta_key: &str, default_theta: f64) -> Result<()> {
        let (key, map) = match (self.get("rope_scaling"), self.get("rope_parameters")) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, Some(parameters)) => ("rope_parameters", parameters),
            (None, None) => ("rope_parameters", &json!({})),
        };
        let theta = self.float(theta_key)?;
        let (scaling, inner_theta, inner_factor) = self.rope_map(key, map, config.max_position_embeddings)?;
        config.rope_scaling = scaling;
        config.rope_theta = inner_theta.or(theta).unwrap_or(default_theta);
        if let Some(factor) = inner_factor {
            config.partial_rotary_factor = factor;
        }
        Ok(())
    }

    /// Scaling, `rope_theta` and `partial_rotary_factor` from one map of rotary parameters.
    pub fn rope_map(
        &self,
        key: &str,
        value: &Value,
        max_position_embeddings: usize,
    ) -> Result<(RopeScaling, Option<f64>, Option<f64>)> {
        let Some(map) = value.as_object() else {
            return self.wrong(format!("\"{key}\" is {value}; expected an object"));
        };
        let keys = Keys::new(map, self.origin);
        let numbers = (keys.float("rope_theta")?, keys.float("partial_rotary_factor")?);
        let mut map = map.clone();
        map.retain(|key, value| !value.is_null() && key != "rope_theta" && key != "partial_rotary_factor");
        match (map.remove("type"), map.contains_key("rope_type")) {
            (Some(kind), false) => map.insert("rope_type".to_owned(), kind),
            (None, false) if key == "rope_parameters" => map.insert("rope_type".to_owned(), json!("default")),
            _ => None,
        };
        let kind = map.get("rope_type").and_then(Value::as_str);
        if matches!(kind, Some("llama3" | "longrope" | "su")) && !map.contains_key("original_max_position_embeddings") {
            map.insert("original_max_position_embeddings".to_owned(), json!(max_position_embeddings));
        }
        match serde_json::from_value(Value::Object(map)) {
            Ok(scaling) => Ok((scaling, numbers.0, numbers.1)),
            Err(error) => self.wrong(format!("\"{key}\": {error}")),
        }
    }

    /// The keys that nearly all families have in common.
    pub fn base(&self, defaults: &Defaults) -> Result<ModelConfig> {
        let heads = self.required("num_attention_heads")?;
        let groups = match defaults.grouped {
            true => self.required("num_key_value_heads")?,
            false => self.count("num_key_value_heads")?.unwrap_or(heads),
        };
        let mut config = ModelConfig {
            vocab_size: self.required("vocab_size")?,
            hidden_size: self.required("hidden_size")?,
            intermediate_size: self.required("intermediate_size")?,
            num_hidden_layers: self.required("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: groups,
            head_dim: self.count("head_dim")?.unwrap_or(0),
            max_position_embeddings: match defaults.max_position_embeddings {
                Some(default) => self.count("max_position_embeddings")?.unwrap_or(default),
                None => self.required("max_position_embeddings")?,
            },
            rms_norm_eps: self.float("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            ..self.shared(defaults.tie_word_embeddings)?
        };
        self.rope(&mut config, "rope_theta", defaults.rope_theta)?;
        if !defaults.partial_rotary {
            self.only("partial_rotary_factor", &json!(1.0))?;
            if config.partial_rotary_factor != 1. {
                let factor = config.partial_rotary_factor;
                return self.wrong(format!(
                    "\"partial_rotary_factor\" is {factor}; this family supports 1.0 only (no partial rotary embedding)"
                ));
            }
        }
        Ok(config)
    }

    /// The keys that all families have in common; other fields have the defaults of [`ModelConfig`].
    pub fn shared(&self, tied: bool) -> Result<ModelConfig> {
        let default = ModelConfig::default();
        Ok(ModelConfig {
            tie_word_embeddings: self.flag("tie_word_embeddings", tied)?,
            initializer_range: self.float("initializer_range")?.unwrap_or(default.initializer_range),
            bos_token_id: self.token("bos_token_id")?,
            eos_token_id: self.token("eos_token_id")?,
            pad_token_id: self.token("pad_token_id")?,
            ..default
        })
    }
}

/// The defaults of transformers for absent keys.
pub(crate) struct Defaults {
    pub tie_word_embeddings: bool,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Whether `num_key_value_heads` is required; otherwise its default is the number of query heads.
    pub grouped: bool,
    /// Whether the family supports partial rotary embeddings.
    pub partial_rotary: bool,
    pub max_position_embeddings: Option<usize>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            tie_word_embeddings: false,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.,
            grouped: true,
            partial_rotary: false,
            max_position_embeddings: None,
        }
    }
}

/// The keys that [`Keys::base`] reads, in the order of a Llama `config.json`.
pub(crate) fn base_json(config: &ModelConfig) -> Value {
    let mut json = json!({
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope_json(config),
    });
    if config.rope_scaling != RopeScaling::Default {
        json["rope_scaling"] = rope_json(config); // the old key, for old readers
    }
    json
}

/// The value of `rope_parameters`.
pub(crate) fn rope_json(config: &ModelConfig) -> Value {
    let mut map = Map::from_iter([("rope_theta".to_owned(), json!(config.rope_theta))]);
    if let Ok(Value::Object(scaling)) = serde_json::to_value(&config.rope_scaling) {
        map.extend(scaling);
    }
    if config.partial_rotary_factor != 1. {
        map.insert("partial_rotary_factor".to_owned(), json!(config.partial_rotary_factor));
    }
    Value::Object(map)
}

/// The value of `layer_types`.
pub(crate) fn layer_types_json(config: &ModelConfig) -> Value {
    let kind = |layer| match config.window_of(layer) {
        Some(_) => LayerType::SlidingAttention,
        None => LayerType::FullAttention,
    };
    json!((0..config.num_hidden_layers).map(kind).collect::<Vec<_>>())
}
