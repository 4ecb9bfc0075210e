//! Variables that are trained with a model and are not part of it, such as the projections of hidden states.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use llm_model::{read_safetensors, write_safetensors};

use super::{Gradients, Optimizer, OptimizerConfig, OptimizerKind};
use crate::{Error, Result};

/// Variables with their optimizer, AdamW, and accumulated gradients. They are clipped apart from the model.
#[derive(Debug)]
pub(super) struct Auxiliary {
    variables: BTreeMap<String, Var>,
    optimizer: Optimizer,
    gradients: Gradients,
}

/// Their values and the state of their optimizer after a step.
pub(super) type AuxiliaryState = [BTreeMap<String, Tensor>; 2];

/// The files of a checkpoint: values, optimizer.
const FILES: [&str; 2] = ["auxiliary.safetensors", "auxiliary_optimizer.safetensors"];

impl Auxiliary {
    /// The variables before their first step, or with the state in the folder `trainer` of a checkpoint.
    pub fn new(variables: &BTreeMap<String, Var>, config: &OptimizerConfig, trainer: Option<&Path>) -> Result<Self> {
        let config = OptimizerConfig { kind: OptimizerKind::AdamW, ..config.clone() };
        let mut optimizer = Optimizer::new(variables, &BTreeSet::new(), &config)?;
        if let Some(trainer) = trainer {
            let [values, state] = FILES.map(|file| trainer.join(file));
            let read = read_safetensors(&values)?;
            for (name, var) in variables {
                let value = read.get(name).filter(|value| value.dims() == var.dims()).ok_or_else(|| {
                    Error::BadFile(format!("{}: \"{name}\" is missing; remove this checkpoint", values.display()))
                })?;
                var.set(&value.to_device(var.device())?)?;
            }
            optimizer.restore(read_safetensors(&state)?, &state)?;
        }
        Ok(Self { variables: variables.clone(), optimizer, gradients: Gradients::default() })
    }

    /// Adds their gradients from the result of a backward.
    pub fn add(&mut self, grads: &mut GradStore) -> Result<()> {
        self.gradients.add_from(&self.variables, grads, &mut HashMap::new())
    }

    /// Takes one step with the accumulated gradients.
    pub fn step(&mut self, learning_rate: f64, max_grad_norm: f64) -> Result<()> {
        self.optimizer.clipped_step(&self.variables, &mut self.gradients, learning_rate, max_grad_norm)?;
        Ok(())
    }

    /// The name of a variable that is not finite.
    pub fn not_finite(&self) -> Result<Option<&str>> {
        for (name, var) in &self.variables {
            if !super::squares_are_finite(var)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The state, which shares its data with the variables.
    pub fn state(&self) -> Result<AuxiliaryState> {
        let values = self.variables.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Ok([values, self.optimizer.state()?])
    }
}

/// Writes a state to the folder `trainer` of a checkpoint.
pub(super) fn save(state: &AuxiliaryState, trainer: &Path) -> Result<()> {
    for (file, tensors) in FILES.iter().zip(state) {
        write_safetensors(trainer.join(file), tensors)?;
    }
    Ok(())
}
