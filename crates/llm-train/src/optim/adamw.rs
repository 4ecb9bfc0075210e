//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use llm_kernels::{AdamWStep, adamw_step};

use super::{OptimizerConfig, squares_are_finite};
use crate::{Error, Result};

/// AdamW with its moments. Weight decay applies to matrices only.
#[derive(Debug)]
pub struct AdamW {
    pub(super) config: OptimizerConfig,
    /// First and second moment, `(2, n)` for a variable of n elements.
    moments: BTreeMap<String, Tensor>,
    /// Step count of each variable for the bias correction, as in PyTorch: a variable without a gradient (an expert without
    /// tokens) does not count the step.
    pub(super) steps: BTreeMap<String, u64>,
}

/// The name of the step counts in the state.
const STEPS: &str = "steps";

impl AdamW {
    /// AdamW of these variables, with moments of 0.
    pub fn new(variables: &BTreeMap<String, Var>, config: &OptimizerConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in variables {
            moments.insert(name.clone(), Tensor::zeros((2, var.elem_count()), config.moments.dtype(), var.device())?);
        }
        let steps = moments.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { config: config.clone(), moments, steps })
    }

    /// Updates the variables that have a gradient. Gradients are multiplied by `gradient_scale`.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        let OptimizerConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        for (name, grad) in gradients {
            let (var, moments) = (&variables[name], &self.moments[name]);
            let weight_decay = if var.rank() > 1 { weight_decay } else { 0. };
            let step = self.steps.entry(name.clone()).or_default();
            *step += 1;
            let step = AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step: *step, gradient_scale };
            adamw_step(var, grad, moments, &step)?;
        }
        Ok(())
    }

    /// Moments and step counts.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.moments.clone();
        let steps: Vec<i64> = self.steps.values().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
        tensors.insert(STEPS.to_owned(), Tensor::new(steps, &Device::Cpu)?);
        Ok(tensors)
    }

    /// Replaces the state by one of [`Self::state`] that was read from `origin`, for error messages.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>, origin: &Path) -> Result<()> {
        let broken = |what: &str| Error::BadFile(format!("{}: {what}; remove this checkpoint", origin.display()));
        let steps = state.remove(STEPS).ok_or_else(|| broken("the step count is missing"))?;
        let steps = steps.to_vec1::<i64>()?;
        if steps.len() != self.steps.len() {
            return Err(broken(&format!("\"{STEPS}\" has {} counts for {} parameters", steps.len(), self.steps.len())));
        }
        for (count, read) in self.steps.values_mut().zip(steps) {
            *count = u64::try_from(read).map_err(|_| broken("a step count is negative"))?;
        }
        for (name, moments) in &mut self.moments {
            let read = state.remove(name).filter(|t| t.dims() == moments.dims());
            let read = read.ok_or_else(|| broken(&format!("the moments of \"{name}\" are missing")))?;
            // Files are read in f32; bf16 values stay the same.
            *moments = read.to_dtype(moments.dtype())?.to_device(moments.device())?;
        }
        Ok(())
    }

    /// The name of a variable whose moments are not finite, or whose squares are not finite.
    pub fn not_finite(&self) -> Result<Option<&str>> {
        for (name, moments) in &self.moments {
            if !squares_are_finite(moments)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
