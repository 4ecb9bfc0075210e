//! The rows of one dataset in random order: cut from the stream of tokens, or packed from whole documents.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{TokenDataset, best_fit_decreasing};

/// The tokens of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// `(batch_size, seq_len)` token ids in row-major order.
    pub inputs: Vec<u32>,
    /// The token after each input, `(batch_size, seq_len)`.
    pub targets: Vec<u32>,
    /// The lengths of the parts of `inputs` that belong to one document each, in order. A separator begins a part: it is the first
    /// token that the following document sees, and the last target of the document before.
    pub parts: Vec<usize>,
    /// The places of `inputs` without a token of the text: their targets do not count. Each is a part of its own.
    pub padding: Vec<Range<usize>>,
}

/// How documents become rows of equal length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// The documents in their order, joined by separators, are cut every row length: no padding, but most rows begin and end within a
    /// document.
    #[default]
    Cut,
    /// Each row consists of whole documents, by best-fit decreasing (Ding et al. 2024, arXiv 2404.10830). Only a document that is longer
    /// than a row is cut, and what is left of a row is padding.
    BestFit,
}

/// Documents are packed within groups of as many tokens as this number of rows has, so that each pass packs other documents
/// together.
const GROUP: usize = 256;

/// A part of a document with the separator before it: `length` inputs from `first` on, counted from that separator.
#[derive(Debug, Clone, Copy)]
struct Part {
    document: usize,
    first: usize,
    length: usize,
}

/// The rows of one dataset.
#[derive(Debug)]
pub(crate) struct TokenRows<'a> {
    data: &'a TokenDataset,
    seq_len: usize,
    /// The number of the dataset in a mixture, and the seed.
    source: u64,
    seed: u64,
    packing: Packing,
    /// The number of the first row of each pass so far, and of the one after.
    starts: Vec<u64>,
    pass: Option<(u64, Pass)>,
}

#[derive(Debug)]
enum Pass {
    /// The first token of the first row, and the order of the rows.
    Cut(usize, Vec<usize>),
    BestFit(Vec<Vec<Part>>),
}

impl<'a> TokenRows<'a> {
    /// The rows of `seq_len` tokens of a dataset that has at least one of them.
    pub fn new(data: &'a TokenDataset, seq_len: usize, packing: Packing, (seed, source): (u64, u64)) -> Self {
        Self { data, seq_len, source, seed, packing, starts: vec![0], pass: None }
    }

    /// The same rows with another way from documents to rows.
    pub fn with_packing(self, packing: Packing) -> Self {
        Self::new(self.data, self.seq_len, packing, (self.seed, self.source))
    }

    /// The number of rows of a pass; that of the first pass if they differ.
    pub fn rows_per_pass(&mut self) -> u64 {
        match self.packing {
            // Minus one row, because each pass begins at a random token.
            Packing::Cut => (((self.data.len() - 1) / self.seq_len) as u64 - 1).max(1),
            Packing::BestFit => self.start(1),
        }
    }

    /// The share of the places of the first pass that are padding.
    pub fn padding(&mut self) -> f64 {
        match self.packing {
            Packing::Cut => 0.,
            Packing::BestFit => 1. - self.data.len() as f64 / (self.start(1) * self.seq_len as u64) as f64,
        }
    }

    /// Appends a row, counted over all passes, to a batch.
    pub fn append(&mut self, row: u64, batch: &mut TokenBatch) {
        let (pass, at) = self.place(row);
        self.load(pass);
        match &self.pass {
            Some((_, Pass::Cut(offset, rows))) => self.append_cut(offset + rows[at] * self.seq_len, batch),
            Some((_, Pass::BestFit(rows))) => self.append_parts(&rows[at], batch),
            None => (),
        }
    }

    /// The pass of a row and its number within it.
    fn place(&mut self, row: u64) -> (u64, usize) {
        if self.packing == Packing::Cut {
            let rows = self.rows_per_pass();
            return (row / rows, (row % rows) as usize);
        }
        let mut pass = 0;
        while self.start(pass + 1) <= row {
            pass += 1;
        }
        (pass, (row - self.start(pass)) as usize)
    }

