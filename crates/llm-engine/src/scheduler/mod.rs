//! What the model computes in a step: which tokens of which sequences, with which pages of the KV cache.
//!
//! The scheduler knows no model, so that its rules can be tested alone:
//! - sequences that generate come first; what is left of the step is for prompts;
//! - a sequence starts if pages for all its tokens are free and one more for each running sequence;
//! - if a running sequence needs a page and none is free, the youngest sequence of the lowest priority is stopped. It keeps its
//!   tokens, and its keys and values are computed again later.

mod fairness;
mod pages;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use fairness::Queue;
pub(crate) use fairness::Waiting;
pub(crate) use pages::PageKey;
use pages::Pages;

/// Tokens of a prompt that are computed in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// In a step in which other sequences generate.
    pub beside_decode: usize,
    /// In other steps.
    pub alone: usize,
    /// A row never reaches over the end of a page, so that prompts are always computed in the same pieces.
    pub whole_pages: bool,
}

/// A sequence of tokens that is computed.
#[derive(Debug)]
struct Sequence {
    ids: Vec<u32>,
    /// How many of `ids` have keys and values in the pages.
    computed: usize,
    /// The pages, in the order of the tokens.
    table: Vec<u32>,
    /// The keys of the full pages.
    keys: Vec<PageKey>,
    root: PageKey,
    /// Whether cached pages of other sequences are used.
    reads_cache: bool,
    request: Waiting,
    running: bool,
    paused: bool,
}

/// The tokens of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub id: u64,
    /// The number of earlier tokens, whose keys and values are in the pages.
    pub from: usize,
    /// The number of tokens, at least 1.
    pub count: usize,
}

/// What is computed next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub rows: Vec<Row>,
    /// Sequences that were started, with the number of their tokens that were cached.
    pub started: Vec<(u64, usize)>,
    /// The number of sequences that were stopped to free pages.
    pub preempted: usize,
    /// Whether a sequence generates.
    pub decodes: bool,
}

/// A copy of a page that must be made before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub from: u32,
    pub to: u32,
}

/// All sequences and pages.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pages: Pages,
    page_tokens: usize,
    max_running: usize,
    /// By id: ids are in the order of submission.
    sequences: BTreeMap<u64, Sequence>,
    queue: Queue,
}

impl Scheduler {
    /// For a pool of `pages` pages of `page_tokens` tokens, and at most `max_running` sequences at a time.
    pub fn new(pages: usize, page_tokens: usize, max_running: usize) -> Self {
        let (sequences, queue) = (BTreeMap::new(), Queue::default());
        Self { pages: Pages::new(pages), page_tokens, max_running, sequences, queue }
    }

    /// Adds a sequence, which must have at least one token and fit the pool alone. Ids must increase.
    pub fn add(&mut self, id: u64, ids: Vec<u32>, root: PageKey, reads_cache: bool, request: Waiting) {
        self.queue.push(id, request.clone());
        self.insert(id, ids, root, reads_cache, request);
    }

    fn insert(&mut self, id: u64, ids: Vec<u32>, root: PageKey, reads_cache: bool, request: Waiting) {
        let (table, keys) = (Vec::new(), Vec::new());
        let (running, paused, computed) = (false, false, 0);
        self.sequences.insert(id, Sequence { ids, computed, table, keys, root, reads_cache, request, running, paused });
    }

    /// Adds a sequence with the tokens of another one. If all of them but one are computed and pages are free, it runs at once with the
    /// same keys and values; of a page that is not full it gets a copy. Otherwise it starts later, before new sequences.
    pub fn fork(&mut self, parent: u64, id: u64) -> Option<PageCopy> {
        let Sequence { ids, computed, table, root, request, running, .. } = self.sequences.get(&parent)?;
        let (ids, computed, root, request, running) = (ids.clone(), *computed, *root, request.clone(), *running);
        let mut table = table[..computed.div_ceil(self.page_tokens).min(table.len())].to_vec();
        let keys = self.sequences[&parent].keys.clone();
        self.insert(id, ids, root, true, request);
        if !running || computed + 1 < self.sequences[&id].ids.len() || self.running() >= self.max_running {
            return None;
        }
        let mut copy = None;
        if !computed.is_multiple_of(self.page_tokens)
            && let Some(from) = table.pop()
        {
            let to = self.pages.allocate()?;
            copy = Some(PageCopy { from, to });
            table.iter().for_each(|&page| self.pages.share(page));
            table.push(to);
        } else {
            table.iter().for_each(|&page| self.pages.share(page));
        }
        if let Some(sequence) = self.sequences.get_mut(&id) {
            (sequence.computed, sequence.table, sequence.keys, sequence.running) = (computed, table, keys, true);
        }
        copy
    }

