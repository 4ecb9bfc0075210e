//! A linear map with what hangs on it.

use candle_core::Tensor;

use crate::params::Matrix;
use crate::{Params, Result};

/// `x · wᵀ + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Matrix,       // (out, in)
    pub bias: Option<Tensor>, // (out,)
}

impl Linear {
    /// The map `{name}.weight`, with `{name}.bias` if the model has one.
    pub fn new(params: &Params, name: &str) -> Result<Self> {
        let bias = format!("{name}.bias");
        let bias = if params.tensors().contains_key(&bias) { Some(params.get(&bias)?) } else { None };
        Ok(Self { weight: params.matrix(&format!("{name}.weight"))?, bias })
    }

    /// `(…, in)` to `(…, out)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.apply(x)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The tensors that may train.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let weight = match &self.weight {
            Matrix::Dense(weight) => Some(weight),
            Matrix::Blocks(_) | Matrix::Stored(_) => None,
        };
        weight.into_iter().chain(&self.bias)
    }
}
