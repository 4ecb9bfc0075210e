//! Replies sampled from a policy, with log-probabilities and values of each token.
//!
//! Queries are padded on the left and replies on the right, so that all replies begin in the same column. The log-probability
//! of token t of a reply, and the value of the state before it, are read in the column before t. The last token of a reply is
//! therefore never an input.

mod sampling;

use candle_core::{Device, Tensor};
use llm_kernels::{token_logprobs, token_logprobs_and_entropies};
use llm_model::{Batch, Model, Routing};

use crate::examples::gather_rows;
use crate::rl::{k1, k3};
use crate::{Error, Result};

pub use sampling::{HEALTHY_DIFFERENCE, LogprobDifference, RolloutOptions, sample_replies};
pub(crate) use sampling::{has_eos, why_refused};

/// A query and a sampled reply. The lists of numbers have one entry per token of the reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The conversation up to the reply.
    pub query: Vec<u32>,
    /// The reply, including its end token if it has one.
    pub response: Vec<u32>,
    /// Whether the reply ends with the end token.
    pub has_eos: bool,
    /// The reward model's score of query and reply, before any penalty for a missing end token.
    pub score: f64,
    /// Log-probabilities under the policy that sampled the reply, at the sampling temperature.
    pub logprobs: Vec<f64>,
    /// The same as the engine computed them while it sampled.
    pub engine_logprobs: Vec<f32>,
    /// Log-probabilities under the reference model, at the same temperature.
    pub ref_logprobs: Vec<f64>,
    /// The critic's values.
    pub values: Vec<f64>,
}

impl Rollout {
    /// Query and reply as one sequence.
    pub fn row(&self) -> Vec<u32> {
        [self.query.as_slice(), &self.response].concat()
    }

    /// Query and reply as a pair.
    pub fn reply(&self) -> Reply<'_> {
        (&self.query, &self.response)
    }

    /// The k1 estimate of `KL(policy ‖ reference)`, summed over the tokens of the reply, in nats.
    pub fn kl(&self) -> f64 {
        self.sum_of(k1)
    }

    /// The k3 estimate, summed over the tokens: not negative, and of lower variance.
    pub fn kl_k3(&self) -> f64 {
        self.sum_of(k3)
    }

    fn sum_of(&self, estimate: fn(f64, f64) -> f64) -> f64 {
        self.logprobs.iter().zip(&self.ref_logprobs).map(|(&p, &r)| estimate(p, r)).sum()
    }
}

/// The difference of the log-probabilities of engine and trainer over all tokens.
pub fn engine_difference(rollouts: &[Rollout]) -> LogprobDifference {
    let mut difference = LogprobDifference::default();
    rollouts.iter().for_each(|rollout| difference.add(&rollout.engine_logprobs, &rollout.logprobs));
    difference
}

/// (query, reply) in token ids.
pub type Reply<'a> = (&'a [u32], &'a [u32]);

/// The log-probabilities of the tokens of all replies, concatenated: `(n,)`. Logits are divided by `temperature`.
pub fn reply_logprobs(model: &Model, replies: &[Reply], temperature: f64, pad: u32) -> Result<Tensor> {
    Ok(logprobs_and_routing(model, replies, temperature, pad)?.0)
}

/// [`reply_logprobs`] and the entropies of the next-token distributions in nats, both `(n,)`.
pub fn reply_logprobs_and_entropies(
    model: &Model,
    replies: &[Reply],
    temperature: f64,
    pad: u32,
) -> Result<(Tensor, Tensor)> {
    let (logprobs, entropies, _) = logprobs_entropies_and_routing(model, replies, temperature, pad)?;
    Ok((logprobs, entropies))
}

/// [`reply_logprobs_and_entropies`] and the routing of a model with experts.
pub(crate) fn logprobs_entropies_and_routing(
    model: &Model,
    replies: &[Reply],
    temperature: f64,
    pad: u32,
) -> Result<(Tensor, Tensor, Option<Routing>)> {
    let (batch, positions, ids) = pack_replies(replies, pad)?;
    let (hidden, routing) = model.hidden_and_routing(&batch)?; // (b, t, hidden)
    let hidden = gather_rows(&hidden, positions)?; // (n, hidden)
    let both = map_logits_in_chunks(model, &hidden, &ids, |logits, ids| {
        let (logprobs, entropies) = token_logprobs_and_entropies(logits, ids, temperature)?;
        Ok(Tensor::stack(&[logprobs, entropies], 1)?) // (chunk, 2)
    })?;
    Ok((both.narrow(1, 0, 1)?.squeeze(1)?, both.narrow(1, 1, 1)?.squeeze(1)?, routing))
}

