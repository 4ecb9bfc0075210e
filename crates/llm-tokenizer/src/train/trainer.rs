//! [`Trainer`]: counts the pieces of documents and learns a vocabulary from the counts.

use std::path::Path;
use std::sync::Arc;

use ahash::AHashMap;
use rayon::prelude::*;

use super::pieces::{MAX_MEMORY, MAX_PIECE, PieceCounts, parts};
use super::{Kind, TrainSettings, kinds};
use crate::split::{Splitter, SplitterCache, safe_parts};
use crate::{Error, Result, Tokenizer};

/// Text that is counted at once, in bytes. After each such amount the memory is limited, so it must not depend on the number of
/// threads.
const BATCH: usize = 8 << 20;
/// Text that one thread counts at once, in bytes.
const PART: usize = 1 << 19;
/// Time to learn from a byte of a distinct piece, in seconds; measured on one core of an AMD EPYC.
const SECONDS_PER_BYTE: f64 = 3e-7;
/// Memory to learn from a byte of a distinct piece, in bytes: its symbol, and its place in the list of a pair.
const MEMORY_PER_BYTE: usize = 16;

/// Trains a tokenizer on documents, in bounded memory.
///
/// Documents are counted as a whole, so that training sees the pieces that [`Tokenizer::encode`] sees. The result does not depend on
/// the number of threads, and not on the order of the documents unless so many distinct pieces occur that the rarest are left
/// out ([`TrainReport::left_out`]).
#[derive(Debug)]
pub struct Trainer {
    settings: TrainSettings,
    splitter: Splitter,
    /// Documents that are not yet counted, and their files.
    batch: Vec<(String, Arc<Path>)>,
    batch_bytes: usize,
    counts: PieceCounts,
    report: TrainReport,
}

/// What a [`Trainer`] found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainReport {
    /// Number of documents.
    pub documents: u64,
    /// Number of bytes of the documents.
    pub bytes: u64,
    /// Number of distinct pieces that were learned from.
    pub pieces: usize,
    /// Number of occurrences of rare pieces that were left out to limit the memory.
    pub left_out: i64,
    /// The longest piece of the text. Pieces of more than 1,024 bytes are cut; words of that length are left out.
    pub longest: Option<LongestPiece>,
}

/// The longest piece of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct LongestPiece {
    /// Its length in bytes.
    pub bytes: usize,
    /// Its file.
    pub source: Arc<Path>,
}

/// What learning a vocabulary needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Memory in bytes.
    pub memory: usize,
    /// Time in seconds on one core of a machine of 2024.
    pub seconds: f64,
}

/// What one thread counted.
#[derive(Default)]
struct Counted<'t> {
    counts: AHashMap<&'t str, i64>,
    longest: Option<(usize, &'t Arc<Path>)>,
}

impl Trainer {
    /// An error if the settings are out of range.
    pub fn new(settings: &TrainSettings) -> Result<Self> {
        settings.check()?;
        let splitter = match settings.kind.is_byte_level() {
            true => Splitter::byte_level(settings.split.pattern(), false),
            false => Splitter::words(),
        };
        let splitter = splitter.ok_or_else(|| Error::Train { cause: "the pattern of the pieces is invalid".into() })?;
        let counts = PieceCounts::new(MAX_MEMORY);
        let settings = settings.clone();
        Ok(Self { settings, splitter, batch: Vec::new(), batch_bytes: 0, counts, report: TrainReport::default() })
    }

    /// Adds a document from the file `source`, which is named if it has the longest piece.
    pub fn add(&mut self, text: impl Into<String>, source: &Arc<Path>) {
        let text = text.into();
        self.report.documents += 1;
        self.report.bytes += text.len() as u64;
        self.batch_bytes += text.len();
        self.batch.push((text, source.clone()));
        if self.batch_bytes >= BATCH {
            self.count();
        }
    }

    /// Adds `count` occurrences of a piece that was counted elsewhere. It must be a piece of [`TrainSettings::split`], or a word, or a
    /// character.
    pub fn add_counted(&mut self, piece: &str, count: i64) {
        for part in parts(piece) {
            self.counts.add(part, count);
        }
        self.counts.limit();
    }

    /// What [`Trainer::finish`] will need, for the documents so far.
    pub fn estimate(&mut self) -> Estimate {
        self.count();
        let bytes = self.counts.bytes();
        Estimate { memory: self.counts.memory() + bytes * MEMORY_PER_BYTE, seconds: bytes as f64 * SECONDS_PER_BYTE }
    }

    /// Learns the vocabulary.
    pub fn finish(mut self) -> Result<(Tokenizer, TrainReport)> {
        self.count();
        let report = TrainReport { pieces: self.counts.len(), left_out: self.counts.removed, ..self.report };
        Ok((kinds::build(&self.settings, self.counts)?, report))
    }

    /// Counts the documents of the batch.
    fn count(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let all =
            batch.iter().flat_map(|(text, source)| safe_parts(text, PART).into_iter().map(move |part| (part, source)));
        // Parts of about the same size: small documents together.
        let mut groups: Vec<Vec<(&str, &Arc<Path>)>> = Vec::new();
        let mut size = PART;
        for (text, source) in all {
            if size >= PART {
                groups.push(Vec::new());
                size = 0;
            }
            size += text.len();
            if let Some(group) = groups.last_mut() {
                group.push((text, source));
            }
        }
        let (settings, splitter) = (&self.settings, &self.splitter);
        let counted = groups.par_iter().map_init(
            || splitter.cache(),
            |cache, group| {
                let mut counted = Counted::default();
                for (text, source) in group {
                    counted.add(settings.kind, splitter, cache, text, source);
                }
                counted
            },
        );
        for group in counted.collect::<Vec<Counted>>() {
            for (piece, count) in group.counts {
                self.counts.add(piece, count);
            }
            if let Some((bytes, source)) = group.longest
                && self.report.longest.as_ref().is_none_or(|longest| longest.bytes < bytes)
            {
                self.report.longest = Some(LongestPiece { bytes, source: source.clone() });
            }
        }
        self.counts.limit();
    }
}

impl<'t> Counted<'t> {
    fn add(
        &mut self,
        kind: Kind,
        splitter: &Splitter,
        cache: &mut SplitterCache,
        text: &'t str,
        source: &'t Arc<Path>,
    ) {
        if kind == Kind::Char {
            let ends = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
            ends.for_each(|c| *self.counts.entry(c).or_default() += 1);
            return;
        }
        let cut = kind.is_byte_level();
        splitter.for_each(cache, text, &mut |piece: &'t str| {
            if self.longest.is_none_or(|(bytes, _)| bytes < piece.len()) {
                self.longest = Some((piece.len(), source));
            }
            if piece.len() <= MAX_PIECE {
                *self.counts.entry(piece).or_default() += 1;
            } else if cut {
                parts(piece).for_each(|part| *self.counts.entry(part).or_default() += 1);
            }
        });
    }
}
