//! Linear layers with optional bias and LoRA adapter.

use candle_core::Tensor;
use llm_kernels::Precision;

use crate::lora::Lora;
use crate::matrix::Matrix;
use crate::{Params, Result};

/// A linear layer: `x · wᵀ + b`, plus the LoRA adapter if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Matrix,       // (out, in)
    pub bias: Option<Tensor>, // (out,)
    pub lora: Option<Lora>,
}

impl Linear {
    /// The layer with `{name}.weight`, `{name}.bias` if the model has one, and the active adapter's part for it.
    pub fn new(params: &Params, name: &str) -> Result<Self> {
        let bias = format!("{name}.bias");
        let bias = if params.tensors().contains_key(&bias) { Some(params.get(&bias)?) } else { None };
        let weight = params.matrix(&format!("{name}.weight"))?;
        let lora = params.adapter().map(|adapter| Lora::new(adapter, name, &weight)).transpose()?.flatten();
        Ok(Self { weight, bias, lora })
    }

    /// The weight and its precision, if it is dense and the layer has neither bias nor adapter.
    pub fn plain_weight(&self) -> Option<(&Tensor, Precision)> {
        match &self.weight {
            Matrix::Dense(weight, precision) if self.is_plain() => Some((weight, *precision)),
            _ => None,
        }
    }

    /// Whether there is neither bias nor adapter.
    fn is_plain(&self) -> bool {
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
        if self.is_plain() {
            return self.weight.apply_to_heads(x, h, d);
        }
        let (b, t, _) = x.dims3()?;
        Ok(self.apply(x)?.reshape((b, t, h, d))?)
    }

    /// `residual + x · wᵀ + b`; `x` is `(b, t, in)` or `(b, t, h, d)` with `h · d = in`.
    pub fn apply_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.lora.is_some() {
            return Ok((residual + self.apply(&self.weight.flatten_input(x)?)?.reshape(residual.shape())?)?);
        }
        let y = self.weight.apply_residual(x, residual)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let weight = match &self.weight {
            Matrix::Dense(weight, _) => Some(weight),
            Matrix::Quantized(_) | Matrix::Mapped(_) => None,
        };
        weight.into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(Lora::tensors))
    }
}
