//! An exponential moving average of the weights of a model (Polyak and Juditsky 1992).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use llm_model::{Model, read_safetensors};

use crate::{Error, Result};

/// The average of the weights of a model in training.
#[derive(Debug, Clone)]
pub(crate) struct WeightAverage {
    decay: f64,
    /// Number of steps.
    updates: u64,
    /// The model with the averaged weights.
    pub model: Model,
}

/// The name of the number of steps in the file.
const UPDATES: &str = "updates";

impl WeightAverage {
    /// The average before the first step: the weights of `model`.
    pub fn new(model: &Model, decay: f64) -> Result<Self> {
        Ok(Self { decay, updates: 0, model: model.frozen()? })
    }

    /// Adds the weights of `model` after a step: `average ← d·average + (1-d)·weight`. The first steps have a smaller decay,
    /// `(1 + steps) / (10 + steps)`, so that the initial weights are soon forgotten.
    pub fn update(&mut self, model: &Model) -> Result<()> {
        self.updates += 1;
        let decay = self.decay.min((1 + self.updates) as f64 / (10 + self.updates) as f64);
        let averages = self.model.params().tensors();
        for (name, weight) in model.params().vars() {
            let Some(average) = averages.get(&name) else { continue };
            let weight = weight.as_detached_tensor();
            average.slice_set(&(average + ((weight - average)? * (1. - decay))?)?, 0, 0)?;
        }
        Ok(())
    }

    /// What the model of a checkpoint, which is the averaged one, does not have: the weights of `model`, which is trained, and the number
    /// of steps.
    pub fn state(&self, model: &Model) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = model.params().tensors();
        let updates = i64::try_from(self.updates).unwrap_or(i64::MAX);
        tensors.insert(UPDATES.to_owned(), Tensor::new(&[updates], &Device::Cpu)?);
        Ok(tensors)
    }

    /// The average of a checkpoint, whose model `model` is; its weights become those of the file with [`Self::state`].
    pub fn restore(model: &Model, decay: f64, path: &Path) -> Result<Self> {
        let broken = |what: &str| Error::BadFile(format!("{}: {what}; remove this checkpoint", path.display()));
        let mut tensors = read_safetensors(path)?;
        let updates = tensors.remove(UPDATES).ok_or_else(|| broken("the number of steps is missing"))?;
        let updates = updates.to_vec1::<i64>()?.first().and_then(|&n| u64::try_from(n).ok());
        let average = Self {
            decay,
            updates: updates.ok_or_else(|| broken("the number of steps is negative"))?,
            model: model.frozen()?,
        };
        for (name, var) in model.params().vars() {
            let weight = tensors.remove(&name).filter(|t| t.dims() == var.dims());
            let weight = weight.ok_or_else(|| broken(&format!("the weight \"{name}\" is missing")))?;
            var.set(&weight.to_dtype(var.dtype())?.to_device(var.device())?)?;
        }
        Ok(average)
    }
}
