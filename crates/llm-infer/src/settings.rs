//! The settings of a generation, each with the place that it comes from: a flag, the files of the model, or the program.

use std::collections::HashMap;
use std::path::Path;

use llm_cli::Failure;
use llm_engine::{Sampling, TextModel, TextOptions};
use llm_model::gguf::is_gguf;
use serde_json::{Map, Value};

use crate::failure::input;
use crate::sampling_args::SamplingArgs;

/// The source of a flag.
const FLAG: &str = "flag";
/// The source of what nothing else sets.
const DEFAULT: &str = "default";

/// Settings that are always shown; others only if something sets them.
const SHOWN: [&str; 4] = ["temperature", "top_k", "top_p", "max_new_tokens"];

/// The keys of [`Sampling`], `max_new_tokens` and `stop`, each with its source. Later layers win.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// In the order in which they are shown.
    values: Map<String, Value>,
    sources: HashMap<String, String>,
    /// Token ids must be less than this.
    vocab_size: usize,
}

impl Settings {
    /// The defaults of the program.
    fn defaults() -> Result<Self, Failure> {
        let options = TextOptions::default();
        let mut values = map(&options.sampling)?;
        values.insert("stop".to_owned(), options.stop.into());
        values.insert("max_new_tokens".to_owned(), options.max_new_tokens.into());
        Ok(Self { values, sources: HashMap::new(), vocab_size: usize::MAX })
    }

    /// The settings of a model: those that its files name, else the defaults. Warns of settings of the files that are not supported.
    pub(crate) fn of_model(model: &TextModel, path: &Path) -> Result<Self, Failure> {
        let generation = model.model.generation();
        let file = if is_gguf(path) { "GGUF metadata" } else { "generation_config.json" };
        if !generation.unsupported.is_empty() {
            let keys = generation.unsupported.join(", ");
            tracing::warn!("{}: {file}: not supported, and ignored: {keys}", path.display());
        }
        let (temperature, top_k, top_p) = generation.sampling();
        let mut named = Map::new();
        named.extend(temperature.map(|value| ("temperature".to_owned(), value.into())));
        named.extend(top_k.map(|value| ("top_k".to_owned(), value.into())));
        named.extend(top_p.map(|value| ("top_p".to_owned(), value.into())));
        if !generation.stop_strings.is_empty() {
            named.insert("stop".to_owned(), generation.stop_strings.clone().into());
        }
        named.extend(generation.max_new_tokens.map(|value| ("max_new_tokens".to_owned(), value.into())));
        let defaults = Self { vocab_size: model.model.config().vocab_size, ..Self::defaults()? };
        defaults.with(&named, file)
    }

    /// The settings of flags alone, to check them before a model is loaded.
    pub(crate) fn of_flags(flags: &SamplingArgs) -> Result<Self, Failure> {
        Self::defaults()?.with_flags(flags)
    }

    /// The same with these flags.
    pub(crate) fn with_flags(self, flags: &SamplingArgs) -> Result<Self, Failure> {
        self.with(&map(flags)?, FLAG)
    }

    /// The same with the keys of `layer`; an error that names `source` if one is unknown or has a wrong value.
    pub(crate) fn with(mut self, layer: &Map<String, Value>, source: &str) -> Result<Self, Failure> {
        for (key, value) in layer {
            let Some(slot) = self.values.get_mut(key) else {
                let known: Vec<&str> = self.values.keys().map(String::as_str).collect();
                let message = format!("{source}: \"{key}\" is not a setting; it must be one of {}", known.join(", "));
                return Err(Failure::input(message));
            };
            slot.clone_from(value);
            self.sources.insert(key.clone(), source.to_owned());
            self.options().map_err(|failure| match source {
                FLAG => failure,
                _ => Failure::input(format!("{source}: \"{key}\" is {value}: {failure}")),
            })?;
        }
        Ok(self)
    }

    /// The same with this seed, unless something sets one.
    pub(crate) fn with_default_seed(mut self, seed: u64) -> Self {
        if !self.sources.contains_key("seed") {
            self.values.insert("seed".to_owned(), seed.into());
        }
        self
    }

    /// Whether a flag sets this.
    pub(crate) fn is_flag(&self, key: &str) -> bool {
        self.sources.get(key).is_some_and(|source| source == FLAG)
    }

    /// The options for the engine.
    pub(crate) fn options(&self) -> Result<TextOptions, Failure> {
        let wrong = |key: &str, expected: &str| {
            Failure::input(format!("\"{key}\" is {}; it must be {expected}", self.values[key]))
        };
        let mut sampling = self.values.clone();
        let max_new_tokens = sampling.shift_remove("max_new_tokens").and_then(|value| value.as_u64());
        let max_new_tokens = max_new_tokens.and_then(|n| usize::try_from(n).ok());
        let max_new_tokens = max_new_tokens.ok_or_else(|| wrong("max_new_tokens", "a whole number, 0 or more"))?;
        let stop = serde_json::from_value::<Vec<String>>(sampling.shift_remove("stop").unwrap_or_default());
        let stop = stop.ok().filter(|stop| stop.iter().all(|text| !text.is_empty()));
        let stop = stop.ok_or_else(|| wrong("stop", "a list of texts that are not empty"))?;
        let sampling: Sampling =
            serde_json::from_value(Value::Object(sampling)).map_err(|e| Failure::input(e.to_string()))?;
        sampling.validate(self.vocab_size).map_err(input)?;
        Ok(TextOptions { max_new_tokens, stop, sampling })
    }

    /// The options for the engine. Logs (`-v`) which value comes from where, and which tokens end an answer.
    pub(crate) fn logged_options(&self, model: &TextModel) -> Result<TextOptions, Failure> {
        let options = self.options()?;
        tracing::debug!("{}; ends at {}", self.lines().join(", "), ends(model, &options.stop));
        Ok(options)
    }

    /// `name value (source)` of each setting that something sets, and of the usual ones.
    pub(crate) fn lines(&self) -> Vec<String> {
        let is_shown = |key: &String| SHOWN.contains(&key.as_str()) || self.sources.contains_key(key);
        let shown = self.values.iter().filter(|(key, _)| is_shown(key));
        let line = |(key, value): (&String, &Value)| {
            let source = self.sources.get(key).map_or(DEFAULT, String::as_str);
            // A number as short as it can be: 0 and not 0.0.
            let text = value.as_f64().map_or_else(|| value.to_string(), |number| number.to_string());
            format!("{key} {} ({source})", if value.is_u64() { value.to_string() } else { text })
        };
        shown.map(line).collect()
    }
}

/// What ends an answer: the end tokens and the stop strings.
pub(crate) fn ends(model: &TextModel, stop: &[String]) -> String {
    let tokens = model.stop_ids().into_iter().map(|id| match model.tokenizer.token(id) {
        Some(token) => format!("{token} ({id})"),
        None => id.to_string(),
    });
    tokens.chain(stop.iter().map(|text| format!("{text:?}"))).collect::<Vec<_>>().join(", ")
}

/// The keys of a struct.
fn map(value: &impl serde::Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Failure::internal(format!("{other} is not a list of settings"))),
        Err(error) => Err(Failure::internal(error.to_string())),
    }
}
