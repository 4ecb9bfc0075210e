//! Activation checkpointing: a block saves only its input and runs again in the backward (Chen et al. 2016, arXiv
//! 1604.06174). This costs a third more computation and needs the memory of one block's activations instead of all
//! blocks'.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Storage, Tensor, TensorId, Var, bail};

/// Gradients of the parameters inside checkpointed blocks; candle's `backward` does not return them.
#[derive(Debug, Clone, Default)]
pub struct RecomputedGradients(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl RecomputedGradients {
    /// The gradients since the last call, by the id of their parameter.
    pub fn take(&self) -> HashMap<TensorId, Tensor> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds up the gradients of a parameter that several blocks or passes share.
    fn add(&self, id: TensorId, gradient: Tensor) -> Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match all.remove(&id) {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        all.insert(id, sum);
        Ok(())
    }
}

/// `f(x)`, saving only `x`; `f` runs again in the backward. Result and gradients have the same bits as without
/// checkpointing.
///
/// The gradients of `params`, the parameters that `f` uses, go to `gradients`. If `x` needs no gradient, `f` runs as
/// an ordinary function and candle returns the gradients of its parameters. `f` must be deterministic.
pub fn recompute(
    x: &Tensor,
    params: Vec<Tensor>,
    gradients: &RecomputedGradients,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return f(x);
    }
    let value = f(&x.detach())?.detach().contiguous()?; // drops the graph of the value
    x.apply_op1(Recompute { value: Mutex::new(Some(value)), params, gradients: gradients.clone(), f: Box::new(f) })
}

type Block = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

struct Recompute {
    value: Mutex<Option<Tensor>>,
    params: Vec<Tensor>,
    gradients: RecomputedGradients,
    f: Block,
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some(value) = self.value.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("recompute: an operation runs only once");
        };
        let (storage, layout) = value.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("recompute: the result of the block is not in CPU memory");
        };
        let copy = match storage {
            CpuStorage::F32(data) => CpuStorage::F32(data[start..end].to_vec()),
            CpuStorage::F64(data) => CpuStorage::F64(data[start..end].to_vec()),
            _ => bail!("recompute: the result of a block must be f32 or f64"),
        };
        Ok((copy, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let y = (self.f)(&x)?;
        let mut grads = y.apply_op1(Seed { gradient: dy.clone() })?.backward()?;
        for param in &self.params {
            if let Some(gradient) = grads.remove(param) {
                self.gradients.add(param.id(), gradient)?;
            }
        }
        Ok(grads.remove(&x))
    }
}

/// A scalar whose gradient with respect to its argument is given: starts a backward in the middle of a graph.
struct Seed {
    gradient: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let zero = Tensor::zeros((), candle_core::backend::BackendStorage::dtype(storage), &Device::Cpu)?;
        let (zero, _) = zero.storage_and_layout();
        let Storage::Cpu(zero) = &*zero else { bail!("recompute: the result is not in CPU memory") };
        Ok((zero.clone(), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, _dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn bits(x: &Tensor) -> Vec<u32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn a_checkpointed_block_gives_the_same_bits() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[9, 6], 1, 1.)?)?, Var::from_tensor(&random(&[6, 6], 2, 1.)?)?);
        let norm = Var::from_tensor(&random(&[6], 3, 1.)?)?;
        let run = |gradients: Option<&RecomputedGradients>| -> Result<[Tensor; 4]> {
            let params = vec![w.as_tensor().clone(), norm.as_tensor().clone()];
            let block = {
                let (w, norm) = (w.as_tensor().clone(), norm.as_tensor().clone());
                move |x: &Tensor| x + crate::linear(&crate::rms_norm(x, &norm, 1e-5)?, &w)?
            };
            let start = (x.as_tensor() * 1.5)?;
            let y = match gradients {
                Some(gradients) => recompute(&start, params, gradients, block)?,
                None => block(&start)?,
            };
            let grads = (y.sqr()? * 0.5)?.sum_all()?.backward()?;
            let dx = grads.get(&x).unwrap().clone();
            Ok(match gradients {
                Some(gradients) => {
                    let inside = gradients.take();
                    [y, dx, inside[&w.id()].clone(), inside[&norm.id()].clone()]
                }
                None => [y, dx, grads.get(&w).unwrap().clone(), grads.get(&norm).unwrap().clone()],
            })
        };
        let gradients = RecomputedGradients::default();
        for (plain, again) in run(None)?.iter().zip(run(Some(&gradients))?) {
            assert_eq!(bits(plain), bits(&again));
        }
        assert!(gradients.take().is_empty());
        Ok(())
    }

    #[test]
    fn gradients_of_a_shared_weight_are_added() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[4, 3], 1, 1.)?)?, Var::from_tensor(&random(&[3, 3], 2, 1.)?)?);
        let block = |gradients: &RecomputedGradients, x: &Tensor| {
            let weight = w.as_tensor().clone();
            recompute(x, vec![weight.clone()], gradients, move |x| crate::linear(x, &weight))
        };
        let gradients = RecomputedGradients::default();
        block(&gradients, &block(&gradients, &x)?)?.sum_all()?.backward()?;
        let plain = crate::linear(&crate::linear(&x, &w)?, &w)?.sum_all()?.backward()?;
        let (ours, plain) = (gradients.take()[&w.id()].clone(), plain.get(&w).unwrap().clone());
        let gap = (ours - plain)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(gap < 1e-5, "{gap}");
        Ok(())
    }

    #[test]
    fn the_weights_of_the_first_block_get_gradients() -> Result<()> {
        let (x, w) = (random(&[4, 3], 1, 1.)?, Var::from_tensor(&random(&[2, 3], 2, 1.)?)?);
        let weight = w.as_tensor().clone();
        let y =
            recompute(&x, vec![weight.clone()], &RecomputedGradients::default(), move |x| crate::linear(x, &weight))?;
        assert!(y.sum_all()?.backward()?.get(&w).is_some());
        Ok(())
    }
}
