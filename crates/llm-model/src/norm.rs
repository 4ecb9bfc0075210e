//! The norms of a decoder.

use candle_core::Tensor;
use llm_kernels::{layer_norm, rms_norm};

use crate::config::NormKind;
use crate::{ModelConfig, Params, Result};

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    weight: Tensor,       // (n,)
    bias: Option<Tensor>, // (n,), for layer norm
    plus_one: bool,
    eps: f64,
}

impl Norm {
    pub fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Self> {
        let bias = match config.norm {
            NormKind::Layer => Some(params.tensor(&format!("{name}.bias"))?),
            NormKind::Rms | NormKind::RmsPlusOne => None,
        };
        let plus_one = config.norm == NormKind::RmsPlusOne;
        Ok(Self { weight: params.tensor(&format!("{name}.weight"))?, bias, plus_one, eps: config.rms_norm_eps })
    }

    /// `(…, n)` to the same shape.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => layer_norm(x, &self.weight, bias, self.eps)?,
            None => rms_norm(x, &self.scale()?, self.eps)?,
        })
    }

    /// The scale `(n,)` and epsilon, if it is an RMS norm.
    pub fn rms(&self) -> Result<Option<(Tensor, f64)>> {
        if self.bias.is_some() { Ok(None) } else { Ok(Some((self.scale()?, self.eps))) }
    }

    fn scale(&self) -> Result<Tensor> {
        if self.plus_one { Ok((&self.weight + 1.)?) } else { Ok(self.weight.clone()) }
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}