/// [`reply_logprobs`] and the routing of a model with experts.
pub(crate) fn logprobs_and_routing(
    model: &Model,
    replies: &[Reply],
    temperature: f64,
    pad: u32,
) -> Result<(Tensor, Option<Routing>)> {
    let (batch, positions, ids) = pack_replies(replies, pad)?;
    let (hidden, routing) = model.hidden_and_routing(&batch)?; // (b, t, hidden)
    let hidden = gather_rows(&hidden, positions)?; // (n, hidden)
    let logprobs =
        map_logits_in_chunks(model, &hidden, &ids, |logits, ids| Ok(token_logprobs(logits, ids, temperature)?))?;
    Ok((logprobs, routing))
}

/// The values that the critic (a model with [`llm_model::Head::Token`]) predicts before each token of the replies: `(n,)`.
pub fn reply_values(critic: &Model, replies: &[Reply], pad: u32) -> Result<Tensor> {
    Ok(critic.output(&reply_hidden(critic, replies, pad)?)?.squeeze(1)?)
}

/// The hidden states before each token of the replies: `(n, hidden)`.
pub(crate) fn reply_hidden(model: &Model, replies: &[Reply], pad: u32) -> Result<Tensor> {
    let (batch, positions, _) = pack_replies(replies, pad)?;
    gather_rows(&model.hidden(&batch, None)?, positions)
}

/// Number of logits per chunk: 64 MB in f32.
const LOGITS: usize = 1 << 24;

/// Applies `of_chunk` to the logits of `hidden` `(n, hidden)`, a few rows at a time, and concatenates the results.
pub(crate) fn map_logits_in_chunks(
    model: &Model,
    hidden: &Tensor,
    ids: &[u32],
    of_chunk: impl Fn(&Tensor, &[u32]) -> Result<Tensor>,
) -> Result<Tensor> {
    let size = (LOGITS / model.config().vocab_size.max(1)).max(1);
    let mut parts = Vec::with_capacity(ids.len().div_ceil(size));
    for (i, ids) in ids.chunks(size).enumerate() {
        let logits = model.output(&hidden.narrow(0, i * size, ids.len())?)?; // (chunk, vocab)
        parts.push(of_chunk(&logits, ids)?);
    }
    match parts.as_slice() {
        [part] => Ok(part.clone()),
        parts => Ok(Tensor::cat(parts, 0)?),
    }
}

/// The replies as one batch, the flat positions that predict their tokens, and those tokens.
fn pack_replies(replies: &[Reply], pad: u32) -> Result<(Batch, Vec<u32>, Vec<u32>)> {
    if replies.iter().any(|(query, _)| query.is_empty()) {
        return Err(Error::BadRequest("a query is empty; the first token of its reply cannot be predicted".to_owned()));
    }
    let context = replies.iter().map(|(query, _)| query.len()).max().unwrap_or(0);
    let width = context + replies.iter().map(|(_, response)| response.len().saturating_sub(1)).max().unwrap_or(0);
    let (mut ids, mut padding) = (Vec::with_capacity(replies.len() * width), Vec::new());
    let (mut positions, mut predicted) = (Vec::new(), Vec::new());
    for (row, (query, response)) in replies.iter().enumerate() {
        let left = context - query.len();
        ids.extend(std::iter::repeat_n(pad, left));
        ids.extend(query.iter().chain(response.iter().take(response.len().saturating_sub(1))));
        ids.resize((row + 1) * width, pad);
        padding.push(left as u32);
        positions.extend((0..response.len()).map(|t| (row * width + context - 1 + t) as u32));
        predicted.extend_from_slice(response);
    }
    Ok((Batch::from_flat(&ids, width)?.with_padding(&padding)?, positions, predicted))
}

/// Numbers as a flat tensor in f32: `(n,)`.
pub(crate) fn flat(numbers: impl Iterator<Item = f64>, device: &Device) -> Result<Tensor> {
    let numbers: Vec<f32> = numbers.map(|x| x as f32).collect();
    let n = numbers.len();
    Ok(Tensor::from_vec(numbers, n, device)?)
}

/// Splits a flat tensor of per-token numbers into one list per reply.
pub(crate) fn per_reply(numbers: &Tensor, replies: &[Reply]) -> Result<Vec<Vec<f64>>> {
    let flat = numbers.to_vec1::<f32>()?;
    let mut rest = flat.as_slice();
    let mut lists = Vec::with_capacity(replies.len());
    for (_, response) in replies {
        let (head, tail) = rest.split_at(response.len());
        lists.push(head.iter().map(|&x| f64::from(x)).collect());
        rest = tail;
    }
    Ok(lists)
}
