//! Shuffled batches of items of different lengths: a fixed number of items of similar length, or items packed to a number of tokens.

use llm_data::best_fit_decreasing;
use rand::seq::SliceRandom;

use crate::run::rng;
use crate::{Error, Result};

/// The size of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// This many items, of similar length.
    Items(usize),
    /// At most this many tokens, filled by best-fit decreasing ([`best_fit_decreasing`]).
    Tokens(usize),
}

impl BatchSize {
    /// The size of a recipe: `max_tokens` tokens, or `batch_size` items if `max_tokens` is 0.
    pub(crate) fn of_recipe(batch_size: usize, max_tokens: usize) -> Self {
        if max_tokens == 0 { Self::Items(batch_size) } else { Self::Tokens(max_tokens) }
    }

    /// The padding token of the batches: items that are packed into a batch need none.
    pub(crate) fn padding(self, pad: u32) -> Option<u32> {
        matches!(self, Self::Items(_)).then_some(pad)
    }
}

/// Batches are chosen from groups of as many items as this number of batches has.
const GROUP: usize = 16;

/// Shuffled batches of items. A batch depends on seed and batch number only.
#[derive(Debug)]
pub struct LengthBatches {
    lengths: Vec<usize>,
    size: BatchSize,
    seed: u64,
    /// The number of the first batch of each epoch counted so far, and of the one after.
    starts: Vec<u64>,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl LengthBatches {
    /// Batches of items with these lengths, in tokens. An error if there are no items, a batch has none, or an item is longer than a
    /// batch of tokens.
    pub fn new(lengths: Vec<usize>, size: BatchSize, seed: u64) -> Result<Self> {
        if lengths.is_empty() || matches!(size, BatchSize::Items(0)) {
            let message = format!("{} items in batches of {size:?}: both must be at least 1", lengths.len());
            return Err(Error::BadRequest(message));
        }
        if let (BatchSize::Tokens(most), Some(&longest)) = (size, lengths.iter().max())
            && longest > most
        {
            return Err(Error::BadRequest(format!("max_tokens is {most}; the longest item has {longest} tokens")));
        }
        Ok(Self { lengths, size, seed, starts: vec![0], epoch: None })
    }

    /// The number of batches of this many passes over the items. Passes can have different numbers of packed batches.
    pub fn count(&mut self, epochs: u64) -> u64 {
        match self.size {
            BatchSize::Items(size) => self.lengths.len().div_ceil(size) as u64 * epochs,
            BatchSize::Tokens(_) => self.start(epochs),
        }
    }

    /// The items of batch `n`, counted over all epochs.
    pub fn batch(&mut self, n: u64) -> Vec<usize> {
        let epoch = match self.size {
            BatchSize::Items(_) => n / self.count(1),
            BatchSize::Tokens(_) => {
                let mut epoch = 0;
                while self.start(epoch + 1) <= n {
                    epoch += 1;
                }
                epoch
            }
        };
        let at = (n - self.count(epoch)) as usize;
        self.load(epoch);
        self.epoch.as_ref().map(|(_, batches)| batches[at].clone()).unwrap_or_default()
    }

    /// The number of the first packed batch of an epoch.
    fn start(&mut self, epoch: u64) -> u64 {
        while self.starts.len() as u64 <= epoch {
            let (last, next) = (self.starts[self.starts.len() - 1], self.starts.len() as u64 - 1);
            self.load(next);
            let batches = self.epoch.as_ref().map_or(0, |(_, batches)| batches.len());
            self.starts.push(last + batches as u64);
        }
        self.starts[epoch as usize]
    }

    fn load(&mut self, epoch: u64) {
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.epoch = Some((epoch, self.shuffled(epoch)));
        }
    }

    /// Shuffles the items, makes batches within groups of items, and shuffles the batches.
    fn shuffled(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = rng(self.seed, 1, epoch);
        let mut items: Vec<usize> = (0..self.lengths.len()).collect();
        items.shuffle(&mut rng);
        let mut batches: Vec<Vec<usize>> = match self.size {
            BatchSize::Items(size) => {
                for group in items.chunks_mut(GROUP * size) {
                    group.sort_by_key(|&item| self.lengths[item]);
                }
                items.chunks(size).map(<[usize]>::to_vec).collect()
            }
            BatchSize::Tokens(most) => {
                let mut tokens = 0;
                let same_group = |_: &usize, &item: &usize| {
                    tokens += self.lengths[item];
                    let same = tokens < GROUP * most;
                    if !same {
                        tokens = 0;
                    }
                    same
                };
                items.chunk_by(same_group).flat_map(|group| self.packed(group, most)).collect()
            }
        };
        batches.shuffle(&mut rng);
        batches
    }

    fn packed(&self, group: &[usize], most: usize) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = group.iter().map(|&item| self.lengths[item]).collect();
        let packs = best_fit_decreasing(&lengths, most);
        packs.into_iter().map(|pack| pack.into_iter().map(|i| group[i]).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths() -> Vec<usize> {
        (0..1030).map(|i| i * 37 % 50 + 1).collect()
    }

    #[test]
    fn an_epoch_has_each_item_once_and_a_batch_depends_on_its_number_only() {
        for size in [BatchSize::Items(8), BatchSize::Tokens(64)] {
            let mut batches = LengthBatches::new(lengths(), size, 5).unwrap();
            let (first, second) = (batches.count(1), batches.count(2));
            for epoch in [0..first, first..second] {
                let mut all: Vec<usize> = epoch.flat_map(|n| batches.batch(n)).collect();
                all.sort_unstable();
                assert_eq!(all, (0..1030).collect::<Vec<_>>(), "{size:?}");
            }
            let (early, late) = (batches.batch(3), batches.batch(second + 3));
            let mut fresh = LengthBatches::new(lengths(), size, 5).unwrap();
            assert_eq!(fresh.batch(second + 3), late);
            assert_eq!(fresh.batch(3), early);
            assert_ne!(late, early);
        }
    }

    #[test]
    fn packed_batches_are_full_and_differ_between_epochs() {
        let mut batches = LengthBatches::new(lengths(), BatchSize::Tokens(512), 5).unwrap();
        let count = batches.count(1);
        let tokens = |batch: &[usize]| batch.iter().map(|&i| lengths()[i]).sum::<usize>();
        let all: Vec<Vec<usize>> = (0..count).map(|n| batches.batch(n)).collect();
        assert!(all.iter().all(|batch| tokens(batch) <= 512));
        let least = lengths().iter().sum::<usize>().div_ceil(512) as u64;
        assert!(count <= least + 4, "{count} batches; {least} is the least"); // the last batch of each group is not full
        let sets = |n: u64, batches: &mut LengthBatches| {
            let mut batch = batches.batch(n);
            batch.sort_unstable();
            batch
        };
        let first: Vec<_> = (0..count).map(|n| sets(n, &mut batches)).collect();
        let second = batches.count(2);
        assert!((count..second).all(|n| !first.contains(&sets(n, &mut batches))), "other items together");
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(LengthBatches::new(vec![], BatchSize::Items(2), 1).is_err());
        assert!(LengthBatches::new(vec![1], BatchSize::Items(0), 1).is_err());
        let message = LengthBatches::new(vec![3, 9], BatchSize::Tokens(8), 1).unwrap_err().to_string();
        assert_eq!(message, "max_tokens is 8; the longest item has 9 tokens");
    }
}
