//! Linear layers with optional bias and LoRA adapters.

use candle_core::{DType, Result, Tensor};
use candle_nn::Module;
use llm_kernels::{Precision, Projection};

use crate::lora::Lora;
use crate::weight::Weight;
use crate::weight_path::WeightPath;

/// A linear layer: `x · wᵀ + b`, plus the LoRA adapters if there are any.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Weight, // (out, in)
    /// Compute precision of the matmul with a dense weight; f32 for the other weights.
    precision: Precision,
    bias: Option<Tensor>, // (out,)
    lora: Vec<Lora>,
}

impl Linear {
    /// The layer with `weight`, `bias` if the model has one, and the active adapters' parts for it.
    pub fn new(w: &WeightPath) -> crate::Result<Self> {
        let bias = if w.contains("bias") { Some(w.tensor("bias")?) } else { None };
        Self::adapted(w, w.get("weight")?.clone(), bias)
    }

    /// The output layer with the path `w` of a model that ties it to the embedding.
    pub fn tied(w: &WeightPath) -> crate::Result<Self> {
        Self::adapted(w, w.params.tied_output()?.clone(), None)
    }

    fn adapted(w: &WeightPath, weight: Weight, bias: Option<Tensor>) -> crate::Result<Self> {
        let lora = w.params.adapters().iter().map(|adapter| Lora::new(adapter, w.path(), &weight));
        let lora = lora.filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(Self { bias, lora, ..Self::of(weight, w.params.precision()) })
    }

    /// A layer without bias and adapter.
    fn of(weight: Weight, precision: Precision) -> Self {
        let precision = if weight.tensor().is_some() { precision } else { Precision::F32 };
        Self { weight, precision, bias: None, lora: Vec::new() }
    }

    /// The same layer with a matmul in f32.
    pub fn in_f32(self) -> Self {
        Self { precision: Precision::F32, ..self }
    }

    /// The layer as a part of a block of `llm_kernels`; `dropout` is the seed of a forward pass with dropout.
    pub fn projection(&self, dropout: Option<u64>) -> Result<Projection<'_>> {
        let lora = self.lora.iter().map(|lora| lora.weights(&self.weight, dropout)).collect::<Result<_>>()?;
        Ok(Projection { weight: self.weight.projection(self.precision), bias: self.bias.as_ref(), lora })
    }

    /// The matrix `(out, in)` with its adapters; they keep their gradient.
    pub fn matrix(&self) -> Result<Tensor> {
        let weight = self.weight.to_dense()?;
        self.lora.iter().try_fold(weight, |w, lora| lora.applied(&w, &self.weight))
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

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.tensor().into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(Lora::tensors))
    }
}

/// `(…, in)` to `(…, out)`.
impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.projection(None)?.forward(x)
    }
}