    /// The number of the first row of a pass of packed documents.
    fn start(&mut self, pass: u64) -> u64 {
        while self.starts.len() as u64 <= pass {
            let next = self.starts.len() as u64 - 1;
            self.load(next);
            let rows = match &self.pass {
                Some((_, Pass::BestFit(rows))) => rows.len(),
                _ => 1,
            };
            self.starts.push(self.starts[self.starts.len() - 1] + rows as u64);
        }
        self.starts[pass as usize]
    }

    fn load(&mut self, pass: u64) {
        if self.pass.as_ref().is_some_and(|(current, _)| *current == pass) {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(pass | self.source << 48);
        let loaded = match self.packing {
            Packing::Cut => self.shuffled_cut(&mut rng),
            Packing::BestFit => self.packed(&mut rng),
        };
        self.pass = Some((pass, loaded));
    }

    fn shuffled_cut(&self, rng: &mut ChaCha8Rng) -> Pass {
        let (tokens, seq_len) = (self.data.len() - 1, self.seq_len);
        // A dataset of one row has no room for any offset.
        let offsets = if tokens >= 2 * seq_len { seq_len } else { tokens - seq_len + 1 };
        let offset = rand::RngExt::random_range(rng, 0..offsets);
        let mut rows: Vec<usize> = (0..(tokens - offset) / seq_len).collect();
        rows.shuffle(rng);
        Pass::Cut(offset, rows)
    }

    /// Shuffles the documents, packs them within groups, and shuffles the rows.
    fn packed(&self, rng: &mut ChaCha8Rng) -> Pass {
        let mut documents: Vec<usize> = (0..self.data.documents()).collect();
        documents.shuffle(rng);
        let (mut rows, mut group, mut tokens) = (Vec::new(), Vec::new(), 0);
        for document in documents {
            let length = self.data.document(document).map_or(0, |range| range.len());
            for first in (0..length).step_by(self.seq_len) {
                group.push(Part { document, first, length: (length - first).min(self.seq_len) });
            }
            tokens += length;
            if tokens >= GROUP * self.seq_len {
                rows.extend(self.packed_group(&group));
                group.clear();
                tokens = 0;
            }
        }
        rows.extend(self.packed_group(&group));
        rows.shuffle(rng);
        Pass::BestFit(rows)
    }

    fn packed_group(&self, group: &[Part]) -> Vec<Vec<Part>> {
        let lengths: Vec<usize> = group.iter().map(|part| part.length).collect();
        let packs = best_fit_decreasing(&lengths, self.seq_len);
        packs.into_iter().map(|pack| pack.into_iter().map(|at| group[at]).collect()).collect()
    }

    fn append_cut(&self, start: usize, batch: &mut TokenBatch) {
        let mut ids = self.data.ids(start..start + self.seq_len + 1);
        batch.targets.extend(&ids[1..]);
        ids.pop();
        batch.inputs.extend(ids);
        batch.parts.extend(self.parts_of_cut(start));
    }

    /// The lengths of the parts of a row: see [`TokenBatch::parts`].
    fn parts_of_cut(&self, start: usize) -> Vec<usize> {
        let (mut parts, mut begin) = (Vec::new(), start);
        let end = start + self.seq_len;
        let first = self.data.document_of(start);
        let ends = (first..).map_while(|number| self.data.document(number)).map(|document| document.end);
        for separator in ends.map(|end| end - 1).take_while(|separator| *separator < end) {
            if separator > begin {
                parts.push(separator - begin);
                begin = separator;
            }
        }
        parts.push(end - begin);
        parts
    }

    fn append_parts(&self, parts: &[Part], batch: &mut TokenBatch) {
        let separator = self.data.manifest().separator_id;
        let mut free = self.seq_len;
        for part in parts {
            let start = self.data.document(part.document).map_or(0, |range| range.start) + part.first;
            // The separator before a document is not part of it; the first document of a dataset has none.
            let before = if part.first == 0 { vec![separator] } else { self.data.ids(start - 1..start) };
            let ids = self.data.ids(start..start + part.length);
            batch.inputs.extend(before.iter().chain(&ids[..part.length - 1]));
            batch.targets.extend(ids);
            batch.parts.push(part.length);
            free -= part.length;
        }
        if free > 0 {
            let padded = batch.inputs.len();
            batch.padding.push(padded..padded + free);
            for ids in [&mut batch.inputs, &mut batch.targets] {
                ids.resize(padded + free, separator);
            }
            batch.parts.push(free);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Batches;
    use crate::shards::tests::dataset;

    fn documents(count: usize) -> Vec<String> {
        (0..count).map(|i| (0..=i * 7 % 23).map(|word| format!("{} ", i * 100 + word)).collect()).collect()
    }

    /// The documents with their separators as the parts of packed rows have them: separator, text, separator.
    fn whole(data: &TokenDataset) -> BTreeMap<Vec<u32>, usize> {
        let separator = data.manifest().separator_id;
        let mut found = BTreeMap::new();
        for number in 0..data.documents() {
            let mut ids = vec![separator];
            ids.extend(data.ids(data.document(number).unwrap()));
            *found.entry(ids).or_insert(0) += 1;
        }
        found
    }

    /// The inputs and last target of each part without padding.
    fn parts(batch: &TokenBatch) -> Vec<Vec<u32>> {
        let (mut at, mut found) = (0, Vec::new());
        for &length in &batch.parts {
            let is_padding = batch.padding.iter().any(|range| range.start == at);
            if !is_padding {
                assert_eq!(batch.inputs[at + 1..at + length], batch.targets[at..at + length - 1]);
                let mut ids = batch.inputs[at..at + length].to_vec();
                ids.push(batch.targets[at + length - 1]);
                found.push(ids);
            }
            at += length;
        }
        assert_eq!((at, batch.targets.len()), (batch.inputs.len(), at));
        found
    }

    #[test]
    fn a_pass_of_packed_rows_has_each_document_once_and_whole() {
        let texts = documents(300);
        let (dir, _) = dataset(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let longest = (0..data.documents()).map(|n| data.document(n).unwrap().len()).max().unwrap();
        let seq_len = longest + 3;
        let mut batches = Batches::new(&data, 1, seq_len, 5).unwrap().with_packing(Packing::BestFit);
        let rows = batches.rows_per_pass(0);
        for pass in 0..2 {
            let (mut found, mut padding) = (BTreeMap::new(), 0);
            for row in pass * rows..(pass + 1) * rows {
                let batch = batches.batch(row).unwrap();
                padding += batch.padding.iter().map(std::ops::Range::len).sum::<usize>();
                for part in parts(&batch) {
                    *found.entry(part).or_insert(0) += 1;
                }
            }
            if pass == 0 {
                assert_eq!(found, whole(&data));
                let places = rows as usize * seq_len;
                assert!(padding * 50 < places, "{padding} of {places} places are padding");
            }
        }
        // A batch is a function of seed and step, across passes, and other batch sizes have the same rows.
        let late = batches.batch(2 * rows + 3).unwrap();
        let mut fresh = Batches::new(&data, 1, seq_len, 5).unwrap().with_packing(Packing::BestFit);
        assert_eq!(fresh.batch(2 * rows + 3).unwrap(), late);
        let mut pairs = Batches::new(&data, 2, seq_len, 5).unwrap().with_packing(Packing::BestFit);
        let [first, second] = [0, 1].map(|row| fresh.batch(row).unwrap().inputs);
        assert_eq!(pairs.batch(0).unwrap().inputs, [first, second].concat());
    }

    #[test]
    fn only_documents_longer_than_a_row_are_cut() {
        let texts = documents(200);
        let (dir, _) = dataset(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let seq_len = 24;
        let mut batches = Batches::new(&data, 1, seq_len, 5).unwrap().with_packing(Packing::BestFit);
        let rows = batches.rows_per_pass(0);
        let all = whole(&data);
        let long: Vec<_> = all.keys().filter(|ids| ids.len() > seq_len + 1).collect();
        let mut targets = 0;
        for row in 0..rows {
            for part in parts(&batches.batch(row).unwrap()) {
                targets += part.len() - 1;
                let of_long = long.iter().any(|ids| ids.windows(part.len()).any(|window| *window == part));
                assert!(all.contains_key(&part) || of_long, "{part:?}");
            }
        }
        assert!(long.len() > 10);
        assert_eq!(targets, data.len(), "each token is a target once");
    }
}
