//! The prompts of each update.

use std::path::Path;

use llm_data::{ReadOptions, read_prompts};
use llm_tokenizer::Tokenizer;
use rand::seq::SliceRandom;

use super::{PpoInputs, PpoRecipe};
use crate::rewards::Prompt;
use crate::run::rng;
use crate::splits::read_items;
use crate::{Error, Result};

/// An endless sequence of shuffled passes over the prompts, split into updates of equal size. A pass can end within an update; then
/// the next pass begins.
pub(super) struct Prompts {
    prompts: Vec<Prompt>,
    episodes: usize,
    seed: u64,
}

impl Prompts {
    /// Reads prompts and encodes them up to the assistant's turn. Prompts that leave no room for a reply are left out.
    pub fn read(recipe: &PpoRecipe, inputs: &PpoInputs, tokenizer: &Tokenizer, positions: usize) -> Result<Self> {
        let read = |path: &Path, options: &ReadOptions| Ok(read_prompts(path, options)?);
        let rows = read_items(&inputs.data, &recipe.data.read_options(), read)?;
        let all = rows.len();
        let mut prompts = Vec::with_capacity(all);
        for (conversation, row) in rows {
            let prompt = Prompt::encode(tokenizer, &conversation, row)?;
            if prompt.query.len() + recipe.max_new_tokens <= positions {
                prompts.push(prompt);
            }
        }
        let (left, data) = (prompts.len(), inputs.data.display());
        if left == 0 {
            return Err(Error::TooLong(format!(
                "{data}: no prompt leaves room for {} tokens; lower max_new_tokens",
                recipe.max_new_tokens
            )));
        }
        if left < all {
            tracing::warn!("{data}: left out {} of {all} prompts that are too long", all - left);
        }
        Self::new(prompts, recipe.episodes, recipe.seed)
    }

    fn new(prompts: Vec<Prompt>, episodes: usize, seed: u64) -> Result<Self> {
        if prompts.is_empty() || episodes == 0 {
            let prompts = prompts.len();
            return Err(Error::BadRequest(format!(
                "{prompts} prompts, episodes = {episodes}: both must be at least 1"
            )));
        }
        Ok(Self { prompts, episodes, seed })
    }

    /// The first `count` prompts of the sequence.
    pub fn first(&self, count: usize) -> Vec<Prompt> {
        (0..).flat_map(|update| self.of_update(update)).take(count).collect()
    }

    /// The prompts of update `update` (counted from 0). They depend on seed and update only.
    pub fn of_update(&self, update: u64) -> Vec<Prompt> {
        let (all, first) = (self.prompts.len() as u64, update * self.episodes as u64);
        let (mut pass, mut order) = (None, Vec::new());
        let mut chosen = Vec::with_capacity(self.episodes);
        for at in first..first + self.episodes as u64 {
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

    fn prompts(count: u32, episodes: usize, seed: u64) -> Prompts {
        Prompts::new((0..count).map(|i| vec![i].into()).collect(), episodes, seed).unwrap()
    }

    #[test]
    fn every_pass_has_each_prompt_once() {
        for (count, episodes) in [(10, 4), (3, 8), (1, 8), (8, 8), (7, 1)] {
            let prompts = prompts(count, episodes, 5);
            let queries = |update| prompts.of_update(update).into_iter().flat_map(|prompt| prompt.query).collect();
            let updates: Vec<Vec<u32>> = (0..20).map(queries).collect();
            assert!(updates.iter().all(|update| update.len() == episodes));
            for pass in updates.concat().chunks_exact(count as usize) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                assert_eq!(pass, (0..count).collect::<Vec<_>>(), "{count} prompts, {episodes} episodes");
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
