//! Attention roll-out (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

use candle_core::{DType, Device, Result, Tensor};

/// The product over the layers of `(A + I) / 2`: A is the mean of the heads, I the residual connection.
pub(super) struct Rollout {
    identity: Tensor, // (t, t)
    /// The sum of the heads of this layer, `(t, t)`, and their number.
    heads: Option<Tensor>,
    count: usize,
    product: Option<Tensor>, // (t, t)
}

impl Rollout {
    pub fn new(t: usize) -> Result<Self> {
        Ok(Self { identity: Tensor::eye(t, DType::F32, &Device::Cpu)?, heads: None, count: 0, product: None })
    }

    /// Adds the weights of a head, `(t, t)`.
    pub fn add_head(&mut self, weights: &Tensor) -> Result<()> {
        self.heads = Some(match self.heads.take() {
            None => weights.clone(),
            Some(sum) => (sum + weights)?,
        });
        self.count += 1;
        Ok(())
    }

    /// Ends a layer; returns the roll-out up to it, `(t, t)` in row-major order.
    pub fn end_layer(&mut self) -> Result<Vec<f32>> {
        let sum = self.heads.take().unwrap_or_else(|| self.identity.clone());
        let mean = (sum / self.count.max(1) as f64)?;
        self.count = 0;
        let layer = ((mean + &self.identity)? / 2.)?;
        let product = match &self.product {
            None => layer,
            Some(product) => layer.matmul(product)?,
        };
        let rows = product.flatten_all()?.to_vec1()?;
        self.product = Some(product);
        Ok(rows)
    }
}
