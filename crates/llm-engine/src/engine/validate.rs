//! Validation of requests, before they enter the queue.

use llm_model::Head;

use super::shared::Shared;
use crate::{Error, Request, Result};

/// The maximum number of answers to one request.
const MAX_CHOICES: usize = 128;
/// The maximum number of most likely tokens with log-probabilities.
const MAX_LOGPROBS: usize = 128;

/// Checks a request against the model of the engine.
pub(super) fn request(request: &Request, shared: &Shared) -> Result<()> {
    let model = &shared.model.model;
    if model.head() != Head::LanguageModel {
        return Err(Error::NotALanguageModel);
    }
    text(&request.prompt, shared)?;
    let (tokens, context_length) = (request.prompt.len(), shared.context_length);
    if request.max_new_tokens > 0 && tokens == context_length {
        return Err(Error::PromptTooLong { tokens, context_length });
    }
    if !(1..=MAX_CHOICES).contains(&request.choices) {
        return Err(invalid("choices", format!("is {}; it must be from 1 to {MAX_CHOICES}", request.choices)));
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(invalid("stop", "has an empty string; remove it".to_owned()));
    }
    if let Some(ids) = &request.stop_ids {
        known_ids("stop_ids", ids, model.config().vocab_size)?;
    }
    request.sampling.validate(model.config().vocab_size)?;
    for (field, count) in [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)] {
        if let Some(count) = count.filter(|&count| count > MAX_LOGPROBS) {
            return Err(invalid(field, format!("is {count}; it must be at most {MAX_LOGPROBS}")));
        }
    }
    if let Some(name) = request.adapter.as_ref().filter(|name| !shared.adapted.contains_key(*name)) {
        let known: Vec<&str> = shared.adapted.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(invalid("adapter", format!("is \"{name}\"; the adapters of the engine: {known}")));
    }
    Ok(())
}

/// Checks a text: from 1 token to the context length, all in the vocabulary.
pub(super) fn text(ids: &[u32], shared: &Shared) -> Result<()> {
    let config = shared.model.model.config();
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let (tokens, context_length) = (ids.len(), shared.context_length);
    if tokens > context_length {
        return Err(Error::PromptTooLong { tokens, context_length });
    }
    known_ids("prompt", ids, config.vocab_size)
}

fn known_ids(field: &'static str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => Err(invalid(field, format!("has the token id {id}; ids must be less than {vocab_size}"))),
        None => Ok(()),
    }
}

fn invalid(field: &'static str, problem: String) -> Error {
    Error::InvalidRequest { field, problem }
}
