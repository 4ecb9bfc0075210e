//! The MLP of a block, and of each expert.

use candle_core::{D, Tensor};
use llm_kernels::{MlpWeights, Precision, activate, gated_activation, join, mlp_block};

use crate::linear::Linear;
use crate::{ModelConfig, Params, Result};

/// The MLP: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    gate_proj: Option<Linear>,    // (intermediate, hidden)
    up_proj: Linear,              // (intermediate, hidden)
    pub(super) down_proj: Linear, // (hidden, intermediate)
    pub(super) activation: llm_kernels::Activation,
}

impl Mlp {
    pub fn new(config: &ModelConfig, params: &Params, name: &str) -> Result<Self> {
        let linear = |part: &str| Linear::new(params, &format!("{name}.{part}"));
        Ok(Self {
            gate_proj: config.gated_mlp.then(|| linear("gate_proj")).transpose()?,
            up_proj: linear("up_proj")?,
            down_proj: linear("down_proj")?,
            activation: config.hidden_act.kernel(),
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.plain_weights() {
            Some((weights, precision)) => Ok(mlp_block(x, None, weights, self.activation, precision)?),
            None => self.down_proj.apply(&self.inner(x)?),
        }
    }

    /// The input of `down_proj`, `(…, intermediate)`.
    pub(super) fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let Some(gate) = &self.gate_proj else {
            return Ok(activate(&self.up_proj.apply(x)?, self.activation)?);
        };
        let rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
        let (gate, up) = join(rows, || gate.apply(x), || self.up_proj.apply(x));
        Ok(gated_activation(&gate?, &up?, self.activation)?)
    }

    /// The weights and their precision, if there is a gate, they are dense, and there are no biases or adapters.
    pub(super) fn plain_weights(&self) -> Option<(MlpWeights<'_>, Precision)> {
        let (gate, precision) = self.gate_proj.as_ref()?.plain_weight()?;
        let (up, down) = (self.up_proj.plain_weight()?.0, self.down_proj.plain_weight()?.0);
        Some((MlpWeights { gate, up, down }, precision))
    }

    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj]).flat_map(Linear::tensors)
    }
}
