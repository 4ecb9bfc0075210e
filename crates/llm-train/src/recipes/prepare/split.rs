//! Divides documents into training and validation split while they are tokenized.

use std::collections::HashSet;
use std::time::Instant;

use llm_data::{Manifest, ShardWriter, SplitKey};
use llm_tokenizer::Tokenizer;
use rayon::prelude::*;

use super::end::{exact_end, take_end};
use super::repeats::Sample;
use super::stream::Item;
use crate::{Error, Result};

/// The names of the splits in the shards.
pub(super) const TRAIN: &str = "train";
pub(super) const VALIDATION: &str = "held_out";

/// Documents are divided one by one if at least this number is expected in the validation split.
const LEAST: f64 = 5.;

/// So many bytes of the first documents are kept in memory until their number is known to be large enough.
const WAITING_BYTES: usize = 128 << 20;

/// What is validated on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Validation {
    /// Documents of their own.
    Given,
    /// This share of the documents, chosen by the hashes of their texts; of few documents, the end.
    Share(f64),
    /// This share of one document, cut at a character.
    ExactShare(f64),
}

/// Writes documents to the splits.
pub(super) struct Splitter<'a> {
    tokenizer: &'a Tokenizer,
    writer: ShardWriter<'a>,
    validation: Validation,
    /// The first documents, as long as it is not known that they are enough to be divided one by one.
    waiting: Option<Vec<(SplitKey, Item)>>,
    waiting_bytes: usize,
    /// The keys of the training documents, and without [`Validation::Given`] of all documents.
    seen: HashSet<SplitKey>,
    documents: u64,
    copies: u64,
    /// Validation documents: all, and those that are training documents.
    validated: (u64, u64),
    sample: Sample,
}

impl<'a> Splitter<'a> {
    pub fn new(tokenizer: &'a Tokenizer, writer: ShardWriter<'a>, validation: Validation) -> Self {
        Self {
            tokenizer,
            writer,
            validation,
            waiting: (validation != Validation::Given).then(Vec::new),
            waiting_bytes: 0,
            seen: HashSet::new(),
            documents: 0,
            copies: 0,
            validated: (0, 0),
            sample: Sample::default(),
        }
    }

    /// Adds training documents, or documents to divide.
    pub fn train(&mut self, items: Vec<Item>) -> Result<()> {
        let mut new = self.with_keys(items)?;
        self.documents += new.len() as u64;
        // Copies are left out where a copy could be in the other split.
        let keeps_copies = self.validation == Validation::Given;
        new.retain(|(key, _)| {
            let is_new = self.seen.insert(*key);
            self.copies += u64::from(!is_new);
            is_new || keeps_copies
        });
        let Some(waiting) = &mut self.waiting else { return self.divide(new) };
        self.waiting_bytes += new.iter().map(|(_, item)| item.text.len()).sum::<usize>();
        waiting.extend(new);
        match self.validation {
            Validation::ExactShare(_) if waiting.len() > 1 => {
                let message =
                    "--exact-share cuts one document, but there are several; leave it out, or give one text file";
                Err(Error::BadRequest(message.to_owned()))
            }
            Validation::Share(share) => {
                let enough = waiting.len() as f64 * share >= LEAST;
                if !enough && (self.waiting_bytes < WAITING_BYTES || waiting.len() < 2) {
                    return Ok(());
                }
                let first = self.waiting.take().unwrap_or_default();
                self.divide_first(first, share)
            }
            _ => Ok(()),
        }
    }

    /// Adds validation documents; all training documents were added before.
    pub fn validation(&mut self, items: Vec<Item>) -> Result<()> {
        let items = self.with_keys(items)?;
        self.validated.0 += items.len() as u64;
        self.validated.1 += items.iter().filter(|(key, _)| self.seen.contains(key)).count() as u64;
        self.write(items.into_iter().map(|(_, item)| (VALIDATION, item)).collect())
    }

    /// Divides documents that were too few, and completes the shards. `given` are the paths of the validation text, for errors. Logs
    /// the speed since `started`.
    pub fn finish(mut self, given: &str, started: Instant) -> Result<Manifest> {
        if self.copies > 0 {
            let (copies, all) = (self.copies, self.documents);
            match self.validation {
                Validation::Given => tracing::warn!("{copies} of {all} training documents repeat an earlier one"),
                _ => tracing::warn!("{copies} of {all} documents repeat an earlier one and are left out"),
            }
        }
        if let Some(waiting) = self.waiting.take() {
            self.take_end(waiting)?;
        }
        let (documents, known) = self.validated;
        if known > 0 {
            tracing::warn!("{known} of {documents} validation documents are also in the training text");
        }
        let all_repeated = match self.sample.check() {
            Some(all_repeated) => all_repeated,
            None => known == documents,
        };
        if all_repeated && self.validation == Validation::Given {
            return Err(Error::BadRequest(format!(
                "{given}: all lines are also in the training text; use other validation text, or leave out --validation to use \
                 a part of the training text"
            )));
        }
        log_speed(&self.writer, started);
        Ok(self.writer.finish()?)
    }

