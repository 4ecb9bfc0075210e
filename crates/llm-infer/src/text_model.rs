//! The model of `generate` and `chat`, opened as the options say, and its replies on standard output.

use std::time::Instant;

use llm_cli::Failure;
use llm_engine::{Error, TextModel, TextOptions, anonymous_memory};
use llm_model::Model;
use llm_tokenizer::TemplateOptions;

use crate::adapter::with_adapter;
use crate::failure::input;
use crate::generation_args::GenerationArgs;
use crate::prompt::Plan;
use crate::settings::Settings;

impl GenerationArgs {
    /// Opens the model with its adapter and tokenizer.
    pub(crate) fn load(&self) -> Result<TextModel, Failure> {
        let template = template_options(self.template_kwargs.as_deref(), self.date.as_deref())?;
        let (start, device) = (Instant::now(), self.device.open()?);
        let adapter_tokenizer = self.adapter.as_ref().filter(|dir| dir.join("tokenizer.json").exists());
        let opened = match adapter_tokenizer {
            Some(dir) => {
                Model::open(&self.model).map_err(Error::from).and_then(|model| TextModel::with_tokenizer(model, dir))
            }
            None => TextModel::open(&self.model),
        };
        let mut text_model = opened.map_err(input)?;
        text_model.model = with_adapter(self.dtype.convert(text_model.model)?, self.adapter.as_deref())?;
        text_model = text_model.to_device(&device).map_err(input)?;
        text_model.tokenizer = text_model.tokenizer.with_template_options(template).map_err(input)?;
        let memory =
            anonymous_memory().map_or_else(String::new, |bytes| format!(", {} MB of memory", bytes / 1_000_000));
        tracing::debug!("loaded in {:.2} s{memory}", start.elapsed().as_secs_f64());
        Ok(text_model)
    }

    /// Checks the sampling options before a model is loaded.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        Settings::of_flags(&self.sampling).map(drop)
    }

    /// The settings for a model and a kind of prompt; `raw`: the prompt is a text to continue.
    pub(crate) fn settings(&self, model: &TextModel, plan: &Plan, raw: bool) -> Result<Settings, Failure> {
        let mut settings = Settings::of_model(model, &self.model)?;
        if let Some(stop) = plan.stop(raw) {
            settings = settings.with(&[("stop".to_owned(), vec![stop].into())].into_iter().collect(), "examples")?;
        }
        if let Some((sampling, file)) = plan.sampling() {
            settings = settings.with(sampling, file)?;
        }
        settings.with_flags(&self.sampling)
    }
}

/// The settings of the chat template of `--template-kwargs` and `--date`.
pub(crate) fn template_options(variables: Option<&str>, date: Option<&str>) -> Result<TemplateOptions, Failure> {
    let variables = variables.map_or(Ok(serde_json::Map::new()), serde_json::from_str).map_err(|e| {
        Failure::input(format!("--template-kwargs: not a JSON object ({e}); write {{\"enable_thinking\": false}}"))
    })?;
    Ok(TemplateOptions { variables, date: date.map(str::to_owned), ..TemplateOptions::default() })
}

/// Streams the reply to standard output while `goes_on`, and logs the throughput.
pub(crate) fn stream_reply(
    text_model: &TextModel,
    prompt: &[u32],
    options: &TextOptions,
    goes_on: impl Fn() -> bool,
) -> Result<String, Failure> {
    let start = Instant::now();
    let mut written = Ok(());
    let completion = text_model.complete(prompt, options, |piece| {
        if written.is_ok() && !piece.is_empty() {
            written = llm_cli::print(piece);
        }
        written.is_ok() && goes_on()
    });
    let completion = completion.map_err(input)?;
    written?;
    llm_cli::print("\n")?;
    let rate = completion.tokens as f64 / start.elapsed().as_secs_f64();
    tracing::debug!("{} prompt tokens, {} new tokens, {rate:.0} tokens/s", prompt.len(), completion.tokens);
    Ok(completion.text)
}