    /// Removes a sequence and frees its pages. Nothing happens if it is not there.
    pub fn remove(&mut self, id: u64) {
        self.stop(id);
        self.sequences.remove(&id);
        self.queue.remove(id);
    }

    /// Appends a token to a sequence.
    pub fn push(&mut self, id: u64, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.ids.push(token);
        }
    }

    /// Whether a sequence is left out of the next steps.
    pub fn set_paused(&mut self, id: u64, paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = paused;
        }
    }

    /// The tokens of a sequence.
    pub fn ids(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.ids)
    }

    /// The pages of a sequence.
    pub fn table(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.table)
    }

    /// The number of sequences that run.
    pub fn running(&self) -> usize {
        self.sequences.values().filter(|sequence| sequence.running).count()
    }

    /// The number of pages in use, and of all pages.
    pub fn page_counts(&self) -> (usize, usize) {
        (self.pages.used(), self.pages.len())
    }

    /// The keys and values of the first `computed` tokens of a sequence are in its pages; full pages can be shared from now on.
    pub fn set_computed(&mut self, id: u64, computed: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.computed = computed;
        let full = computed.min(sequence.ids.len()) / self.page_tokens;
        for page in sequence.keys.len()..full {
            let before = sequence.keys.last().copied().unwrap_or(sequence.root);
            let key = before.next(&sequence.ids[page * self.page_tokens..(page + 1) * self.page_tokens]);
            sequence.keys.push(key);
            self.pages.publish(sequence.table[page], key);
        }
    }

    /// Gives a running sequence pages for up to `tokens` tokens, without stopping others; the number of tokens that fit.
    pub fn reserve(&mut self, id: u64, tokens: usize) -> usize {
        let Some(sequence) = self.sequences.get_mut(&id) else { return 0 };
        while sequence.table.len() * self.page_tokens < tokens {
            let Some(page) = self.pages.allocate() else { break };
            sequence.table.push(page);
        }
        tokens.min(sequence.table.len() * self.page_tokens)
    }

    /// Chooses what is computed next.
    pub fn plan(&mut self, now: Duration, budget: Budget) -> Step {
        let mut step = Step::default();
        for id in self.in_order(|sequence| sequence.running) {
            let sequence = &self.sequences[&id];
            if sequence.running && !sequence.paused && sequence.ids.len() == sequence.computed + 1 {
                let from = sequence.computed;
                if self.make_room(id, from + 1, &mut step) {
                    step.rows.push(Row { id, from, count: 1 });
                    step.decodes = true;
                }
            }
        }
        let mut tokens = if step.decodes { budget.beside_decode } else { budget.alone };
        for id in self.in_order(|sequence| sequence.running && !sequence.paused) {
            self.add_prompt_row(id, &mut tokens, budget, &mut step);
        }
        while tokens > 0 && step.preempted == 0 && self.running() < self.max_running {
            let Some(id) = self.next_to_start(now) else { break };
            let Some(cached) = self.start(id) else { break };
            step.started.push((id, cached));
            self.add_prompt_row(id, &mut tokens, budget, &mut step);
        }
        step
    }

    /// The sequences with `property`: the highest priority first, then the oldest.
    fn in_order(&self, property: impl Fn(&Sequence) -> bool) -> Vec<u64> {
        let chosen = self.sequences.iter().filter(|(_, sequence)| property(sequence));
        let mut order: Vec<_> = chosen.map(|(&id, sequence)| (Reverse(sequence.request.priority), id)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// Adds the next tokens of a sequence that is not at its last token.
    fn add_prompt_row(&self, id: u64, tokens: &mut usize, budget: Budget, step: &mut Step) {
        let sequence = &self.sequences[&id];
        let (from, left) = (sequence.computed, sequence.ids.len() - sequence.computed);
        let decoded = step.rows.iter().any(|row| row.id == id);
        if *tokens == 0 || left == 0 || decoded {
            return;
        }
        let mut count = left.min(*tokens);
        let end = (from + count) / self.page_tokens * self.page_tokens;
        if budget.whole_pages {
            count = left.min(self.page_tokens - from % self.page_tokens);
        } else if count < left && end > from {
            count = end - from;
        }
        *tokens = tokens.saturating_sub(count);
        step.rows.push(Row { id, from, count });
    }

    /// Gives a running sequence pages for `tokens` tokens, from others if need be; false if it was stopped itself.
    fn make_room(&mut self, id: u64, tokens: usize, step: &mut Step) -> bool {
        while self.reserve(id, tokens) < tokens {
            let Some(&victim) = self.in_order(|sequence| sequence.running).last() else { return false };
            self.stop(victim);
            step.preempted += 1;
            if victim == id {
                return false;
            }
        }
        true
    }

    /// Frees the pages of a sequence. The last ones are released first, so that the beginning is cached for longer.
    fn stop(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.table.drain(..).rev().for_each(|page| self.pages.release(page));
        (sequence.running, sequence.computed) = (false, 0);
        sequence.keys.clear();
    }

    /// The sequence that starts next: one that was stopped, if no new one has a higher priority.
    fn next_to_start(&mut self, now: Duration) -> Option<u64> {
        let new = self.queue.first(now).map(|(id, waiting)| (id, waiting.priority_at(now)));
        let is_new = |id: &u64| self.queue.contains(*id);
        let stopped = self.sequences.iter().filter(|(id, sequence)| !sequence.running && !is_new(id));
        let stopped = stopped.map(|(&id, sequence)| (Reverse(sequence.request.priority_at(now)), id)).min();
        match (stopped, new) {
            (Some((priority, id)), Some((_, new))) if priority.0 >= new => Some(id),
            (Some((_, id)), None) => Some(id),
            (_, new) => new.map(|(id, _)| id),
        }
    }

    /// Starts a sequence if enough pages are free; the number of its tokens that are cached.
    fn start(&mut self, id: u64) -> Option<usize> {
        let sequence = self.sequences.get(&id)?;
        let (mut keys, mut table) = (Vec::new(), Vec::new());
        // The last token is always computed: its logits are needed.
        let full = if sequence.reads_cache { (sequence.ids.len() - 1) / self.page_tokens } else { 0 };
        for ids in sequence.ids.chunks_exact(self.page_tokens).take(full) {
            let key = keys.last().copied().unwrap_or(sequence.root).next(ids);
            let Some(page) = self.pages.find(&key) else { break };
            keys.push(key);
            table.push(page);
        }
        let new = sequence.ids.len().div_ceil(self.page_tokens) - table.len();
        let unused = table.iter().filter(|&&page| self.pages.is_unused(page)).count();
        let running = self.running();
        if self.pages.available() - unused < new + running {
            return None;
        }
        let cached = table.len() * self.page_tokens;
        table.iter().for_each(|&page| self.pages.share(page));
        table.extend((0..new).filter_map(|_| self.pages.allocate()));
        self.queue.start(id);
        let sequence = self.sequences.get_mut(&id)?;
        (sequence.table, sequence.keys, sequence.computed, sequence.running) = (table, keys, cached, true);
        Some(cached)
    }
}

/// The number of rows from the first on, at least one, that have at most `most` tokens together.
pub(crate) fn fitting(rows: &[Row], most: usize) -> usize {
    let mut tokens = 0;
    let fits = rows.iter().take_while(|row| {
        tokens += row.count;
        tokens <= most
    });
    fits.count().max(1)
}
