//! Conversations as token ids with what is to be learnt, and how they are put into batches.

use std::path::Path;

use candle_core::{Device, Tensor};
use llm_data::{Conversation, Warnings, read_conversations};
use llm_model::{Batch, Model};
use llm_tokenizer::{ChatMessage, Tokenizer};
use rand::seq::SliceRandom;

use crate::run::rng;
use crate::splits::{self, Source, encode_all, read_items};
use crate::{Error, Result};

/// A conversation in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id, whether the assistant says it.
    pub learnt: Vec<bool>,
}

/// The messages as the chat template wants them.
pub(crate) fn chat_messages(messages: &[llm_data::Message]) -> Vec<ChatMessage> {
    let role = |role| match role {
        llm_data::Role::System => "system",
        llm_data::Role::User => "user",
        llm_data::Role::Assistant => "assistant",
    };
    messages.iter().map(|m| ChatMessage::new(role(m.role), &m.content)).collect()
}

/// Reads conversations; those of more than `max_length` tokens are left out, as cutting them would drop their end.
pub fn read_examples(path: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Example>> {
    let conversations = read_items(path, read)?;
    encode_all(path, &conversations, max_length, |conversation| encode(tokenizer, conversation, max_length))
}

/// The conversations to learn from and those to test on, as [`read_examples`] reads them: two files, or one that is split
/// by prompt, a twentieth of the prompts for testing.
pub(crate) fn train_and_held_out(
    (data, held_out): (&Path, Option<&Path>),
    seed: u64,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(Vec<Example>, Vec<Example>)> {
    let source = Source { data, held_out, held_out_share: 0.05, seed, max_length };
    splits::train_and_held_out(&source, read, |conversation| encode(tokenizer, conversation, max_length))
}

fn read(path: &Path) -> Result<(Vec<Conversation>, Warnings)> {
    let read = read_conversations(path)?;
    Ok((read.conversations, read.warnings))
}

fn encode(tokenizer: &Tokenizer, conversation: &Conversation, max_length: usize) -> Result<Option<Example>> {
    let (ids, learnt) = tokenizer.encode_conversation(&chat_messages(&conversation.messages))?;
    Ok((ids.len() <= max_length).then_some(Example { ids, learnt }))
}

/// The examples as a batch, the flat places whose next token is to be learnt, and those tokens.
pub(crate) fn answer_places(examples: &[&Example], pad: u32) -> Result<(Batch, Vec<u32>, Vec<i64>)> {
    let rows: Vec<Vec<u32>> = examples.iter().map(|e| e.ids.clone()).collect();
    let batch = Batch::right_padded(&rows, pad)?;
    let width = batch.input_ids.dim(1)?;
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    for (row, example) in examples.iter().enumerate() {
        for t in (1..example.ids.len()).filter(|&t| example.learnt[t]) {
            places.push((row * width + t - 1) as u32);
            labels.push(i64::from(example.ids[t]));
        }
    }
    Ok((batch, places, labels))
}

/// The hidden states at the positions whose next token is to be learnt, `(n, hidden)`, and those tokens.
pub fn answer_states(model: &Model, examples: &[&Example], pad: u32) -> Result<(Tensor, Vec<i64>)> {
    let (batch, places, labels) = answer_places(examples, pad)?;
    Ok((pick_rows(&model.hidden(&batch, None)?, places)?, labels))
}

/// The rows `places` of `hidden` `(b, t, hidden)` laid end to end: `(n, hidden)`.
pub(crate) fn pick_rows(hidden: &Tensor, places: Vec<u32>) -> Result<Tensor> {
    let n = places.len();
    Ok(hidden.flatten(0, 1)?.index_select(&Tensor::from_vec(places, n, &Device::Cpu)?, 0)?)
}

/// The mean cross-entropy of each learnt token, over all examples.
pub fn answer_loss(model: &Model, examples: &[Example], batch_size: usize, pad: u32) -> Result<f64> {
    let (mut sum, mut count) = (0., 0);
    for chunk in examples.chunks(batch_size) {
        let (hidden, labels) = answer_states(model, &chunk.iter().collect::<Vec<_>>(), pad)?;
        sum += labels.len() as f64 * crate::loss::scalar(&model.cross_entropy(&hidden, &labels)?)?;
        count += labels.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// At most `most` of the items (0: all), evenly spread over them.
pub(crate) fn spread<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let all = items.len();
    if most == 0 || all <= most {
        return items;
    }
    let taken = |i: usize| i * most / all != (i + 1) * most / all;
    items.into_iter().enumerate().filter(|&(i, _)| taken(i)).map(|(_, item)| item).collect()
}

/// Batches of items of similar length: the batch of a step hangs on the seed and the step alone.
#[derive(Debug)]
pub struct LengthBatches {
    lengths: Vec<usize>,
    batch_size: usize,
    seed: u64,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl LengthBatches {
    /// Batches of `batch_size` of the items of these lengths (at least one item).
    pub fn new(lengths: Vec<usize>, batch_size: usize, seed: u64) -> Result<Self> {
        if lengths.is_empty() || batch_size == 0 {
            return Err(Error::Input(format!(
                "{} items in batches of {batch_size}: both must be at least 1",
                lengths.len()
            )));
        }
        Ok(Self { lengths, batch_size, seed, epoch: None })
    }

    /// Batches in one pass over the items; the last one may be smaller.
    pub fn per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.batch_size) as u64
    }

    /// The items of batch `n`, counted through all epochs.
    pub fn batch(&mut self, n: u64) -> Vec<usize> {
        let (epoch, at) = (n / self.per_epoch(), (n % self.per_epoch()) as usize);
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            self.epoch = Some((epoch, self.shuffled(epoch)));
        }
        self.epoch.as_ref().map(|(_, batches)| batches[at].clone()).unwrap_or_default()
    }

    /// Items in random order, sorted by length within groups of sixteen batches, the batches in random order.
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
    fn a_part_is_spread_over_the_whole() {
        for (all, most) in [(10, 3), (7, 7), (100, 33), (5, 9), (5, 0)] {
            let part = spread((0..all).collect(), most);
            assert_eq!(part.len(), if most == 0 { all } else { most.min(all) });
            let gaps: Vec<usize> = part.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(gaps.iter().all(|&gap| gap >= 1 && gap <= all.div_ceil(most.max(1))), "{part:?}");
        }
    }

    #[test]
    fn an_epoch_holds_each_item_once_and_batches_hang_on_the_step_alone() {
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
