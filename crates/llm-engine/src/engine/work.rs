//! Requests in work: what is known of each, and what happens with the hidden states of its tokens.

use std::time::Instant;

use candle_core::{DType, Tensor};
use llm_model::Model;
use tokio::sync::{mpsc, oneshot};

use super::answer::{Answer, Piece};
use super::shared::Pooling;
use crate::{CompiledConstraint, Error, Event, FinishReason, Request, Result, Sampler, Token, TokenLogprobs, Usage};

/// Rows of logits that are computed at a time for the log-probabilities of a prompt.
const LOGIT_ROWS: usize = 128;

/// An accepted request to generate.
#[derive(Debug)]
pub(super) struct Job {
    /// With a seed.
    pub request: Request,
    pub constraint: Option<CompiledConstraint>,
    pub events: mpsc::Sender<Event>,
    /// The number of events that a step can have at most.
    pub step_events: usize,
}

/// What the result of a request is.
pub(super) enum Task<'t> {
    Generate(Box<Generate<'t>>),
    Embed { pooling: Pooling, sum: Option<Tensor>, reply: Option<oneshot::Sender<Result<Vec<f32>>>> },
    Score { reply: Option<oneshot::Sender<Result<f32>>> },
}

/// A request from its submission to its end.
pub(super) struct Work<'t> {
    pub task: Task<'t>,
    pub prompt_tokens: usize,
    pub submitted: Instant,
    pub started: Option<Instant>,
    /// Since when its events are not received.
    pub stalled: Option<Instant>,
}

/// A request to generate.
pub(super) struct Generate<'t> {
    pub job: Job,
    pub stop_ids: Vec<u32>,
    /// By choice. Until the prompt is computed there is only the first.
    pub answers: Vec<Running<'t>>,
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub cached_tokens: usize,
    pub first_token: Option<Instant>,
    /// Tokens of an answer at most, with the context length.
    pub max_tokens: usize,
}

/// One answer while it is generated.
pub(super) struct Running<'t> {
    /// The sequence of the scheduler; none: the answer has ended.
    pub sequence: Option<u64>,
    pub answer: Answer<'t>,
    /// Taken out while it samples.
    pub sampler: Option<Sampler>,
    pub last_token: Option<Instant>,
    /// How many tokens of the sequence have keys and values of the draft model.
    pub drafted: usize,
}

impl Work<'_> {
    /// Whether nobody waits for the result.
    pub fn is_cancelled(&self) -> bool {
        match &self.task {
            Task::Generate(generate) => generate.job.events.is_closed(),
            Task::Embed { reply, .. } => reply.as_ref().is_none_or(oneshot::Sender::is_closed),
            Task::Score { reply } => reply.as_ref().is_none_or(oneshot::Sender::is_closed),
        }
    }

    /// Whether there is room for all events of a step.
    pub fn has_room(&self) -> bool {
        match &self.task {
            Task::Generate(generate) => generate.job.events.capacity() >= generate.job.step_events,
            Task::Embed { .. } | Task::Score { .. } => true,
        }
    }

    /// Reports the failure of the request.
    pub fn fail(&mut self, error: Error) {
        // Nobody may wait for it any more.
        match &mut self.task {
            Task::Generate(generate) => drop(generate.job.events.try_send(Event::Failed(error))),
            Task::Embed { reply, .. } => drop(reply.take().map(|reply| reply.send(Err(error)))),
            Task::Score { reply } => drop(reply.take().map(|reply| reply.send(Err(error)))),
        }
    }

    /// Takes the hidden states `(count, hidden)` of the tokens from `from`. True if that was all of the request.
    pub fn take_hidden(&mut self, model: &Model, ids: &[u32], from: usize, hidden: &Tensor) -> Result<bool> {
        let count = hidden.dim(0)?;
        let is_last = from + count == ids.len();
        match &mut self.task {
            Task::Generate(generate) => {
                generate.take_prompt(model, from, hidden)?;
                Ok(false)
            }
            Task::Embed { pooling, sum, reply } => {
                let hidden = hidden.to_dtype(DType::F32)?;
                let part = match pooling {
                    Pooling::Mean => Some(hidden.sum(0)?),
                    Pooling::First => (from == 0).then(|| hidden.get(0)).transpose()?,
                    Pooling::Last => is_last.then(|| hidden.get(count - 1)).transpose()?,
                };
                // After an interruption the tokens are computed again from the first.
                let before = if from == 0 { None } else { sum.take() };
                *sum = match (before, part) {
                    (Some(before), Some(part)) => Some((before + part)?),
                    (before, part) => part.or(before),
                };
                if is_last && let (Some(sum), Some(reply)) = (sum.take(), reply.take()) {
                    let sum = if *pooling == Pooling::Mean { (sum / ids.len() as f64)? } else { sum };
                    // The receiver may have been dropped.
                    let _ = reply.send(Ok(sum.to_vec1()?));
                }
                Ok(is_last)
            }
            Task::Score { reply } => {
                if is_last && let Some(reply) = reply.take() {
                    let _ = reply.send(Ok(score(model, &hidden.get(count - 1)?)?));
                }
                Ok(is_last)
            }
        }
    }
}

