//! A matrix in whichever form it is held, and its products.

use candle_core::{DType, Tensor};
use llm_kernels::{
    MappedWeight, Precision, QuantizedWeight, linear_mapped, linear_quantized, linear_reshaped, linear_residual,
    linear_with_precision,
};

use crate::Result;

/// A matrix of a model: a tensor, blocks, or numbers that are read where they lie in a file.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor, Precision),
    Quantized(QuantizedWeight),
    Mapped(MappedWeight),
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor, Precision::F32)
    }
}

impl Matrix {
    /// `x · wᵀ`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_with_precision(x, w, *precision)?,
            Self::Quantized(w) => linear_quantized(x, w)?,
            Self::Mapped(w) => linear_mapped(x, w)?,
        })
    }

    /// `x · wᵀ` in heads: `(b, t, in)` to `(b, t, h, d)`.
    pub fn apply_to_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        Ok(match self {
            Self::Dense(w, precision) => linear_reshaped(x, w, &[b, t, h, d], *precision)?,
            Self::Quantized(_) | Self::Mapped(_) => self.apply(x)?.reshape((b, t, h, d))?,
        })
    }

    /// `residual + x · wᵀ`; `x` may be in heads.
    pub fn apply_and_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_residual(x, w, residual, *precision)?,
            Self::Quantized(_) | Self::Mapped(_) => {
                (residual + self.apply(&self.as_rows(x)?)?.reshape(residual.shape())?)?
            }
        })
    }

    /// Rows `ids` `(n,)` in f32 or f64: `(n, in)`.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            // Weights may be in bf16, what flows between them is not.
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.index_select(ids, 0)?.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.index_select(ids, 0)?,
            Self::Quantized(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
            Self::Mapped(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
        })
    }

    /// `x`, which may be in heads, as rows of what this matrix takes: `(n, in)`.
    pub fn as_rows(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape(((), self.dims()[1]))?)
    }

    /// What activations are rounded to in a product of many rows with it.
    pub fn rounding(&self) -> Precision {
        match self {
            Self::Dense(w, _) if w.dtype() == DType::BF16 => Precision::for_bf16_weights(),
            Self::Dense(_, precision) => *precision,
            Self::Quantized(w) => w.precision(),
            Self::Mapped(w) => w.precision(),
        }
    }

    /// What it is rounded to as it is multiplied.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Dense(_, precision) => *precision,
            Self::Quantized(_) | Self::Mapped(_) => Precision::F32,
        }
    }

    /// Its shape; a tensor may be a vector too.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Dense(w, _) => w.dims().to_vec(),
            Self::Quantized(w) => vec![w.shape().0, w.shape().1],
            Self::Mapped(w) => vec![w.shape().0, w.shape().1],
        }
    }

    /// The whole matrix, in f32 or f64.
    pub fn dense(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.clone(),
            Self::Quantized(w) => w.dequantize()?,
            Self::Mapped(w) => w.to_tensor()?,
        })
    }
}
