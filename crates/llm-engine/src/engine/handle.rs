//! The handle of the engine: requests in, events out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use llm_model::{Head, KvPool, Model};
use llm_tokenizer::Tokenizer;
use tokio::sync::{mpsc, oneshot};

use super::options::EngineOptions;
use super::shared::{Pooling, Shared};
use super::stats::EngineStats;
use super::thread::{self, Command};
use super::validate;
use super::work::Job;
use crate::{Error, Event, Request, Result, TextModel};

/// A handle of a running engine. Clones are handles of the same engine, from any thread. The engine ends when its last handle
/// and the last request are gone, or by [`Self::shutdown`].
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

/// What ends the engine when the last handle is dropped: the sender of its commands.
#[derive(Debug)]
struct Handle {
    commands: Sender<(Command, Instant)>,
    thread: Mutex<Option<JoinHandle<()>>>,
    next_id: AtomicU64,
}

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The request is wrong; the caller can fix it.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// The queue is full.
    #[error("too many requests wait; try again in {} s", retry_after.as_secs())]
    Busy {
        /// When a new try is likely to succeed.
        retry_after: Duration,
    },
    /// [`Engine::shutdown`] was called.
    #[error("the engine shuts down and takes no new requests")]
    ShuttingDown,
}

/// A request that was accepted. Dropping it cancels the request: the engine ends it within a step.
#[derive(Debug)]
pub struct Generation {
    /// A number that no other request of this engine has.
    pub id: u64,
    /// The events of the request; [`Event::Done`] or [`Event::Failed`] is the last one.
    pub events: mpsc::Receiver<Event>,
}

impl Generation {
    /// The next event; none after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// [`Self::next`] for a thread without an async runtime; it panics inside of one.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

/// The result of [`Engine::embed`] or [`Engine::score`]. Dropping it cancels the request.
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<Result<T>>);

impl<T> Pending<T> {
    /// The result, when it is there.
    pub async fn get(self) -> Result<T> {
        self.0.await.unwrap_or(Err(Error::ShutDown))
    }

    /// [`Self::get`] for a thread without an async runtime; it panics inside of one.
    pub fn blocking_get(self) -> Result<T> {
        self.0.blocking_recv().unwrap_or(Err(Error::ShutDown))
    }
}

/// What a caller must know of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The maximum number of tokens of prompt and answer together: that of the model, or what the KV cache has room for.
    pub context_length: usize,
    /// Token ids are less than this.
    pub vocab_size: usize,
    /// The length of an embedding.
    pub hidden_size: usize,
    /// Whether it predicts tokens; a model with another head only has embeddings and scores.
    pub generates: bool,
    /// Whether it has a score head.
    pub scores: bool,
    /// The names of the adapters that a request can choose: those that are loaded and not active.
    pub adapters: Vec<String>,
}

/// A copy of the model for each of its adapters that is not active. The copies share the frozen weights.
fn adapted(model: &Model) -> Result<BTreeMap<String, Model>> {
    let inactive = model.adapters().filter(|name| !model.active_adapters().iter().any(|active| active == name));
    inactive
        .map(|name| {
            let mut copy = model.clone();
            copy.use_adapter(Some(name))?;
            Ok((name.to_owned(), copy))
        })
        .collect()
}

impl Engine {
    /// Starts the thread of an engine with `model`.
    pub fn start(model: TextModel, options: EngineOptions) -> Result<Self> {
        Self::start_models(model, None, options)
    }

    /// [`Self::start`] with speculative decoding: `draft`, a smaller model with the same tokenizer, drafts tokens that `model` checks. The
    /// distribution of the answers is that of `model`.
    pub fn start_with_draft(model: TextModel, draft: TextModel, options: EngineOptions) -> Result<Self> {
        let vocab_sizes = [&model, &draft].map(|model| model.model.config().vocab_size);
        let generate = [&model, &draft].iter().all(|model| model.model.head() == Head::LanguageModel);
        if !generate
            || vocab_sizes[0] != vocab_sizes[1]
            || model.tokenizer.fingerprint() != draft.tokenizer.fingerprint()
        {
            return Err(Error::OtherDraft);
        }
        Self::start_models(model, Some(draft.model), options)
    }

