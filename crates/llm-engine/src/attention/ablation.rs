//! What a text model predicts with heads ablated (Michel et al. 2019, arXiv 1905.10650).

use candle_core::{DType, Device, IndexOp, Tensor};
use llm_model::{Ablation, AblationKind, Batch, Head, Model};

use super::check_length;
use crate::{Error, Result};

/// The logits of so many tokens are in memory at once.
const CHUNK: usize = 64;

/// What ablating heads changes in the predictions of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct AblationEffect {
    /// After each token, `KL(before ‖ after)` of the distributions of the next token, in nats.
    pub kl: Vec<f64>,
    /// The predictions at the positions that were asked for, and where they change most.
    pub changes: Vec<PredictionChange>,
}

/// The prediction after one token, before and after the ablation.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictionChange {
    /// The token after which it is the next one.
    pub position: usize,
    /// `KL(before ‖ after)` in nats.
    pub kl: f64,
    /// The most likely tokens of both distributions, the most likely before first.
    pub tokens: Vec<TokenChange>,
}

/// The probability of a next token before and after the ablation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenChange {
    /// The token.
    pub id: u32,
    /// Its probability before.
    pub before: f64,
    /// Its probability after.
    pub after: f64,
}

/// The effect of ablating one head alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadEffect {
    /// The head and what it does instead.
    pub ablation: Ablation,
    /// `KL(before ‖ after)` in nats after the position.
    pub kl: f64,
}

/// What ablating heads changes in the text `ids`: at all positions, with the `top` most likely tokens of both distributions at
/// `positions` and at the position that changes most.
///
/// # Errors
/// The text is empty or too long, a head is not in the model, or the model does not predict tokens.
pub fn ablation_effect(
    model: &Model,
    ids: &[u32],
    ablations: &[Ablation],
    positions: &[usize],
    top: usize,
) -> Result<AblationEffect> {
    let (batch, before) = hidden_before(model, ids)?;
    let after = model.hidden_ablated(&batch, ablations)?;
    let mut kl = Vec::with_capacity(ids.len());
    for start in (0..ids.len()).step_by(CHUNK) {
        let rows = start..(start + CHUNK).min(ids.len());
        let [before, after] = [&before, &after].map(|hidden| log_probabilities(model, hidden, rows.clone()));
        kl.extend(before?.iter().zip(&after?).map(|(before, after)| kl_divergence(before, after)));
    }
    let most = (0..kl.len()).max_by(|&a, &b| kl[a].total_cmp(&kl[b]).then(b.cmp(&a)));
    let mut all: Vec<usize> = Vec::new();
    for position in positions.iter().copied().chain(most).filter(|&position| position < ids.len()) {
        if !all.contains(&position) {
            all.push(position);
        }
    }
    let change = |position: usize| -> Result<PredictionChange> {
        let [before, after] = [&before, &after].map(|hidden| log_probabilities(model, hidden, position..position + 1));
        Ok(PredictionChange {
            position,
            kl: kl[position],
            tokens: token_changes(&before?.concat(), &after?.concat(), top),
        })
    };
    let changes = all.into_iter().map(change).collect::<Result<_>>()?;
    Ok(AblationEffect { kl, changes })
}

/// The effect of ablating each head alone on the prediction after `position`, the largest first.
///
/// # Errors
/// As [`ablation_effect`].
pub fn head_effects(model: &Model, ids: &[u32], kind: AblationKind, position: usize) -> Result<Vec<HeadEffect>> {
    // Later tokens have no effect.
    let ids = &ids[..ids.len().min(position + 1)];
    let (batch, before) = hidden_before(model, ids)?;
    let last = ids.len() - 1..ids.len();
    let before = log_probabilities(model, &before, last.clone())?.concat();
    let mut effects = Vec::new();
    for layer in 0..model.config().num_hidden_layers {
        for head in 0..model.config().num_attention_heads {
            let ablation = Ablation { layer, head, kind };
            let after = model.hidden_ablated(&batch, &[ablation])?;
            let after = log_probabilities(model, &after, last.clone())?.concat();
            effects.push(HeadEffect { ablation, kl: kl_divergence(&before, &after) });
        }
    }
    effects.sort_by(|a, b| b.kl.total_cmp(&a.kl));
    Ok(effects)
}

fn hidden_before(model: &Model, ids: &[u32]) -> Result<(Batch, Tensor)> {
    check_length(model, ids)?;
    if model.head() != Head::LanguageModel {
        return Err(Error::NotALanguageModel);
    }
    let batch = Batch::new(&[ids.to_vec()])?;
    // As with an ablation of no head, so that the operations are the same.
    let hidden = model.hidden_ablated(&batch, &[])?;
    Ok((batch, hidden))
}

/// The log-probabilities of the next token after each of `rows`, in f64.
fn log_probabilities(model: &Model, hidden: &Tensor, rows: std::ops::Range<usize>) -> Result<Vec<Vec<f64>>> {
    let logits = model.output(&hidden.i((0, rows))?)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let mut rows: Vec<Vec<f64>> = logits.to_vec2()?;
    for row in &mut rows {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = row.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln() + max;
        if !log_sum.is_finite() {
            return Err(Error::LogitsNotFinite);
        }
        row.iter_mut().for_each(|logit| *logit -= log_sum);
    }
    Ok(rows)
}

/// `KL(p ‖ q)` in nats from log-probabilities.
fn kl_divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.)
}

/// The `top` most likely tokens of both distributions, the most likely before first.
fn token_changes(before: &[f64], after: &[f64], top: usize) -> Vec<TokenChange> {
    let largest = |p: &[f64]| {
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order.truncate(top);
        order
    };
    let mut ids = largest(before);
    for id in largest(after) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids.sort_by(|&a, &b| before[b].total_cmp(&before[a]));
    ids.into_iter().map(|id| TokenChange { id: id as u32, before: before[id].exp(), after: after[id].exp() }).collect()
}
