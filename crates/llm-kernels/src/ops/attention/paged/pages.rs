//! Keys and values of one layer in pages.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Storage, Tensor, bail};

use super::element::{BLOCK, PageElement};
use crate::cpu::contiguous;
use crate::ops::attention::Sequences;

/// Keys and values of one layer in pages of [`Self::PAGE`] tokens, in f32 or bf16.
///
/// Letters: g key/value heads, d head size. Keys are stored with the tokens innermost, `(pages, g, d, PAGE)`: in this order the
/// scores of a page are sums of whole vectors. Values are `(pages, g, PAGE, d)`.
///
/// On the CPU, for the fast path, a row of values has `d` rounded up to a multiple of 32 numbers, and bf16 numbers are in pairs.
#[derive(Debug)]
pub struct KvPages {
    keys: Tensor,
    values: Tensor,
    pages: usize,
    heads: usize,
    head_dim: usize,
}

/// Numbers of a row of values on the fast path.
pub(super) fn value_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(BLOCK)
}

fn is_fast(device: &Device) -> bool {
    device.is_cpu() && !crate::cpu::unit::reference_only()
}

impl KvPages {
    /// Tokens of a page.
    pub const PAGE: usize = 64;

    /// Pages of zeros for `heads` key/value heads. `dtype` is f32 or bf16.
    pub fn new(pages: usize, heads: usize, head_dim: usize, dtype: DType, device: &Device) -> Result<Self> {
        let (numbers, stored) = match (dtype, is_fast(device)) {
            (DType::F32, _) => (1, DType::F32),
            (DType::BF16, true) => (2, DType::U32),
            (DType::BF16, false) => (1, DType::BF16),
            _ => bail!("pages of keys and values are in f32 or bf16, not in {dtype:?}"),
        };
        let width = if is_fast(device) { value_width(head_dim) } else { head_dim };
        let keys = Tensor::zeros((pages, heads, head_dim, Self::PAGE / numbers), stored, device)?;
        let values = Tensor::zeros((pages, heads, Self::PAGE, width / numbers), stored, device)?;
        Ok(Self { keys, values, pages, heads, head_dim })
    }

    /// Bytes of a page in the CPU's memory.
    pub fn page_bytes(heads: usize, head_dim: usize, dtype: DType) -> usize {
        heads * Self::PAGE * (head_dim + value_width(head_dim)) * dtype.size_in_bytes()
    }

    /// The number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Key/value heads and head size.
    pub(super) fn heads(&self) -> (usize, usize) {
        (self.heads, self.head_dim)
    }

    /// The tensors of the fast path, if the pages are for it.
    pub(super) fn fast(&self) -> Option<(&Tensor, &Tensor)> {
        is_fast(self.keys.device()).then_some((&self.keys, &self.values))
    }

    /// Copies page `from` to page `to`.
    pub fn copy_page(&self, from: usize, to: usize) -> Result<()> {
        for slab in [&self.keys, &self.values] {
            slab.slice_set(&slab.narrow(0, from, 1)?.copy()?, 0, to)?;
        }
        Ok(())
    }

    /// An error if the tables do not have the pages of the sequences.
    pub(super) fn check(&self, tables: &[Vec<u32>], sequences: &Sequences) -> Result<()> {
        if tables.len() != sequences.len() {
            bail!("paged attention: {} page tables for {} sequences", tables.len(), sequences.len());
        }
        for (b, table) in tables.iter().enumerate() {
            if table.len() * Self::PAGE < sequences.keys(b) {
                bail!(
                    "paged attention: {} pages are too few for the {} keys of sequence {b}",
                    table.len(),
                    sequences.keys(b)
                );
            }
            if let Some(page) = table.iter().find(|&&page| page as usize >= self.pages) {
                bail!("paged attention: page {page} of sequence {b} is outside the {} pages", self.pages);
            }
        }
        Ok(())
    }

    /// Copies the keys and values of new tokens, each `(1, n, g, d)` or `(b, t, g, d)` with `n = b·t`, to the pages of their
    /// sequences, after the earlier tokens. An error if sizes do not match.
    pub(crate) fn append(&self, tables: &[Vec<u32>], new: [&Tensor; 2], sequences: &Sequences) -> Result<()> {
        self.check(tables, sequences)?;
        let (n, g, d) = (sequences.queries(sequences.len()).end, self.heads, self.head_dim);
        for (slab, new, is_keys) in [(&self.keys, new[0], true), (&self.values, new[1], false)] {
            if new.elem_count() != n * g * d {
                bail!("paged attention: {n} new tokens have keys or values {:?}, not {g} heads of {d}", new.dims());
            }
            if self.fast().is_some() {
                let runs = runs(tables, sequences).collect();
                slab.inplace_op2(&new.to_dtype(DType::F32)?.contiguous()?, &Append { runs, is_keys, g, d })?;
                continue;
            }
            let new = new.reshape((n, g, d))?.to_dtype(slab.dtype())?;
            for Run { page, slot, tokens } in runs(tables, sequences) {
                let tokens = new.narrow(0, tokens.start, tokens.len())?.transpose(0, 1)?; // (g, run, d)
                let (tokens, dim) = if is_keys { (tokens.transpose(1, 2)?, 3) } else { (tokens, 2) };
                slab.narrow(0, page, 1)?.slice_set(&tokens.contiguous()?.unsqueeze(0)?, dim, slot)?;
            }
        }
        Ok(())
    }

