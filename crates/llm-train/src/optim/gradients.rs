//! Gradient accumulation.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};
use llm_kernels::sum_of_squares;
use llm_model::Model;

use crate::Result;

/// Sums of gradients over the micro-batches of a step, by parameter name.
#[derive(Debug, Default)]
pub struct Gradients(pub(super) BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds the gradients of `loss` (a scalar) with respect to the variables of `model`.
    pub fn add(&mut self, model: &Model, loss: &Tensor) -> Result<()> {
        self.add_from(&model.params().vars(), &mut loss.backward()?, &mut model.take_recomputed_gradients())
    }

    /// Adds the gradients of these variables from the result of a backward, and from those of recomputed blocks: a variable that is
    /// used within such a block and outside of one has both.
    pub(super) fn add_from(
        &mut self,
        variables: &BTreeMap<String, Var>,
        grads: &mut GradStore,
        recomputed: &mut HashMap<TensorId, Tensor>,
    ) -> Result<()> {
        for (name, var) in variables {
            for grad in grads.remove(var).into_iter().chain(recomputed.remove(&var.id())) {
                let sum = match self.0.remove(name) {
                    Some(before) => (before + grad)?,
                    None => grad,
                };
                self.0.insert(name.clone(), sum);
            }
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_variable_within_and_outside_a_recomputed_block_has_both_gradients() {
        let device = Device::Cpu;
        let var = Var::new(&[1f32, 2.], &device).unwrap();
        let mut grads = (var.as_tensor() * 2.).unwrap().sum_all().unwrap().backward().unwrap();
        let inside = Tensor::new(&[3f32, 4.], &device).unwrap();
        let variables = BTreeMap::from([("x".to_owned(), var.clone())]);
        let mut gradients = Gradients::default();
        gradients.add_from(&variables, &mut grads, &mut HashMap::from([(var.id(), inside)])).unwrap();
        assert_eq!(gradients.sums()["x"].to_vec1::<f32>().unwrap(), [5., 6.]);
    }
}
