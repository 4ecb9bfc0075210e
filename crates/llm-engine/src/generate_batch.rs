//! Many replies at once: the batched steps of the engine as a plain function, for a caller whose model changes between calls.
//!
//! A reply is a function of the model, its prompt, the sampling and its number: keys and values are f32, attention has the same bits wherever
//! a prompt is cut, and a pass has at most [`FEW_ROWS`] tokens, whose matmuls have the same bits for any number of them. So a reply depends
//! neither on the other prompts nor on the memory for keys and values.

use std::collections::HashMap;
use std::time::Duration;

use candle_core::{DType, Tensor};
use llm_kernels::FEW_ROWS;
use llm_model::{Batch, Head, KvDtype, KvPool, Model, PagedRows};
use rayon::prelude::*;

use crate::engine::free_memory;
use crate::scheduler::{Budget, PageKey, Row, Scheduler, Waiting};
use crate::{Error, FinishReason, GenerateOptions, Result, Sampler, Sampling, Token};

/// A reply of [`generate_batch`].
#[derive(Debug, Clone, PartialEq)]
pub struct SampledReply {
    /// The token ids, with the stop id if it ends with one.
    pub ids: Vec<u32>,
    /// The log-probability of each token in the distribution that it was sampled from, in nats.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub reason: FinishReason,
}

/// `choices` replies to each prompt, in the order of the prompts. The keys and values of a prompt are computed once and shared by its
/// replies.
///
/// Reply `j` to prompt `i` has the random stream `i * choices + j`, as in [`crate::generate`] with each prompt `choices` times. Prompts
/// and options are checked as there.
pub fn generate_batch(
    model: &Model,
    prompts: &[Vec<u32>],
    choices: usize,
    options: &GenerateOptions,
) -> Result<Vec<Vec<SampledReply>>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + options.max_new_tokens;
    let pages_of = |tokens: usize| tokens.min(model.config().max_position_embeddings).div_ceil(KvPool::PAGE).max(1);
    let most = (prompts.len() * choices).min(MOST_RUNNING.max(choices)) * (pages_of(longest) + 1);
    let page = KvPool::page_bytes(model.config(), KvDtype::F32).max(1) as u64;
    let fit = free_memory().map_or(most, |free| usize::try_from(free / 4 / page).unwrap_or(usize::MAX));
    with_pages(model, prompts, choices, options, most.min(fit).max(pages_of(longest) + 1))
}

/// Replies that are generated at a time: a decoding step of all is one pass.
const MOST_RUNNING: usize = FEW_ROWS;

/// [`generate_batch`] with a KV cache of so many pages.
fn with_pages(
    model: &Model,
    prompts: &[Vec<u32>],
    choices: usize,
    options: &GenerateOptions,
    pages: usize,
) -> Result<Vec<Vec<SampledReply>>> {
    options.sampling.validate(model.config().vocab_size)?;
    if model.head() != Head::LanguageModel {
        return Err(Error::NotALanguageModel);
    }
    let context_length = model.config().max_position_embeddings;
    if prompts.iter().any(Vec::is_empty) {
        return Err(Error::EmptyPrompt);
    }
    if let Some(long) = prompts.iter().find(|prompt| prompt.len() >= context_length) {
        return Err(Error::PromptTooLong { tokens: long.len(), context_length });
    }
    let none = SampledReply { ids: Vec::new(), logprobs: Vec::new(), reason: FinishReason::Length };
    let mut batch = Replies {
        model,
        prompts,
        choices,
        max_new_tokens: options.max_new_tokens,
        stop_ids: options.stop_ids.clone().unwrap_or_else(|| model.eos_token_ids()),
        sampling: Sampling { processed_logprobs: true, ..options.sampling.clone().seeded() },
        scheduler: Scheduler::new(pages, KvPool::PAGE, usize::MAX),
        pool: KvPool::new(model.config(), pages, KvDtype::F32, &model.device())?,
        open: HashMap::new(),
        next_id: 0,
        replies: vec![none; prompts.len() * choices],
    };
    if options.max_new_tokens > 0 && choices > 0 {
        batch.run()?;
    }
    Ok(match choices {
        0 => vec![Vec::new(); prompts.len()],
        _ => batch.replies.chunks(choices).map(<[SampledReply]>::to_vec).collect(),
    })
}

