//! The MLP of a block, and of each expert: its weights. `llm_kernels::mlp_block` computes it.

use candle_core::{Result, Tensor};
use llm_kernels::MlpBlock;

use crate::ModelConfig;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weight_path::WeightPath;

/// The MLP: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    gate_proj: Option<Linear>, // (intermediate, hidden)
    up_proj: Linear,           // (intermediate, hidden)
    down_proj: Linear,         // (hidden, intermediate)
    activation: llm_kernels::Activation,
}

impl Mlp {
    pub fn new(config: &ModelConfig, w: &WeightPath) -> crate::Result<Self> {
        let linear = |name: &str| Linear::new(&w.pp(name));
        Ok(Self {
            gate_proj: config.gated_mlp.then(|| linear("gate_proj")).transpose()?,
            up_proj: linear("up_proj")?,
            down_proj: linear("down_proj")?,
            activation: config.hidden_act.kernel(),
        })
    }

    /// `residual` plus the MLP of `x` with the given norms before and after it, `(b, t, hidden)`.
    pub(super) fn forward_residual(
        &self,
        x: &Tensor,
        [norm, output_norm]: [Option<&Norm>; 2],
        residual: &Tensor,
        dropout: Option<u64>,
    ) -> Result<Tensor> {
        let kernel = |norm: Option<&Norm>| norm.map(Norm::kernel).transpose();
        let (norm, output_norm, residual) = (kernel(norm)?, kernel(output_norm)?, Some(residual));
        llm_kernels::mlp_block(x, &MlpBlock { norm, output_norm, residual, ..self.block(dropout)? })
    }

    fn block(&self, dropout: Option<u64>) -> Result<MlpBlock<'_>> {
        let projection = |linear| Linear::projection(linear, dropout);
        Ok(MlpBlock {
            norm: None,
            gate: self.gate_proj.as_ref().map(projection).transpose()?,
            up: projection(&self.up_proj)?,
            down: projection(&self.down_proj)?,
            activation: self.activation,
            output_norm: None,
            residual: None,
        })
    }

    /// The MLP without norms and residual, `(…, hidden)`; `dropout` is the seed of a forward pass with dropout.
    pub fn forward_with(&self, x: &Tensor, dropout: Option<u64>) -> Result<Tensor> {
        llm_kernels::mlp_block(x, &self.block(dropout)?)
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj]).flat_map(Linear::tensors)
    }
}
