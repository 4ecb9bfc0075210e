//! Minimal pairs: which of two continuations does the model find likelier, and what does that depend on?

use std::ops::Range;

use llm_data::world::Probe;
use llm_model::Model;
use llm_tokenizer::Tokenizer;

use super::text::{Row, row_logprobs};
use crate::{Error, Result};

/// A prefix with a right and a wrong continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The text before.
    pub prefix: &'a str,
    /// The right continuation, with its leading space.
    pub good: &'a str,
    /// The wrong continuation, with its leading space.
    pub bad: &'a str,
    /// The bytes of `prefix` that no token sees: the attention to their tokens is cut in every layer. Empty: none.
    pub hidden: Range<usize>,
}

/// For each minimal pair 1 where the model finds the right continuation likelier, 0 where it finds the wrong one
/// likelier, 0.5 for a tie.
pub fn probe_scores(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<Vec<f64>> {
    let pairs = probes.iter().map(|p| Pair { prefix: &p.prefix, good: &p.good, bad: &p.bad, hidden: 0..0 });
    pair_scores(model, tokenizer, &pairs.collect::<Vec<_>>())
}

/// As [`probe_scores`], for pairs of which a word can be hidden. With the word hidden that decides, a model that does
/// not know it from elsewhere is at chance.
///
/// It is an error where the log-probabilities are not numbers, as a comparison would call them wrong answers.
pub fn pair_scores(model: &Model, tokenizer: &Tokenizer, pairs: &[Pair]) -> Result<Vec<f64>> {
    let mut encoded = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let start: Vec<u32> = tokenizer.document_end_id().into_iter().collect();
        let tokens = tokenizer.encode_with_offsets(pair.prefix)?;
        let hidden = tokens_within(&tokens, &pair.hidden, start.len());
        let prefix = [start, tokens.into_iter().map(|(id, _)| id).collect()].concat();
        encoded.push((prefix, tokenizer.encode(pair.good)?, tokenizer.encode(pair.bad)?, hidden));
    }
    let rows: Vec<Row> = encoded
        .iter()
        .flat_map(|(prefix, good, bad, hidden)| [good, bad].map(|rest| Row { prefix, rest, hidden: *hidden }))
        .collect();
    let logprobs = row_logprobs(model, &rows, 64)?;
    if logprobs.iter().any(|x| x.is_nan()) {
        return Err(Error::Input("the model's log-probabilities are NaN; are its weights damaged?".to_owned()));
    }
    Ok(logprobs.chunks(2).map(|p| if p[0] == p[1] { 0.5 } else { f64::from(u8::from(p[0] > p[1])) }).collect())
}

/// The mean of [`probe_scores`].
pub fn probe_accuracy(model: &Model, tokenizer: &Tokenizer, probes: &[Probe]) -> Result<f64> {
    let scores = probe_scores(model, tokenizer, probes)?;
    Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
}

/// The half-open range of the tokens that overlap some bytes, where `before` other tokens come first.
fn tokens_within(tokens: &[(u32, Range<usize>)], bytes: &Range<usize>, before: usize) -> (u32, u32) {
    let overlaps = |(_, span): &(u32, Range<usize>)| span.start < bytes.end && bytes.start < span.end;
    let Some(first) = tokens.iter().position(overlaps).filter(|_| !bytes.is_empty()) else { return (0, 0) };
    let count = tokens[first..].iter().take_while(|token| overlaps(token)).count();
    ((before + first) as u32, (before + first + count) as u32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bigram_model, model, tokenizer};
    use super::*;

    const TEXT: &str = "the cat sat. the dog ran. the cat ran. the dog sat.";

    fn pair(prefix: &'static str, good: &'static str, bad: &'static str) -> Pair<'static> {
        Pair { prefix, good, bad, hidden: 0..0 }
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
        let pairs =
            [pair("the cat", " sat.", " ran."), pair("the cat", " ran.", " sat."), pair("the dog", " ran.", " sat.")];
        assert_eq!(pair_scores(&model, &tokenizer, &pairs).unwrap(), [1., 0., 0.5]);
        assert_eq!(pair_scores(&model, &tokenizer, &[]).unwrap(), Vec::<f64>::new());
        let broken = bigram_model(&tokenizer, |_, _| f32::NAN);
        assert!(pair_scores(&broken, &tokenizer, &pairs).is_err());
    }

    #[test]
    fn the_tokens_of_a_word_are_those_that_overlap_its_bytes() {
        let tokens = [(7, 0..3), (8, 3..7), (9, 7..9), (9, 9..11), (7, 11..12)];
        assert_eq!(tokens_within(&tokens, &(4..7), 1), (2, 3), "the space before the word belongs to its token");
        assert_eq!(tokens_within(&tokens, &(8..11), 0), (2, 4), "a word of two tokens");
        assert_eq!(tokens_within(&tokens, &(0..12), 2), (2, 7));
        assert_eq!(tokens_within(&tokens, &(3..3), 1), (0, 0), "nothing");
    }

    /// Two prefixes that differ in one word: where it is hidden they are the same to the model, so that what is right
    /// after one is wrong after the other. Where it is not, a random model tells most of them apart.
    #[test]
    fn a_hidden_word_makes_no_difference_and_a_visible_one_does() {
        let (tokenizer, model) = (tokenizer(TEXT), model(&tokenizer(TEXT), 0.6));
        let ends = [" sat.", " ran.", " the.", " cat.", " dog.", " on.", " s.", " d."];
        let (mut same, mut differ) = (0, 0);
        for (i, good) in ends.iter().enumerate() {
            for bad in &ends[..i] {
                let sum = |hidden: Range<usize>| {
                    let pairs = [("the cat ran. the", good, bad), ("the dog ran. the", bad, good)];
                    let pairs = pairs.map(|(prefix, good, bad)| Pair { prefix, good, bad, hidden: hidden.clone() });
                    pair_scores(&model, &tokenizer, &pairs).unwrap().iter().sum::<f64>()
                };
                assert_eq!(sum(4..7), 1., "{good} {bad}");
                differ += u32::from(sum(0..0) != 1.);
                same += u32::from(sum(8..11) == 1.);
            }
        }
        assert!(differ > 0 && same < 28, "{differ} differ, {same} are the same with another word hidden");
    }
}
