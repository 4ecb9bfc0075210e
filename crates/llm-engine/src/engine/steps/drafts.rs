//! Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318): tokens are drafted by a small model, or
//! looked up in the text itself, and the model checks all of them in one forward pass. The distribution of the answers is that of the model.

use candle_core::{DType, Tensor};
use llm_model::{Batch, Model, PagedRows};
use rayon::prelude::*;

use super::{State, Worker};
use crate::engine::work::{Running, Task};
use crate::scheduler::Row;
use crate::{Result, Sampler, Token, TokenLogprobs};

/// At most this many tokens are checked in a step; with more answers at a time drafts do not pay.
pub(super) const MAX_CHECKED: usize = 16;
/// Look-up: the last tokens, this many at most and at least, must occur earlier in the text.
const LOOKUP: std::ops::RangeInclusive<usize> = 2..=4;

/// Probabilities by id, in ascending order of ids; the other tokens have none.
type Distribution = Vec<(u32, f32)>;

/// Tokens that were drafted after the last one of an answer.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub ids: Vec<u32>,
    /// What each was drawn from.
    distributions: Vec<Distribution>,
}

/// An answer for which tokens are drafted.
struct Drafting {
    row: usize,
    sequence: u64,
    work: u64,
    choice: usize,
    sampler: Sampler,
    /// The position of the first drafted token in the answer.
    position: usize,
    /// The next tokens for the draft model, and the number of those before.
    input: Vec<u32>,
    past: usize,
    limit: usize,
    draft: Draft,
    ended: bool,
}

/// The tokens of an answer after a check.
struct Checked {
    sequence: u64,
    sampler: Sampler,
    draft: Draft,
    position: usize,
    logprobs: Option<usize>,
}

