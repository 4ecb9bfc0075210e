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

#[cfg(test)]
mod tests {
    use llm_data::world::Phenomenon;

    use super::super::testing::{bigram_model, tokenizer};
    use super::*;

    const TEXT: &str = "the cat sat. the dog ran. the cat ran. the dog sat.";

    fn probe(prefix: &str, good: &str, bad: &str) -> Probe {
        let (prefix, good, bad) = (prefix.to_owned(), good.to_owned(), bad.to_owned());
        Probe { phenomenon: Phenomenon::Agreement, prefix, good, bad }
    }

    /// After "cat" comes "sat" with logit 2, "ran" with 1; after "dog" both have 0.
    #[test]
    fn the_likelier_continuation_is_chosen_and_a_tie_counts_half() {
        let tokenizer = tokenizer(TEXT);
        let id = |word: &str| tokenizer.encode(word).unwrap()[0];
        let (cat, sat, ran) = (id(" cat"), id(" sat"), id(" ran"));
        let model = bigram_model(&tokenizer, |from, to| match (from == cat, to) {
            (true, to) if to == sat => 2.,
            (true, to) if to == ran => 1.,
            _ => 0.,
        });
        let probes = [
            probe("the cat", " sat.", " ran."),
            probe("the cat", " ran.", " sat."),
            probe("the dog", " ran.", " sat."),
        ];
        assert_eq!(probe_scores(&model, &tokenizer, &probes).unwrap(), [1., 0., 0.5]);
        assert_eq!(probe_accuracy(&model, &tokenizer, &probes).unwrap(), 0.5);
        assert_eq!(probe_scores(&model, &tokenizer, &[]).unwrap(), Vec::<f64>::new());
    }
}
