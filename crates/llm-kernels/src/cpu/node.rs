//! A differentiable operation on any number of tensors as a node of candle's graph, which has at most three arguments.
//!
//! The operation has its parameters, and computes their gradients in its backward together with that of its argument. A
//! chain of empty nodes, one for each trained parameter, is the second argument: candle runs the backward of these nodes
//! after that of the operation, and each takes the gradient of its parameter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, TensorId};

use super::{contiguous, cpu_slice};

/// A differentiable operation on `x` and the parameters that it has; the result has the shape of `x`.
pub(crate) trait FusedOp: Send + Sync + 'static {
    const NAME: &'static str;

    /// Computes the result.
    fn forward(&self, x: &[f32]) -> Result<Vec<f32>>;

    /// The gradient of `x`, if `needs_dx`, from the gradient `dy` of the result. The gradients of the parameters that are
    /// trained are added to `gradients`.
    fn backward(&self, x: &[f32], dy: &[f32], needs_dx: bool, gradients: &ParamGradients) -> Result<Option<Vec<f32>>>;
}

/// Gradients of parameters that are computed, but not in candle's gradients yet.
#[derive(Clone, Default)]
pub(crate) struct ParamGradients(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl ParamGradients {
    /// Adds the gradient of a parameter if it is trained.
    pub fn add(&self, param: &Tensor, gradient: impl FnOnce() -> Vec<f32>) -> Result<()> {
        if !param.track_op() {
            return Ok(());
        }
        let gradient = Tensor::from_vec(gradient(), param.shape(), param.device())?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A tensor may be several parameters of an operation.
        let sum = match all.remove(&param.id()) {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        all.insert(param.id(), sum);
        Ok(())
    }

    fn take(&self, param: &Tensor) -> Option<Tensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&param.id())
    }
}

/// Applies `op` to `x`; `params` are its parameters.
pub(crate) fn apply<T: FusedOp>(op: T, x: &Tensor, params: &[&Tensor]) -> Result<Tensor> {
    let (x, gradients) = (x.contiguous()?, ParamGradients::default());
    let mut chain: Option<Tensor> = None;
    for param in params.iter().filter(|param| param.track_op()) {
        let link = Link(gradients.clone());
        chain = Some(match &chain {
            Some(chain) => chain.apply_op2(param, link)?,
            None => param.apply_op1(link)?,
        });
    }
    let node = Node { needs_dx: x.track_op(), op, gradients };
    match &chain {
        Some(chain) => x.apply_op2(chain, node),
        None => x.apply_op1(node),
    }
}

struct Node<T> {
    op: T,
    needs_dx: bool,
    gradients: ParamGradients,
}

impl<T: FusedOp> Node<T> {
    fn forward(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.op.forward(contiguous(storage, layout)?)?), layout.shape().clone()))
    }

    fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ds, dl)) = (x.storage_and_layout(), dy.storage_and_layout());
        let dx = self.op.backward(cpu_slice(&xs, xl)?, cpu_slice(&ds, dl)?, self.needs_dx, &self.gradients)?;
        dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    }
}

impl<T: FusedOp> CustomOp1 for Node<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(storage, layout)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.backward(x, dy)
    }
}

/// With a chain of parameters.
impl<T: FusedOp> CustomOp2 for Node<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(s, l)
    }

    fn bwd(&self, x: &Tensor, chain: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.backward(x, dy)?, Some(chain.zeros_like()?)))
    }
}

/// A link of the chain: an empty tensor whose backward is the gradient of its parameter.
struct Link(ParamGradients);

fn empty() -> (CpuStorage, Shape) {
    (CpuStorage::F32(Vec::new()), Shape::from(0))
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(empty())
    }

    fn bwd(&self, param: &Tensor, _y: &Tensor, _dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.take(param))
    }
}

/// After another link.
impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(empty())
    }

    fn bwd(
        &self,
        chain: &Tensor,
        param: &Tensor,
        _y: &Tensor,
        _dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(chain.zeros_like()?), self.0.take(param)))
    }
}
