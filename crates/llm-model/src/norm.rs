//! The norms of a decoder.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use crate::ModelConfig;
use crate::config::NormKind;
use crate::weight_path::WeightPath;

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    weight: Tensor,       // (n,)
    bias: Option<Tensor>, // (n,), for layer norm
    plus_one: bool,
    eps: f64,
}

impl Norm {
    pub fn new(config: &ModelConfig, w: &WeightPath) -> crate::Result<Self> {
        let bias = match config.norm {
            NormKind::Layer => Some(w.tensor("bias")?),
            NormKind::Rms | NormKind::RmsPlusOne => None,
        };
        let plus_one = config.norm == NormKind::RmsPlusOne;
        Ok(Self { weight: w.tensor("weight")?, bias, plus_one, eps: config.rms_norm_eps })
    }

    /// The norm with its weights.
    pub fn kernel(&self) -> Result<llm_kernels::Norm> {
        let (weight, eps) = (self.weight.clone(), self.eps);
        Ok(match &self.bias {
            Some(bias) => llm_kernels::Norm::Layer { weight, bias: bias.clone(), eps },
            None => llm_kernels::Norm::Rms { weight: if self.plus_one { (weight + 1.)? } else { weight }, eps },
        })
    }

    /// The tensors that may be trainable.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

/// `(…, n)` to the same shape.
impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.kernel()?.forward(x)
    }
}
