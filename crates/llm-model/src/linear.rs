//! Linear layers with optional bias and LoRA adapter.

use candle_core::{DType, Tensor};
use llm_kernels::Precision;

use crate::lora::Lora;
use crate::weight::Weight;
use crate::{Params, Result};

/// A linear layer: `x · wᵀ + b`, plus the LoRA adapter if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Weight, // (out, in)
    /// Compute precision of the matmul with a dense weight; f32 for the other weights.
    precision: Precision,
    bias: Option<Tensor>, // (out,)
    lora: Option<Lora>,
}

impl Linear {
    /// The layer with `{name}.weight`, `{name}.bias` if the model has one, and the active adapter's part for it.
    pub fn new(params: &Params, name: &str) -> Result<Self> {
        let bias = format!("{name}.bias");
        let bias = if params.contains(&bias) { Some(params.tensor(&bias)?) } else { None };
        let weight = params.get(&format!("{name}.weight"))?.clone();
        let lora = params.adapter().map(|adapter| Lora::new(adapter, name, &weight)).transpose()?.flatten();
        Ok(Self { bias, lora, ..Self::of(weight, params.precision()) })
    }

    /// A layer without bias and adapter.
    pub fn of(weight: Weight, precision: Precision) -> Self {
        let precision = if weight.tensor().is_some() { precision } else { Precision::F32 };
        Self { weight, precision, bias: None, lora: None }
    }

    /// The same layer with a matmul in f32.
    pub fn in_f32(self) -> Self {
        Self { precision: Precision::F32, ..self }
    }

    /// The weight and its precision, if it is dense and the layer has neither bias nor adapter.
    pub fn plain_weight(&self) -> Option<(&Tensor, Precision)> {
        self.weight.tensor().filter(|_| self.is_plain()).map(|weight| (weight, self.precision))
    }

    /// Whether there is neither bias nor adapter.
    fn is_plain(&self) -> bool {
        self.bias.is_none() && self.lora.is_none()
    }

    /// The compute precision of a dense weight; f32 for the other weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The precision of activations in a matmul with many rows.
    pub fn activation_precision(&self) -> Precision {
        match &self.weight {
            Weight::Dense(w) if w.dtype() == DType::BF16 => Precision::for_bf16_weights(),
            Weight::Trainable(_) | Weight::Dense(_) => self.precision,
            Weight::Mapped(w) => w.precision(),
            Weight::Quantized(w) => w.precision(),
        }
    }

    /// `(…, in)` to `(…, out)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.weight.apply(x, self.precision)?;
        if let Some(lora) = &self.lora {
            y = lora.apply(x, &y, &self.weight, self.precision)?;
        }
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// `(b, t, in)` to heads `(b, t, h, d)`.
    pub fn apply_to_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        if self.is_plain() {
            return self.weight.apply_to_heads(x, h, d, self.precision);
        }
        let (b, t, _) = x.dims3()?;
        Ok(self.apply(x)?.reshape((b, t, h, d))?)
    }

    /// `residual + x · wᵀ + b`; `x` is `(b, t, in)` or `(b, t, h, d)` with `h · d = in`.
    pub fn apply_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if self.lora.is_some() {
            return Ok((residual + self.apply(&self.weight.flatten_input(x)?)?.reshape(residual.shape())?)?);
        }
        let y = self.weight.apply_residual(x, residual, self.precision)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.tensor().into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(Lora::tensors))
    }
}
