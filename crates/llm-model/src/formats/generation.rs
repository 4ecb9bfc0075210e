//! The end tokens and the sampling defaults of a model: `generation_config.json`, `config.json` and the metadata of GGUF files.

use std::path::Path;

use llm_files::gguf::{Metadata, Value as GgufValue};
use serde_json::{Map, Value, json};

use super::json::read_json;
use crate::{Error, ModelConfig, Result};

/// The name of the file in a model folder.
pub(crate) const FILE: &str = "generation_config.json";

/// Keys of the file that do not change a generated text, or that this program reads from `config.json`.
const HARMLESS: [&str; 19] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Keys that are not supported, with the value that has no effect.
const NEUTRAL: [(&str, f64); 11] = [
    ("diversity_penalty", 0.),
    ("encoder_no_repeat_ngram_size", 0.),
    ("encoder_repetition_penalty", 1.),
    ("epsilon_cutoff", 0.),
    ("eta_cutoff", 0.),
    ("length_penalty", 1.),
    ("min_length", 0.),
    ("min_p", 0.),
    ("no_repeat_ngram_size", 0.),
    ("repetition_penalty", 1.),
    ("typical_p", 1.),
];

/// Counts of which 1 has no effect.
const SINGLE: [&str; 2] = ["num_beams", "num_beam_groups"];

/// GGUF's keys of tokens that end a generation: the end of the text, of a turn and of a message.
const END_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// GGUF's prefix of sampling defaults.
const SAMPLING: &str = "general.sampling.";

