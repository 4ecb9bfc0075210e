//! The tokens of a step: sampling, the answers that get them, the end of answers.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{State, Worker};
use crate::engine::work::{Running, Task};
use crate::{Event, FinishReason, Result, Sampler, Token};

/// A token that is to be sampled.
struct Draw {
    work: u64,
    choice: usize,
    sequence: u64,
    sampler: Sampler,
    position: usize,
    logprobs: Option<usize>,
}

impl<'a> Worker<'a> {
    /// Samples a token for each sequence in `ends`.
    pub(super) fn sample(&mut self, hidden: &Tensor, ends: &[(u64, u32)]) -> Result<()> {
        let mut rows = Vec::new();
        let mut draws = Vec::new();
        for &(sequence, row) in ends {
            for draw in self.draws(sequence)? {
                rows.push(row);
                draws.push(draw);
            }
        }
        if draws.is_empty() {
            return Ok(());
        }
        let model = self.model();
        let mut distinct = rows.clone();
        distinct.dedup();
        let last = hidden.index_select(&Tensor::from_slice(&distinct, distinct.len(), hidden.device())?, 0)?;
        let logits = model.output(&last)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let vocab = model.config().vocab_size;
        let of_row = |row: &u32| distinct.binary_search(row).map_or(0, |i| i * vocab);
        let tokens: Vec<Result<Token>> = draws
            .par_iter_mut()
            .zip(&rows)
            .map(|(draw, row)| {
                let at = of_row(row);
                draw.sampler.next(&mut logits[at..at + vocab].to_vec(), draw.position, draw.logprobs)
            })
            .collect();
        for (draw, token) in draws.into_iter().zip(tokens) {
            let (work, choice, sequence) = (draw.work, draw.choice, draw.sequence);
            if let Some(running) = self.answer_mut(work, choice) {
                running.sampler = Some(draw.sampler);
            }
            let taken = token.and_then(|token| self.take_token(work, choice, sequence, token));
            if let Err(error) = taken {
                self.fail(work, error);
            }
        }
        Ok(())
    }

    pub(super) fn answer_mut(&mut self, work: u64, choice: usize) -> Option<&mut Running<'a>> {
        match &mut self.works.get_mut(&work)?.task {
            Task::Generate(generate) => generate.answers.get_mut(choice),
            Task::Embed { .. } | Task::Score { .. } => None,
        }
    }

    /// The tokens to sample after a sequence: one, or after the prompt one for each answer of the request.
    fn draws(&mut self, sequence: u64) -> Result<Vec<Draw>> {
        let Some(&(id, choice)) = self.owners.get(&sequence) else { return Ok(Vec::new()) };
        let Some(Task::Generate(generate)) = self.works.get(&id).map(|work| &work.task) else { return Ok(Vec::new()) };
        if generate.max_tokens == 0 {
            self.end_without_tokens(id);
            return Ok(Vec::new());
        }
        let choices = generate.job.request.choices;
        let mut forked = Vec::new();
        for choice in generate.answers.len()..choices {
            forked.push(self.running(generate, choice, self.next_id + 1 + forked.len() as u64));
        }
        let computed = self.state.scheduler.ids(sequence).len();
        for mut running in forked {
            running.drafted = computed;
            self.next_id += 1;
            if let Some(copy) = self.state.scheduler.fork(sequence, self.next_id) {
                let State { pool, draft_pool, .. } = &*self.state;
                for pool in draft_pool.iter().chain([pool]) {
                    pool.copy_page(copy.from, copy.to)?;
                }
            }
            if let Some(Task::Generate(generate)) = self.works.get_mut(&id).map(|work| &mut work.task) {
                self.owners.insert(self.next_id, (id, generate.answers.len()));
                generate.answers.push(running);
            }
        }
        let Some(Task::Generate(generate)) = self.works.get_mut(&id).map(|work| &mut work.task) else {
            return Ok(Vec::new());
        };
        let logprobs = generate.job.request.logprobs;
        // The forked ones have no token yet, as the one that they come from.
        let first = choice == 0 && generate.answers[0].answer.tokens() == 0;
        let answers = generate.answers.iter_mut().enumerate();
        let answers = answers.filter(|(other, running)| *other == choice || first && running.answer.tokens() == 0);
        let draw = |(choice, running): (usize, &mut Running)| {
            let (sequence, sampler) = (running.sequence?, running.sampler.take()?);
            Some(Draw { work: id, choice, sequence, sampler, position: running.answer.tokens(), logprobs })
        };
        Ok(answers.filter_map(draw).collect())
    }

    /// Ends a request that only asked for the log-probabilities of its prompt.
    fn end_without_tokens(&mut self, id: u64) {
        if let Some(Task::Generate(generate)) = self.works.get(&id).map(|work| &work.task) {
            let choices = generate.job.request.choices;
            for choice in 0..choices {
                generate.send(Event::End { choice, reason: FinishReason::Length, tokens: 0 });
            }
            self.shared.state().stats.finished_length += choices as u64;
            self.finish(id);
        }
    }

    /// Ends a request whose answers have all ended.
    fn finish(&mut self, id: u64) {
        let Some(Task::Generate(generate)) = self.works.get(&id).map(|work| &work.task) else { return };
        let (events, usage) = (generate.job.events.clone(), generate.usage());
        // First, so that a caller who got the last event sees its pages as free.
        self.remove(id);
        // The receiver may have been dropped.
        let _ = events.try_send(Event::Done(usage));
    }

    /// Takes a sampled token: its answer goes on with it or ends.
    pub(super) fn take_token(&mut self, id: u64, choice: usize, sequence: u64, token: Token) -> Result<()> {
        let token_id = token.id;
        let Some(work) = self.works.get_mut(&id) else { return Ok(()) };
        let Task::Generate(generate) = &mut work.task else { return Ok(()) };
        let reason = generate.take_token(choice, token)?;
        let now = Instant::now();
        let mut state = self.shared.state();
        let stats = &mut state.stats;
        stats.generated_tokens += 1;
        if generate.first_token.is_none() {
            generate.first_token = Some(now);
            stats.time_to_first_token.observe(now - work.submitted);
            stats.prefill_time.observe(now - work.started.unwrap_or(work.submitted));
        }
        if let Some(before) = generate.answers[choice].last_token.replace(now) {
            stats.inter_token_latency.observe(now - before);
        }
        let Some(reason) = reason else {
            drop(state);
            self.state.scheduler.push(sequence, token_id);
            return Ok(());
        };
        match reason {
            FinishReason::Stop => stats.finished_stop += 1,
            FinishReason::Length => stats.finished_length += 1,
        }
        generate.answers[choice].sequence = None;
        self.owners.remove(&sequence);
        self.state.scheduler.remove(sequence);
        if generate.answers.iter().all(|running| running.sequence.is_none()) {
            stats.decode_time.observe(generate.first_token.map_or(Duration::ZERO, |first| now - first));
            drop(state);
            self.finish(id);
        }
        Ok(())
    }
}
