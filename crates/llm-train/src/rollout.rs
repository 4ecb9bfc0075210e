//! Replies that a policy gave, and what the models say of each of their tokens.
//!
//! Queries are padded on the left, replies on the right, so that every reply begins in the same column. What a model
//! says *before* a reply's token t is in the column left of it: there the policy chose it, there the critic valued the
//! state in which it was chosen. A reply's last token is therefore no input of any model.

use candle_core::Tensor;
use llm_kernels::{token_logprobs, token_logprobs_and_entropies};
use llm_model::{Batch, Model, Routing};

use crate::examples::pick_rows;
use crate::{Error, Result};

/// A query and the reply that was drawn to it, with one entry for each token of the reply in each list.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The conversation up to the reply.
    pub query: Vec<u32>,
    /// The reply, with the token that ends it if that came.
    pub response: Vec<u32>,
    /// Whether the reply came to its end by itself.
    pub has_eos: bool,
    /// What the reward model says of the whole, before any penalty for a missing end.
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

    /// Query and reply, apart.
    pub fn reply(&self) -> Reply<'_> {
        (&self.query, &self.response)
    }

    /// The estimate of the KL divergence from the reference, summed over the reply's tokens (k1), in nats.
    pub fn kl(&self) -> f64 {
        self.logprobs.iter().zip(&self.ref_logprobs).map(|(p, r)| p - r).sum()
    }
}

/// A reply to a query, both in token ids.
pub type Reply<'a> = (&'a [u32], &'a [u32]);

/// The log-probabilities of all replies' tokens, one reply after the other: `(n,)`. Logits are divided by `temperature`.
pub fn reply_logprobs(model: &Model, replies: &[Reply], temperature: f64, pad: u32) -> Result<Tensor> {
    let (batch, places, ids) = lay_out(replies, pad)?;
    let hidden = pick_rows(&model.hidden(&batch, None)?, places)?; // (n, hidden)
    in_chunks(model, &hidden, &ids, |logits, ids| Ok(token_logprobs(logits, ids, temperature)?))
}

/// [`reply_logprobs`], and the entropies of the distributions that the tokens were drawn from, in nats: both `(n,)`.
pub fn reply_logprobs_and_entropies(
    model: &Model,
    replies: &[Reply],
    temperature: f64,
    pad: u32,
) -> Result<(Tensor, Tensor)> {
    let (logprobs, entropies, _) = logprobs_entropies_and_routing(model, replies, temperature, pad)?;
    Ok((logprobs, entropies))
}

/// The same, and what the routers did if the model has experts.
pub(crate) fn logprobs_entropies_and_routing(
    model: &Model,
    replies: &[Reply],
    temperature: f64,
    pad: u32,
) -> Result<(Tensor, Tensor, Option<Routing>)> {
    let (batch, places, ids) = lay_out(replies, pad)?;
    let (hidden, routing) = model.hidden_and_routing(&batch)?; // (b, t, hidden)
    let hidden = pick_rows(&hidden, places)?; // (n, hidden)
    let both = in_chunks(model, &hidden, &ids, |logits, ids| {
        let (logprobs, entropies) = token_logprobs_and_entropies(logits, ids, temperature)?;
        Ok(Tensor::stack(&[logprobs, entropies], 1)?) // (chunk, 2)
    })?;
    Ok((both.narrow(1, 0, 1)?.squeeze(1)?, both.narrow(1, 1, 1)?.squeeze(1)?, routing))
}

/// What the critic, a model with a value for each token, expects before each of the replies' tokens: `(n,)`.
pub fn reply_values(critic: &Model, replies: &[Reply], pad: u32) -> Result<Tensor> {
    let (batch, places, _) = lay_out(replies, pad)?;
    Ok(critic.output(&pick_rows(&critic.hidden(&batch, None)?, places)?)?.squeeze(1)?)
}

/// Logits that are in memory at once, where no gradient keeps them: 64 MB.
const LOGITS: usize = 1 << 24;

/// `of_chunk` of the logits of some rows of `hidden` `(n, hidden)` after the other.
fn in_chunks(
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

/// The replies as one batch, the flat places from which their tokens are predicted, and those tokens.
fn lay_out(replies: &[Reply], pad: u32) -> Result<(Batch, Vec<u32>, Vec<u32>)> {
    if replies.iter().any(|(query, _)| query.is_empty()) {
        return Err(Error::Input(
            "a query is empty; its reply's first token has nothing to be predicted from".to_owned(),
        ));
    }
    let context = replies.iter().map(|(query, _)| query.len()).max().unwrap_or(0);
    let width = context + replies.iter().map(|(_, response)| response.len().saturating_sub(1)).max().unwrap_or(0);
    let (mut ids, mut padding) = (Vec::with_capacity(replies.len() * width), Vec::new());
    let (mut places, mut predicted) = (Vec::new(), Vec::new());
    for (row, (query, response)) in replies.iter().enumerate() {
        let left = context - query.len();
        ids.extend(std::iter::repeat_n(pad, left));
        ids.extend(query.iter().chain(response.iter().take(response.len().saturating_sub(1))));
        ids.resize((row + 1) * width, pad);
        padding.push(left as u32);
        places.extend((0..response.len()).map(|t| (row * width + context - 1 + t) as u32));
        predicted.extend_from_slice(response);
    }
    Ok((Batch::from_flat(&ids, width)?.with_padding(&padding)?, places, predicted))
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
