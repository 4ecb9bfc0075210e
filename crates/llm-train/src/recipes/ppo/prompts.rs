//! Which prompts an update draws replies to.

use llm_data::{Duplicates, prompt_key, read_prompts};
use llm_tokenizer::Tokenizer;
use rand::seq::SliceRandom;

use super::{PpoInputs, PpoRecipe};
use crate::examples::chat_messages;
use crate::run::rng;
use crate::{Error, Result};

/// The prompts in an endless sequence of passes, each in a random order of its own, cut into updates of the same size.
/// Where a pass ends within an update the next one begins, so few prompts are drawn several times.
pub(super) struct Prompts {
    queries: Vec<Vec<u32>>,
    episodes: usize,
    seed: u64,
}

impl Prompts {
    /// The prompts of a file in token ids, up to the assistant's turn; those that leave no room for a reply are left out.
    pub fn read(recipe: &PpoRecipe, inputs: &PpoInputs, tokenizer: &Tokenizer, positions: usize) -> Result<Self> {
        let prompts = read_prompts(inputs.data)?;
        let repeated = Duplicates::within(prompts.iter().map(|prompt| prompt_key(prompt).into())).exact;
        if repeated > 0 {
            tracing::warn!("{}: {repeated} of {} prompts repeat an earlier one", inputs.data.display(), prompts.len());
        }
        let mut queries = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            let ids = tokenizer.encode_chat(&chat_messages(prompt), true)?;
            if ids.len() + recipe.max_new_tokens <= positions {
                queries.push(ids);
            }
        }
        let (left, all, data) = (queries.len(), prompts.len(), inputs.data.display());
        if left == 0 {
            return Err(Error::Input(format!(
                "{data}: no prompt leaves room for {} tokens; lower max_new_tokens",
                recipe.max_new_tokens
            )));
        }
        if left < all {
            tracing::warn!("{data}: {} of {all} prompts are too long and left out", all - left);
        }
        Self::new(queries, recipe.episodes, recipe.seed)
    }

    fn new(queries: Vec<Vec<u32>>, episodes: usize, seed: u64) -> Result<Self> {
        if queries.is_empty() || episodes == 0 {
            let prompts = queries.len();
            return Err(Error::Input(format!("{prompts} prompts, episodes = {episodes}: both must be at least 1")));
        }
        Ok(Self { queries, episodes, seed })
    }

    /// The first `count` prompts that are drawn from, over all updates.
    pub fn first(&self, count: usize) -> Vec<Vec<u32>> {
        (0..).flat_map(|update| self.of_update(update)).take(count).collect()
    }

    /// The prompts of update `update` (from 0): a function of the seed and the update alone.
    pub fn of_update(&self, update: u64) -> Vec<Vec<u32>> {
        let (all, first) = (self.queries.len() as u64, update * self.episodes as u64);
        let (mut pass, mut order) = (None, Vec::new());
        let mut drawn = Vec::with_capacity(self.episodes);
        for at in first..first + self.episodes as u64 {
            if pass != Some(at / all) {
                pass = Some(at / all);
                order = (0..self.queries.len()).collect();
                order.shuffle(&mut rng(self.seed, 1, at / all));
            }
            drawn.push(self.queries[order[(at % all) as usize]].clone());
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u32, episodes: usize, seed: u64) -> Prompts {
        Prompts::new((0..count).map(|i| vec![i]).collect(), episodes, seed).unwrap()
    }

    #[test]
    fn every_update_has_all_its_episodes_and_every_pass_each_prompt_once() {
        for (count, episodes) in [(10, 4), (3, 8), (1, 8), (8, 8), (7, 1)] {
            let prompts = prompts(count, episodes, 5);
            let updates: Vec<Vec<u32>> = (0..20).map(|update| prompts.of_update(update).concat()).collect();
            assert!(updates.iter().all(|update| update.len() == episodes));
            for pass in updates.concat().chunks_exact(count as usize) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                assert_eq!(pass, (0..count).collect::<Vec<_>>(), "{count} prompts, {episodes} episodes");
            }
        }
    }

    #[test]
    fn the_prompts_of_an_update_depend_on_seed_and_update_alone() {
        let all: Vec<_> = (0..6).map(|update| prompts(10, 4, 5).of_update(update)).collect();
        assert_eq!(prompts(10, 4, 5).of_update(4), all[4]);
        assert_ne!(all[0], all[5], "each pass has an order of its own");
        assert_ne!(prompts(10, 4, 6).of_update(0), all[0]);
        assert!(Prompts::new(Vec::new(), 4, 5).is_err() && Prompts::new(vec![vec![1]], 0, 5).is_err());
    }
}
