//! Batches of tokenized splits: in random order for training, in order for evaluation.

use crate::mixture::Mixture;
use crate::token_rows::{Packing, TokenBatch, TokenRows};
use crate::{Error, Result, TokenDataset};

/// Batches of rows of consecutive tokens, in random order, from one or several datasets.
///
/// The rows are numbered over the whole run, and a row is a function of (seed, number). So a batch is a function of (seed, step), and
/// batches of another size have the same rows in the same order. Each pass over a dataset has a new order and begins at another token;
/// it leaves out less than two rows. [`Packing::BestFit`] makes the rows of whole documents instead.
#[derive(Debug)]
pub struct Batches<'a> {
    sources: Vec<TokenRows<'a>>,
    mixture: Mixture,
    batch_size: usize,
}

impl<'a> Batches<'a> {
    /// Batches of shape `(batch_size, seq_len)`. An error if the dataset is too small for one batch.
    pub fn new(dataset: &'a TokenDataset, batch_size: usize, seq_len: usize, seed: u64) -> Result<Self> {
        let needed = batch_size.saturating_mul(seq_len).saturating_add(seq_len).saturating_add(1);
        if dataset.len() < needed {
            return Err(too_few(dataset, "training", batch_size, seq_len));
        }
        Self::mixed(&[(dataset, 1.)], batch_size, seq_len, seed)
    }

    /// Batches from several datasets, each with its share of the rows: the numbers need not add up to 1. After any number of rows, the
    /// number of those of a dataset differs from its share by less than 1. An error if no share is above 0, or if a dataset is too
    /// small for one row.
    pub fn mixed(datasets: &[(&'a TokenDataset, f64)], batch_size: usize, seq_len: usize, seed: u64) -> Result<Self> {
        let sources = datasets.iter().enumerate().map(|(number, &(data, _))| {
            let rows = data.len().saturating_sub(1).checked_div(seq_len).unwrap_or(0);
            if rows == 0 || batch_size == 0 {
                return Err(too_few(data, "training", batch_size, seq_len));
            }
            Ok(TokenRows::new(data, seq_len, Packing::Cut, (seed, number as u64)))
        });
        let sources = sources.collect::<Result<_>>()?;
        let mixture = Mixture::new(&datasets.iter().map(|(_, share)| *share).collect::<Vec<_>>())?;
        Ok(Self { sources, mixture, batch_size })
    }

    /// The same datasets with another way from documents to rows; without it [`Packing::Cut`].
    #[must_use]
    pub fn with_packing(mut self, packing: Packing) -> Self {
        self.sources = self.sources.into_iter().map(|source| source.with_packing(packing)).collect();
        self
    }

    /// How many times each dataset is used in this number of steps.
    pub fn passes(&mut self, steps: u64) -> Vec<f64> {
        let rows = steps as f64 * self.batch_size as f64;
        let shares = self.mixture.shares().iter().zip(&mut self.sources);
        shares.map(|(share, source)| share * rows / source.rows_per_pass() as f64).collect()
    }

    /// The share of the places of each dataset that are padding.
    pub fn padding(&mut self) -> Vec<f64> {
        self.sources.iter_mut().map(TokenRows::padding).collect()
    }

    /// The batch of a step.
    pub fn batch(&mut self, step: u64) -> Result<TokenBatch> {
        let mut batch = TokenBatch::default();
        self.mixture.seek(step * self.batch_size as u64);
        for _ in 0..self.batch_size {
            let (source, row) = self.mixture.next_row();
            self.sources[source].append(row, &mut batch);
        }
        Ok(batch)
    }

    /// The rows of the first pass over a dataset.
    #[cfg(test)]
    pub(crate) fn rows_per_pass(&mut self, source: usize) -> u64 {
        self.sources[source].rows_per_pass()
    }
}

fn too_few(data: &TokenDataset, purpose: &'static str, batch_size: usize, seq_len: usize) -> Error {
    Error::TooFewTokens { dir: data.dir().to_owned(), tokens: data.len(), purpose, batch_size, seq_len }
}

/// The whole dataset in order, as batches (inputs, targets) of at most `(batch_size, seq_len)` token ids. A shorter last row is a
/// batch of its own. Every token except the first is a target exactly once.
pub fn eval_windows(
    dataset: &TokenDataset,
    batch_size: usize,
    seq_len: usize,
) -> Result<impl Iterator<Item = (Vec<u32>, Vec<u32>)>> {
    if dataset.len() < 2 || batch_size == 0 || seq_len == 0 {
        return Err(too_few(dataset, "evaluation", batch_size, seq_len));
    }
    let last = dataset.len() - 1;
    let whole = last / seq_len * seq_len;
    let window = move |(start, end): (usize, usize)| {
        let mut ids = dataset.ids(start..end + 1);
        let targets = ids[1..].to_vec();
        ids.pop();
        (ids, targets)
    };
    let step = batch_size * seq_len;
    let full = (0..whole).step_by(step).map(move |start| (start, (start + step).min(whole)));
    let rest = (whole < last).then_some((whole, last));
    Ok(full.chain(rest).map(window))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::shards::tests::dataset;

    fn numbers(range: std::ops::Range<usize>) -> String {
        range.map(|i| format!("{i} ")).collect()
    }

    #[test]
    fn a_pass_contains_every_row_once_and_a_batch_depends_on_its_step_only() {
        let (dir, _) = dataset(&[&numbers(0..400)]);
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let mut batches = Batches::new(&data, 3, 8, 5).unwrap();
        let steps = batches.rows_per_pass(0) / 3;
        let pass: Vec<_> = (0..steps).map(|step| batches.batch(step).unwrap()).collect();
        for TokenBatch { inputs, targets, parts, padding } in &pass {
            assert!(padding.is_empty());
            assert_eq!((inputs.len(), targets.len(), parts.iter().sum()), (24, 24, 24));
            let chunks = inputs.chunks(8).zip(targets.chunks(8));
            assert!(chunks.into_iter().all(|(i, t)| i[1..] == t[..7]));
        }
        let mut rows: Vec<&[u32]> = pass.iter().flat_map(|batch| batch.inputs.chunks(8)).collect();
        let all = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), all, "no duplicate rows");
        let later = batches.batch(1000).unwrap();
        let mut fresh = Batches::new(&data, 3, 8, 5).unwrap();
        assert_eq!(fresh.batch(1000).unwrap(), later);
        assert_eq!(fresh.batch(1).unwrap(), pass[1]);
        assert!(Batches::new(&data, 1000, 8, 5).is_err());
    }

