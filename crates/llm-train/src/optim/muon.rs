//! Muon for the matrices of the blocks (Jordan et al. 2024; scale and decay of Liu et al. 2025, arXiv 2502.16982).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Tensor, Var};
use llm_kernels::{MuonStep, muon_step};

use super::{AdamW, OptimizerConfig, squares_are_finite};
use crate::{Error, Result};

/// Decay of the momentum.
const MOMENTUM: f64 = 0.95;

/// Muon with its momentum, and `AdamW` for the variables that are no matrices of a block. The root mean square of an update of Muon is
/// about 0.2 times the learning rate, as that of `AdamW`; so both have the same learning rate and weight decay.
#[derive(Debug)]
pub struct Muon {
    config: OptimizerConfig,
    /// The momentum of each matrix, of its shape.
    momentum: BTreeMap<String, Tensor>,
    others: AdamW,
}

impl Muon {
    /// Muon of the variables with names in `hidden`, which are matrices, and `AdamW` of the others.
    pub fn new(variables: &BTreeMap<String, Var>, hidden: &BTreeSet<String>, config: &OptimizerConfig) -> Result<Self> {
        let (matrices, others): (BTreeMap<_, _>, BTreeMap<_, _>) = variables
            .iter()
            .map(|(name, var)| (name.clone(), var.clone()))
            .partition(|(name, _)| hidden.contains(name));
        let mut momentum = BTreeMap::new();
        for (name, var) in matrices {
            momentum.insert(name, Tensor::zeros(var.dims2()?, config.moments.dtype(), var.device())?);
        }
        Ok(Self { config: config.clone(), momentum, others: AdamW::new(&others, config)? })
    }

    /// Updates the variables that have a gradient. Gradients are multiplied by `gradient_scale`.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        let OptimizerConfig { weight_decay, precision, .. } = self.config;
        let step = MuonStep { learning_rate, momentum: MOMENTUM, weight_decay, gradient_scale, precision };
        let mut others = BTreeMap::new();
        for (name, gradient) in gradients {
            match self.momentum.get(name) {
                Some(momentum) => muon_step(&variables[name], gradient, momentum, &step)?,
                None => drop(others.insert(name.clone(), gradient.clone())),
            }
        }
        self.others.step(variables, &others, learning_rate, gradient_scale)
    }

    /// The momentum of each matrix, and the state of `AdamW`.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.others.state()?;
        tensors.extend(self.momentum.clone());
        Ok(tensors)
    }

    /// Replaces the state by one of [`Self::state`] that was read from `origin`, for error messages.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>, origin: &Path) -> Result<()> {
        for (name, momentum) in &mut self.momentum {
            let read = state.remove(name).filter(|t| t.dims() == momentum.dims()).ok_or_else(|| {
                let origin = origin.display();
                Error::BadFile(format!("{origin}: the momentum of \"{name}\" is missing; remove this checkpoint"))
            })?;
            // Files are read in f32; bf16 values stay the same.
            *momentum = read.to_dtype(momentum.dtype())?.to_device(momentum.device())?;
        }
        self.others.restore(state, origin)
    }

    /// The name of a variable whose state is not finite, or whose squares are not finite.
    pub fn not_finite(&self) -> Result<Option<&str>> {
        for (name, momentum) in &self.momentum {
            if !squares_are_finite(momentum)? {
                return Ok(Some(name));
            }
        }
        self.others.not_finite()
    }
}
