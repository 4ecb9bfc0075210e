//! Minimal pairs: which of two continuations does the model find likelier?

use llm_data::world::Probe;
use llm_model::Model;
use llm_tokenizer::Tokenizer;

use super::text::{Row, row_logprobs};
use crate::Result;

/// For each minimal pair 1 where the model finds the right continuation likelier, 0 where it finds the wrong one
/// likelier, 0.5 for a tie.
pub fn probe_scores(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<Vec<f64>> {
    let mut pairs = Vec::with_capacity(probes.len());
    for probe in probes {
        let mut prefix: Vec<u32> = tokenizer.document_end_id().into_iter().collect();
        prefix.extend(tokenizer.encode(&probe.prefix)?);
        pairs.push((prefix, tokenizer.encode(&probe.good)?, tokenizer.encode(&probe.bad)?));
    }
    let rows: Vec<Row> =
        pairs.iter().flat_map(|(prefix, good, bad)| [good, bad].map(|rest| Row { prefix, rest })).collect();
    let logprobs = row_logprobs(model, &rows, 64)?;
    Ok(logprobs.chunks(2).map(|p| if p[0] == p[1] { 0.5 } else { f64::from(u8::from(p[0] > p[1])) }).collect())
}

/// The mean of [`probe_scores`].
pub fn probe_accuracy(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<f64> {
    let scores = probe_scores(model, tokenizer, probes)?;
    Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
}
