//! Replies that a policy gave, and what the models say of each of their tokens.
//!
//! Queries are padded on the left, replies on the right, so that every reply begins in the same column. What a model
//! says *before* a reply's token t stands in the column left of it: there the policy chose it, there the critic valued
//! the state in which it was chosen.

use candle_core::{D, Tensor};
use llm_infer::{GenerateOptions, Sampling, generate};
use llm_model::{Batch, Model};

use crate::examples::pick_rows;
use crate::{Result, loss};

/// A query and the reply that was drawn to it, with one entry for each token of the reply in each list.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The conversation up to the reply.
    pub query: Vec<u32>,
    /// The reply, with the token that ends it if that came.
    pub response: Vec<u32>,
    /// Whether the reply came to its end by itself.
    pub has_eos: bool,
    /// What the reward model says of the whole.
    pub score: f64,
    /// Log-probabilities under the policy that drew the reply, at the temperature of the draw.
    pub logprobs: Vec<f64>,
    /// The same under the reference.
    pub ref_logprobs: Vec<f64>,
    /// What the critic expects.
    pub values: Vec<f64>,
}

impl Rollout {
    /// Query and reply.
    pub fn row(&self) -> Vec<u32> {
        [self.query.as_slice(), &self.response].concat()
    }

    /// The estimate of the KL divergence from the reference, summed over the reply's tokens (k1), in nats.
    pub fn kl(&self) -> f64 {
        self.logprobs.iter().zip(&self.ref_logprobs).map(|(p, r)| p - r).sum()
    }
}

/// Draws one reply to each query at `temperature`; a reply ends behind `eos`.
pub fn draw(
    policy: &Model,
    queries: &[Vec<u32>],
    eos: u32,
    max_new_tokens: usize,
    temperature: f64,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens, stop_ids: vec![eos], sampling };
    Ok(generate(policy, queries, &options, |_, _| true)?)
}

/// A reply to a query, both in token ids.
pub type Reply<'a> = (&'a [u32], &'a [u32]);

/// The log-probabilities of all replies' tokens, one reply after the other: `(n,)`; and the mean entropy of the
/// distributions that they were drawn from, in nats. Logits are divided by `temperature`.
pub fn reply_logprobs(model: &Model, replies: &[Reply], temperature: f64, pad: u32) -> Result<(Tensor, f64)> {
    let (batch, places, labels) = lay_out(replies, pad)?;
    let logits = (model.output(&pick_rows(&model.hidden(&batch, None)?, places)?)? / temperature)?; // (n, vocab)
    let entropy = mean_entropy(&logits.detach())?;
    Ok((llm_kernels::cross_entropy(&logits, &labels)?.neg()?, entropy))
}

/// What the critic, a model with a value for each token, expects before each of the replies' tokens: `(n,)`.
pub fn reply_values(critic: &Model, replies: &[Reply], pad: u32) -> Result<Tensor> {
    let (batch, places, _) = lay_out(replies, pad)?;
    Ok(critic.output(&pick_rows(&critic.hidden(&batch, None)?, places)?)?.squeeze(1)?)
}

/// The replies as one batch, the flat places from which their tokens are predicted, and those tokens.
fn lay_out(replies: &[Reply], pad: u32) -> Result<(Batch, Vec<u32>, Vec<i64>)> {
    let context = replies.iter().map(|(query, _)| query.len()).max().unwrap_or(0);
    let width = context + replies.iter().map(|(_, response)| response.len()).max().unwrap_or(0);
    let (mut ids, mut padding) = (Vec::with_capacity(replies.len() * width), Vec::new());
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    for (row, (query, response)) in replies.iter().enumerate() {
        let left = context - query.len();
        ids.extend(std::iter::repeat_n(pad, left));
        ids.extend(query.iter().chain(response.iter()));
        ids.resize((row + 1) * width, pad);
        padding.push(left as u32);
        places.extend((0..response.len()).map(|t| (row * width + context - 1 + t) as u32));
        labels.extend(response.iter().map(|&id| i64::from(id)));
    }
    Ok((Batch::from_flat(&ids, width)?.with_padding(&padding)?, places, labels))
}

/// `H = log Σ exp(z) - Σ p z`, averaged over the rows of `logits` `(n, vocab)`.
fn mean_entropy(logits: &Tensor) -> Result<f64> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let exp = shifted.exp()?;
    let total = exp.sum_keepdim(D::Minus1)?;
    let mean = (shifted * exp.broadcast_div(&total)?)?.sum_keepdim(D::Minus1)?;
    loss::scalar(&(total.log()? - mean)?.mean_all()?)
}

/// Cuts a flat list of per-token numbers into one list for each reply.
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
