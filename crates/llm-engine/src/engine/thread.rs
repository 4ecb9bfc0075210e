//! The thread of the engine: it takes requests from the queue and runs the model.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use llm_model::{Batch, KvCache, Model};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

use super::answer::Answer;
use super::handle::{Pooling, Shared};
use crate::generate::last_logits;
use crate::logprobs::token_logprobs;
use crate::{Error, Event, FinishReason, Request, Result, Sampler, Token, TokenLogprobs, Usage};

/// Rows of logits that are computed at a time for the log-probabilities of a prompt.
const LOGIT_ROWS: usize = 128;

/// An accepted request.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub seed: u64,
    pub events: mpsc::Sender<Event>,
    pub submitted: Instant,
}

/// What the handles send to the thread.
#[derive(Debug)]
pub(super) enum Command {
    Generate(Box<Job>),
    Embed {
        ids: Vec<u32>,
        pooling: Pooling,
        reply: oneshot::Sender<Result<Vec<f32>>>,
    },
    Score {
        ids: Vec<u32>,
        reply: oneshot::Sender<Result<f32>>,
    },
    /// Look at the state again.
    Wake,
}

/// Why a request ended before its last token.
enum Ended {
    Cancelled,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Starts the thread. It has a pool of threads of its own with as many threads as the caller's, so that a caller that waits in a
/// thread of a pool does not hold up the model.
pub(super) fn start(shared: Arc<Shared>, commands: Receiver<Command>) -> Result<JoinHandle<()>> {
    let failed = |error: &dyn std::fmt::Display| Error::Engine(format!("the thread of the engine: {error}"));
    let threads = rayon::current_num_threads();
    let name = |thread| format!("engine-{thread}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
    let pool = pool.map_err(|error| failed(&error))?;
    let run = move || pool.install(move || run(&shared, &commands));
    std::thread::Builder::new().name("engine".to_owned()).spawn(run).map_err(|error| failed(&error))
}

/// Answers commands until the engine is shut down or its handles are gone.
fn run(shared: &Shared, commands: &Receiver<Command>) {
    loop {
        let command = match commands.try_recv() {
            Err(TryRecvError::Empty) if shared.state().closing => return,
            Err(TryRecvError::Empty) => commands.recv().ok(),
            Err(TryRecvError::Disconnected) => None,
            Ok(command) => Some(command),
        };
        match command {
            None => return,
            Some(Command::Wake) => (),
            Some(Command::Generate(job)) => generate(shared, &job),
            Some(Command::Embed { ids, pooling, reply }) => {
                shared.state().queue.leave(ids.len());
                if !reply.is_closed() {
                    // The receiver may have been dropped.
                    let _ = reply.send(guarded(shared, || embed(&shared.model.model, &ids, pooling)));
                }
            }
            Some(Command::Score { ids, reply }) => {
                shared.state().queue.leave(ids.len());
                if !reply.is_closed() {
                    let _ = reply.send(guarded(shared, || score(&shared.model.model, &ids)));
                }
            }
        }
    }
}

/// Runs `program`; a panic is an error.
fn guarded<T, E: From<Error>>(shared: &Shared, program: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if shared.state().aborting {
        return Err(Error::ShutDown.into());
    }
    std::panic::catch_unwind(AssertUnwindSafe(program))
        .unwrap_or_else(|_| Err(Error::Engine("a step panicked; the message is in the log".to_owned()).into()))
}

/// Answers one request.
fn generate(shared: &Shared, job: &Job) {
    let start = Instant::now();
    {
        let mut state = shared.state();
        state.queue.leave(job.request.prompt.len());
        state.stats.queue_time.observe(start - job.submitted);
        state.stats.prompt_tokens += job.request.prompt.len() as u64;
        state.stats.running = job.request.choices;
    }
    let ended = guarded(shared, || answer(shared, job, start));
    let mut state = shared.state();
    state.stats.running = 0;
    state.stats.request_latency.observe(job.submitted.elapsed());
    state.queue.observe(job.request.prompt.len(), start.elapsed());
    match ended {
        Ok(()) => (),
        Err(Ended::Cancelled) => state.stats.cancelled += 1,
        Err(Ended::Failed(error)) => {
            state.stats.failed += 1;
            drop(state);
            // The receiver may have been dropped.
            let _ = send(shared, job, Event::Failed(error));
        }
    }
}

fn answer(shared: &Shared, job: &Job, start: Instant) -> Result<(), Ended> {
    let (text_model, request) = (&shared.model, &job.request);
    let model = &text_model.model;
    if let Some(top) = request.prompt_logprobs {
        send(shared, job, Event::Prompt(prompt_logprobs(model, &request.prompt, top)?))?;
    }
    let stop_ids = request.stop_ids.as_ref().unwrap_or(&shared.stop_ids);
    let context_length = model.config().max_position_embeddings;
    let steps = request.max_new_tokens.min(context_length - request.prompt.len());
    let choices = request.choices;
    let mut answers: Vec<Answer> = (0..choices).map(|_| Answer::new(&text_model.tokenizer, &request.stop)).collect();
    let vocab = model.config().vocab_size;
    let sampler =
        |choice| Sampler::new(&request.sampling, vocab, choice).with_end_ids(stop_ids).with_prompt(&request.prompt);
    let mut samplers: Vec<Sampler> = (0..choices).map(sampler).collect();
    let mut next: Vec<Vec<u32>> = vec![request.prompt.clone(); choices];
    let mut cache = match steps {
        0 => None,
        _ => Some(KvCache::new(model.config(), choices, request.prompt.len() + steps, &model.device())?),
    };
    if steps == 0 {
        for (choice, answer) in answers.iter_mut().enumerate() {
            end(shared, job, choice, answer, FinishReason::Length, None)?;
        }
    }
    let mut last_token = start;
    for step in 0..steps {
        let Some(cache) = &mut cache else { break };
        let rows: Vec<usize> = (0..choices).filter(|&row| !next[row].is_empty()).collect();
        if rows.is_empty() {
            break;
        }
        let logits = llm_kernels::spin_workers(|| last_logits(model, &next, cache))?; // (rows, vocab)
        let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
        observe_step(shared, job, start, step, rows.len(), &mut last_token);
        for (&row, logits) in rows.iter().zip(logits.chunks_exact_mut(vocab)) {
            let token = samplers[row].next(logits, step, request.logprobs)?;
            let id = token.id;
            next[row] = vec![id];
            if stop_ids.contains(&id) {
                next[row].clear();
                end(shared, job, row, &mut answers[row], FinishReason::Stop, Some(token))?;
                continue;
            }
            let piece = answers[row].push(token)?;
            if !piece.is_empty() {
                send(shared, job, Event::Text { choice: row, text: piece.text, tokens: piece.tokens })?;
            }
            let reason = match answers[row].stopped() {
                true => FinishReason::Stop,
                false if step + 1 == steps => FinishReason::Length,
                false => continue,
            };
            next[row].clear();
            end(shared, job, row, &mut answers[row], reason, None)?;
        }
        if shared.state().aborting {
            return Err(Error::ShutDown.into());
        }
        if job.events.is_closed() {
            return Err(Ended::Cancelled);
        }
    }
    let usage = Usage {
        prompt_tokens: request.prompt.len(),
        cached_tokens: 0,
        completion_tokens: answers.iter().map(Answer::tokens).sum(),
        seed: job.seed,
    };
    shared.state().stats.decode_time.observe(last_token.elapsed());
    send(shared, job, Event::Done(usage))
}

/// Ends one answer: the text that was held back, then the reason.
fn end(
    shared: &Shared,
    job: &Job,
    choice: usize,
    answer: &mut Answer,
    reason: FinishReason,
    token: Option<Token>,
) -> Result<(), Ended> {
    let piece = answer.finish(token)?;
    if !piece.is_empty() {
        send(shared, job, Event::Text { choice, text: piece.text, tokens: piece.tokens })?;
    }
    // The text may have been held back as the start of a stop string that the last character completed.
    let reason = if answer.stopped() { FinishReason::Stop } else { reason };
    {
        let stats = &mut shared.state().stats;
        match reason {
            FinishReason::Stop => stats.finished_stop += 1,
            FinishReason::Length => stats.finished_length += 1,
        }
    }
    send(shared, job, Event::End { choice, reason, tokens: answer.tokens() })
}

fn observe_step(shared: &Shared, job: &Job, start: Instant, step: usize, rows: usize, last_token: &mut Instant) {
    let (now, mut state) = (Instant::now(), shared.state());
    state.stats.generated_tokens += rows as u64;
    if step == 0 {
        state.stats.time_to_first_token.observe(now - job.submitted);
        state.stats.prefill_time.observe(now - start);
    } else {
        (0..rows).for_each(|_| state.stats.inter_token_latency.observe(now - *last_token));
    }
    *last_token = now;
}

/// Sends an event; waits while the channel is full, until the request counts as stalled.
fn send(shared: &Shared, job: &Job, mut event: Event) -> Result<(), Ended> {
    let start = Instant::now();
    loop {
        event = match job.events.try_send(event) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(Ended::Cancelled),
            Err(TrySendError::Full(event)) => event,
        };
        if start.elapsed() > shared.options.stall_timeout || shared.state().aborting {
            return Err(Ended::Cancelled);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The log-probability of each token of a prompt after those before it; the first has none.
fn prompt_logprobs(model: &Model, prompt: &[u32], top: usize) -> Result<Vec<Option<TokenLogprobs>>> {
    let hidden = model.hidden(&Batch::new(&[prompt.to_vec()])?, None)?.squeeze(0)?; // (n, hidden)
    let mut logprobs = vec![None];
    let last = prompt.len() - 1;
    for from in (0..last).step_by(LOGIT_ROWS) {
        let rows = LOGIT_ROWS.min(last - from);
        let logits = model.output(&hidden.narrow(0, from, rows)?)?.to_dtype(DType::F32)?; // (rows, vocab)
        for (row, logits) in logits.to_vec2::<f32>()?.iter().enumerate() {
            logprobs.push(Some(token_logprobs(logits, prompt[from + row + 1], top)));
        }
    }
    Ok(logprobs)
}

fn embed(model: &Model, ids: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
    let hidden = model.hidden(&Batch::new(&[ids.to_vec()])?, None)?.squeeze(0)?.to_dtype(DType::F32)?; // (n, hidden)
    let pooled = match pooling {
        Pooling::Mean => hidden.mean(0)?,
        Pooling::First => hidden.get(0)?,
        Pooling::Last => hidden.get(ids.len() - 1)?,
    };
    Ok(pooled.to_vec1()?)
}

fn score(model: &Model, ids: &[u32]) -> Result<f32> {
    let hidden = model.hidden(&Batch::new(&[ids.to_vec()])?, None)?;
    let last: Tensor = hidden.narrow(1, ids.len() - 1, 1)?; // (1, 1, hidden)
    let score = model.output(&last)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?[0];
    let number = |key: &str| model.extra.get(key).and_then(serde_json::Value::as_f64);
    let (mean, std) = (number("reward_mean").unwrap_or(0.), number("reward_std").filter(|&std| std > 0.).unwrap_or(1.));
    Ok(((f64::from(score) - mean) / std) as f32)
}
