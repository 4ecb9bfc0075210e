//! From a request of the API to requests for the engine. Everything that is wrong with a request is found here.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod output;
pub(crate) mod tools;

use llm_engine::{Constraint, Generation, Request, Sampling};

use crate::app::{App, Selected};
use crate::error::{ApiError, Result};

/// A request that the engine has accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) model: Selected,
    /// One generation for each prompt.
    pub(crate) generations: Vec<Generation>,
    pub(crate) seed: u64,
}

/// What the two endpoints have in common.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) model: Selected,
    pub(crate) choices: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_ids: Option<Vec<u32>>,
    pub(crate) sampling: Sampling,
    pub(crate) logprobs: Option<usize>,
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) priority: i32,
    pub(crate) key: Option<String>,
    pub(crate) cache_salt: Option<String>,
}

impl Settings {
    /// The request for one prompt with at most `max_new_tokens` tokens, and not more than the context has room for.
    pub(crate) fn request(&self, app: &App, prompt: Vec<u32>, max_new_tokens: usize) -> Request {
        let room = app.info.context_length.saturating_sub(prompt.len());
        let limit = app.options.max_new_tokens.unwrap_or(usize::MAX);
        Request {
            choices: self.choices,
            stop: self.stop.clone(),
            stop_ids: self.stop_ids.clone(),
            sampling: self.sampling.clone(),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            constraint: self.constraint.clone(),
            adapter: self.model.adapter.clone(),
            priority: self.priority,
            key: self.key.clone(),
            cache_salt: self.cache_salt.clone(),
            ..Request::new(prompt, max_new_tokens.min(room).min(limit))
        }
    }
}

/// Checks that a number is in a range.
pub(crate) fn in_range(param: &str, value: usize, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
    match range.contains(&value) {
        true => Ok(value),
        false => {
            let message = format!("\"{param}\" is {value}; it must be from {} to {}", range.start(), range.end());
            Err(ApiError::invalid(param, message))
        }
    }
}

/// The stop strings of a request; those of the model if it has none.
pub(crate) fn stops(given: Option<crate::wire::json::OneOrMany<String>>, app: &App) -> Result<Vec<String>> {
    let stops = match given {
        Some(given) => given.into_vec(),
        None => app.engine.text_model().model.generation().stop_strings.clone(),
    };
    match stops.iter().any(String::is_empty) {
        true => Err(ApiError::invalid("stop", "\"stop\" has an empty text; remove it")),
        false => Ok(stops),
    }
}

/// Checks the length of a prompt; cuts its beginning off if `truncate` says how many tokens to keep. `room`: tokens that must be free
/// in the context.
pub(crate) fn fit(app: &App, ids: Vec<u32>, truncate: Option<usize>, param: &str, room: usize) -> Result<Vec<u32>> {
    let context_length = app.info.context_length;
    let ids = match truncate {
        Some(keep) => {
            let keep = in_range("truncate_prompt_tokens", keep, 1..=context_length.saturating_sub(room).max(1))?;
            ids[ids.len().saturating_sub(keep)..].to_vec()
        }
        None => ids,
    };
    if ids.is_empty() {
        return Err(ApiError::invalid(param, format!("\"{param}\" is empty; give at least one token")));
    }
    match ids.len() + room > context_length {
        true => Err(ApiError::too_long(param, ids.len(), context_length)),
        false => Ok(ids),
    }
}
