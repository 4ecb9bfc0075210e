//! Attention over keys and values in pages (`PagedAttention`, Kwon et al. 2023, arXiv 2309.06180), forward only.
//!
//! **A query gets the same bits, whatever it is computed with**: alone, with other queries of its sequence or other sequences, on
//! any number of threads, wherever its pages are. For each query and head, a score is a sum over the head dimension in order,
//! keys are added in the order of their positions within spans of [`SPAN`] positions, and the spans are merged in order
//! (Flash-Decoding). So the tokens of a prompt can be computed at once, in chunks of any size or one by one, and pages can be
//! shared. This holds for f32 and bf16 pages; the queries, weights and sums are f32.

mod cpu;
mod element;
mod kernel;
mod pages;

use candle_core::{DType, Result, Tensor, bail};

pub use pages::KvPages;

use super::{AttentionMask, AttentionParams, Dims, reference};

/// Positions that one task sums up: four pages.
const SPAN: usize = 4 * KvPages::PAGE;

/// The pages of the sequences of a batch.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv<'a> {
    /// Keys and values.
    pub pages: &'a KvPages,
    /// The pages of each sequence, in the order of its tokens.
    pub tables: &'a [Vec<u32>],
}

/// [`super::attention`] of the queries `(1, n, h, d)` or `(b, t, h, d)` over the keys and values of their sequences in pages,
/// which the mask must have ([`AttentionMask::sequences`]). `params.precision` is not used: factors and sums are f32.
///
/// What is in the pages after the last key of a sequence never affects a result, even if it is infinite or NaN; nor do masked
/// keys. It is an error if sizes do not match.
pub fn paged_attention(q: &Tensor, kv: PagedKv, params: AttentionParams, mask: &AttentionMask) -> Result<Tensor> {
    let Some(sequences) = &mask.sequences else { bail!("paged attention needs the sequences of the batch") };
    let (_, _, h, d) = q.dims4()?;
    let ((g, head_dim), n) = (kv.pages.heads(), sequences.queries(sequences.len()).end);
    if head_dim != d || q.elem_count() != n * h * d {
        bail!("paged attention: q {:?} does not match {n} queries of {g} key/value heads of {head_dim}", q.dims());
    }
    let (b, t, s) = (sequences.len(), sequences.longest(), sequences.max_keys());
    let dims = Dims { b, t, s, h, g, d }.checked(mask)?;
    kv.pages.check(kv.tables, sequences)?;
    match kv.pages.fast() {
        Some(slabs) if mask.masked_keys.is_none() && q.dtype() == DType::F32 => {
            cpu::paged_attention(q, slabs, kv.tables, (dims, params, mask))
        }
        _ => {
            let flat = q.reshape((1, n, h, d))?;
            let mut outputs = Vec::new();
            for b in (0..sequences.len()).filter(|&b| !sequences.queries(b).is_empty()) {
                let [k, v] = kv.pages.gather(&kv.tables[b], sequences.keys(b))?;
                let queries = sequences.queries(b);
                let q = flat.narrow(1, queries.start, queries.len())?;
                let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
                outputs.push(reference::attention(&q, &k, &v, params, &mask.alone(b, sequences))?);
            }
            if outputs.is_empty() { q.zeros_like() } else { Tensor::cat(&outputs, 1)?.reshape(q.shape()) }
        }
    }
}

#[cfg(test)]
mod tests;
