//! Batches of a tokenized split: in random order for training, in order for evaluation.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result, TokenDataset};

/// Batches of rows of consecutive tokens, in random order. The batch of a step is a function of (seed, step).
#[derive(Debug)]
pub struct Batches<'a> {
    tokens: &'a [u32],
    batch_size: usize,
    seq_len: usize,
    seed: u64,
    epoch: Option<(u64, usize, Vec<usize>)>,
}

impl<'a> Batches<'a> {
    /// Batches of shape `(batch_size, seq_len)`. An error if the dataset is too small for one batch.
    pub fn new(dataset: &'a TokenDataset, batch_size: usize, seq_len: usize, seed: u64) -> Result<Self> {
        let tokens = dataset.tokens();
        let needed = batch_size.saturating_mul(seq_len).saturating_add(seq_len).saturating_add(1);
        if batch_size == 0 || seq_len == 0 || tokens.len() < needed {
            return Err(Error::TooFewTokens { tokens: tokens.len(), purpose: "training", batch_size, seq_len });
        }
        Ok(Self { tokens, batch_size, seq_len, seed, epoch: None })
    }

    /// Number of batches in one pass over the data.
    pub fn steps_per_epoch(&self) -> u64 {
        // Minus one row, because each epoch starts at a random offset.
        (((self.tokens.len() - 1) / self.seq_len - 1) / self.batch_size) as u64
    }

    /// The inputs and targets of a step, each `(batch_size, seq_len)` token ids in row-major order. A target is the token after
    /// its input.
    pub fn batch(&mut self, step: u64) -> Result<(Vec<u32>, Vec<u32>)> {
        let (epoch, at) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        if self.epoch.as_ref().is_none_or(|(current, ..)| *current != epoch) {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            let offset = rand::RngExt::random_range(&mut rng, 0..self.seq_len);
            let mut rows: Vec<usize> = (0..(self.tokens.len() - 1 - offset) / self.seq_len).collect();
            rows.shuffle(&mut rng);
            self.epoch = Some((epoch, offset, rows));
        }
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        if let Some((_, offset, rows)) = &self.epoch {
            for row in &rows[at * self.batch_size..(at + 1) * self.batch_size] {
                let start = offset + row * self.seq_len;
                inputs.extend(&self.tokens[start..start + self.seq_len]);
                targets.extend(&self.tokens[start + 1..=start + self.seq_len]);
            }
        }
        Ok((inputs, targets))
    }
}

/// The whole dataset in order, as batches (inputs, targets) of at most `(batch_size, seq_len)` token ids. A shorter last row is a
/// batch of its own. Every token except the first is a target exactly once.
pub fn eval_windows(
    dataset: &TokenDataset,
    batch_size: usize,
    seq_len: usize,
) -> Result<impl Iterator<Item = (Vec<u32>, Vec<u32>)>> {
    let tokens = dataset.tokens();
    if tokens.len() < 2 || batch_size == 0 || seq_len == 0 {
        return Err(Error::TooFewTokens { tokens: tokens.len(), purpose: "evaluation", batch_size, seq_len });
    }
    let whole = (tokens.len() - 1) / seq_len * seq_len;
    let window = move |(start, end): (usize, usize)| (tokens[start..end].to_vec(), tokens[start + 1..=end].to_vec());
    let step = batch_size * seq_len;
    let full = (0..whole).step_by(step).map(move |start| (start, (start + step).min(whole)));
    let rest = (whole < tokens.len() - 1).then_some((whole, tokens.len() - 1));
    Ok(full.chain(rest).map(window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::tests::dataset;

    #[test]
    fn an_epoch_contains_every_row_once_and_a_batch_depends_on_its_step_only() {
        let text: String = (0..400).map(|i| format!("{i} ")).collect();
        let (dir, _) = dataset(&[&text]);
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let mut batches = Batches::new(&data, 3, 8, 5).unwrap();
        let epoch: Vec<_> = (0..batches.steps_per_epoch()).map(|step| batches.batch(step).unwrap()).collect();
        for (inputs, targets) in &epoch {
            assert_eq!((inputs.len(), targets.len()), (24, 24));
            let chunks = inputs.chunks(8).zip(targets.chunks(8));
            assert!(chunks.into_iter().all(|(i, t)| i[1..] == t[..7]));
        }
        let mut rows: Vec<&[u32]> = epoch.iter().flat_map(|(inputs, _)| inputs.chunks(8)).collect();
        let all = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), all, "no duplicate rows");
        let later = batches.batch(1000).unwrap();
        let mut fresh = Batches::new(&data, 3, 8, 5).unwrap();
        assert_eq!(fresh.batch(1000).unwrap(), later);
        assert_eq!(fresh.batch(1).unwrap(), epoch[1]);
        assert!(Batches::new(&data, 1000, 8, 5).is_err());
    }

    #[test]
    fn every_token_except_the_first_is_an_evaluation_target_once() {
        let (dir, _) = dataset(&["a quick brown fox jumps over the lazy dog and then again over it"]);
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        for (batch, seq) in [(2, 5), (3, 4), (1, 1), (2, 1000)] {
            let targets: Vec<u32> = eval_windows(&data, batch, seq).unwrap().flat_map(|(_, targets)| targets).collect();
            assert_eq!(targets, data.tokens()[1..], "rows of {seq}");
        }
    }
}
