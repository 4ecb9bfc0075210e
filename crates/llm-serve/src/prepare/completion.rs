//! Completion requests.

use super::output::constraint;
use super::{Accepted, Settings, fit, in_range, stops};
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::wire::completion::CompletionRequest;
use crate::wire::json::{TextOrIds, parse};
use crate::wire::sampling::SamplingFields;

/// The maximum number of prompts of a request.
const MAX_PROMPTS: usize = 2048;

/// What the answer to a completion request looks like.
#[derive(Debug, Clone)]
pub(crate) struct CompletionForm {
    /// Answers to each prompt in the response.
    pub(crate) choices: usize,
    /// Answers to each prompt that are generated.
    pub(crate) best_of: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Number of most likely tokens in the log-probabilities of the response, if it has them.
    pub(crate) logprobs: Option<usize>,
    /// The texts and token ids of the prompts, if the answers begin with them.
    pub(crate) echo: Option<Vec<(String, Vec<u32>)>>,
}

/// Reads a completion request and submits it.
pub(crate) fn accept(app: &App, body: &[u8]) -> Result<(Accepted, CompletionForm)> {
    let request: CompletionRequest = parse(body)?;
    let sampling: SamplingFields = parse(body)?;
    let model = app.select(request.model.as_deref())?;
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::invalid("suffix", "\"suffix\" is not supported; put all text into \"prompt\""));
    }
    let choices = in_range("n", request.n.unwrap_or(1), 1..=128)?;
    let best_of = in_range("best_of", request.best_of.unwrap_or(choices), choices..=128)?;
    let stream = request.stream.unwrap_or(false);
    if stream && best_of > choices {
        return Err(ApiError::invalid(
            "best_of",
            "\"best_of\" above \"n\" cannot be streamed; set \"stream\" to false",
        ));
    }
    let logprobs = request.logprobs.map(|top| in_range("logprobs", top, 0..=20)).transpose()?;
    let echo = request.echo.unwrap_or(false);
    let max_tokens = request.max_tokens.unwrap_or(16);
    let text_model = app.engine.text_model();
    let settings = Settings {
        model: model.clone(),
        choices: best_of,
        stop: stops(request.stop, app)?,
        stop_ids: sampling.stop_ids(|| text_model.stop_ids()),
        sampling: sampling.sampling(text_model.model.generation())?,
        // The best answers are found by their log-probabilities.
        logprobs: if best_of > choices { logprobs.or(Some(0)) } else { logprobs },
        prompt_logprobs: logprobs.filter(|_| echo),
        constraint: constraint(request.response_format, request.structured_outputs)?,
        priority: request.priority.unwrap_or(0),
        key: request.user,
        cache_salt: request.cache_salt,
    };
    let entries = request.prompt.entries("prompt")?;
    in_range("prompt", entries.len(), 1..=MAX_PROMPTS)?;
    let mut prompts = Vec::with_capacity(entries.len());
    for entry in entries {
        let ids = encode(app, &entry, request.add_special_tokens.unwrap_or(true))?;
        let ids = fit(app, ids, request.truncate_prompt_tokens, "prompt", usize::from(max_tokens > 0))?;
        let text = match entry {
            TextOrIds::Text(text) if request.truncate_prompt_tokens.is_none() => text,
            _ if echo => app.vocabulary.decode(app.engine.tokenizer(), &ids)?,
            _ => String::new(),
        };
        prompts.push((text, ids));
    }
    let submit = |(_, ids): &(String, Vec<u32>)| app.submit(settings.request(app, ids.clone(), max_tokens));
    let generations = prompts.iter().map(submit).collect::<Result<_>>()?;
    let form = CompletionForm {
        choices,
        best_of,
        stream,
        include_usage: request.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        logprobs,
        echo: echo.then_some(prompts),
    };
    Ok((Accepted { model, generations, seed: settings.sampling.seed.unwrap_or_default() }, form))
}

/// The token ids of a prompt; ids are taken as they are.
pub(crate) fn encode(app: &App, entry: &TextOrIds, add_special_tokens: bool) -> Result<Vec<u32>> {
    match entry {
        TextOrIds::Ids(ids) => Ok(ids.clone()),
        TextOrIds::Text(text) => {
            let ids = match add_special_tokens {
                true => app.engine.text_model().text_ids(text),
                false => app.engine.tokenizer().encode(text).map_err(Into::into),
            };
            ids.map_err(|error| ApiError::of(error, "prompt"))
        }
    }
}
