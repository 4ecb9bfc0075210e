//! The options of a generation: a flag, else the files of the model, else the default of the program.

use std::fmt::Display;

use llm_cli::Failure;
use llm_engine::{Sampling, TextModel, TextOptions};
use llm_model::gguf::is_gguf;

use crate::args::GenerationArgs;
use crate::failure::input;

impl GenerationArgs {
    /// Checks the ranges of the flags, before a model is loaded.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let default = Sampling::default();
        let temperature = self.temperature.unwrap_or(default.temperature);
        let top_p = self.top_p.unwrap_or(default.top_p);
        Sampling { temperature, top_p, ..default }.validate(usize::MAX).map_err(input)
    }

    /// The options for a model. Logs (`-v`) which value comes from where and which tokens end a reply, and warns of settings of
    /// the model's files that are not supported.
    pub(crate) fn options(&self, model: &TextModel) -> TextOptions {
        let generation = model.model.generation();
        let file = if is_gguf(&self.model) { "GGUF metadata" } else { "generation_config.json" };
        if !generation.unsupported.is_empty() {
            let keys = generation.unsupported.join(", ");
            tracing::warn!("{}: {file}: not supported, and ignored: {keys}", self.model.display());
        }
        let mut options = model.default_options();
        let (temperature, top_k, top_p) = generation.sampling();
        let mut sources = Vec::new();
        let sampling = &mut options.sampling;
        sources.push(choose(&mut sampling.temperature, self.temperature, temperature.is_some(), "temperature", file));
        sources.push(choose(&mut sampling.top_k, self.top_k, top_k.is_some(), "top_k", file));
        sources.push(choose(&mut sampling.top_p, self.top_p, top_p.is_some(), "top_p", file));
        let (flag, named) = (self.max_new_tokens, generation.max_new_tokens.is_some());
        sources.push(choose(&mut options.max_new_tokens, flag, named, "max_new_tokens", file));
        sampling.seed = Some(self.seed);
        if !self.stop.is_empty() {
            options.stop.clone_from(&self.stop);
        }
        let stops = options.stop.iter().map(|text| format!("{text:?}"));
        let ends = model.stop_ids().into_iter().map(|id| match model.tokenizer.token(id) {
            Some(token) => format!("{token} ({id})"),
            None => id.to_string(),
        });
        tracing::debug!("{}; ends at {}", sources.join(", "), ends.chain(stops).collect::<Vec<_>>().join(", "));
        options
    }
}

/// Sets `value` to that of the flag, if it is given. Returns the value with its source.
fn choose<T: Copy + Display>(value: &mut T, flag: Option<T>, in_file: bool, name: &str, file: &str) -> String {
    let source = match flag {
        Some(flag) => {
            *value = flag;
            "flag"
        }
        None if in_file => file,
        None => "default",
    };
    format!("{name} {value} ({source})")
}
