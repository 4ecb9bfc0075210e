//! The prompts of stages that learn from sampled replies.

use std::path::Path;

use llm_data::ReadOptions;
use llm_tokenizer::Tokenizer;
use rand::seq::SliceRandom;

use crate::data::DataOptions;
use crate::rewards::Prompt;
use crate::run::rng;
use crate::splits::read_items;
use crate::{Error, Result};

/// Reads prompts and encodes them up to the assistant's turn. Prompts that leave no room for a reply of `max_new_tokens` tokens in
/// `positions` are left out.
pub(crate) fn read_prompts(
    path: &Path,
    options: &DataOptions,
    tokenizer: &Tokenizer,
    (positions, max_new_tokens): (usize, usize),
) -> Result<Vec<Prompt>> {
    let read = |path: &Path, options: &ReadOptions| Ok(llm_data::read_prompts(path, options)?);
    let rows = read_items(path, &options.read_options(), read)?;
    let (all, data) = (rows.len(), path.display());
    let mut prompts = Vec::with_capacity(all);
    for (conversation, row) in rows {
        let prompt = Prompt::encode(tokenizer, &conversation, row)?;
        if prompt.query.len() + max_new_tokens <= positions {
            prompts.push(prompt);
        }
    }
    let left = prompts.len();
    if left == 0 {
        let message = format!("{data}: no prompt leaves room for {max_new_tokens} tokens; lower max_new_tokens");
        return Err(Error::TooLong(message));
    }
    if left < all {
        tracing::warn!("{data}: left out {} of {all} prompts that are too long", all - left);
    }
    Ok(prompts)
}

/// An endless sequence of shuffled passes over the prompts, split into updates of equal size. A pass can end within an update; then
/// the next pass begins.
pub(crate) struct Prompts {
    prompts: Vec<Prompt>,
    per_update: usize,
    seed: u64,
}

impl Prompts {
    /// Updates of `per_update` prompts each; it is an error if this, or the number of prompts, is 0.
    pub fn new(prompts: Vec<Prompt>, per_update: usize, seed: u64) -> Result<Self> {
        if prompts.is_empty() || per_update == 0 {
            let message = format!("{} prompts, {per_update} per update: both must be at least 1", prompts.len());
            return Err(Error::BadRequest(message));
        }
        Ok(Self { prompts, per_update, seed })
    }

    /// The first `count` prompts of the sequence.
    pub fn first(&self, count: usize) -> Vec<Prompt> {
        (0..).flat_map(|update| self.of_update(update)).take(count).collect()
    }

    /// The prompts of update `update` (counted from 0). They depend on seed and update only.
    pub fn of_update(&self, update: u64) -> Vec<Prompt> {
        let (all, first) = (self.prompts.len() as u64, update * self.per_update as u64);
        let (mut pass, mut order) = (None, Vec::new());
        let mut chosen = Vec::with_capacity(self.per_update);
        for at in first..first + self.per_update as u64 {
            if pass != Some(at / all) {
                pass = Some(at / all);
                order = (0..self.prompts.len()).collect();
                order.shuffle(&mut rng(self.seed, 1, at / all));
            }
            chosen.push(self.prompts[order[(at % all) as usize]].clone());
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u32, per_update: usize, seed: u64) -> Prompts {
        Prompts::new((0..count).map(|i| vec![i].into()).collect(), per_update, seed).unwrap()
    }

    #[test]
    fn every_pass_has_each_prompt_once() {
        for (count, per_update) in [(10, 4), (3, 8), (1, 8), (8, 8), (7, 1)] {
            let prompts = prompts(count, per_update, 5);
            let queries = |update| prompts.of_update(update).into_iter().flat_map(|prompt| prompt.query).collect();
            let updates: Vec<Vec<u32>> = (0..20).map(queries).collect();
            assert!(updates.iter().all(|update| update.len() == per_update));
            for pass in updates.concat().chunks_exact(count as usize) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                assert_eq!(pass, (0..count).collect::<Vec<_>>(), "{count} prompts, {per_update} per update");
            }
        }
    }

    #[test]
    fn the_prompts_of_an_update_depend_on_seed_and_update_only() {
        let all: Vec<_> = (0..6).map(|update| prompts(10, 4, 5).of_update(update)).collect();
        assert_eq!(prompts(10, 4, 5).of_update(4), all[4]);
        assert_ne!(all[0], all[5], "passes have different orders");
        assert_ne!(prompts(10, 4, 6).of_update(0), all[0]);
        assert_eq!(prompts(10, 4, 5).first(10), all.concat()[..10]);
        assert!(Prompts::new(Vec::new(), 4, 5).is_err() && Prompts::new(vec![vec![1].into()], 0, 5).is_err());
    }
}
