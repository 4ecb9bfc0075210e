//! A projection of a block: a linear layer with a weight in any format, optional bias and optional adapter.

use candle_core::{D, Device, Result, Storage, Tensor};

use super::dropout::{Dropout, dropout};
use super::few_rows::{FEW_ROWS, FewRowsWeight, few_rows};
use super::linear::{linear_reshaped, linear_residual, linear_with_precision, weight_slice};
use super::linear_mapped::{MappedWeight, linear_mapped};
use super::linear_quantized::linear_quantized;
use crate::cpu::contiguous;
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
        self.adapted(x, self.weight.forward(x)?)
    }

    /// The results of several projections of `x`, each `(…, out)`, with one parallel loop for all weights. `None` if `x` has
    /// many rows, if `x` or a weight needs a gradient, or if there is no fast path; then they run one by one.
    pub(crate) fn forward_joint<const N: usize>(all: [&Self; N], x: &Tensor) -> Result<Option<[Tensor; N]>> {
        let Some(products) = joint_products(&all, x)? else { return Ok(None) };
        let results = all.iter().zip(products).map(|(projection, y)| projection.adapted(x, y));
        Ok(results.collect::<Result<Vec<_>>>()?.try_into().ok())
    }

    /// The result for the product `y` of the weight: adapters and bias are added.
    fn adapted(&self, x: &Tensor, mut y: Tensor) -> Result<Tensor> {
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

/// `x · wᵀ` of each weight, or `None`: [`Projection::forward_joint`].
fn joint_products(all: &[&Projection], x: &Tensor) -> Result<Option<Vec<Tensor>>> {
    let k = x.dim(D::Minus1)?;
    let rows = x.elem_count().checked_div(k).unwrap_or_default();
    if rows == 0 || rows > FEW_ROWS || x.track_op() || !crate::is_fused(x) {
        return Ok(None);
    }
    let storages = all.iter().map(|projection| match projection.weight {
        ProjectionWeight::Dense(w, _) => Some(w.storage_and_layout()),
        ProjectionWeight::Mapped(_) | ProjectionWeight::Quantized(_) => None,
    });
    let storages: Vec<_> = storages.collect();
    let mut weights: Vec<FewRowsWeight> = Vec::with_capacity(all.len());
    for (projection, storage) in all.iter().zip(&storages) {
        let (m, width) = projection.shape()?;
        let weight = match (projection.weight, storage.as_ref().map(|(storage, layout)| (&**storage, layout))) {
            (ProjectionWeight::Mapped(w), _) => FewRowsWeight::Dense(w.matrix()?),
            (ProjectionWeight::Quantized(w), _) => FewRowsWeight::Blocks(w),
            (ProjectionWeight::Dense(w, _), Some((Storage::Cpu(storage), layout))) if !w.track_op() => {
                match weight_slice(storage, layout) {
                    Ok(slice) => FewRowsWeight::Dense(slice.matrix(m, width)),
                    Err(_) => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        if width != k || m == 0 {
            return Ok(None);
        }
        weights.push(weight);
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return Ok(None) };
    let tensor = |(y, weight): (Vec<f32>, &FewRowsWeight)| {
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = weight.shape().0;
        }
        Tensor::from_vec(y, shape, &Device::Cpu)
    };
    let products = few_rows(contiguous(storage, layout)?, &weights);
    products.into_iter().zip(&weights).map(tensor).collect::<Result<Vec<_>>>().map(Some)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

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

    #[test]
    fn projections_in_one_loop_have_the_bits_of_each_alone() -> Result<()> {
        if crate::skip_on_reference_path("it has no joint loop") {
            return Ok(());
        }
        let (w, narrow, bias) =
            (random(&[70, 32], 3, 1.)?, random(&[9, 32], 4, 1.)?.to_dtype(DType::BF16)?, random(&[9], 5, 1.)?);
        let lora = LoraWeights {
            a: random(&[4, 32], 6, 1.)?,
            b: random(&[70, 4], 7, 1.)?,
            scale: 2.,
            dora_scale: None,
            dropout: None,
        };
        let first = Projection { lora: vec![lora], ..Projection::dense(&w, Precision::Bf16) };
        let second = Projection { bias: Some(&bias), ..Projection::dense(&narrow, Precision::F32) };
        let quantized = QuantizedWeight::quantize(&w, BlockFormat::Q8_0)?;
        let third = Projection { weight: ProjectionWeight::Quantized(&quantized), bias: None, lora: Vec::new() };
        for n in [1, 5, 64] {
            let x = random(&[1, n, 32], n as u64, 1.)?;
            let joint = Projection::forward_joint([&first, &second, &third], &x)?.unwrap();
            for (joint, projection) in joint.iter().zip([&first, &second, &third]) {
                let alone = projection.forward(&x)?;
                assert_eq!(joint.dims(), alone.dims());
                assert_eq!(joint.flatten_all()?.to_vec1::<f32>()?, alone.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        // Many rows, none, a gradient, or another number of features.
        let trained = candle_core::Var::from_tensor(&random(&[2, 32], 1, 1.)?)?;
        for x in
            [random(&[65, 32], 1, 1.)?, random(&[0, 32], 1, 1.)?, trained.as_tensor().clone(), random(&[2, 31], 1, 1.)?]
        {
            assert!(Projection::forward_joint([&first, &second], &x)?.is_none());
        }
        Ok(())
    }
}
