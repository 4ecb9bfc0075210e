//! A projection of a block: a linear layer with a weight in any format, optional bias and optional adapter.

use candle_core::{Result, Tensor};

use super::dropout::{Dropout, dropout};
use super::linear::{linear_reshaped, linear_residual, linear_with_precision};
use super::linear_mapped::{MappedWeight, linear_mapped};
use super::linear_quantized::linear_quantized;
use crate::{Precision, QuantizedWeight};

/// The weight `(out, in)` of a projection.
#[derive(Debug, Clone, Copy)]
pub enum ProjectionWeight<'a> {
    /// A tensor, and the precision of its matmuls.
    Dense(&'a Tensor, Precision),
    /// A matrix in a memory-mapped file.
    Mapped(&'a MappedWeight),
    /// A matrix in a block format.
    Quantized(&'a QuantizedWeight),
}

impl ProjectionWeight<'_> {
    /// The shape, `(out, in)`.
    fn dims(self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(w, _) => w.dims2(),
            Self::Mapped(w) => Ok(w.shape()),
            Self::Quantized(w) => Ok(w.shape()),
        }
    }

    /// `x · wᵀ`.
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w, precision) => linear_with_precision(x, w, precision),
            Self::Mapped(w) => linear_mapped(x, w),
            Self::Quantized(w) => linear_quantized(x, w),
        }
    }
}

/// A `LoRA` adapter (Hu et al. 2021, arXiv 2106.09685): `y + scale · (x · aᵀ) · bᵀ` for the result `y` of the weight; with
/// `DoRA` (Liu et al. 2024, arXiv 2402.09353) times a scale for each feature.
#[derive(Debug, Clone)]
pub struct LoraWeights {
    /// `(r, in)`.
    pub a: Tensor,
    /// `(out, r)`.
    pub b: Tensor,
    /// The factor of the update.
    pub scale: f64,
    /// The scale of `DoRA`, `(out,)`.
    pub dora_scale: Option<Tensor>,
    /// Dropout of the input of `a`.
    pub dropout: Option<Dropout>,
}

/// `x · wᵀ + bias`, with the adapters before the bias.
#[derive(Debug, Clone)]
pub struct Projection<'a> {
    /// `(out, in)`.
    pub weight: ProjectionWeight<'a>,
    /// `(out,)`.
    pub bias: Option<&'a Tensor>,
    /// The adapters, each on the result of the earlier ones; usually one or none.
    pub lora: Vec<LoraWeights>,
}

impl<'a> Projection<'a> {
    /// A projection with a tensor `(out, in)` only.
    pub fn dense(weight: &'a Tensor, precision: Precision) -> Self {
        Self { weight: ProjectionWeight::Dense(weight, precision), bias: None, lora: Vec::new() }
    }

    /// The number of output features.
    pub fn out_features(&self) -> Result<usize> {
        Ok(self.shape()?.0)
    }