impl Worker<'_> {
    /// Drafts tokens for the answers of the step and adds them to their rows.
    pub(super) fn draft(&mut self) -> Result<()> {
        self.drafts.clear();
        let options = &self.shared.options;
        if options.draft_tokens == 0 || self.shared.draft.is_none() && !options.prompt_lookup {
            return Ok(());
        }
        let mut drafting = self.start_drafts();
        if let Some(model) = &self.shared.draft {
            while drafting.iter().any(|drafting| !drafting.ended) {
                self.draft_next(model, &mut drafting)?;
            }
        } else {
            for drafting in &mut drafting {
                drafting.draft.ids = look_up(self.state.scheduler.ids(drafting.sequence), drafting.limit);
                drafting.draft.distributions = drafting.draft.ids.iter().map(|&id| vec![(id, 1.)]).collect();
            }
        }
        for mut drafting in drafting {
            let count = drafting.draft.ids.len();
            if self.shared.draft.is_some() {
                drafting.sampler.rollback(count);
            }
            self.current[drafting.row].count += count;
            let from = self.current[drafting.row].from;
            if let Some(running) = self.answer_mut(drafting.work, drafting.choice) {
                running.sampler = Some(drafting.sampler);
                running.drafted = running.drafted.max(from + count);
            }
            if count > 0 {
                self.drafts.insert(drafting.sequence, drafting.draft);
            }
        }
        Ok(())
    }

    /// The answers that generate, with the number of tokens to draft.
    fn start_drafts(&mut self) -> Vec<Drafting> {
        let is_next = |row: &Row| row.from + 1 == self.state.scheduler.ids(row.id).len();
        let rows: Vec<usize> = (0..self.current.len()).filter(|&row| is_next(&self.current[row])).collect();
        let share = (MAX_CHECKED / rows.len().max(1)).saturating_sub(1).min(self.shared.options.draft_tokens);
        let mut all = Vec::new();
        for row in rows {
            let (sequence, from) = (self.current[row].id, self.current[row].from);
            let Some(&(work, choice)) = self.owners.get(&sequence) else { continue };
            let Some(Task::Generate(generate)) = self.works.get_mut(&work).map(|work| &mut work.task) else { continue };
            let request = &generate.job.request;
            let position = generate.answers[choice].answer.tokens();
            let is_plain = request.logprobs.is_none() || !request.sampling.processed_logprobs;
            let left = share.min(generate.max_tokens.saturating_sub(position + 1));
            let context = self.shared.draft.as_ref().map_or(usize::MAX, |draft| draft.config().max_position_embeddings);
            let left = left.min(context.saturating_sub(from + 1));
            if position == 0 || !is_plain || left == 0 {
                continue;
            }
            let limit = self.state.scheduler.reserve(sequence, from + 1 + left).saturating_sub(from + 1);
            let running = &mut generate.answers[choice];
            let (past, ids) = (running.drafted.min(from), self.state.scheduler.ids(sequence));
            let Some(sampler) = running.sampler.take() else { continue };
            let input = ids[past..].to_vec();
            let draft = Draft::default();
            let ended = limit == 0;
            all.push(Drafting { row, sequence, work, choice, sampler, position, input, past, limit, draft, ended });
        }
        all
    }

    /// Drafts one more token of each answer that has not reached its limit.
    fn draft_next(&self, model: &Model, all: &mut [Drafting]) -> Result<()> {
        let mut active: Vec<&mut Drafting> = all.iter_mut().filter(|drafting| !drafting.ended).collect();
        let inputs: Vec<(u64, usize, &[u32])> =
            active.iter().map(|drafting| (drafting.sequence, drafting.past, &drafting.input[..])).collect();
        let hidden = self.draft_hidden(model, &inputs)?; // (n, hidden)
        let ends = inputs.iter().scan(0, |end, (_, _, ids)| {
            *end += ids.len() as u32;
            Some(*end - 1)
        });
        let ends: Vec<u32> = ends.collect();
        let last = hidden.index_select(&Tensor::from_slice(&ends, ends.len(), hidden.device())?, 0)?;
        let mut logits = model.output(&last)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let rows = logits.par_chunks_exact_mut(model.config().vocab_size);
        active.par_iter_mut().zip(rows).for_each(|(drafting, logits)| drafting.take(logits));
        Ok(())
    }

    /// The hidden states of the draft model for tokens of sequences, after as many tokens each.
    fn draft_hidden(&self, model: &Model, rows: &[(u64, usize, &[u32])]) -> Result<Tensor> {
        let State { scheduler, draft_pool, pool } = &*self.state;
        let (ids, past): (Vec<&[u32]>, Vec<usize>) = rows.iter().map(|&(_, past, ids)| (ids, past)).unzip();
        let tables: Vec<Vec<u32>> = rows.iter().map(|row| scheduler.table(row.0).to_vec()).collect();
        let paged = PagedRows { pool: draft_pool.as_ref().unwrap_or(pool), tables: &tables, past: &past };
        Ok(model.hidden_paged(&Batch::ragged(&ids, &past)?, &paged)?.squeeze(0)?)
    }

    /// Computes the prompts of the step with the draft model too.
    pub(super) fn follow(&mut self) -> Result<()> {
        let Some(model) = &self.shared.draft else { return Ok(()) };
        let is_prompt = |row: &&Row| row.count > 1 && !self.drafts.contains_key(&row.id);
        let rows: Vec<Row> = self.current.iter().filter(is_prompt).copied().collect();
        let context = model.config().max_position_embeddings;
        let rows: Vec<Row> = rows.into_iter().filter(|row| row.from + row.count <= context).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let ids = |row: &Row| &self.state.scheduler.ids(row.id)[row.from..row.from + row.count];
        let inputs: Vec<(u64, usize, &[u32])> = rows.iter().map(|row| (row.id, row.from, ids(row))).collect();
        self.draft_hidden(model, &inputs)?;
        for row in rows {
            self.set_drafted(row.id, row.from + row.count);
        }
        Ok(())
    }

    /// The draft model has keys and values of the first tokens of a sequence.
    pub(super) fn set_drafted(&mut self, sequence: u64, tokens: usize) {
        if let Some(&(work, choice)) = self.owners.get(&sequence)
            && let Some(running) = self.answer_mut(work, choice)
        {
            running.drafted = tokens;
        }
    }

    /// Checks the drafts of the rows that begin at `at` in the hidden states of the step.
    pub(super) fn check_drafts(&mut self, hidden: &Tensor, rows: &[(Row, usize)]) -> Result<()> {
        let (mut all, mut wanted) = (Vec::new(), Vec::new());
        for (row, at) in rows {
            let Some(&(work, choice)) = self.owners.get(&row.id) else { continue };
            let Some(Task::Generate(generate)) = self.works.get_mut(&work).map(|work| &mut work.task) else { continue };
            let logprobs = generate.job.request.logprobs;
            let Running { answer, sampler, .. } = &mut generate.answers[choice];
            let (Some(sampler), Some(draft)) = (sampler.take(), self.drafts.remove(&row.id)) else { continue };
            wanted.extend((*at..at + row.count).map(|at| at as u32));
            all.push(Checked { sequence: row.id, sampler, draft, position: answer.tokens(), logprobs });
        }
        if all.is_empty() {
            return Ok(());
        }
        let model = self.model();
        let vocab = model.config().vocab_size;
        let states = hidden.index_select(&Tensor::from_slice(&wanted, wanted.len(), hidden.device())?, 0)?;
        let mut logits = model.output(&states)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rest = &mut logits[..];
        let mut parts = Vec::new();
        for checked in &all {
            let (part, after) = rest.split_at_mut((checked.draft.ids.len() + 1) * vocab);
            parts.push(part);
            rest = after;
        }
        let tokens: Vec<Result<Vec<Token>>> =
            all.par_iter_mut().zip(parts).map(|(checked, logits)| checked.tokens(logits, vocab)).collect();
        for (checked, tokens) in all.into_iter().zip(tokens) {
            self.take_checked(checked, tokens);
        }
        Ok(())
    }

    /// Gives an answer the tokens of a check.
    fn take_checked(&mut self, checked: Checked, tokens: Result<Vec<Token>>) {
        let sequence = checked.sequence;
        let Some(&(work, choice)) = self.owners.get(&sequence) else { return };
        if let Some(running) = self.answer_mut(work, choice) {
            running.sampler = Some(checked.sampler);
        }
        let tokens = match tokens {
            Ok(tokens) => tokens,
            Err(error) => return self.fail(work, error),
        };
        {
            let stats = &mut self.shared.state().stats;
            stats.draft_tokens += checked.draft.ids.len() as u64;
            stats.accepted_tokens += tokens.len() as u64 - 1;
        }
        for token in tokens {
            if !self.owners.contains_key(&sequence) {
                return; // the answer has ended
            }
            if let Err(error) = self.take_token(work, choice, sequence, token) {
                return self.fail(work, error);
            }
        }
        // All but the last one have keys and values.
        let computed = self.state.scheduler.ids(sequence).len().saturating_sub(1);
        self.state.scheduler.set_computed(sequence, computed);
        if let Some(running) = self.answer_mut(work, choice) {
            running.drafted = running.drafted.min(computed);
        }
    }
}

