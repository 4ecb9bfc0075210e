//! The response to a completion request, whole or in parts.

use std::sync::Arc;

use llm_engine::{Event, TokenLogprobs};

use super::logprobs::Offsets;
use super::reason;
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::prepare::Accepted;
use crate::prepare::completion::CompletionForm;
use crate::wire::completion::{CompletionChoice, CompletionResponse};
use crate::wire::logprobs::CompletionLogprobs;
use crate::wire::usage::{StreamUsage, Usage};

/// Turns the events of a completion request into parts of the response.
pub(crate) struct CompletionAnswer {
    app: Arc<App>,
    id: String,
    created: u64,
    model: String,
    seed: u64,
    form: CompletionForm,
    offsets: Vec<Offsets>,
    usage: Usage,
}

impl CompletionAnswer {
    pub(crate) fn new(app: Arc<App>, accepted: &Accepted, form: CompletionForm) -> Self {
        let answers = accepted.generations.len() * form.best_of;
        Self {
            id: crate::ids::id("cmpl-"),
            created: crate::ids::now(),
            model: accepted.model.name.clone(),
            seed: accepted.seed,
            offsets: (0..answers).map(|_| Offsets::default()).collect(),
            usage: Usage::default(),
            app,
            form,
        }
    }

    /// The echo of the prompts, if it is asked for without log-probabilities; else it comes with them.
    pub(crate) fn open(&mut self) -> Vec<CompletionResponse> {
        match (&self.form.echo, self.form.logprobs) {
            (Some(prompts), None) => (0..prompts.len()).flat_map(|prompt| self.echo(prompt, None)).collect(),
            _ => Vec::new(),
        }
    }

    /// The parts of an event of this prompt.
    pub(crate) fn push(&mut self, prompt: usize, event: Event) -> Result<Vec<CompletionResponse>> {
        let index = |choice: usize| prompt * self.form.best_of + choice;
        match event {
            Event::Prompt(logprobs) => Ok(self.echo(prompt, Some(&logprobs))),
            Event::Text { choice, text, tokens } => {
                let index = index(choice);
                let tokens_of = |offsets: &mut Offsets| {
                    offsets
                        .entries(&self.app.vocabulary, tokens.iter().map(|token| (token.id, token.logprobs.as_ref())))
                };
                let with_logprobs = tokens.iter().any(|token| token.logprobs.is_some());
                let logprobs = with_logprobs.then(|| tokens_of(&mut self.offsets[index]));
                Ok(vec![self.part(index, text, logprobs, None)])
            }
            Event::End { choice, reason: why, tokens } => {
                self.app.metrics.observe_generation(tokens);
                Ok(vec![self.part(index(choice), String::new(), None, Some(reason(why)))])
            }
            Event::Done(used) => {
                self.usage.add(&used);
                self.seed = used.seed;
                Ok(Vec::new())
            }
            Event::Failed(error) => Err(ApiError::of(error, "prompt")),
        }
    }

    /// The last part of a stream, with the usage, if it is asked for.
    pub(crate) fn close(&self) -> Option<CompletionResponse> {
        let mut last = self.part(0, String::new(), None, None);
        last.choices.clear();
        last.usage = Some(StreamUsage::Used(self.usage.clone()));
        last.seed = Some(self.seed);
        self.form.include_usage.then_some(last)
    }

    /// The prompt as the beginning of each of its answers.
    fn echo(&mut self, prompt: usize, logprobs: Option<&[Option<TokenLogprobs>]>) -> Vec<CompletionResponse> {
        let Some((text, ids)) = self.form.echo.as_ref().and_then(|prompts| prompts.get(prompt)).cloned() else {
            return Vec::new();
        };
        let answers = prompt * self.form.best_of..(prompt + 1) * self.form.best_of;
        let part = |index: usize| {
            let entries = logprobs.map(|logprobs| {
                let tokens = ids.iter().copied().zip(logprobs.iter().map(Option::as_ref));
                self.offsets[index].entries(&self.app.vocabulary, tokens)
            });
            (index, entries)
        };
        let parts: Vec<_> = answers.map(part).collect();
        parts.into_iter().map(|(index, entries)| self.part(index, text.clone(), entries, None)).collect()
    }

    fn part(
        &self,
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.app.fingerprint.clone(),
            choices: vec![CompletionChoice { index, text, logprobs, finish_reason }],
            usage: self.form.include_usage.then_some(StreamUsage::Later),
            seed: None,
        }
    }

    /// The whole response, made of all parts.
    pub(crate) fn response(self, parts: Vec<CompletionResponse>) -> CompletionResponse {
        let empty = |index| CompletionChoice { index, text: String::new(), logprobs: None, finish_reason: None };
        let mut all: Vec<CompletionChoice> = (0..self.offsets.len()).map(empty).collect();
        for part in parts.into_iter().flat_map(|part| part.choices) {
            let choice = &mut all[part.index];
            choice.text.push_str(&part.text);
            if let Some(logprobs) = part.logprobs {
                choice.logprobs.get_or_insert_default().extend(logprobs);
            }
            choice.finish_reason = part.finish_reason.or(choice.finish_reason);
        }
        let mut choices = Vec::new();
        for answers in all.chunks_mut(self.form.best_of) {
            if self.form.best_of > self.form.choices {
                answers.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
            }
            for answer in &mut answers[..self.form.choices] {
                let logprobs = match self.form.logprobs {
                    Some(_) => Some(answer.logprobs.take().unwrap_or_default()),
                    None => None,
                };
                let text = std::mem::take(&mut answer.text);
                choices.push(CompletionChoice {
                    index: choices.len(),
                    text,
                    logprobs,
                    finish_reason: answer.finish_reason,
                });
            }
        }
        CompletionResponse {
            id: self.id,
            object: "text_completion",
            created: self.created,
            model: self.model,
            system_fingerprint: self.app.fingerprint.clone(),
            choices,
            usage: Some(StreamUsage::Used(self.usage)),
            seed: Some(self.seed),
        }
    }
}

/// The mean log-probability of the tokens of an answer. Those of the prompt are the same for all answers.
fn mean_logprob(answer: &CompletionChoice) -> f32 {
    let logprobs = answer.logprobs.iter().flat_map(|logprobs| logprobs.token_logprobs.iter().flatten());
    let (sum, count) = logprobs.fold((0., 0.), |(sum, count), logprob| (sum + logprob, count + 1.));
    if count > 0. { sum / count } else { f32::NEG_INFINITY }
}
