//! The KV cache.

use candle_core::Device;
use llm_kernels::Sequences;

use crate::{Error, KvDtype, KvPool, ModelConfig, PagedRows, Result};

/// Keys and values of every layer, in f32, for rows of a bounded length: a pool with pages for each row. Each row has its own
/// number of tokens.
#[derive(Debug)]
pub struct KvCache {
    pool: KvPool,
    tables: Vec<Vec<u32>>,
    capacity: usize,
    lens: Vec<usize>,
}

impl KvCache {
    /// An empty cache for `rows` rows of at most `capacity` tokens, on the device of the model ([`crate::Model::device`]).
    pub fn new(config: &ModelConfig, rows: usize, capacity: usize, device: &Device) -> Result<Self> {
        let pages = capacity.div_ceil(KvPool::PAGE);
        let pool = KvPool::new(config, rows * pages, KvDtype::F32, device)?;
        let tables = (0..rows).map(|row| (row * pages..(row + 1) * pages).map(|page| page as u32).collect());
        Ok(Self { pool, tables: tables.collect(), capacity, lens: vec![0; rows] })
    }

    /// Number of cached tokens of each row.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Allocated bytes.
    pub fn bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// The sequences of a batch that appends `row_lens[row]` tokens to each row. An error if they do not fit.
    pub(crate) fn sequences(&self, row_lens: &[usize]) -> Result<Sequences> {
        if row_lens.len() != self.lens.len() {
            let (rows, cached) = (row_lens.len(), self.lens.len());
            return Err(Error::Input(format!("the batch has {rows} rows; the KV cache has {cached}")));
        }
        let lens = || self.lens.iter().copied().zip(row_lens.iter().copied());
        let capacity = self.capacity;
        if let Some((len, t)) = lens().find(|(len, t)| len + t > capacity) {
            return Err(Error::Input(format!("the KV cache has {len} of {capacity} tokens; {t} more do not fit")));
        }
        Ok(Sequences::new(lens()))
    }

    /// The rows with their pages.
    pub(crate) fn rows(&self) -> PagedRows<'_> {
        PagedRows { pool: &self.pool, tables: &self.tables, past: &self.lens }
    }

    /// Adds the tokens of a batch to the lengths, after every layer has appended them.
    pub(crate) fn advance(&mut self, sequences: &Sequences) {
        self.lens = (0..sequences.len()).map(|row| sequences.keys(row)).collect();
    }
}
