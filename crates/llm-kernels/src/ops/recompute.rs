//! Activation checkpointing: a block saves only its input and runs again in the backward (Chen et al. 2016, arXiv
//! 1604.06174). This costs a third more computation and needs the memory of one block's activations instead of all
//! blocks'.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Storage, Tensor, TensorId, Var, bail,
};

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
    let value = f(&x.detach())?.detach(); // drops the graph of the value
    let starts_at_zero = value.layout().contiguous_offsets().is_some_and(|(start, _)| start == 0);
    let value = if starts_at_zero { value } else { value.force_contiguous()? };
    x.apply_op1(Recompute { value: Mutex::new(Some(value)), params, gradients: gradients.clone(), f: Box::new(f) })
}

type Block = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

struct Recompute {
    value: Mutex<Option<Tensor>>,
    params: Vec<Tensor>,
    gradients: RecomputedGradients,
    f: Block,
}

impl Recompute {
    /// The value of the block, copied to a storage of its own.
    fn copy_value<S: BackendStorage>(&self, of_device: impl Fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
        let Some(value) = self.value.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("recompute: an operation runs only once");
        };
        let (storage, layout) = value.storage_and_layout();
        let Some(storage) = of_device(&storage) else { bail!("recompute: the block changed the device") };
        Ok((storage.try_clone(layout)?, layout.shape().clone()))
    }
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.copy_value(|storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None })
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.copy_value(|storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None })
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.copy_value(|storage| if let Storage::Metal(storage) = storage { Some(storage) } else { None })
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
        zero_scalar(storage)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        zero_scalar(storage)
    }

    fn metal_fwd(&self, storage: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        zero_scalar(storage)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, _dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}

/// A scalar 0 with the dtype and on the device of `like`.
fn zero_scalar<S: BackendStorage>(like: &S) -> Result<(S, Shape)>
where
    S::Device: BackendDevice<Storage = S>,
{
    let shape = Shape::from(());
    Ok((like.device().zeros_impl(&shape, like.dtype())?, shape))
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
