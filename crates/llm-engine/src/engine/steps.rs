//! The steps of the engine: one forward pass for all sequences of a step, then one token for each that is at its end.

mod drafts;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use candle_core::Tensor;
use llm_model::{Batch, KvPool, Model, PagedRows};

use drafts::Draft;

use super::answer::Answer;
use super::options::Speed;
use super::shared::Shared;
use super::work::{Generate, Job, Running, Task, Work};
use crate::scheduler::{PageKey, Row, Scheduler, Step, Waiting, fitting};
use crate::{Error, Result, Sampler};

/// The scheduler and the memory of keys and values.
#[derive(Debug)]
pub(super) struct State {
    scheduler: Scheduler,
    pool: KvPool,
    /// That of the draft model, with the same pages.
    draft_pool: Option<KvPool>,
}

impl State {
    /// Reserves the memory.
    pub fn new(shared: &Shared) -> Result<Self> {
        let (model, options) = (&shared.model.model, &shared.options);
        let pages = options.pages(model.config(), shared.draft.as_ref().map(Model::config));
        let pool = |model: &Model| KvPool::new(model.config(), pages, options.dtype(), &model.device());
        let (draft_pool, pool) = (shared.draft.as_ref().map(pool).transpose()?, pool(model)?);
        Ok(Self { scheduler: Scheduler::new(pages, KvPool::PAGE, options.max_running), pool, draft_pool })
    }
}

/// The sequences that need a token, with the row of their last hidden state; and the rows with drafts, with that of their first.
type Ends = (Vec<(u64, u32)>, Vec<(Row, usize)>);

/// The state of the thread.
pub(super) struct Worker<'a> {
    shared: &'a Shared,
    state: &'a mut State,
    /// By the id of the first sequence.
    works: BTreeMap<u64, Work<'a>>,
    /// The request and the choice of each sequence.
    owners: HashMap<u64, (u64, usize)>,
    next_id: u64,
    epoch: Instant,
    speed: Speed,
    /// The rows of the forward pass that is computed, and the adapter of their requests.
    current: Vec<Row>,
    adapter: Option<String>,
    /// The drafts of the step by sequence; they are the last tokens of its row.
    drafts: HashMap<u64, Draft>,
    /// When the last request ended.
    last_end: Instant,
}

impl<'a> Worker<'a> {
    pub fn new(shared: &'a Shared, state: &'a mut State) -> Self {
        let now = Instant::now();
        Self {
            shared,
            state,
            works: BTreeMap::new(),
            owners: HashMap::new(),
            next_id: 0,
            epoch: now,
            speed: Speed::new(),
            current: Vec::new(),
            adapter: None,
            drafts: HashMap::new(),
            last_end: now,
        }
    }

    /// Whether no new requests come, and whether all must end at once.
    pub fn ending(&self) -> (bool, bool) {
        let state = self.shared.state();
        (state.closing, state.aborting)
    }

    pub fn is_idle(&self) -> bool {
        self.works.is_empty()
    }

    /// Adds a request to generate.
    pub fn add_generate(&mut self, job: Job, submitted: Instant) {
        let request = &job.request;
        let stop_ids = request.stop_ids.clone().unwrap_or_else(|| self.shared.stop_ids.clone());
        let max_tokens = request.max_new_tokens.min(self.shared.context_length - request.prompt.len());
        let waiting = Waiting {
            priority: request.priority,
            key: request.key.clone(),
            since: submitted.saturating_duration_since(self.epoch),
            cost: (request.prompt.len() + request.choices * max_tokens) as u64,
        };
        let root = PageKey::root(
            request.adapter.as_deref().unwrap_or_default(),
            request.cache_salt.as_deref().unwrap_or_default(),
        );
        // The cache has no logits.
        let reads_cache = self.shared.options.prefix_cache && request.prompt_logprobs.is_none();
        let ids = request.prompt.clone();
        let mut generate = Generate {
            stop_ids,
            answers: Vec::new(),
            prompt_logprobs: Vec::new(),
            cached_tokens: 0,
            first_token: None,
            max_tokens,
            job,
        };
        self.next_id += 1;
        generate.answers.push(self.running(&generate, 0, self.next_id));
        let (prompt_tokens, task) = (ids.len(), Task::Generate(Box::new(generate)));
        self.works.insert(self.next_id, Work { task, prompt_tokens, submitted, started: None, stalled: None });
        self.owners.insert(self.next_id, (self.next_id, 0));
        self.state.scheduler.add(self.next_id, ids, root, reads_cache, waiting);
    }

    /// Adds a request for an embedding or a score.
    pub fn add_text(&mut self, work: Work<'a>, ids: Vec<u32>) {
        let since = work.submitted.saturating_duration_since(self.epoch);
        let waiting = Waiting { priority: 0, key: None, since, cost: ids.len() as u64 };
        self.next_id += 1;
        self.works.insert(self.next_id, work);
        self.owners.insert(self.next_id, (self.next_id, 0));
        // All hidden states are needed.
        self.state.scheduler.add(self.next_id, ids, PageKey::root("", ""), false, waiting);
    }