    /// Decodes token files, and adds the hashes of the texts.
    fn with_keys(&self, items: Vec<Item>) -> Result<Vec<(SplitKey, Item)>> {
        let tokenizer = self.tokenizer;
        let keyed = items.into_par_iter().map(|mut item| {
            if let Some(ids) = &item.ids {
                item.text = tokenizer.decode(ids)?;
            }
            Ok((SplitKey::of([item.text.as_str()]), item))
        });
        // The first error in the order of the items, whichever thread finds one first.
        keyed.collect::<Vec<_>>().into_iter().collect()
    }

    /// Writes documents to the split that their hash says.
    fn divide(&mut self, items: Vec<(SplitKey, Item)>) -> Result<()> {
        let share = match self.validation {
            Validation::Given => 0.,
            Validation::Share(share) | Validation::ExactShare(share) => share,
        };
        let split = |key: SplitKey| if draw(key) < share { VALIDATION } else { TRAIN };
        self.write(items.into_iter().map(|(key, item)| (split(key), item)).collect())
    }

    /// [`Self::divide`] for the first documents, of which at least one is in each split.
    fn divide_first(&mut self, items: Vec<(SplitKey, Item)>, share: f64) -> Result<()> {
        let draws = || items.iter().map(|(key, _)| draw(*key));
        let (lowest, highest) = (draws().fold(f64::MAX, f64::min), draws().fold(f64::MIN, f64::max));
        let split = |draw: f64| match draw {
            draw if draw == lowest => VALIDATION,
            draw if draw < share && draw != highest => VALIDATION,
            _ => TRAIN,
        };
        let items = items.into_iter().map(|(key, item)| (split(draw(key)), item));
        self.write(items.collect())
    }

    /// The end of a few documents is the validation split.
    fn take_end(&mut self, items: Vec<(SplitKey, Item)>) -> Result<()> {
        let documents = items.len();
        if items.iter().any(|(_, item)| item.ids.is_some()) {
            let message = format!("{documents} documents of token files are too few to divide; give --validation");
            return Err(Error::BadRequest(message));
        }
        let file = items.last().map(|(_, item)| item.file.clone());
        let mut train: Vec<String> = items.into_iter().map(|(_, item)| item.text).collect();
        let validation = match self.validation {
            Validation::ExactShare(share) => exact_end(&mut train, share)?,
            Validation::Share(share) => take_end(&mut train, share)?,
            Validation::Given => Vec::new(),
        };
        if documents == 1 {
            tracing::info!("the text is one document; the validation split is its end");
        } else {
            tracing::info!("{documents} documents are too few to divide; the validation split is the end of the text");
        }
        let item =
            |text| Item { text, ids: None, file: file.clone().unwrap_or_else(|| std::path::Path::new("").into()) };
        let train = train.into_iter().map(|text| (TRAIN, item(text)));
        let both = train.chain(validation.into_iter().map(|text| (VALIDATION, item(text))));
        self.write(both.collect())
    }

    fn write(&mut self, items: Vec<(&'static str, Item)>) -> Result<()> {
        for same_kind in items.chunk_by(|(_, a), (_, b)| a.ids.is_some() == b.ids.is_some()) {
            let is_text = same_kind.first().is_some_and(|(_, item)| item.ids.is_none());
            if is_text {
                let texts: Vec<_> = same_kind.iter().map(|(split, item)| (*split, item.text.as_str())).collect();
                self.writer.write(&texts)?;
            } else {
                for (split, item) in same_kind {
                    self.writer.write_ids(split, item.ids.as_deref().unwrap_or_default(), item.text.len())?;
                }
            }
        }
        for (split, item) in items {
            self.sample.add(split == VALIDATION, item.text);
        }
        Ok(())
    }
}

/// Logs the speed, and its share of the speed of the tokenizer alone: of the time that the threads are in it.
fn log_speed(writer: &ShardWriter, started: Instant) {
    let (seconds, threads) = (started.elapsed().as_secs_f64().max(1e-9), rayon::current_num_threads());
    let megabytes = writer.bytes() as f64 / 1e6;
    let share = 100. * writer.encoding_time().as_secs_f64() / (threads as f64 * seconds);
    let rate = megabytes / seconds;
    tracing::info!(
        "{megabytes:.1} MB in {seconds:.1} s: {rate:.1} MB/s with {threads} threads, {share:.0} % of the tokenizer alone"
    );
}

/// A number in `[0, 1)` for a document. Always with the same seed: a document stays in its split when the data grows.
fn draw(key: SplitKey) -> f64 {
    key.draw(0)
}
