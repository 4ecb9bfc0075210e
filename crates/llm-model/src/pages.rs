//! Keys and values in pages that sequences share (`PagedAttention`, Kwon et al. 2023, arXiv 2309.06180).

use candle_core::{DType, Device};
use llm_kernels::{KvPages, PagedKv, Sequences};

use crate::{Batch, Error, ModelConfig, Result};

/// The dtype of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// f32.
    #[default]
    F32,
    /// bf16: half the memory; keys and values are rounded to 8 bits of precision.
    Bf16,
}

impl KvDtype {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The keys and values of all layers in pages of [`Self::PAGE`] tokens, for many sequences.
///
/// The pool does not know which page belongs to which sequence: [`PagedRows`] says it for each batch. A page can be in the
/// tables of several rows if no row appends to it. The content of the slots after the last token of a row never affects a
/// result.
#[derive(Debug)]
pub struct KvPool {
    layers: Vec<KvPages>,
    pages: usize,
    /// Key/value heads and head size.
    heads: (usize, usize),
    dtype: KvDtype,
}

impl KvPool {
    /// Tokens of a page.
    pub const PAGE: usize = KvPages::PAGE;

    /// A pool of `pages` pages, on the device of the model ([`crate::Model::device`]). On the CPU a page takes memory when it
    /// is first used, as the system gives out zeroed memory.
    pub fn new(config: &ModelConfig, pages: usize, dtype: KvDtype, device: &Device) -> Result<Self> {
        let heads = (config.num_key_value_heads, config.head_dim);
        let layer = |_| KvPages::new(pages, heads.0, heads.1, dtype.dtype(), device);
        let layers = (0..config.num_hidden_layers).map(layer).collect::<candle_core::Result<_>>()?;
        Ok(Self { layers, pages, heads, dtype })
    }

    /// Bytes of one page with the keys and values of all layers.
    pub fn page_bytes(config: &ModelConfig, dtype: KvDtype) -> usize {
        config.num_hidden_layers * KvPages::page_bytes(config.num_key_value_heads, config.head_dim, dtype.dtype())
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        let (heads, head_dim) = self.heads;
        self.layers.len() * self.pages * KvPages::page_bytes(heads, head_dim, self.dtype.dtype())
    }

    /// The number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Copies the keys and values of all layers from page `from` to page `to`, so that a row that shares `from` with others
    /// can append to a page of its own.
    pub fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        if let Some(page) = [from, to].into_iter().find(|&page| page as usize >= self.pages) {
            return Err(Error::Input(format!("page {page} is outside the pool of {} pages", self.pages)));
        }
        self.layers.iter().try_for_each(|layer| Ok(layer.copy_page(from as usize, to as usize)?))
    }

    /// An error if the pool is for a model of another shape.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        let ours = (self.layers.len(), self.heads.0, self.heads.1);
        let needed = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim);
        if ours == needed {
            return Ok(());
        }
        let ((l, g, d), (layers, heads, size)) = (ours, needed);
        Err(Error::Input(format!(
            "the KV pool has {l} layers of {g} heads of {d}; the model has {layers} of {heads} of {size}"
        )))
    }
}

/// The rows of a batch and their pages in a pool.
#[derive(Debug, Clone, Copy)]
pub struct PagedRows<'a> {
    /// The pool.
    pub pool: &'a KvPool,
    /// The pages of each row, in the order of its tokens: enough for the earlier tokens and those of the batch.
    pub tables: &'a [Vec<u32>],
    /// The number of earlier tokens of each row, whose keys and values are in its pages.
    pub past: &'a [usize],
}

impl<'a> PagedRows<'a> {
    /// The sequences of a ragged batch that continues these rows. An error if rows, pages and batch do not match.
    pub(crate) fn sequences(&self, batch: &Batch) -> Result<Sequences> {
        let wrong = |message: String| Err(Error::Input(message));
        let Some(lens) = &batch.row_lens else {
            return wrong("the batch has rows of equal length; paged rows need a ragged batch".to_owned());
        };
        if [self.tables.len(), self.past.len()] != [lens.len(); 2] {
            let (tables, past) = (self.tables.len(), self.past.len());
            return wrong(format!(
                "the batch has {} rows; there are {tables} page tables and {past} lengths",
                lens.len()
            ));
        }
        let (mut first, mut written) = (0, Vec::<u32>::new());
        for (row, ((&len, &past), table)) in lens.iter().zip(self.past).zip(self.tables).enumerate() {
            if let Some(page) = table.iter().find(|&&page| page as usize >= self.pool.pages) {
                return wrong(format!("row {row}: page {page} is outside the pool of {} pages", self.pool.pages));
            }
            if past + len > table.len() * KvPool::PAGE {
                return wrong(format!("row {row}: {} pages are too few for {past} and {len} tokens", table.len()));
            }
            if len > 0 {
                if batch.positions.get(first).is_none_or(|&position| position as usize != past) {
                    return wrong(format!("row {row}: the batch does not continue after {past} tokens"));
                }
                written.extend(&table[past / KvPool::PAGE..(past + len).div_ceil(KvPool::PAGE)]);
            }
            first += len;
        }
        written.sort_unstable();
        match written.windows(2).find(|pages| pages[0] == pages[1]) {
            Some(pages) => wrong(format!("two rows append to page {}", pages[0])),
            None => Ok(Sequences::new(self.past.iter().copied().zip(lens.iter().copied()))),
        }
    }

    /// The keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> PagedKv<'a> {
        PagedKv { pages: &self.pool.layers[layer], tables: self.tables }
    }
}
