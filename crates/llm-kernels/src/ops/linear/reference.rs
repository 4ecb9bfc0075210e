//! The linear layer in candle operations.

use candle_core::{Result, Tensor};

/// `x · wᵀ` for `n` rows of `x`: `(n, out)`.
pub(super) fn reference(x: &Tensor, w: &Tensor, n: usize) -> Result<Tensor> {
    x.reshape((n, w.dim(1)?))?.matmul(&w.to_dtype(x.dtype())?.t()?)
}
