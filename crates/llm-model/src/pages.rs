//! Keys and values in pages that sequences share (`PagedAttention`, Kwon et al. 2023, arXiv 2309.06180).

use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;
use llm_kernels::Sequences;

use crate::{Batch, Error, KvCache, ModelConfig, Result};

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

/// Zeros that take no memory until they are written, as the system gives out zeroed memory; candle writes those of bf16.
fn zeros(shape: (usize, usize, usize, usize), dtype: KvDtype, device: &Device) -> Result<Tensor> {
    match dtype {
        KvDtype::F32 => Ok(Tensor::zeros(shape, DType::F32, device)?),
        KvDtype::Bf16 => {
            let (a, b, c, d) = shape;
            Ok(Tensor::from_vec(vec![0u16; a * b * c * d].reinterpret_into::<bf16>(), shape, device)?)
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
    layers: Vec<(Tensor, Tensor)>, // keys and values (pages, g, PAGE, d)
    pages: usize,
}

impl KvPool {
    /// Tokens of a page.
    pub const PAGE: usize = 64;

    /// A pool of `pages` pages, on the device of the model ([`crate::Model::device`]).
    pub fn new(config: &ModelConfig, pages: usize, dtype: KvDtype, device: &Device) -> Result<Self> {
        let shape = (pages, config.num_key_value_heads, Self::PAGE, config.head_dim);
        let zeros = || zeros(shape, dtype, device);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<Result<_>>()?;
        Ok(Self { layers, pages })
    }

    /// Bytes of one page with the keys and values of all layers.
    pub fn page_bytes(config: &ModelConfig, dtype: KvDtype) -> usize {
        let numbers = config.num_hidden_layers * config.num_key_value_heads * Self::PAGE * config.head_dim;
        2 * numbers * dtype.dtype().size_in_bytes()
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
        for slab in self.layers.iter().flat_map(|(keys, values)| [keys, values]) {
            slab.slice_set(&slab.narrow(0, from as usize, 1)?.copy()?, 0, to as usize)?;
        }
        Ok(())
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

impl PagedRows<'_> {
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

    /// The keys and values of earlier tokens as a cache with room for those of the batch.
    pub(crate) fn gather(&self, sequences: &Sequences) -> Result<KvCache> {
        let capacity = sequences.max_keys().next_multiple_of(KvPool::PAGE);
        let contiguous = |slab: &Tensor| -> Result<Tensor> {
            let (_, g, _, d) = slab.dims4()?;
            let cache = Tensor::zeros((self.past.len(), g, capacity, d), DType::F32, slab.device())?;
            for (row, (table, &past)) in
                self.tables.iter().zip(self.past).enumerate().filter(|(_, (_, past))| **past > 0)
            {
                let table = &table[..past.div_ceil(KvPool::PAGE)];
                let pages = slab.index_select(&Tensor::from_slice(table, table.len(), slab.device())?, 0)?;
                let pages = pages.transpose(0, 1)?.contiguous()?.reshape((1, g, (), d))?.narrow(2, 0, past)?;
                cache.narrow(0, row, 1)?.slice_set(&pages.to_dtype(DType::F32)?.contiguous()?, 2, 0)?;
            }
            Ok(cache)
        };
        let layers = self.pool.layers.iter().map(|(keys, values)| Ok((contiguous(keys)?, contiguous(values)?)));
        Ok(KvCache::from_layers(layers.collect::<Result<_>>()?, capacity, self.past.to_vec()))
    }

    /// Copies the keys and values of the tokens of the batch from a cache to the pages.
    pub(crate) fn scatter(&self, cache: &KvCache, sequences: &Sequences) -> Result<()> {
        for (layer, (keys, values)) in self.pool.layers.iter().enumerate() {
            let (new_keys, new_values) = cache.layer(layer);
            for (slab, new) in [(keys, new_keys), (values, new_values)] {
                for (row, table) in self.tables.iter().enumerate() {
                    let (mut at, end) = (sequences.past(row), sequences.keys(row));
                    while at < end {
                        let (page, slot) = (table[at / KvPool::PAGE], at % KvPool::PAGE);
                        let n = (KvPool::PAGE - slot).min(end - at);
                        let tokens = new.narrow(0, row, 1)?.narrow(2, at, n)?.to_dtype(slab.dtype())?.contiguous()?;
                        slab.narrow(0, page as usize, 1)?.slice_set(&tokens, 2, slot)?;
                        at += n;
                    }
                }
            }
        }
        Ok(())
    }
}
