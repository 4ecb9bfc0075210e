//! A weight matrix in any format, and its matmuls.

use candle_core::{DType, Tensor};
use llm_kernels::{
    MappedWeight, Precision, QuantizedWeight, linear_mapped, linear_quantized, linear_reshaped, linear_residual,
    linear_with_precision,
};

use crate::Result;

/// A weight matrix `(out, in)`: a dense tensor with the compute precision of its matmuls, block-quantised, or
/// memory-mapped. A dense weight can also be a vector.
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
    /// `x · wᵀ`: `(…, in)` to `(…, out)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_with_precision(x, w, *precision)?,
            Self::Quantized(w) => linear_quantized(x, w)?,
            Self::Mapped(w) => linear_mapped(x, w)?,
        })
    }

    /// `x · wᵀ` reshaped to heads: `(b, t, in)` to `(b, t, h, d)`.
    pub fn apply_to_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        Ok(match self {
            Self::Dense(w, precision) => linear_reshaped(x, w, &[b, t, h, d], *precision)?,
            Self::Quantized(_) | Self::Mapped(_) => self.apply(x)?.reshape((b, t, h, d))?,
        })
    }

    /// `residual + x · wᵀ`; `x` is `(b, t, in)` or `(b, t, h, d)` with `h · d = in`.
    pub fn apply_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, precision) => linear_residual(x, w, residual, *precision)?,
            Self::Quantized(_) | Self::Mapped(_) => {
                (residual + self.apply(&self.flatten_input(x)?)?.reshape(residual.shape())?)?
            }
        })
    }

    /// Gathers the rows `ids` `(n,)`: `(n, in)` in f32 or f64.
    pub fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            // Weights can be bf16; activations are not.
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.index_select(ids, 0)?.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.index_select(ids, 0)?,
            Self::Quantized(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
            Self::Mapped(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
        })
    }

    /// Flattens `x`, which can have separate heads, to `(n, in)`.
    pub fn flatten_input(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape(((), self.dims()[1]))?)
    }

    /// The precision of activations in a matmul with many rows.
    pub fn activation_precision(&self) -> Precision {
        match self {
            Self::Dense(w, _) if w.dtype() == DType::BF16 => Precision::for_bf16_weights(),
            Self::Dense(_, precision) => *precision,
            Self::Quantized(w) => w.precision(),
            Self::Mapped(w) => w.precision(),
        }
    }

    /// The compute precision of a dense weight; f32 for the other formats.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Dense(_, precision) => *precision,
            Self::Quantized(_) | Self::Mapped(_) => Precision::F32,
        }
    }

    /// The shape.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Dense(w, _) => w.dims().to_vec(),
            Self::Quantized(w) => vec![w.shape().0, w.shape().1],
            Self::Mapped(w) => vec![w.shape().0, w.shape().1],
        }
    }

    /// The matrix as a dense tensor in f32 or f64.
    pub fn dense(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(w, _) if w.dtype() == DType::BF16 => w.to_dtype(DType::F32)?,
            Self::Dense(w, _) => w.clone(),
            Self::Quantized(w) => w.dequantize()?,
            Self::Mapped(w) => w.to_tensor()?,
        })
    }
}
