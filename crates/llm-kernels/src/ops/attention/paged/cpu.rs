//! Paged attention on the CPU: its tasks.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::SPAN;
use super::element::PageElement;
use super::kernel::{Attend, PagedHead, Partial, packed_queries};
use super::pages::value_width;
use crate::cpu::contiguous;
use crate::cpu::uninit::write_heads;
use crate::ops::attention::{AttentionMask, AttentionParams, Dims};

/// Queries of a task of a long chunk; their sums stay in the L2 cache.
const QUERIES: usize = 32;
/// A chunk of at most this many queries has a task for each span of keys.
const SHORT_CHUNK: usize = 16;

/// [`super::paged_attention`] of `q`, with the keys and values in pages of the fast path.
pub fn paged_attention(
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    tables: &[Vec<u32>],
    (dims, params, mask): (Dims, AttentionParams, &AttentionMask),
) -> Result<Tensor> {
    q.contiguous()?.apply_op3_no_bwd(keys, values, &PagedAttention { tables, dims, params, mask })
}

struct PagedAttention<'a> {
    tables: &'a [Vec<u32>],
    dims: Dims,
    params: AttentionParams,
    mask: &'a AttentionMask,
}

/// Consecutive queries of a sequence, and the spans of keys that they attend to.
struct Block {
    sequence: usize,
    /// The queries among those of the sequence.
    queries: Range<usize>,
    spans: Range<usize>,
    /// Whether each span is a task.
    split: bool,
}

impl Block {
    /// The spans of each task of a key/value head.
    fn tasks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let spans = self.spans.clone();
        let step = if self.split { 1 } else { spans.len().max(1) };
        spans.clone().step_by(step).map(move |span| span..(span + step).min(spans.end))
    }
}

impl PagedAttention<'_> {
    /// The numbers of queries and keys of a sequence.
    fn lens(&self, sequence: usize) -> (usize, usize) {
        let sequences = self.mask.sequences.as_ref();
        sequences.map_or((0, 0), |sequences| (sequences.queries(sequence).len(), sequences.keys(sequence)))
    }

    /// The keys that query `i` of a sequence attends to.
    fn visible(&self, sequence: usize, i: usize) -> Range<usize> {
        let (t, s) = self.lens(sequence);
        let (start, end) = self.mask.range(sequence, i, t, s);
        start..end
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for sequence in 0..self.dims.b {
            let (t, _) = self.lens(sequence);
            for start in (0..t).step_by(QUERIES) {
                let queries = start..(start + QUERIES).min(t);
                let visible = || queries.clone().map(|i| self.visible(sequence, i)).filter(|keys| !keys.is_empty());
                let first = visible().map(|keys| keys.start).min().unwrap_or(0) / SPAN;
                let end = visible().map(|keys| keys.end).max().unwrap_or(0).div_ceil(SPAN);
                blocks.push(Block { sequence, queries, spans: first..end, split: t <= SHORT_CHUNK });
            }
        }
        blocks
    }

    /// The result of the queries of a block for one key/value head, rows in the order (query, head).
    fn attend<T: PageElement>(
        &self,
        q: &[f32],
        (keys, values): (&[T], &[T]),
        block: &Block,
        group: usize,
        spans: Range<usize>,
    ) -> Partial {
        let Dims { h, g, d, .. } = self.dims;
        let (heads, first) = (h / g, self.mask.first_query(block.sequence, 0));
        let rows = || block.queries.clone().flat_map(|i| (0..heads).map(move |head| (i, head)));
        let row = |(i, head): (usize, usize)| &q[((first + i) * h + group * heads + head) * d..][..d];
        let queries = packed_queries(rows().map(row), d, self.params.scale as f32);
        let visible: Vec<Range<usize>> = rows().map(|(i, _)| self.visible(block.sequence, i)).collect();
        let table = &self.tables[block.sequence];
        let kv = PagedHead { keys, values, table, head: (group, g), head_dim: d };
        let soft_cap = self.params.soft_cap();
        crate::cpu::unit::arch().dispatch(Attend { kv, queries: &queries, visible: &visible, spans, soft_cap })
    }

    fn forward<T: PageElement>(&self, q: &[f32], keys: &[T], values: &[T]) -> Vec<f32> {
        let Dims { h, g, d, .. } = self.dims;
        let (blocks, heads, width) = (self.blocks(), h / g, value_width(d));
        let of_block =
            |block| (0..g).flat_map(move |group| Block::tasks(block).map(move |spans| (block, group, spans)));
        let tasks: Vec<_> = blocks.iter().flat_map(of_block).collect();
        let attend =
            |(block, group, spans): (&Block, usize, Range<usize>)| self.attend(q, (keys, values), block, group, spans);
        let parts: Vec<Partial> = tasks.into_par_iter().with_max_len(1).map(attend).collect();
        let (mut parts, lens) = (parts.into_iter(), blocks.iter().map(|block| block.queries.len()));
        write_heads(&lens.collect::<Vec<_>>(), h, d, |writers| {
            let mut writers = writers.into_iter();
            let mut results = Vec::with_capacity(blocks.len() * g);
            for block in blocks.iter().flat_map(|block| std::iter::repeat_n(block, g)) {
                let parts: Vec<Partial> = parts.by_ref().take(block.tasks().count()).collect();
                results.push((parts, block.queries.len() * heads, writers.by_ref().take(heads).collect::<Vec<_>>()));
            }
            results.into_par_iter().for_each(|(parts, rows, mut writers)| {
                let mut parts = parts.into_iter();
                let mut total = parts.next().unwrap_or_else(|| Partial::empty(rows, d));
                parts.for_each(|part| total.merge(&part));
                let rows = total.sums.chunks_exact_mut(width).zip(&total.softmax).enumerate();
                for (row, (sums, &(_, sum))) in rows {
                    if sum != 0. {
                        sums.iter_mut().for_each(|x| *x /= sum);
                    }
                    writers[row % heads].append(&sums[..d]);
                }
            });
        })
    }
}

impl CustomOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        layout: &Layout,
        keys: &CpuStorage,
        _: &Layout,
        values: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = contiguous(q, layout)?;
        let out = match (keys, values) {
            _ if q.is_empty() => Vec::new(),
            (CpuStorage::F32(keys), CpuStorage::F32(values)) => self.forward(q, keys, values),
            (CpuStorage::U32(keys), CpuStorage::U32(values)) => self.forward(q, keys, values),
            _ => bail!("pages on the fast path are f32, or bf16 in pairs"),
        };
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
