//! Appending keys or values to a KV cache.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

use crate::Sequences;
use crate::cpu::contiguous;

/// Copies the keys or values of the new tokens, `(1, n, g, d)` or `(b, t, g, d)` with `n = b·t`, into `cache`
/// `(b, g, capacity, d)`: those of a sequence after its earlier ones. It is an error if they do not fit.
///
/// Letters: b sequences, n tokens, g key/value heads, d head size.
pub(crate) fn kv_append(cache: &Tensor, new: &Tensor, sequences: &Sequences) -> Result<()> {
    let ((b, g, capacity, d), n) = (cache.dims4()?, sequences.queries(sequences.len()).end);
    if sequences.len() != b || sequences.max_keys() > capacity || new.elem_count() != n * g * d {
        bail!(
            "kv_append: {n} tokens {:?} of {} sequences with up to {} keys do not fit into the cache {:?}",
            new.dims(),
            sequences.len(),
            sequences.max_keys(),
            cache.dims()
        );
    }
    if crate::is_fused(cache) && crate::is_fused(new) {
        return cache.inplace_op2(new, &KvAppend(sequences.clone()));
    }
    let new = new.reshape((1, n, g, d))?.transpose(1, 2)?; // (1, g, n, d)
    for row in 0..b {
        let tokens = sequences.queries(row);
        if !tokens.is_empty() {
            let tokens = new.narrow(2, tokens.start, tokens.len())?.contiguous()?;
            cache.narrow(0, row, 1)?.slice_set(&tokens, 2, sequences.past(row))?;
        }
    }
    Ok(())
}

struct KvAppend(Sequences);

impl InplaceOp2 for KvAppend {
    fn name(&self) -> &'static str {
        "kv_append"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, layout: &Layout, new: &CpuStorage, new_layout: &Layout) -> Result<()> {
        let (_, g, capacity, d) = layout.shape().dims4()?;
        let (CpuStorage::F32(cache), Some((start, end))) = (cache, layout.contiguous_offsets()) else {
            bail!("kv_append: the cache must be contiguous, in f32");
        };
        let new = contiguous(new, new_layout)?;
        if cache.is_empty() || new.is_empty() {
            return Ok(());
        }
        for (b, heads) in cache[start..end].chunks_exact_mut(g * capacity * d).enumerate() {
            let (tokens, past) = (self.0.queries(b), self.0.past(b));
            for (head, rows) in heads.chunks_exact_mut(capacity * d).enumerate() {
                for (token, row) in tokens.clone().zip(rows[past * d..].chunks_exact_mut(d)) {
                    row.copy_from_slice(&new[(token * g + head) * d..][..d]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::random;

    #[test]
    fn appended_tokens_follow_the_earlier_ones_of_their_sequence() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let cache = Tensor::zeros((3, 2, 6, 4), dtype, &Device::Cpu)?;
            let (first, second) =
                (random(&[1, 5, 2, 4], 1, 1.)?.to_dtype(dtype)?, random(&[1, 3, 2, 4], 2, 1.)?.to_dtype(dtype)?);
            kv_append(&cache, &first, &Sequences::new([(0, 2), (0, 0), (0, 3)]))?;
            kv_append(&cache, &second, &Sequences::new([(2, 1), (0, 1), (3, 1)]))?;
            let zeros = |n: usize| Tensor::zeros((1, n, 2, 4), dtype, &Device::Cpu);
            let expected = [
                Tensor::cat(&[first.narrow(1, 0, 2)?, second.narrow(1, 0, 1)?, zeros(3)?], 1)?,
                Tensor::cat(&[second.narrow(1, 1, 1)?, zeros(5)?], 1)?,
                Tensor::cat(&[first.narrow(1, 2, 3)?, second.narrow(1, 2, 1)?, zeros(2)?], 1)?,
            ];
            let expected = Tensor::cat(&expected, 0)?.transpose(1, 2)?;
            let difference = (cache - expected)?.abs()?.sum_all()?.to_dtype(DType::F32)?;
            assert_eq!(difference.to_scalar::<f32>()?, 0.);
        }
        Ok(())
    }

    #[test]
    fn tokens_that_do_not_fit_are_an_error() -> Result<()> {
        let (cache, new) = (Tensor::zeros((1, 2, 6, 4), DType::F32, &Device::Cpu)?, random(&[1, 3, 2, 4], 1, 1.)?);
        assert!(kv_append(&cache, &new, &Sequences::new([(3, 3)])).is_ok());
        assert!(kv_append(&cache, &new, &Sequences::new([(4, 3)])).is_err());
        assert!(kv_append(&cache, &new, &Sequences::new([(0, 2)])).is_err());
        Ok(())
    }
}
