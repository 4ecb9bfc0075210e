//! An optimizer for any candle model.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{Error, Result, Var};

use super::{Gradients, Optimizer, OptimizerConfig, OptimizerKind};

/// An [`Optimizer`] of variables without names, as a `candle_nn::Optimizer`. It has the settings of [`OptimizerConfig`], except
/// schedule and precision (its kind must be `AdamW`), and the steps of [`super::Learner`]: gradients are clipped to `max_grad_norm`, and a step whose
/// gradients are not finite changes nothing.
#[derive(Debug)]
pub struct VarOptimizer {
    variables: BTreeMap<String, Var>,
    optimizer: Optimizer,
    learning_rate: f64,
    max_grad_norm: f64,
}

impl candle_nn::Optimizer for VarOptimizer {
    type Config = OptimizerConfig;

    fn new(vars: Vec<Var>, config: OptimizerConfig) -> Result<Self> {
        let variables = vars.into_iter().enumerate().map(|(i, var)| (format!("{i:06}"), var)).collect();
        if config.kind == OptimizerKind::Muon {
            candle_core::bail!("Muon needs to know the matrices of the blocks; use `Learner`, or OptimizerKind::AdamW");
        }
        let optimizer = Optimizer::new(&variables, &BTreeSet::new(), &config).map_err(Error::wrap)?;
        Ok(Self { variables, optimizer, learning_rate: config.learning_rate, max_grad_norm: config.max_grad_norm })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let gradient = |(name, var): (&String, &Var)| Some((name.clone(), gradients.get(var)?.clone()));
        let mut gradients = Gradients(self.variables.iter().filter_map(gradient).collect());
        let step = self.optimizer.clipped_step(&self.variables, &mut gradients, self.learning_rate, self.max_grad_norm);
        step.map(|_| ()).map_err(Error::wrap)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::Optimizer;
    use llm_model::{Batch, Head, Model, ModelConfig};

    use super::*;
    use crate::optim::Learner;

    fn model() -> Model {
        let config = ModelConfig {
            vocab_size: 20,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        };
        Model::init(config, Head::LanguageModel, 1).unwrap()
    }

    #[test]
    fn it_takes_the_steps_of_the_learner() {
        let config = OptimizerConfig { weight_decay: 0.3, max_grad_norm: 0.1, ..OptimizerConfig::default() };
        let (ours, mut learner) = (model(), Learner::new(model(), &config).unwrap());
        let mut optimizer = VarOptimizer::new(ours.params().vars().into_values().collect(), config).unwrap();
        optimizer.set_learning_rate(0.02);
        let loss = |model: &Model| {
            let logits = model.forward(&Batch::new(&[vec![1, 2, 3]]).unwrap()).unwrap();
            logits.sqr().unwrap().mean_all().unwrap()
        };
        for _ in 0..3 {
            optimizer.backward_step(&loss(&ours)).unwrap();
            let step = loss(&learner.model);
            learner.backward(&step).unwrap();
            learner.step(0.02).unwrap();
        }
        let theirs = learner.model.params().vars();
        for (name, var) in ours.params().vars() {
            let bits = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&var), bits(&theirs[&name]), "{name}");
        }
    }
}
