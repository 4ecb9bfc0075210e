//! A frozen matrix with some rows replaced by trainable ones.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{contiguous, cpu_slice};

/// `weight` `(n, hidden)` with row `ids[i]` replaced by row `i` of `rows` `(ids.len(), hidden)`. Only `rows` gets a
/// gradient.
///
/// It is an error if the shapes do not match or an id is not below `n`.
pub fn replace_rows(weight: &Tensor, ids: &[u32], rows: &Tensor) -> Result<Tensor> {
    let (n, hidden) = weight.dims2()?;
    if rows.dims() != [ids.len(), hidden] || ids.iter().any(|&id| id as usize >= n) {
        bail!("replace_rows: rows {ids:?} of a matrix {:?} cannot be replaced by {:?}", weight.dims(), rows.dims());
    }
    if crate::is_fused(weight) && crate::is_fused(rows) {
        return rows.contiguous()?.apply_op1(ReplaceRows { weight: weight.detach().contiguous()?, ids: ids.to_vec() });
    }
    reference(weight, ids, rows)
}

fn reference(weight: &Tensor, ids: &[u32], rows: &Tensor) -> Result<Tensor> {
    let n = weight.dim(0)?;
    let frozen = weight.detach().reshape(weight.dims())?; // has its own id, so that `weight` gets no gradient
    let mut indices: Vec<u32> = (0..n as u32).collect();
    for (i, &id) in ids.iter().enumerate() {
        indices[id as usize] = (n + i) as u32;
    }
    let indices = Tensor::from_vec(indices, n, weight.device())?;
    Tensor::cat(&[&frozen, rows], 0)?.index_select(&indices, 0)
}

/// candle's `index_select` and `index_add` would compute a gradient for the whole matrix.
struct ReplaceRows {
    weight: Tensor, // (n, hidden)
    ids: Vec<u32>,
}

impl CustomOp1 for ReplaceRows {
    fn name(&self) -> &'static str {
        "replace_rows"
    }

    fn cpu_fwd(&self, rows: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, weight_layout) = self.weight.storage_and_layout();
        let mut all = cpu_slice(&storage, weight_layout)?.to_vec();
        let hidden = self.weight.dim(1)?;
        for (row, &id) in contiguous(rows, layout)?.chunks_exact(hidden.max(1)).zip(&self.ids) {
            all[id as usize * hidden..][..hidden].copy_from_slice(row);
        }
        Ok((CpuStorage::F32(all), self.weight.shape().clone()))
    }

    fn bwd(&self, rows: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        gradient.index_select(&Tensor::from_slice(&self.ids, self.ids.len(), rows.device())?, 0).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{assert_matches_reference, random};

    #[test]
    fn the_fused_replacement_equals_the_f64_reference() -> Result<()> {
        let (weight, rows) = (random(&[7, 5], 1, 1.)?, random(&[3, 5], 2, 1.)?);
        assert_matches_reference(&[&rows], 0., |t| replace_rows(&weight.to_dtype(t[0].dtype())?, &[6, 0, 2], &t[0]))?;
        let replaced = replace_rows(&weight, &[6, 0, 2], &rows)?.to_vec2::<f32>()?;
        let (weight, rows) = (weight.to_vec2::<f32>()?, rows.to_vec2::<f32>()?);
        let expected = [&rows[1], &weight[1], &rows[2], &weight[3], &weight[4], &weight[5], &rows[0]];
        assert!(replaced.iter().eq(expected));
        Ok(())
    }

    #[test]
    fn only_the_rows_get_a_gradient_and_wrong_ids_are_errors() -> Result<()> {
        let (weight, rows) = (Var::from_tensor(&random(&[4, 3], 1, 1.)?)?, Var::from_tensor(&random(&[1, 3], 2, 1.)?)?);
        let grads = replace_rows(&weight, &[2], &rows)?.sum_all()?.backward()?;
        assert!(grads.get(&rows).is_some() && grads.get(&weight).is_none());
        let frozen = weight.as_detached_tensor();
        assert!(replace_rows(&frozen, &[2], &rows)?.sum_all()?.backward()?.get(&frozen).is_none());
        assert!(replace_rows(&weight, &[4], &rows).is_err() && replace_rows(&weight, &[1, 2], &rows).is_err());
        Ok(())
    }
}