impl Drafting {
    /// Takes the logits of the draft model for the next token. Damaged ones end the draft, as they say nothing about the answer.
    fn take(&mut self, logits: &mut [f32]) {
        let position = self.position + self.draft.ids.len();
        self.past += self.input.len();
        let drawn = self.sampler.distribution(logits, position).ok().and_then(|distribution| {
            let drawn = draw(&distribution, self.sampler.draft_draw(position))?;
            Some((drawn, distribution))
        });
        let Some(((id, probability), distribution)) = drawn else {
            self.ended = true;
            return;
        };
        self.sampler.accept(id, probability);
        self.draft.ids.push(id);
        self.draft.distributions.push(distribution);
        self.input = vec![id];
        self.ended = self.draft.ids.len() >= self.limit;
    }
}

impl Checked {
    /// The tokens by the logits `(drafted + 1, vocab)` of the model: the drafts up to the first that is rejected, then one more.
    ///
    /// A draft x with the probabilities p(x) of the model and q(x) of the draft is accepted with probability min(1, p(x)/q(x)). In the
    /// place of a rejected one a token is drawn from max(0, p - q).
    fn tokens(&mut self, logits: &mut [f32], vocab: usize) -> Result<Vec<Token>> {
        let mut tokens = Vec::new();
        let (last, drafted) = (self.draft.ids.len() * vocab, self.draft.ids.iter().zip(&self.draft.distributions));
        for (i, (&id, q)) in drafted.enumerate() {
            let (row, position) = (&mut logits[i * vocab..(i + 1) * vocab], self.position + i);
            let raw = if self.logprobs.is_some() { row.to_vec() } else { Vec::new() };
            let p = self.sampler.distribution(row, position)?;
            let accepted =
                self.sampler.accept_draw(position) * f64::from(probability(q, id)) < f64::from(probability(&p, id));
            let id = if accepted { id } else { residual(&p, q, self.sampler.residual_draw(position)).unwrap_or(id) };
            self.sampler.accept(id, probability(&p, id));
            let logprobs = self.logprobs.map(|top| TokenLogprobs::of(&raw, id, top)).transpose()?;
            tokens.push(Token { id, logprobs });
            if !accepted {
                return Ok(tokens);
            }
        }
        let position = self.position + self.draft.ids.len();
        tokens.push(self.sampler.next(&mut logits[last..last + vocab], position, self.logprobs)?);
        Ok(tokens)
    }
}

