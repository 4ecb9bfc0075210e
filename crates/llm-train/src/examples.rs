//! Conversations as token ids with a loss mask, and batches of similar length.

use std::path::Path;

use candle_core::Tensor;
use llm_data::{Conversation, Warnings, chat_messages, read_conversations};
use llm_model::{Batch, Model};
use llm_tokenizer::Tokenizer;
use rand::seq::SliceRandom;

use crate::run::rng;
use crate::splits::{self, Source, encode_all, read_items};
use crate::{Error, Result, loss};

/// A conversation in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each id, whether the loss counts it: the assistant's tokens.
    pub loss_mask: Vec<bool>,
}

/// Reads and encodes conversations. Those of more than `max_length` tokens are left out, not truncated.
pub fn read_examples(path: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
    let conversations = read_items(path, read)?;
    encode_all(path, &conversations, max_length, |conversation| encode(tokenizer, conversation, max_length))
}

/// Training and validation conversations: two files, or one file of which 5 % of the prompts are for validation.
pub(crate) fn train_and_validation(
    (data, validation): (&Path, Option<&Path>),
    seed: u64,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Example>, Vec<Example>)> {
    let source = Source { data, validation, validation_share: 0.05, seed, max_length };
    splits::train_and_validation(&source, read, |conversation| encode(tokenizer, conversation, max_length))
}

fn read(path: &Path) -> Result<(Vec<Conversation>, Warnings)> {
    let read = read_conversations(path)?;
    Ok((read.conversations, read.warnings))
}

fn encode(tokenizer: &Tokenizer, conversation: &Conversation, max_length: usize) -> Result<Option<Example>> {
    let (ids, loss_mask) = tokenizer.encode_conversation(&chat_messages(&conversation.messages))?;
    Ok((ids.len() <= max_length).then_some(Example { ids, loss_mask }))
}

/// The examples as a right-padded batch `(b, t)`, the flat positions (`row * t + column`) that predict a trained token, and the
/// ids of those tokens (the labels).
pub(crate) fn answer_positions(examples: &[&Example], pad: u32) -> Result<(Batch, Vec<u32>, Vec<i64>)> {
    let rows: Vec<Vec<u32>> = examples.iter().map(|e| e.ids.clone()).collect();
    let batch = Batch::right_padded(&rows, pad)?;
    let width = batch.input_ids.dim(1)?;
    let (mut positions, mut labels) = (Vec::new(), Vec::new());
    for (row, example) in examples.iter().enumerate() {
        for t in (1..example.ids.len()).filter(|&t| example.loss_mask[t]) {
            positions.push((row * width + t - 1) as u32);
            labels.push(i64::from(example.ids[t]));
        }
    }
    Ok((batch, positions, labels))
}

/// The hidden states that predict the trained tokens, `(n, hidden)`, and the ids of those tokens.
pub fn answer_states(model: &Model, examples: &[&Example], pad: u32) -> Result<(Tensor, Vec<i64>)> {
    let (batch, positions, labels) = answer_positions(examples, pad)?;
    Ok((gather_rows(&model.hidden(&batch, None)?, positions)?, labels))
}

/// The rows of `hidden` `(b, t, hidden)` at these flat positions: `(n, hidden)`.
pub(crate) fn gather_rows(hidden: &Tensor, positions: Vec<u32>) -> Result<Tensor> {
    let n = positions.len();
    Ok(hidden.flatten(0, 1)?.index_select(&Tensor::from_vec(positions, n, hidden.device())?, 0)?)
}

/// The mean cross-entropy over the trained tokens of all examples, in nats.
pub fn answer_loss(model: &Model, examples: &[Example], batch_size: usize, pad: u32) -> Result<f64> {
    let (mut sum, mut count) = (0., 0);
    for chunk in examples.chunks(batch_size) {
        let (hidden, labels) = answer_states(model, &chunk.iter().collect::<Vec<_>>(), pad)?;
        sum += labels.len() as f64 * loss::scalar(&loss::next_token(model, &hidden, &labels)?)?;
        count += labels.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// At most `most` items (0: all), evenly spaced.
pub(crate) fn take_evenly<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let all = items.len();
    if most == 0 || all <= most {
        return items;
    }
    let is_taken = |i: usize| i * most / all != (i + 1) * most / all;
    items.into_iter().enumerate().filter(|&(i, _)| is_taken(i)).map(|(_, item)| item).collect()
}

/// Shuffled batches of items of similar length. A batch depends on seed and batch number only.
#[derive(Debug)]
pub struct LengthBatches {
    lengths: Vec<usize>,
    batch_size: usize,
    seed: u64,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl LengthBatches {
    /// Batches of `batch_size` items with these lengths; it is an error if there are no items.
    pub fn new(lengths: Vec<usize>, batch_size: usize, seed: u64) -> Result<Self> {
        if lengths.is_empty() || batch_size == 0 {
            return Err(Error::BadRequest(format!(
                "{} items in batches of {batch_size}: both must be at least 1",
                lengths.len()
            )));
        }
        Ok(Self { lengths, batch_size, seed, epoch: None })
    }

    /// Batches per pass over the items. The last one may be smaller.
    pub fn per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.batch_size) as u64
    }

    /// The items of batch `n`, counted over all epochs.
    pub fn batch(&mut self, n: u64) -> Vec<usize> {
        let (epoch, at) = (n / self.per_epoch(), (n % self.per_epoch()) as usize);
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.epoch = Some((epoch, self.shuffled(epoch)));
        }
        self.epoch.as_ref().map(|(_, batches)| batches[at].clone()).unwrap_or_default()
    }

    /// Shuffles items, sorts them by length within groups of sixteen batches, and shuffles the batches.
    fn shuffled(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = rng(self.seed, 1, epoch);
        let mut items: Vec<usize> = (0..self.lengths.len()).collect();
        items.shuffle(&mut rng);
        for group in items.chunks_mut(16 * self.batch_size) {
            group.sort_by_key(|&item| self.lengths[item]);
        }
        let mut batches: Vec<Vec<usize>> = items.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
        batches.shuffle(&mut rng);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_taken_evenly() {
        for (all, most) in [(10, 3), (7, 7), (100, 33), (5, 9), (5, 0)] {
            let part = take_evenly((0..all).collect(), most);
            assert_eq!(part.len(), if most == 0 { all } else { most.min(all) });
            let gaps: Vec<usize> = part.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(gaps.iter().all(|&gap| gap >= 1 && gap <= all.div_ceil(most.max(1))), "{part:?}");
        }
    }

    #[test]
    fn an_epoch_has_each_item_once_and_a_batch_depends_on_its_number_only() {
        let lengths: Vec<usize> = (0..103).map(|i| i * 37 % 50 + 1).collect();
        let mut batches = LengthBatches::new(lengths.clone(), 8, 5).unwrap();
        let first: Vec<Vec<usize>> = (0..batches.per_epoch()).map(|n| batches.batch(n)).collect();
        let mut all: Vec<usize> = first.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        let second = batches.batch(batches.per_epoch() + 3);
        let mut fresh = LengthBatches::new(lengths, 8, 5).unwrap();
        assert_eq!(fresh.batch(fresh.per_epoch() + 3), second);
        assert_eq!(fresh.batch(3), first[3]);
        assert_ne!(second, first[3]);
    }
}