    fn start_models(model: TextModel, draft: Option<Model>, options: EngineOptions) -> Result<Self> {
        let config = model.model.config();
        let tokens = options.pages(config, draft.as_ref().map(Model::config)).saturating_mul(KvPool::PAGE);
        if tokens == 0 {
            let page = KvPool::page_bytes(config, options.dtype());
            let problem = format!("have no room for a page; it needs {page} bytes, and max_running must be at least 1");
            return Err(Error::InvalidRequest { field: "kv_memory and max_running", problem });
        }
        let (stop_ids, context_length) = (model.stop_ids(), config.max_position_embeddings.min(tokens));
        let (token_texts, state) = (model.tokenizer.token_texts().into(), Mutex::default());
        let adapted = adapted(&model.model)?;
        let constraints = OnceLock::new();
        let shared =
            Shared { model, adapted, draft, options, stop_ids, token_texts, constraints, context_length, state };
        let shared = Arc::new(shared);
        let (commands, receiver) = std::sync::mpsc::channel();
        let thread = thread::start(Arc::clone(&shared), receiver)?;
        let handle = Handle { commands, thread: Mutex::new(Some(thread)), next_id: AtomicU64::new(0) };
        Ok(Self { shared, handle: Arc::new(handle) })
    }

    /// Submits a request. Everything that is wrong with it is found here: a request that is accepted fails only if the model
    /// or the machine does. A constraint that is new to the engine takes milliseconds to seconds to compile.
    pub fn submit(&self, mut request: Request) -> Result<Generation, SubmitError> {
        validate::request(&request, &self.shared)?;
        let constraint = request.constraint.as_ref().map(|constraint| self.shared.compile(constraint)).transpose()?;
        request.sampling = request.sampling.seeded();
        let id = self.handle.next_id.fetch_add(1, Ordering::Relaxed);
        // The events of a step: the prompt, the tokens and the end of each answer, the last event.
        let step_events = 2 + request.choices * (2 + self.shared.options.draft_tokens);
        // Room for those of some steps, so that a reader that is late does not stop the others.
        let (events, receiver) = mpsc::channel(step_events + 32 + 8 * request.choices);
        let tokens = request.prompt.len();
        let job = Job { request, constraint, events, step_events };
        self.send(tokens, Command::Generate(Box::new(job)))?;
        Ok(Generation { id, events: receiver })
    }

    /// The embedding of a text: its hidden states `(n, hidden_size)` after the final norm, pooled to `(hidden_size,)`. It is not
    /// normalised.
    pub fn embed(&self, ids: Vec<u32>, pooling: Pooling) -> Result<Pending<Vec<f32>>, SubmitError> {
        validate::text(&ids, &self.shared)?;
        let (reply, receiver) = oneshot::channel();
        self.send(ids.len(), Command::Embed { ids, pooling, reply })?;
        Ok(Pending(receiver))
    }

    /// The score of a text by a reward model, scaled by `reward_mean` and `reward_std` of its `config.json`.
    pub fn score(&self, ids: Vec<u32>) -> Result<Pending<f32>, SubmitError> {
        if self.shared.model.model.head() == Head::LanguageModel {
            return Err(Error::NoScoreHead.into());
        }
        validate::text(&ids, &self.shared)?;
        let (reply, receiver) = oneshot::channel();
        self.send(ids.len(), Command::Score { ids, reply })?;
        Ok(Pending(receiver))
    }

    /// Puts a command with this number of prompt tokens into the queue.
    fn send(&self, tokens: usize, command: Command) -> Result<(), SubmitError> {
        let mut state = self.shared.state();
        if state.closing {
            return Err(SubmitError::ShuttingDown);
        }
        if let Err(retry_after) = state.queue.enter(tokens, &self.shared.options) {
            state.stats.refused += 1;
            return Err(SubmitError::Busy { retry_after });
        }
        // In the lock, so that the thread cannot end between the check and this.
        self.handle.commands.send((command, Instant::now())).map_err(|_| SubmitError::ShuttingDown)
    }

    /// The counters now.
    pub fn stats(&self) -> EngineStats {
        let state = self.shared.state();
        EngineStats { waiting: state.queue.len(), ..state.stats.clone() }
    }

    /// The tokenizer of the model.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.model.tokenizer
    }

    /// The model with its tokenizer.
    pub fn text_model(&self) -> &TextModel {
        &self.shared.model
    }

    /// What a caller must know of the model.
    pub fn model_info(&self) -> ModelInfo {
        let model = &self.shared.model.model;
        let config = model.config();
        ModelInfo {
            context_length: self.shared.context_length,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            generates: model.head() == Head::LanguageModel,
            scores: model.head() != Head::LanguageModel,
            adapters: self.shared.adapted.keys().cloned().collect(),
        }
    }

    /// Refuses new requests, waits until the others have ended, at most for `deadline`, and then ends those that are left with
    /// [`Error::ShutDown`]. It blocks the calling thread.
    pub fn shutdown(&self, deadline: Duration) {
        self.shared.state().closing = true;
        // A thread that has ended has no receiver.
        let _ = self.handle.commands.send((Command::Wake, Instant::now()));
        let Some(thread) = self.handle.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let start = Instant::now();
        while !thread.is_finished() && start.elapsed() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.shared.state().aborting = true;
        if thread.join().is_err() {
            tracing::error!("the thread of the engine panicked");
        }
    }
}