impl Generate<'_> {
    /// The number of prompt tokens.
    pub fn prompt_len(&self) -> usize {
        self.job.request.prompt.len()
    }

    /// Sends an event; there is room for it ([`Work::has_room`]), or nobody waits for it any more.
    pub fn send(&self, event: Event) {
        if self.job.events.try_send(event).is_err() {
            tracing::debug!("an event of a cancelled request");
        }
    }

    /// Adds the log-probabilities of the prompt tokens after those with these hidden states.
    fn take_prompt(&mut self, model: &Model, from: usize, hidden: &Tensor) -> Result<()> {
        let (prompt, Some(top)) = (&self.job.request.prompt, self.job.request.prompt_logprobs) else { return Ok(()) };
        if self.prompt_logprobs.is_empty() {
            self.prompt_logprobs.push(None);
        }
        // After an interruption the first ones are there already.
        let last = (from + hidden.dim(0)?).min(prompt.len() - 1);
        let mut at = from.max(self.prompt_logprobs.len() - 1);
        while at < last {
            let rows = LOGIT_ROWS.min(last - at);
            let logits = model.output(&hidden.narrow(0, at - from, rows)?)?.to_dtype(DType::F32)?; // (rows, vocab)
            for (row, logits) in logits.to_vec2::<f32>()?.iter().enumerate() {
                self.prompt_logprobs.push(Some(TokenLogprobs::of(logits, prompt[at + row + 1], top)?));
            }
            at += rows;
        }
        if last + 1 == prompt.len() && self.prompt_logprobs.len() == prompt.len() {
            let logprobs = std::mem::take(&mut self.prompt_logprobs);
            self.send(Event::Prompt(logprobs));
            self.job.request.prompt_logprobs = None;
        }
        Ok(())
    }

    /// Takes the next token of an answer: its events, and whether the answer goes on.
    pub fn take_token(&mut self, choice: usize, token: Token) -> Result<Option<FinishReason>> {
        let running = &mut self.answers[choice];
        let (mut reason, mut end) = (None, None);
        let mut piece = Piece::default();
        if self.stop_ids.contains(&token.id) {
            (reason, end) = (Some(FinishReason::Stop), Some(token));
        } else {
            piece = running.answer.push(token)?;
            if running.answer.stopped() {
                reason = Some(FinishReason::Stop);
            } else if running.answer.tokens() >= self.max_tokens {
                reason = Some(FinishReason::Length);
            }
        }
        if let Some(asked) = &mut reason {
            piece.extend(running.answer.finish(end)?);
            // The last characters can complete a stop string.
            if running.answer.stopped() {
                *asked = FinishReason::Stop;
            }
        }
        let tokens = running.answer.tokens();
        if !piece.is_empty() {
            self.send(Event::Text { choice, text: piece.text, tokens: piece.tokens });
        }
        if let Some(reason) = reason {
            self.send(Event::End { choice, reason, tokens });
        }
        Ok(reason)
    }

    /// What the request used.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len(),
            cached_tokens: self.cached_tokens,
            completion_tokens: self.answers.iter().map(|running| running.answer.tokens()).sum(),
            seed: self.job.request.sampling.seed.unwrap_or_default(),
        }
    }
}

/// The score of a text with the last hidden state `(hidden,)`; of a model with several heads their weighted sum.
fn score(model: &Model, last: &Tensor) -> Result<f32> {
    let score = model.output(&last.unsqueeze(0)?)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let score: f64 = score.iter().zip(model.score_weights()).map(|(&score, weight)| weight * f64::from(score)).sum();
    let number = |key: &str| model.extra.get(key).and_then(serde_json::Value::as_f64);
    let (mean, std) = (number("reward_mean").unwrap_or(0.), number("reward_std").filter(|&std| std > 0.).unwrap_or(1.));
    Ok(((score - mean) / std) as f32)
}
