//! Minimal pairs: which of two continuations has the higher probability.

use std::ops::Range;

use llm_model::Model;
use llm_synthetic::Probe;
use llm_tokenizer::Tokenizer;

use crate::text::{Row, row_logprobs};
use crate::{Error, Result};

/// A prefix with a correct and a wrong continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The text before the continuation.
    pub prefix: &'a str,
    /// The correct continuation, with its leading space.
    pub good: &'a str,
    /// The wrong continuation, with its leading space.
    pub bad: &'a str,
    /// The bytes of `prefix` whose tokens are masked in the attention of every layer; empty: none.
    pub masked: Range<usize>,
}

/// For each minimal pair: 1 if the correct continuation has the higher probability, 0 if the wrong one has, 0.5 for a tie.
pub fn probe_scores(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<Vec<f64>> {
    let pairs = probes.iter().map(|p| Pair { prefix: &p.prefix, good: &p.good, bad: &p.bad, masked: 0..0 });
    pair_scores(model, tokenizer, &pairs.collect::<Vec<_>>())
}

/// [`probe_scores`] for pairs with optionally masked bytes. If the deciding word is masked, a model scores at chance.
///
/// It is an error if a log-probability is NaN.
pub fn pair_scores(model: &Model, tokenizer: &Tokenizer, pairs: &[Pair]) -> Result<Vec<f64>> {
    let mut encoded = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let start: Vec<u32> = tokenizer.document_end_id().into_iter().collect();
        let tokens = tokenizer.encode_with_offsets(pair.prefix)?;
        let masked = tokens_within(&tokens, &pair.masked, start.len());
        let prefix = [start, tokens.into_iter().map(|(id, _)| id).collect()].concat();
        encoded.push((prefix, tokenizer.encode(pair.good)?, tokenizer.encode(pair.bad)?, masked));
    }
    let rows: Vec<Row> = encoded
        .iter()
        .flat_map(|(prefix, good, bad, masked)| [good, bad].map(|rest| Row { prefix, rest, masked: *masked }))
        .collect();
    let logprobs = row_logprobs(model, &rows, 64, 1.)?;
    if logprobs.iter().any(|x| x.is_nan()) {
        return Err(Error::LogprobsNaN);
    }
    Ok(logprobs.chunks(2).map(|p| if p[0] == p[1] { 0.5 } else { f64::from(u8::from(p[0] > p[1])) }).collect())
}

/// The mean of [`probe_scores`].
pub fn probe_accuracy(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<f64> {
    let scores = probe_scores(model, tokenizer, probes)?;
    Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
}

/// The half-open index range of the tokens that overlap `bytes`, shifted by `before`.
fn tokens_within(tokens: &[(u32, Range<usize>)], bytes: &Range<usize>, before: usize) -> (u32, u32) {
    let overlaps = |(_, span): &(u32, Range<usize>)| span.start < bytes.end && bytes.start < span.end;
    let Some(first) = tokens.iter().position(overlaps).filter(|_| !bytes.is_empty()) else { return (0, 0) };
    let count = tokens[first..].iter().take_while(|token| overlaps(token)).count();
    ((before + first) as u32, (before + first + count) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bigram_model, model, tokenizer};

    const TEXT: &str = "the cat sat. the dog ran. the cat ran. the dog sat.";

    fn pair(prefix: &'static str, good: &'static str, bad: &'static str) -> Pair<'static> {
        Pair { prefix, good, bad, masked: 0..0 }
    }

    /// After "cat" the logits are 2 for "sat" and 1 for "ran"; after "dog" both are 0.
    #[test]
    fn the_more_probable_continuation_wins_and_a_tie_counts_half() {
        let tokenizer = tokenizer(TEXT);
        let id = |word: &str| tokenizer.encode(word).unwrap()[0];
        let (cat, sat, ran) = (id(" cat"), id(" sat"), id(" ran"));
        let model = bigram_model(&tokenizer, |from, to| match (from == cat, to) {
            (true, to) if to == sat => 2.,
            (true, to) if to == ran => 1.,
            _ => 0.,
        });
        let pairs =
            [pair("the cat", " sat.", " ran."), pair("the cat", " ran.", " sat."), pair("the dog", " ran.", " sat.")];
        assert_eq!(pair_scores(&model, &tokenizer, &pairs).unwrap(), [1., 0., 0.5]);
        assert_eq!(pair_scores(&model, &tokenizer, &[]).unwrap(), Vec::<f64>::new());
        let broken = bigram_model(&tokenizer, |_, _| f32::NAN);
        assert!(pair_scores(&broken, &tokenizer, &pairs).is_err());
    }

    #[test]
    fn the_tokens_of_a_word_overlap_its_bytes() {
        let tokens = [(7, 0..3), (8, 3..7), (9, 7..9), (9, 9..11), (7, 11..12)];
        assert_eq!(tokens_within(&tokens, &(4..7), 1), (2, 3), "the space before the word belongs to its token");
        assert_eq!(tokens_within(&tokens, &(8..11), 0), (2, 4), "a word of two tokens");
        assert_eq!(tokens_within(&tokens, &(0..12), 2), (2, 7));
        assert_eq!(tokens_within(&tokens, &(3..3), 1), (0, 0), "nothing");
    }

    /// Two prefixes differ in one word and have opposite correct answers. With the word masked, exactly one of both is right; without
    /// the mask a random model distinguishes most of them.
    #[test]
    fn a_masked_word_has_no_effect_and_an_unmasked_one_has() {
        let (tokenizer, model) = (tokenizer(TEXT), model(&tokenizer(TEXT), 0.6));
        let ends = [" sat.", " ran.", " the.", " cat.", " dog.", " on.", " s.", " d."];
        let (mut same, mut differ) = (0, 0);
        for (i, good) in ends.iter().enumerate() {
            for bad in &ends[..i] {
                let sum = |masked: Range<usize>| {
                    let pairs = [("the cat ran. the", good, bad), ("the dog ran. the", bad, good)];
                    let pairs = pairs.map(|(prefix, good, bad)| Pair { prefix, good, bad, masked: masked.clone() });
                    pair_scores(&model, &tokenizer, &pairs).unwrap().iter().sum::<f64>()
                };
                assert_eq!(sum(4..7), 1., "{good} {bad}");
                differ += u32::from(sum(0..0) != 1.);
                same += u32::from(sum(8..11) == 1.);
            }
        }
        assert!(differ > 0 && same < 28, "{differ} differ, {same} are equal with another word masked");
    }
}