    /// The first `keys` keys and values of a sequence, each `(1, keys, g, d)` in f32.
    pub(crate) fn gather(&self, table: &[u32], keys: usize) -> Result<[Tensor; 2]> {
        let (g, d, table) = (self.heads, self.head_dim, &table[..keys.div_ceil(Self::PAGE)]);
        if self.fast().is_none() {
            let pages = Tensor::from_slice(table, table.len(), self.keys.device())?;
            let rows = |slab: &Tensor, order: [usize; 4]| -> Result<Tensor> {
                let rows = slab.index_select(&pages, 0)?.to_dtype(DType::F32)?.permute(order)?.contiguous()?;
                rows.reshape((1, (), g, d))?.narrow(1, 0, keys)
            };
            return Ok([rows(&self.keys, [0, 3, 1, 2])?, rows(&self.values, [0, 2, 1, 3])?]);
        }
        let read = |is_keys: bool| -> Result<Tensor> {
            let (storage, _) = if is_keys { &self.keys } else { &self.values }.storage_and_layout();
            let mut rows = Vec::with_capacity(keys * g * d);
            for (token, head, c) in (0..keys).flat_map(|t| (0..g).flat_map(move |h| (0..d).map(move |c| (t, h, c)))) {
                let place = Place { page: table[token / Self::PAGE] as usize, head, slot: token % Self::PAGE, c };
                rows.push(match &*storage {
                    Storage::Cpu(CpuStorage::F32(slab)) => place.get(slab, is_keys, g, d),
                    Storage::Cpu(CpuStorage::U32(slab)) => place.get(slab, is_keys, g, d),
                    _ => bail!("pages are not in CPU memory"),
                });
            }
            Tensor::from_vec(rows, (1, keys, g, d), &Device::Cpu)
        };
        Ok([read(true)?, read(false)?])
    }
}

/// New tokens that are in one page.
struct Run {
    page: usize,
    /// The place of the first token in the page.
    slot: usize,
    /// The tokens among all new ones.
    tokens: std::ops::Range<usize>,
}

fn runs(tables: &[Vec<u32>], sequences: &Sequences) -> impl Iterator<Item = Run> {
    tables.iter().enumerate().flat_map(move |(b, table)| {
        let (past, end, first) = (sequences.past(b), sequences.keys(b), sequences.queries(b).start);
        let pages = if past < end { past / KvPages::PAGE..end.div_ceil(KvPages::PAGE) } else { 0..0 };
        pages.map(move |index| {
            let (from, to) = (past.max(index * KvPages::PAGE), end.min((index + 1) * KvPages::PAGE));
            let (page, tokens) = (table[index] as usize, first + from - past..first + to - past);
            Run { page, slot: from % KvPages::PAGE, tokens }
        })
    })
}

/// A number in the pages of the fast path.
struct Place {
    page: usize,
    head: usize,
    slot: usize,
    c: usize,
}

impl Place {
    fn get<T: PageElement>(self, slab: &[T], is_keys: bool, g: usize, d: usize) -> f32 {
        let Self { page, head, slot, c } = self;
        let (rows, width) = if is_keys { (d, KvPages::PAGE) } else { (KvPages::PAGE, value_width(d)) };
        let (row, column) = if is_keys { (c, slot) } else { (slot, c) };
        let width = width / T::NUMBERS;
        T::get(&slab[((page * g + head) * rows + row) * width..][..width], column)
    }
}

struct Append {
    runs: Vec<Run>,
    is_keys: bool,
    g: usize,
    d: usize,
}

impl Append {
    fn write<T: PageElement>(&self, slab: &mut [T], new: &[f32]) {
        let (g, d) = (self.g, self.d);
        let (rows, width) = if self.is_keys { (d, KvPages::PAGE) } else { (KvPages::PAGE, value_width(d)) };
        let size = rows * width / T::NUMBERS;
        for Run { page, slot, tokens } in &self.runs {
            for head in 0..g {
                let rows = slab[(page * g + head) * size..][..size].chunks_exact_mut(width / T::NUMBERS);
                let number = |token: usize, c: usize| new[(token * g + head) * d + c];
                if self.is_keys {
                    for (c, row) in rows.enumerate() {
                        tokens.clone().enumerate().for_each(|(i, token)| T::put(row, slot + i, number(token, c)));
                    }
                } else {
                    for (token, row) in tokens.clone().zip(rows.skip(*slot)) {
                        (0..d).for_each(|c| T::put(row, c, number(token, c)));
                    }
                }
            }
        }
    }
}

impl InplaceOp2 for Append {
    fn name(&self) -> &'static str {
        "append to pages"
    }

    fn cpu_fwd(&self, slab: &mut CpuStorage, _: &Layout, new: &CpuStorage, layout: &Layout) -> Result<()> {
        let new = contiguous(new, layout)?;
        match slab {
            CpuStorage::F32(slab) => self.write(slab, new),
            CpuStorage::U32(slab) => self.write(slab, new),
            _ => bail!("pages on the fast path are f32, or bf16 in pairs"),
        }
        Ok(())
    }
}