/// The end tokens and the sampling defaults that the files of a model name. A key that the files do not have is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a generation, besides `eos_token_id` of [`ModelConfig`]; [`crate::Model::eos_token_ids`] lists all.
    pub eos_token_ids: Vec<u32>,
    /// False: greedy decoding, as in transformers.
    pub do_sample: Option<bool>,
    /// Divisor of the logits, 0 or more.
    pub temperature: Option<f64>,
    /// Sample from the k most likely tokens only; 0: all.
    pub top_k: Option<usize>,
    /// Sample from the smallest set of tokens with at least this total probability, in (0, 1].
    pub top_p: Option<f64>,
    /// Maximum number of tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Texts that end a generation.
    pub stop_strings: Vec<String>,
    /// Keys that change a generated text in transformers or llama.cpp and that are not supported here.
    pub unsupported: Vec<String>,
    /// All keys of `generation_config.json`, which are saved again.
    raw: Map<String, Value>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`, if there is one, and the end tokens of `config`, the keys of `config.json`.
    pub(crate) fn read(dir: &Path, config: &Map<String, Value>, vocab_size: usize) -> Result<Self> {
        let path = dir.join(FILE);
        let mut read = match path.exists() {
            true => Self::of_json(&read_json(&path)?, &path.display().to_string(), vocab_size)?,
            false => Self::default(),
        };
        let origin = dir.join("config.json").display().to_string();
        let (mut ids, _) = end_ids(config.get("eos_token_id"), vocab_size, &origin)?;
        ids.extend(read.eos_token_ids);
        read.eos_token_ids = ids;
        Ok(read)
    }

    fn of_json(json: &Value, origin: &str, vocab_size: usize) -> Result<Self> {
        let Some(map) = json.as_object() else {
            return Err(Error::config(origin, "the file is not a JSON object"));
        };
        let get = |key: &str| map.get(key).filter(|value| !value.is_null());
        let wrong = |key: &str, expected: &str| {
            Error::config(origin, format!("\"{key}\" is {}; it must be {expected}", map[key]))
        };
        let number = |key: &str, expected: &str, valid: fn(f64) -> bool| match get(key) {
            None => Ok(None),
            Some(value) => value.as_f64().filter(|x| valid(*x)).map(Some).ok_or_else(|| wrong(key, expected)),
        };
        let count = |key: &str, expected: &str| match get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(key, expected)),
            },
        };
        let do_sample = match get("do_sample") {
            None => None,
            Some(value) => Some(value.as_bool().ok_or_else(|| wrong("do_sample", "true or false"))?),
        };
        let stop_strings = match get("stop_strings") {
            None => Some(Vec::new()),
            Some(Value::String(text)) => Some(vec![text.clone()]),
            Some(value) => value.as_array().and_then(|all| all.iter().map(|s| Some(s.as_str()?.to_owned())).collect()),
        };
        let (eos_token_ids, others) = end_ids(map.get("eos_token_id"), vocab_size, origin)?;
        for id in others {
            tracing::warn!("{origin}: \"eos_token_id\" {id} is not a token of this model; it is ignored");
        }
        let unsupported = map.iter().filter(|(key, value)| !has_no_effect(key, value)).map(|(key, _)| key.clone());
        let mut unsupported: Vec<String> = unsupported.collect();
        unsupported.sort_unstable();
        Ok(Self {
            eos_token_ids,
            do_sample,
            temperature: number("temperature", "a number, 0 or more", |x| x >= 0.)?,
            top_k: count("top_k", "a whole number, 0 or more")?,
            top_p: number("top_p", "a number above 0 and at most 1", |x| x > 0. && x <= 1.)?,
            max_new_tokens: count("max_new_tokens", "a whole number, 0 or more")?,
            stop_strings: stop_strings.ok_or_else(|| wrong("stop_strings", "a text or a list of texts"))?,
            unsupported,
            raw: map.clone(),
        })
    }

    /// The end tokens and sampling defaults of a GGUF file. Ids outside the vocabulary cannot be generated and are left out.
    pub(crate) fn of_gguf(metadata: &Metadata, vocab_size: usize) -> Self {
        let id = |key: &str| match metadata.get(key) {
            Some(GgufValue::Unsigned(id)) => u32::try_from(*id).ok().filter(|id| (*id as usize) < vocab_size),
            _ => None,
        };
        let number = |key: &str| match metadata.get(&format!("{SAMPLING}{key}")) {
            // The shortest number that is this f32.
            Some(GgufValue::Float(x)) => (*x as f32).to_string().parse::<f64>().ok(),
            Some(GgufValue::Unsigned(n)) => Some(*n as f64),
            _ => None,
        };
        let known = ["temp", "top_k", "top_p"];
        let sampling = metadata.keys().filter(|key| key.starts_with(SAMPLING));
        Self {
            eos_token_ids: END_KEYS.into_iter().filter_map(id).collect(),
            temperature: number("temp").filter(|x| *x >= 0.),
            top_k: number("top_k").map(|k| k as usize),
            top_p: number("top_p").filter(|p| *p > 0. && *p <= 1.),
            unsupported: sampling.filter(|key| !known.contains(&&key[SAMPLING.len()..])).cloned().collect(),
            ..Self::default()
        }
    }

    /// The metadata of a GGUF file for a model that ends a generation at `ends`.
    pub(crate) fn to_gguf(&self, ends: &[u32]) -> Metadata {
        let mut metadata = Metadata::new();
        let mut insert = |key: String, value| metadata.insert(key, value);
        for (key, id) in END_KEYS.into_iter().zip(ends) {
            insert(key.to_owned(), GgufValue::Unsigned((*id).into()));
        }
        let (temperature, top_k, top_p) = self.sampling();
        temperature.map(|x| insert(format!("{SAMPLING}temp"), GgufValue::Float(x)));
        top_k.map(|k| insert(format!("{SAMPLING}top_k"), GgufValue::Unsigned(k as u64)));
        top_p.map(|p| insert(format!("{SAMPLING}top_p"), GgufValue::Float(p)));
        metadata
    }

    /// Temperature, top-k and top-p that the files ask for, if any. With `do_sample` false this is greedy decoding; with
    /// `do_sample` true an absent key has the default of transformers (1, 50, 1).
    pub fn sampling(&self) -> (Option<f64>, Option<usize>, Option<f64>) {
        match self.do_sample {
            Some(false) => (Some(0.), None, None),
            Some(true) => (self.temperature.or(Some(1.)), self.top_k.or(Some(50)), self.top_p.or(Some(1.))),
            None => (self.temperature, self.top_k, self.top_p),
        }
    }

    /// The `generation_config.json` of a model: the keys that were read, with the special tokens of the model.
    pub(crate) fn to_json(&self, config: &ModelConfig, ends: &[u32]) -> Value {
        let mut map = self.raw.clone();
        map.insert("bos_token_id".to_owned(), json!(config.bos_token_id));
        map.insert("eos_token_id".to_owned(), ids_json(ends));
        map.insert("pad_token_id".to_owned(), json!(config.pad_token_id));
        for (key, value) in [
            ("do_sample", json!(self.do_sample)),
            ("temperature", json!(self.temperature)),
            ("top_k", json!(self.top_k)),
            ("top_p", json!(self.top_p)),
        ] {
            // The defaults of a GGUF file; those of a folder are in the map already.
            if !value.is_null() && !map.contains_key(key) {
                map.insert(key.to_owned(), value);
            }
        }
        Value::Object(map)
    }
}

/// Token ids as transformers writes them: null, a number or a list.
pub(crate) fn ids_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// The ids of `eos_token_id` (null, a number or a list of numbers), and the numbers that are no token of the vocabulary: a model
/// cannot generate those.
fn end_ids(value: Option<&Value>, vocab_size: usize, origin: &str) -> Result<(Vec<u32>, Vec<i64>)> {
    let all = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(all)) => all.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let (mut ids, mut others) = (Vec::new(), Vec::new());
    for id in all {
        let Some(number) = id.as_i64() else {
            let value = value.unwrap_or(&Value::Null);
            let message = format!("\"eos_token_id\" is {value}; it must be a token id, a list of token ids or null");
            return Err(Error::config(origin, message));
        };
        match u32::try_from(number).ok().filter(|id| (*id as usize) < vocab_size) {
            Some(id) => ids.push(id),
            None => others.push(number),
        }
    }
    Ok((ids, others))
}

/// Whether a key of `generation_config.json` is read or does not change a generated text with this value.
fn has_no_effect(key: &str, value: &Value) -> bool {
    const READ: [&str; 7] =
        ["do_sample", "eos_token_id", "max_new_tokens", "stop_strings", "temperature", "top_k", "top_p"];
    let empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    let neutral = NEUTRAL.into_iter().chain(SINGLE.map(|key| (key, 1.)));
    empty
        || READ.contains(&key)
        || HARMLESS.contains(&key)
        || neutral.into_iter().any(|(name, number)| name == key && value.as_f64() == Some(number))
}
