//! A weight of a model: a tensor that is trainable, in memory, memory-mapped or quantised.

use candle_core::{DType, Device, Result, Tensor, Var};
use llm_kernels::{MappedWeight, Precision, ProjectionWeight, QuantizedWeight};

/// A matrix `(out, in)` or a vector. Only matrices can be memory-mapped or quantised.
#[derive(Debug, Clone)]
pub enum Weight {
    /// A candle variable: it has a gradient, and the optimizer changes it in place.
    Trainable(Var),
    /// A frozen tensor in memory.
    Dense(Tensor),
    /// A frozen matrix in a memory-mapped file, in the dtype of the file.
    Mapped(MappedWeight),
    /// A frozen matrix in a block format of ggml.
    Quantized(QuantizedWeight),
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl Weight {
    /// The tensor of a trainable or dense weight, with its gradient; none if it is mapped or quantised.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Trainable(var) => Some(var.as_tensor()),
            Self::Dense(tensor) => Some(tensor),
            Self::Mapped(_) | Self::Quantized(_) => None,
        }
    }

    /// The values as a tensor in f32 or f64. A trainable weight keeps its gradient; mapped and quantised weights are
    /// converted.
    pub fn to_dense(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Trainable(var) => var.as_tensor().clone(),
            Self::Dense(w) if w.dtype() == DType::BF16 => w.to_dtype(DType::F32)?,
            Self::Dense(w) => w.clone(),
            Self::Mapped(w) => w.to_tensor()?,
            Self::Quantized(w) => w.dequantize()?,
        })
    }

    /// The shape.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Trainable(var) => var.dims().to_vec(),
            Self::Dense(w) => w.dims().to_vec(),
            Self::Mapped(w) => vec![w.shape().0, w.shape().1],
            Self::Quantized(w) => vec![w.shape().0, w.shape().1],
        }
    }

    /// The dtype of the values; f32 for a quantised weight, whose values are computed in f32.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Trainable(w) => w.dtype(),
            Self::Dense(w) => w.dtype(),
            Self::Mapped(w) => w.dtype(),
            Self::Quantized(_) => DType::F32,
        }
    }

    /// The device. Mapped and quantised weights are in CPU memory.
    pub(crate) fn device(&self) -> Device {
        self.tensor().map_or(Device::Cpu, |tensor| tensor.device().clone())
    }

    /// A copy on `device`; a trainable weight becomes a new variable. bf16 stays bf16; mapped f16 and quantised weights
    /// become f32.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Trainable(var) => Self::Trainable(Var::from_tensor(&var.as_detached_tensor().to_device(device)?)?),
            Self::Mapped(w) if w.dtype() == DType::BF16 => {
                let (rows, cols) = w.shape();
                Self::Dense(Tensor::from_raw_buffer(w.bytes(), DType::BF16, &[rows, cols], device)?)
            }
            Self::Dense(w) => Self::Dense(w.detach().to_device(device)?),
            Self::Mapped(_) | Self::Quantized(_) => Self::Dense(self.to_dense()?.to_device(device)?),
        })
    }

    /// A trainable copy. Quantised weights cannot be trained and stay quantised.
    pub(crate) fn trainable(&self) -> Result<Self> {
        Ok(match self {
            Self::Quantized(_) => self.clone(),
            Self::Mapped(w) => Self::Trainable(Var::from_tensor(&w.to_tensor()?)?),
            Self::Trainable(_) | Self::Dense(_) => match self.tensor() {
                Some(tensor) => Self::Trainable(Var::from_tensor(&tensor.detach().copy()?)?),
                None => self.clone(),
            },
        })
    }

    /// A frozen snapshot: variables are copied, other weights are shared.
    pub(crate) fn frozen(&self) -> Result<Self> {
        Ok(match self.tensor() {
            Some(tensor) if tensor.is_variable() => Self::Dense(tensor.copy()?.detach()),
            Some(tensor) => Self::Dense(tensor.detach()),
            None => self.clone(),
        })
    }

    /// The same values without gradient. Nothing is copied: training the original changes this weight too.
    pub(crate) fn detached(&self) -> Self {
        self.tensor().map_or_else(|| self.clone(), |tensor| Self::Dense(tensor.detach()))
    }

    /// The weight of a projection; `precision` is that of a dense matmul.
    pub(crate) fn projection(&self, precision: Precision) -> ProjectionWeight<'_> {
        match self {
            Self::Trainable(w) => ProjectionWeight::Dense(w, precision),
            Self::Dense(w) => ProjectionWeight::Dense(w, precision),
            Self::Mapped(w) => ProjectionWeight::Mapped(w),
            Self::Quantized(w) => ProjectionWeight::Quantized(w),
        }
    }

    /// Gathers the rows `ids` `(n,)`, u32 in CPU memory: `(n, in)` in f32 or f64, on the device of the weight.
    pub(crate) fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Trainable(w) => w.index_select(&ids.to_device(w.device())?, 0)?,
            Self::Dense(w) => {
                let rows = w.index_select(&ids.to_device(w.device())?, 0)?;
                // Weights can be bf16; activations are not.
                if w.dtype() == DType::BF16 { rows.to_dtype(DType::F32)? } else { rows }
            }
            Self::Mapped(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
            Self::Quantized(w) => w.gather_rows(&ids.to_vec1::<u32>()?)?,
        })
    }
}