    /// Output and input features.
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        self.weight.dims()
    }

    /// The tensor and its precision, if there is neither bias nor adapter.
    fn plain(&self) -> Option<(&'a Tensor, Precision)> {
        match self.weight {
            ProjectionWeight::Dense(w, precision) if self.is_plain() => Some((w, precision)),
            _ => None,
        }
    }

    fn is_plain(&self) -> bool {
        self.bias.is_none() && self.lora.is_empty()
    }

    /// `(…, in)` to `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.weight.forward(x)?;
        let precision = match self.weight {
            ProjectionWeight::Dense(_, precision) => precision,
            ProjectionWeight::Mapped(_) | ProjectionWeight::Quantized(_) => Precision::F32,
        };
        for LoraWeights { a, b, scale, dora_scale, dropout: mask } in &self.lora {
            let x = mask.map_or_else(|| Ok(x.clone()), |mask| dropout(x, mask))?;
            let low = (linear_with_precision(&x, a, precision)? * *scale)?; // (…, r)
            y = linear_residual(&low, b, &y, precision)?;
            if let Some(scale) = dora_scale {
                y = y.broadcast_mul(scale)?;
            }
        }
        self.add_bias(y)
    }

    /// `(b, t, in)` to heads `(b, t, h, d)`.
    pub fn forward_heads(&self, x: &Tensor, h: usize, d: usize) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        match self.plain() {
            Some((w, precision)) => linear_reshaped(x, w, &[b, t, h, d], precision),
            None => self.forward(x)?.reshape((b, t, h, d)),
        }
    }

    /// `residual + x · wᵀ + bias`; `x` is `(b, t, in)` or `(b, t, h, d)` with `h · d = in`.
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self.weight {
            ProjectionWeight::Dense(w, precision) if self.lora.is_empty() => {
                self.add_bias(linear_residual(x, w, residual, precision)?)
            }
            _ => {
                let x = x.reshape(((), self.weight.dims()?.1))?;
                match self.lora.is_empty() {
                    false => residual + self.forward(&x)?.reshape(residual.shape())?,
                    true => self.add_bias((residual + self.weight.forward(&x)?.reshape(residual.shape())?)?),
                }
            }
        }
    }

    fn add_bias(&self, y: Tensor) -> Result<Tensor> {
        self.bias.map_or_else(|| Ok(y.clone()), |bias| y.broadcast_add(bias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockFormat;
    use crate::testing::random;

    fn assert_near(a: &Tensor, b: &Tensor, what: &str) -> Result<()> {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let difference = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "{what}: {difference}"); // the sums have other orders
        Ok(())
    }

    #[test]
    fn heads_and_residual_have_the_values_of_the_layer_for_every_weight() -> Result<()> {
        let (x, residual) = (random(&[2, 3, 32], 1, 1.)?, random(&[2, 3, 8], 2, 1.)?);
        let (w, bias) = (random(&[8, 32], 3, 0.2)?, random(&[8], 4, 1.)?);
        let (a, b, dora) = (random(&[4, 32], 5, 0.2)?, random(&[8, 4], 6, 0.2)?, random(&[8], 7, 1.)?);
        let quantized = QuantizedWeight::quantize(&w, BlockFormat::Q8_0)?;
        let dense = [ProjectionWeight::Dense(&w, Precision::F32), ProjectionWeight::Quantized(&quantized)];
        for (weight, w) in dense.into_iter().zip([w.clone(), quantized.dequantize()?]) {
            for (bias, adapted, dora_scale) in [
                (None, false, None),
                (Some(&bias), false, None),
                (Some(&bias), true, None),
                (None, true, Some(dora.clone())),
            ] {
                let what = format!("{weight:?}, bias {}, adapter {adapted}", bias.is_some());
                let (scale, dora) = (2., dora_scale.clone());
                let lora = LoraWeights { a: a.clone(), b: b.clone(), scale, dora_scale: dora, dropout: None };
                let projection = Projection { weight, bias, lora: adapted.then_some(lora).into_iter().collect() };
                let y = projection.forward(&x)?;
                assert_near(&projection.forward_heads(&x, 4, 2)?, &y.reshape((2, 3, 4, 2))?, &what)?;
                let heads = x.reshape((2, 3, 4, 8))?;
                assert_near(&projection.forward_residual(&heads, &residual)?, &(&residual + &y)?, &what)?;
                if matches!(weight, ProjectionWeight::Dense(..)) {
                    let delta = (b.matmul(&a)? * if adapted { 2. } else { 0. })?;
                    let mut expected = x.broadcast_matmul(&(&w + delta)?.t()?)?;
                    expected =
                        dora_scale.map_or_else(|| Ok(expected.clone()), |scale| expected.broadcast_mul(&scale))?;
                    expected = bias.map_or_else(|| Ok(expected.clone()), |bias| expected.broadcast_add(bias))?;
                    assert_near(&y, &expected, &what)?;
                }
            }
        }
        Ok(())
    }
}
