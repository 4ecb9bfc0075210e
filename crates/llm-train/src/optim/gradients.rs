//! Gradient accumulation.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_kernels::sum_of_squares;
use llm_model::Model;

use crate::Result;

/// Sums of gradients over the micro-batches of a step, by parameter name.
#[derive(Debug, Default)]
pub struct Gradients(pub(super) BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds the gradients of `loss` (a scalar) with respect to the variables of `model`.
    pub fn add(&mut self, model: &Model, loss: &Tensor) -> Result<()> {
        let mut grads = loss.backward()?;
        let mut recomputed = model.take_recomputed_gradients();
        for (name, var) in &model.params().vars() {
            let Some(grad) = grads.remove(var).or_else(|| recomputed.remove(&var.id())) else { continue };
            let sum = match self.0.remove(name) {
                Some(before) => (before + grad)?,
                None => grad,
            };
            self.0.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// The sums so far.
    pub fn sums(&self) -> &BTreeMap<String, Tensor> {
        &self.0
    }

    /// Ends the accumulation: returns the gradients of the step, and their global norm. Every optimizer step gets its gradients
    /// here, so this is the place to sum them over machines.
    pub fn take(&mut self) -> Result<(BTreeMap<String, Tensor>, f64)> {
        let gradients = std::mem::take(&mut self.0);
        let mut square = 0.;
        for gradient in gradients.values() {
            square += sum_of_squares(gradient)?;
        }
        Ok((gradients, square.sqrt()))
    }
}