/// The probability of a token.
fn probability(distribution: &[(u32, f32)], id: u32) -> f32 {
    distribution.binary_search_by_key(&id, |entry| entry.0).map_or(0., |at| distribution[at].1)
}

/// A token with its weight, drawn with a uniform random number; none if there is no weight.
fn draw(weights: &[(u32, f32)], uniform: f64) -> Option<(u32, f32)> {
    let mut left = uniform * weights.iter().map(|entry| f64::from(entry.1)).sum::<f64>();
    for entry in weights {
        left -= f64::from(entry.1);
        if left < 0. {
            return Some(*entry);
        }
    }
    // Only reached through rounding.
    weights.iter().rev().find(|entry| entry.1 > 0.).copied()
}

/// A token drawn from max(0, p - q).
fn residual(p: &[(u32, f32)], q: &[(u32, f32)], uniform: f64) -> Option<u32> {
    let rest: Distribution = p.iter().map(|&(id, p)| (id, (p - probability(q, id)).max(0.))).collect();
    draw(&rest, uniform).or_else(|| draw(p, uniform)).map(|entry| entry.0)
}

/// Up to `limit` tokens that followed the last occurrence of the last tokens, the longest match first (prompt look-up decoding).
fn look_up(ids: &[u32], limit: usize) -> Vec<u32> {
    for length in LOOKUP.rev() {
        let Some(start) = ids.len().checked_sub(length) else { continue };
        let (before, last) = (&ids[..ids.len() - 1], &ids[start..]);
        if let Some(at) = before.windows(length).rposition(|window| window == last) {
            let after = &ids[at + length..];
            return after[..limit.min(after.len())].to_vec();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sampling;

    #[test]
    fn a_look_up_finds_what_followed_the_longest_match() {
        let ids = [1, 2, 3, 4, 5, 9, 3, 4, 7, 8, 2, 3, 4];
        assert_eq!(look_up(&ids, 3), [5, 9, 3], "2 3 4 is longer than the later 3 4");
        assert_eq!(look_up(&ids[..12], 2), [4, 5]);
        assert_eq!(look_up(&[1, 2, 3], 4), [0u32; 0]);
        assert_eq!(look_up(&[7, 7, 7, 7], 9), [7], "an overlapping match has what is there");
        assert_eq!(look_up(&[], 4), [0u32; 0]);
    }

    /// The frequencies of two checked tokens against the product of their softmax.
    #[test]
    fn checked_tokens_have_the_distribution_of_the_model() {
        let (p, q) = ([[0f32, 1.5, -1., 0.7], [2., 0., 0.5, -0.5]], [[1f32, 0., 0., 0.3], [0., 0.5, 0., 1.]]);
        let softmax = |row: &[f32; 4]| {
            let weights = row.map(|x| f64::from(x).exp());
            weights.map(|weight| weight / weights.iter().sum::<f64>())
        };
        let trials = 20_000;
        let mut counts = [[0f64; 4]; 4];
        for seed in 0..trials {
            let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling, 4, 0);
            let mut drafting = Drafting {
                row: 0,
                sequence: 0,
                work: 0,
                choice: 0,
                sampler: sampler.clone(),
                position: 0,
                input: Vec::new(),
                past: 0,
                limit: 2,
                draft: Draft::default(),
                ended: false,
            };
            q.iter().for_each(|row| drafting.take(&mut row.clone()));
            let mut checked =
                Checked { sequence: 0, sampler: sampler.clone(), draft: drafting.draft, position: 0, logprobs: None };
            let mut logits = [p[0], p[1], [0.; 4]].concat();
            let tokens = checked.tokens(&mut logits, 4).unwrap();
            let second = match tokens.get(1) {
                Some(token) => token.id,
                // The next step draws it.
                None => {
                    sampler.accept(tokens[0].id, 1.);
                    sampler.next(&mut p[1].clone(), 1, None).unwrap().id
                }
            };
            counts[tokens[0].id as usize][second as usize] += 1.;
        }
        let (first, second) = (softmax(&p[0]), softmax(&p[1]));
        let mut chi_square = 0.;
        for (i, row) in counts.iter().enumerate() {
            for (j, count) in row.iter().enumerate() {
                let expected = trials as f64 * first[i] * second[j];
                chi_square += (count - expected).powi(2) / expected;
            }
        }
        assert!(chi_square < 37.7, "{chi_square}"); // the 0.999 quantile of 15 degrees of freedom
    }
}
