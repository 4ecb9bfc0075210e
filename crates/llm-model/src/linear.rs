//! A linear map with what hangs on it.

use candle_core::Tensor;
use llm_kernels::Precision;

use crate::lora::Lora;
use crate::matrix::Matrix;
use crate::{Params, Result};

/// `x · wᵀ + b`, where an adapter may stand beside the `wᵀ`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Matrix,       // (out, in)
    pub bias: Option<Tensor>, // (out,)
    pub lora: Option<Lora>,
}

impl Linear {
    /// The map `{name}.weight`, with `{name}.bias` if the model has one, and with what the adapter in use has for it.
    pub fn new(params: &Params, name: &str) -> Result<Self> {
        let bias = format!("{name}.bias");
        let bias = if params.tensors().contains_key(&bias) { Some(params.get(&bias)?) } else { None };
        let weight = params.matrix(&format!("{name}.weight"))?;
        let lora = params.adapter().map(|adapter| Lora::new(adapter, name, &weight)).transpose()?.flatten();
        Ok(Self { weight, bias, lora })
    }

    /// The weight and its precision, if it is a tensor and stands alone.
    pub fn alone(&self) -> Option<(&Tensor, Precision)> {
        match &self.weight {
            Matrix::Dense(weight, precision) if self.is_bare() => Some((weight, *precision)),
            _ => None,
        }
    }

    /// Whether the weight is all there is.
    fn is_bare(&self) -> bool {
        self.bias.is_none() && self.lora.is_none()
    }

    /// `(…, in)` to `(…, out)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.weight.apply(x)?;
        if let Some(lora) = &self.lora {
            y = lora.apply(x, &y, &self.weight)?;
        }
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// `(b, t, in)` to heads `(b, t, h, d)`.
    pub fn apply_to_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        if self.is_bare() {
            return self.weight.apply_to_heads(x, h, d);
        }
        let (b, t, _) = x.dims3()?;
        Ok(self.apply(x)?.reshape((b, t, h, d))?)
    }

    /// `residual + x · wᵀ + b`; `x` is `(b, t, in)`, or in heads.
    pub fn apply_and_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.lora.is_some() {
            return Ok((residual + self.apply(&self.weight.as_rows(x)?)?.reshape(residual.shape())?)?);
        }
        let y = self.weight.apply_and_add(x, residual)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The tensors that may train.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let weight = match &self.weight {
            Matrix::Dense(weight, _) => Some(weight),
            Matrix::Quantized(_) | Matrix::Mapped(_) => None,
        };
        weight.into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(Lora::tensors))
    }
}