    /// The rows of the first steps, and the source of each, by the numbers in their texts.
    fn rows(sources: &[(&TokenDataset, f64)], batch_size: usize, steps: std::ops::Range<u64>) -> Vec<Vec<u32>> {
        let mut batches = Batches::mixed(sources, batch_size, 8, 3).unwrap();
        let batches = steps.map(|step| batches.batch(step).unwrap());
        batches.flat_map(|batch| batch.inputs.chunks(8).map(<[u32]>::to_vec).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_mixture_has_its_shares_at_every_row_for_any_split_of_the_batch() {
        let (small, large) = (dataset(&[&"a b c d e f ".repeat(8)]), dataset(&[&numbers(0..3000)]));
        let [small, large] = [small.0, large.0].map(|dir| TokenDataset::open(dir.path(), "train").unwrap());
        let sources = [(&small, 0.5), (&large, 0.5)];
        let whole = rows(&sources, 12, 0..20);
        assert_eq!(whole, rows(&sources, 4, 0..60), "micro-batches have the same rows");
        assert_eq!(whole[12 * 7..], rows(&sources, 12, 7..20), "as after a resume");
        let of_small: HashSet<Vec<u32>> = small.tokens().windows(8).map(<[u32]>::to_vec).collect();
        let mut counts = [0_f64; 2];
        for (n, row) in whole.iter().enumerate() {
            counts[usize::from(!of_small.contains(row))] += 1.;
            assert!(counts.iter().all(|count| (count - 0.5 * (n + 1) as f64).abs() < 1.), "{counts:?} after row {n}");
        }
        let passes = Batches::mixed(&sources, 12, 8, 3).unwrap().passes(20);
        assert!(passes[0] > 3. && passes[1] < 1., "{passes:?}");
        // The orders of two passes differ.
        let mut batches = Batches::new(&small, 1, 8, 3).unwrap();
        let per_pass = batches.rows_per_pass(0);
        assert!(per_pass > 3);
        let mut pass = |n: u64| -> Vec<Vec<u32>> {
            (0..per_pass).map(|row| batches.batch(n * per_pass + row).unwrap().inputs).collect()
        };
        assert_ne!(pass(0), pass(1));
    }

    #[test]
    fn a_source_of_one_row_and_extreme_shares_work() {
        let (tiny, large) = (dataset(&["a b c d e"]), dataset(&[&numbers(0..3000)]));
        let [tiny, large] = [tiny.0, large.0].map(|dir| TokenDataset::open(dir.path(), "train").unwrap());
        let seq_len = tiny.len() - 1;
        let mut batches = Batches::mixed(&[(&tiny, 0.001), (&large, 0.999)], 10, seq_len, 1).unwrap();
        let all: Vec<_> = (0..200).flat_map(|step| batches.batch(step).unwrap().inputs).collect();
        let of_tiny = all.chunks(seq_len).filter(|row| **row == tiny.tokens()[..seq_len]).count();
        assert_eq!(of_tiny, 2, "2000 rows");
        let message = Batches::mixed(&[(&tiny, 1.), (&large, 1.)], 10, seq_len + 1, 1).unwrap_err().to_string();
        assert!(
            message.contains(&format!("{}: has {} tokens, too few", tiny.dir().display(), tiny.len())),
            "{message}"
        );
        assert!(Batches::mixed(&[(&tiny, 0.)], 1, 2, 1).is_err());
    }

    #[test]
    fn the_parts_of_a_row_begin_with_the_separators() {
        let texts: Vec<String> = (0..60).map(|i| numbers(i..i + i % 7 + 1)).collect();
        let (dir, _) = dataset(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let data = TokenDataset::open(dir.path(), "train").unwrap();
        let separator = data.manifest().separator_id;
        let mut batches = Batches::new(&data, 4, 16, 1).unwrap();
        for step in 0..10 {
            let TokenBatch { inputs, parts, .. } = batches.batch(step).unwrap();
            let mut rest = inputs.as_slice();
            for length in parts {
                let (part, later) = rest.split_at(length);
                assert!(part[1..].iter().all(|&id| id != separator));
                assert!((inputs.len() - rest.len()).is_multiple_of(16) || part[0] == separator);
                rest = later;
            }
            assert!(rest.is_empty());
        }
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