/// The state between two steps.
struct Replies<'a> {
    model: &'a Model,
    prompts: &'a [Vec<u32>],
    choices: usize,
    max_new_tokens: usize,
    stop_ids: Vec<u32>,
    sampling: Sampling,
    scheduler: Scheduler,
    pool: KvPool,
    /// The replies that are generated, by the id of their sequence.
    open: HashMap<u64, Open>,
    next_id: u64,
    /// All replies: those to the first prompt first.
    replies: Vec<SampledReply>,
}

/// A reply that is generated.
struct Open {
    /// Its number in [`Replies::replies`].
    number: usize,
    sampler: Sampler,
}

/// A token that is to be sampled.
struct Draw {
    /// The sequence of its reply, or of the prompt if the reply has none yet.
    sequence: u64,
    is_first: bool,
    /// The row of its logits.
    row: usize,
    open: Open,
}

impl Replies<'_> {
    fn run(&mut self) -> Result<()> {
        let mut waiting = 0..self.prompts.len();
        let budget = Budget { beside_decode: usize::MAX, alone: usize::MAX, whole_pages: false };
        loop {
            // A prompt starts when all its replies can run.
            while waiting.start < waiting.end && (self.open.is_empty() || self.running() + self.choices <= MOST_RUNNING)
            {
                self.start(waiting.start);
                waiting.start += 1;
            }
            if self.open.is_empty() {
                return Ok(());
            }
            let rows = self.scheduler.plan(Duration::ZERO, budget).rows;
            if rows.is_empty() {
                return Err(Error::Engine("no sequence fits the pages of the KV cache".to_owned()));
            }
            passes(rows).iter().try_for_each(|rows| self.compute(rows))?;
        }
    }

    /// The number of replies that are generated, with those that start when their prompt is computed.
    fn running(&self) -> usize {
        let prompts = self.open.values().filter(|open| self.is_new(open)).count();
        self.open.len() + prompts * (self.choices - 1)
    }

    /// Whether the reply is the first one to its prompt, without a token; the others come from it.
    fn is_new(&self, open: &Open) -> bool {
        open.number.is_multiple_of(self.choices) && self.replies[open.number].ids.is_empty()
    }

    fn start(&mut self, prompt: usize) {
        self.next_id += 1;
        let waiting = Waiting { priority: 0, key: None, since: Duration::ZERO, cost: 1 };
        self.scheduler.add(self.next_id, self.prompts[prompt].clone(), PageKey::root("", ""), true, waiting);
        let open = self.open(prompt * self.choices);
        self.open.insert(self.next_id, open);
    }

    fn open(&self, number: usize) -> Open {
        let sampler = Sampler::new(&self.sampling, self.model.config().vocab_size, number)
            .with_end_ids(&self.stop_ids)
            .with_prompt(&self.prompts[number / self.choices]);
        Open { number, sampler }
    }

    /// Computes rows and samples a token after each that is at the end of its sequence.
    fn compute(&mut self, rows: &[Row]) -> Result<()> {
        let decodes = rows.iter().any(|row| row.count == 1);
        let (ends, logits) =
            if decodes { llm_kernels::spin_workers(|| self.logits(rows))? } else { self.logits(rows)? };
        for row in rows {
            self.scheduler.set_computed(row.id, row.from + row.count);
        }
        let mut draws = Vec::new();
        for (row, sequence) in ends.into_iter().enumerate() {
            let Some(open) = self.open.remove(&sequence) else { continue };
            let first = open.number;
            let others = if self.is_new(&open) { first + 1..first + self.choices } else { 0..0 };
            draws.extend(others.map(|number| Draw { sequence, is_first: false, row, open: self.open(number) }));
            // Last, so that the others can begin from its sequence.
            draws.push(Draw { sequence, is_first: true, row, open });
        }
        let vocab = self.model.config().vocab_size;
        let sample = |draw: &mut Draw| {
            let mut logits = logits[draw.row * vocab..(draw.row + 1) * vocab].to_vec();
            draw.open.sampler.next(&mut logits, self.replies[draw.open.number].ids.len(), Some(0))
        };
        let tokens: Vec<Result<Token>> = draws.par_iter_mut().map(sample).collect();
        draws.into_iter().zip(tokens).try_for_each(|(draw, token)| self.take(draw, token?))
    }

    /// A sequence with the tokens of `parent`, which shares its pages.
    fn fork(&mut self, parent: u64) -> Result<u64> {
        self.next_id += 1;
        if let Some(copy) = self.scheduler.fork(parent, self.next_id) {
            self.pool.copy_page(copy.from, copy.to)?;
        }
        Ok(self.next_id)
    }

    /// The sequences that are at their end, and the logits after each, one row of the vocabulary after the other.
    fn logits(&self, rows: &[Row]) -> Result<(Vec<u64>, Vec<f32>)> {
        let ids: Vec<&[u32]> =
            rows.iter().map(|row| &self.scheduler.ids(row.id)[row.from..row.from + row.count]).collect();
        let past: Vec<usize> = rows.iter().map(|row| row.from).collect();
        let tables: Vec<Vec<u32>> = rows.iter().map(|row| self.scheduler.table(row.id).to_vec()).collect();
        let paged = PagedRows { pool: &self.pool, tables: &tables, past: &past };
        let hidden = self.model.hidden_paged(&Batch::ragged(&ids, &past)?, &paged)?.squeeze(0)?; // (n, hidden)
        let (mut next, mut ends, mut at) = (0, Vec::new(), Vec::new());
        for row in rows {
            next += row.count as u32;
            if row.from + row.count == self.scheduler.ids(row.id).len() {
                ends.push(row.id);
                at.push(next - 1);
            }
        }
        if ends.is_empty() {
            return Ok((ends, Vec::new()));
        }
        let last = hidden.index_select(&Tensor::from_vec(at, ends.len(), hidden.device())?, 0)?;
        Ok((ends, self.model.output(&last)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
    }

    /// Adds a token to its reply, which goes on or ends.
    fn take(&mut self, draw: Draw, token: Token) -> Result<()> {
        let number = draw.open.number;
        let room = self.model.config().max_position_embeddings - self.prompts[number / self.choices].len();
        let reply = &mut self.replies[number];
        reply.ids.push(token.id);
        reply.logprobs.extend(token.logprobs.map(|of| of.logprob));
        let stops = self.stop_ids.contains(&token.id);
        if stops || reply.ids.len() >= self.max_new_tokens.min(room) {
            reply.reason = if stops { FinishReason::Stop } else { FinishReason::Length };
            if draw.is_first {
                self.scheduler.remove(draw.sequence);
            }
            return Ok(());
        }
        let sequence = if draw.is_first { draw.sequence } else { self.fork(draw.sequence)? };
        self.scheduler.push(sequence, token.id);
        self.open.insert(sequence, draw.open);
        Ok(())
    }
}

/// The rows in passes of [`FEW_ROWS`] tokens; a prompt can be cut anywhere.
fn passes(rows: Vec<Row>) -> Vec<Vec<Row>> {
    let (mut passes, mut room) = (Vec::<Vec<Row>>::new(), 0);
    for Row { id, mut from, mut count } in rows {
        while count > 0 {
            if room == 0 {
                passes.push(Vec::new());
                room = FEW_ROWS;
            }
            let tokens = count.min(room);
            if let Some(pass) = passes.last_mut() {
                pass.push(Row { id, from, count: tokens });
            }
            (from, count, room) = (from + tokens, count - tokens, room - tokens);
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use llm_model::ModelConfig;

    use super::*;
    use crate::generate;

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 40,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 256,
            initializer_range: 0.4, // large, so that an error changes the sampled token
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 7).unwrap().frozen().unwrap()
    }

    /// Prompts of 1 to 150 tokens: shorter and longer than a page, one of exactly a page.
    fn prompts() -> Vec<Vec<u32>> {
        [1, 5, 64, 65, 150, 7].iter().map(|&len| (0..len).map(|i| (len * 7 + i * i) % 40).collect()).collect()
    }

    fn options(temperature: f64) -> GenerateOptions {
        let sampling = Sampling { temperature, seed: Some(42), ..Sampling::default() };
        GenerateOptions { max_new_tokens: 70, stop_ids: Some(vec![3]), sampling }
    }

    #[test]
    fn replies_are_those_of_generate_with_each_prompt_repeated() {
        let (model, choices) = (model(), 3);
        for temperature in [0., 0.8, 1.5] {
            let repeated: Vec<Vec<u32>> =
                prompts().into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, choices)).collect();
            let expected = generate(&model, &repeated, &options(temperature), |_, _| true).unwrap();
            let found = generate_batch(&model, &prompts(), choices, &options(temperature)).unwrap().concat();
            assert_eq!(found.iter().map(|reply| &reply.ids).collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
            for reply in &found {
                let stopped = reply.ids.last() == Some(&3);
                assert_eq!(reply.reason == FinishReason::Stop, stopped);
                assert_eq!(reply.logprobs.len(), reply.ids.len());
                assert!(stopped || reply.ids.len() == 70);
            }
            if temperature > 0. {
                assert!(found.iter().any(|reply| reply.reason == FinishReason::Stop), "some end early");
                assert_ne!(found[0], found[1], "replies to one prompt differ");
            }
        }
    }

    /// The same bits alone, among others, and with so few pages that sequences are stopped and computed again.
    /// The same replies to the last bit; on the reference path, whose sums depend on the number of rows, log-probabilities are rounded
    /// differently.
    fn assert_same(found: &[Vec<SampledReply>], expected: &[Vec<SampledReply>]) {
        let reference = std::env::var("LLM_KERNELS_UNIT").is_ok_and(|unit| unit == "reference");
        let tolerance = if reference { 1e-4 } else { 0. };
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!((&found.ids, found.reason), (&expected.ids, expected.reason));
            let pairs = found.logprobs.iter().zip(&expected.logprobs);
            assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0., f32::max) <= tolerance);
        }
    }

    #[test]
    fn a_reply_does_not_depend_on_what_is_generated_beside_it() {
        let (model, prompts, options) = (model(), prompts(), options(1.));
        let many = vec![prompts.clone(); 5].concat();
        let all = generate_batch(&model, &many, 4, &options).unwrap(); // 120 replies, 64 at a time
        assert_same(&with_pages(&model, &many, 4, &options, 9).unwrap(), &all); // 9 pages: two long sequences
        assert_same(&generate_batch(&model, &many[..7], 4, &options).unwrap(), &all[..7]);
    }

    #[test]
    fn log_probabilities_are_those_of_the_sampled_distribution() {
        let (model, prompt) = (model(), vec![3, 14, 15, 9, 26]);
        let options = GenerateOptions { stop_ids: Some(Vec::new()), ..options(0.7) };
        let reply = generate_batch(&model, std::slice::from_ref(&prompt), 1, &options).unwrap()[0][0].clone();
        let row = [prompt.as_slice(), &reply.ids].concat();
        let logits = model
            .forward(&Batch::new(std::slice::from_ref(&row)).unwrap())
            .unwrap()
            .get(0)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for (t, (&id, &logprob)) in reply.ids.iter().zip(&reply.logprobs).enumerate() {
            let scaled: Vec<f64> = logits[prompt.len() - 1 + t].iter().map(|&x| f64::from(x) / 0.7).collect();
            let expected = scaled[id as usize] - scaled.iter().map(|x| x.exp()).sum::<f64>().ln();
            assert!((f64::from(logprob) - expected).abs() < 1e-4, "{t}: {logprob} is not {expected}");
        }
    }

    #[test]
    fn wrong_inputs_are_refused_and_nothing_to_do_is_no_error() {
        let (model, options) = (model(), options(1.));
        assert!(matches!(generate_batch(&model, &[vec![]], 1, &options), Err(Error::EmptyPrompt)));
        let error = generate_batch(&model, &[vec![1; 256]], 1, &options).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { tokens: 256, context_length: 256 }), "{error}");
        assert_eq!(generate_batch(&model, &[], 3, &options).unwrap(), Vec::<Vec<SampledReply>>::new());
        assert_eq!(generate_batch(&model, &[vec![1]], 0, &options).unwrap(), [vec![]]);
        let long = generate_batch(&model, &[vec![1; 250]], 2, &GenerateOptions { stop_ids: Some(vec![]), ..options });
        assert!(long.unwrap()[0].iter().all(|reply| reply.ids.len() == 6), "the context ends");
    }
}
