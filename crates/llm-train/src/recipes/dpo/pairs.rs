//! Pairs of answers in token ids, from rankings.

use std::collections::HashMap;
use std::path::Path;

use llm_data::{Ranking, ReadOptions, read_rankings};
use llm_tokenizer::Tokenizer;

use super::{DpoInputs, DpoRecipe};
use crate::Result;
use crate::completions::{Completions, Room};
use crate::examples::take_evenly;
use crate::rollout::Reply;
use crate::splits::{Encoded, Source, train_and_validation};

/// A better and a worse answer to one prompt, in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

impl Pair {
    /// The tokens of both conversations.
    pub fn tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// The chosen answers of all pairs, then the rejected ones.
pub(super) fn replies<'a>(pairs: &[&'a Pair]) -> Vec<Reply<'a>> {
    let chosen = pairs.iter().map(|pair| (&pair.prompt[..], &pair.chosen[..]));
    chosen.chain(pairs.iter().map(|pair| (&pair.prompt[..], &pair.rejected[..]))).collect()
}

/// A number for each pair, the same for pairs of one prompt.
pub(super) fn prompt_numbers(pairs: &[Pair]) -> Vec<usize> {
    let mut known = HashMap::new();
    pairs
        .iter()
        .map(|pair| {
            let next = known.len();
            *known.entry(pair.prompt.as_slice()).or_insert(next)
        })
        .collect()
}

/// Training and validation pairs. A ranking of several answers becomes all its pairs, on one side of the split.
pub(super) fn read(
    recipe: &DpoRecipe,
    inputs: &DpoInputs,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Pair>, Vec<Pair>)> {
    let source = Source {
        data: &inputs.data,
        validation: inputs.validation.as_deref(),
        validation_share: recipe.validation_share,
        seed: recipe.seed,
        max_length,
        options: &recipe.data,
    };
    let room = Room { max_length, too_long: recipe.data.too_long };
    let read = |path: &Path, options: &ReadOptions| {
        let read = read_rankings(path, options)?;
        let margins = read.rankings.iter().filter(|ranking| ranking.margin != 0.).count();
        if margins > 0 {
            tracing::warn!("{}: the margins of {margins} rankings are not used: DPO has none", path.display());
        }
        Ok((read.rankings, read.warnings))
    };
    let (train, validation) = train_and_validation(&source, read, |ranking: &Ranking| {
        let encoded = Completions::encode(tokenizer, &ranking.prompt, &ranking.answers, room)?;
        Ok(match encoded {
            Encoded::Fits(all) => Encoded::Fits(pairs_of(&all, &ranking.pairs())),
            Encoded::TooLong => Encoded::TooLong,
            Encoded::Untrained => Encoded::Untrained,
        })
    })?;
    let validation = take_evenly(validation.concat(), recipe.eval_batches * recipe.batch_size);
    Ok((train.concat(), validation))
}

fn pairs_of(all: &Completions, pairs: &[(usize, usize)]) -> Vec<Pair> {
    let pair = |&(better, worse): &(usize, usize)| Pair {
        prompt: all.prompt.clone(),
        chosen: all.answers[better].clone(),
        rejected: all.answers[worse].clone(),
    };
    pairs.iter().map(pair).collect()
}