    fn running(&self, generate: &Generate, choice: usize, sequence: u64) -> Running<'a> {
        let (model, request) = (&self.shared.model, &generate.job.request);
        let sampler = Sampler::new(&request.sampling, model.model.config().vocab_size, choice)
            .with_end_ids(&generate.stop_ids)
            .with_token_texts(&self.shared.token_texts)
            .with_prompt(&request.prompt);
        let sampler = match &generate.job.constraint {
            Some(constraint) => sampler.with_constraint(constraint),
            None => sampler,
        };
        let answer = Answer::new(&model.tokenizer, &request.prompt, &request.stop, request.sampling.min_tokens);
        Running { sequence: Some(sequence), answer, sampler: Some(sampler), last_token: None, drafted: 0 }
    }

    /// Ends the requests that nobody waits for; those whose events nobody receives are paused and end later.
    pub fn remove_cancelled(&mut self) {
        let (now, timeout) = (Instant::now(), self.shared.options.stall_timeout);
        let mut cancelled = Vec::new();
        for (&id, work) in &mut self.works {
            let paused = !work.has_room();
            if work.stalled.is_some() != paused {
                work.stalled = paused.then_some(now);
                for sequence in sequences(id, work) {
                    self.state.scheduler.set_paused(sequence, paused);
                }
            }
            if work.is_cancelled() || work.stalled.is_some_and(|since| now - since > timeout) {
                cancelled.push(id);
            }
        }
        self.shared.state().stats.cancelled += cancelled.len() as u64;
        cancelled.into_iter().for_each(|id| self.remove(id));
    }

    /// Frees everything of a request.
    fn remove(&mut self, id: u64) {
        let Some(work) = self.works.remove(&id) else { return };
        for sequence in sequences(id, &work) {
            self.state.scheduler.remove(sequence);
            self.owners.remove(&sequence);
        }
        let (now, mut state) = (Instant::now(), self.shared.state());
        if work.started.is_none() {
            state.queue.leave(work.prompt_tokens);
        }
        state.queue.observe(work.prompt_tokens, now - work.started.unwrap_or(now).max(self.last_end));
        state.stats.request_latency.observe(now - work.submitted);
        drop(state);
        self.last_end = now;
        self.report();
    }

    /// Ends a request with an error.
    fn fail(&mut self, id: u64, error: Error) {
        if let Some(work) = self.works.get_mut(&id) {
            work.fail(error);
            self.shared.state().stats.failed += 1;
            self.remove(id);
        }
    }

    /// Ends all requests because the engine is shut down.
    pub fn fail_all(&mut self) {
        let all: Vec<u64> = self.works.keys().copied().collect();
        all.into_iter().for_each(|id| self.fail(id, Error::ShutDown));
    }

    /// Ends the requests of a step that failed.
    pub fn fail_step(&mut self, error: &Error) {
        tracing::error!("a step of the engine failed: {error}");
        for row in std::mem::take(&mut self.current) {
            if let Some(&(work, _)) = self.owners.get(&row.id) {
                self.fail(work, Error::Engine(error.to_string()));
            }
        }
    }

    /// Publishes the counters.
    pub fn report(&self) {
        let stats = &mut self.shared.state().stats;
        stats.running = self.state.scheduler.running();
        (stats.pages_used, stats.pages_total) = self.state.scheduler.page_counts();
    }

    /// Computes one step; false if all sequences are paused.
    pub fn step(&mut self) -> Result<bool> {
        let start = Instant::now();
        let budget = self.speed.budget(&self.shared.options);
        let mut step = self.state.scheduler.plan(start - self.epoch, budget);
        self.note_started(&step, start);
        if step.rows.is_empty() {
            return Ok(false);
        }
        self.current = std::mem::take(&mut step.rows);
        let prompt_tokens = match step.decodes {
            true => llm_kernels::spin_workers(|| self.compute())?,
            false => self.compute()?,
        };
        self.speed.observe(prompt_tokens, step.decodes, start.elapsed());
        self.current.clear();
        Ok(true)
    }

    /// Computes the rows of the step, those of each adapter together; the number of prompt tokens.
    fn compute(&mut self) -> Result<usize> {
        let mut groups: BTreeMap<Option<String>, Vec<Row>> = BTreeMap::new();
        for row in std::mem::take(&mut self.current) {
            groups.entry(self.adapter_of(row.id)).or_default().push(row);
        }
        // Matmuls of so few rows have the same bits for any number of them; drafted tokens come on top.
        let most = match self.shared.options.deterministic {
            true => llm_kernels::FEW_ROWS - drafts::MAX_CHECKED,
            false => usize::MAX,
        };
        let mut prompt_tokens = 0;
        for (adapter, mut rows) in groups {
            self.adapter = adapter;
            while !rows.is_empty() {
                let later = rows.split_off(fitting(&rows, most));
                self.current = std::mem::replace(&mut rows, later);
                // Those of a request that failed in an earlier pass of this step are gone.
                self.current.retain(|row| self.owners.contains_key(&row.id));
                prompt_tokens += self.compute_rows()?;
            }
        }
        Ok(prompt_tokens)
    }

    /// The adapter of the request of a sequence.
    fn adapter_of(&self, sequence: u64) -> Option<String> {
        let (work, _) = self.owners.get(&sequence)?;
        match &self.works.get(work)?.task {
            Task::Generate(generate) => generate.job.request.adapter.clone(),
            Task::Embed { .. } | Task::Score { .. } => None,
        }
    }

    /// The model with the adapter of the current rows.
    fn model(&self) -> &'a Model {
        let adapted = self.adapter.as_ref().and_then(|name| self.shared.adapted.get(name));
        adapted.unwrap_or(&self.shared.model.model)
    }

    /// Computes the current rows and gives the tokens to the answers; the number of prompt tokens.
    fn compute_rows(&mut self) -> Result<usize> {
        if self.current.is_empty() {
            return Ok(0);
        }
        self.draft()?;
        let hidden = self.forward()?; // (n, hidden)
        self.follow()?;
        let is_prompt = |row: &&Row| row.count > 1 && !self.drafts.contains_key(&row.id);
        let prompt_tokens = self.current.iter().filter(is_prompt).map(|row| row.count).sum();
        let (ends, drafted) = self.take_hidden(&hidden)?;
        self.sample(&hidden, &ends)?;
        self.check_drafts(&hidden, &drafted)?;
        Ok(prompt_tokens)
    }

    /// Counts the requests that leave the queue.
    fn note_started(&mut self, step: &Step, now: Instant) {
        let mut state = self.shared.state();
        state.stats.preemptions += step.preempted as u64;
        for &(sequence, cached) in &step.started {
            let Some(&(id, choice)) = self.owners.get(&sequence) else { continue };
            let Some(work) = self.works.get_mut(&id) else { continue };
            if let Task::Generate(generate) = &mut work.task {
                generate.answers[choice].drafted = cached;
            }
            if work.started.is_some() {
                continue;
            }
            work.started = Some(now);
            state.queue.leave(work.prompt_tokens);
            state.stats.queue_time.observe(now - work.submitted);
            state.stats.prompt_tokens += work.prompt_tokens as u64;
            if let Task::Generate(generate) = &mut work.task {
                generate.cached_tokens = cached;
                state.stats.prefix_queries += work.prompt_tokens as u64;
                state.stats.prefix_hits += cached as u64;
            }
        }
    }

    /// The hidden states `(n, hidden)` of the tokens of the step.
    fn forward(&self) -> Result<Tensor> {
        let (State { scheduler, pool, .. }, rows) = (&*self.state, &self.current);
        let ids = rows.iter().map(|row| {
            let drafted = self.drafts.get(&row.id).map_or(&[][..], |draft| &draft.ids);
            [&scheduler.ids(row.id)[row.from..row.from + row.count - drafted.len()], drafted].concat()
        });
        let ids: Vec<Vec<u32>> = ids.collect();
        let past: Vec<usize> = rows.iter().map(|row| row.from).collect();
        let tables: Vec<Vec<u32>> = rows.iter().map(|row| scheduler.table(row.id).to_vec()).collect();
        let paged = PagedRows { pool, tables: &tables, past: &past };
        Ok(self.model().hidden_paged(&Batch::ragged(&ids, &past)?, &paged)?.squeeze(0)?)
    }

    /// Gives the hidden states `(n, hidden)` to the requests.
    fn take_hidden(&mut self, hidden: &Tensor) -> Result<Ends> {
        let model = self.model();
        let (mut first, mut ends, mut drafted) = (0, Vec::new(), Vec::new());
        for row in self.current.clone() {
            let at = first;
            first += row.count;
            if self.drafts.contains_key(&row.id) {
                drafted.push((row, at));
                continue;
            }
            self.state.scheduler.set_computed(row.id, row.from + row.count);
            let Some(&(id, _)) = self.owners.get(&row.id) else { continue };
            let Some(work) = self.works.get_mut(&id) else { continue };
            let ids = self.state.scheduler.ids(row.id);
            let is_last = row.from + row.count == ids.len();
            match work.take_hidden(model, ids, row.from, &hidden.narrow(0, at, row.count)?) {
                Err(error) => self.fail(id, error),
                Ok(true) => self.remove(id),
                Ok(false) if is_last => ends.push((row.id, first as u32 - 1)),
                Ok(false) => (),
            }
        }
        Ok((ends, drafted))
    }
}

/// The sequences of a request that have not ended.
fn sequences(id: u64, work: &Work) -> Vec<u64> {
    match &work.task {
        Task::Generate(generate) => generate.answers.iter().filter_map(|running| running.sequence).collect(),
        Task::Embed { .. } | Task::Score { .. } => vec![id],
    }
}
