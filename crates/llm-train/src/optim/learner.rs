//! A model that is trained.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Tensor, Var};
use llm_model::{Model, TensorSpec, read_safetensors, write_safetensors};
use rayon::prelude::*;

use super::auxiliary::{Auxiliary, AuxiliaryState, save as save_auxiliary};
use super::average::WeightAverage;
use super::{Gradients, Optimizer, OptimizerConfig, OptimizerKind, squares_are_finite};
use crate::{Error, Result};

/// A trainable model with its optimizer and its accumulated gradients.
#[derive(Debug)]
pub struct Learner {
    /// The model; its weights change with each step.
    pub model: Model,
    optimizer: Optimizer,
    gradients: Gradients,
    /// As in [`OptimizerConfig`].
    max_grad_norm: f64,
    /// The average of the weights, if it is the result.
    average: Option<WeightAverage>,
    /// Variables that are trained with the model and are not part of it.
    auxiliary: Option<Auxiliary>,
}

/// The state of a learner after a step, which later steps do not change.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// [`Learner::averaged`].
    pub model: Model,
    optimizer: BTreeMap<String, Tensor>,
    /// The state of the average and the weights that are trained.
    average: Option<BTreeMap<String, Tensor>>,
    auxiliary: Option<AuxiliaryState>,
}

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file of a checkpoint whose model is the average.
const WEIGHTS_FILE: &str = "weights.safetensors";

impl Snapshot {
    /// Writes what a checkpoint has besides its model to the folder `trainer`.
    pub fn save(&self, trainer: &Path) -> Result<()> {
        write_safetensors(trainer.join(OPTIMIZER_FILE), &self.optimizer)?;
        self.auxiliary.as_ref().map_or(Ok(()), |state| save_auxiliary(state, trainer))?;
        self.average.as_ref().map_or(Ok(()), |weights| Ok(write_safetensors(trainer.join(WEIGHTS_FILE), weights)?))
    }
}

/// Copies of tensors, made on all threads.
fn copies(tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    tensors.into_par_iter().map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
}

impl Learner {
    /// A learner before its first step; it is an error if `model` is frozen, or has an adapter that Muon cannot train.
    pub fn new(model: Model, config: &OptimizerConfig) -> Result<Self> {
        let variables = model.params().vars();
        if variables.is_empty() {
            return Err(Error::BadRequest("this model is frozen; train a copy: `model.trainable()`".to_owned()));
        }
        let specs = model.config().tensor_specs(model.head());
        if config.kind == OptimizerKind::Muon && variables.keys().any(|name| specs.iter().all(|s| s.name != *name)) {
            let message = "\"muon\" trains the matrices of a model; an adapter needs kind = \"adamw\"";
            return Err(Error::BadRequest(format!("optimizer.kind {message}")));
        }
        let hidden = specs.into_iter().filter(TensorSpec::is_hidden_matrix).map(|spec| spec.name).collect();
        let optimizer = Optimizer::new(&variables, &hidden, config)?;
        let model = model.in_precision(config.precision)?;
        let (gradients, max_grad_norm) = (Gradients::default(), config.max_grad_norm);
        Ok(Self { model, optimizer, gradients, max_grad_norm, average: None, auxiliary: None })
    }

    /// From now on also trains these variables, which are not part of the model; `trainer` is the folder of the checkpoint that the
    /// learner was made of, if it was.
    pub(crate) fn train_also(
        &mut self,
        variables: &BTreeMap<String, Var>,
        config: &OptimizerConfig,
        trainer: Option<&Path>,
    ) -> Result<()> {
        self.auxiliary = Some(Auxiliary::new(variables, config, trainer)?);
        Ok(())
    }

    /// From now on averages the weights over the steps, with this decay; `trainer` is the folder of the checkpoint that the learner
    /// was made of, if it was.
    pub(crate) fn average_weights(&mut self, decay: f64, trainer: Option<&Path>) -> Result<()> {
        self.average = Some(match trainer {
            None => WeightAverage::new(&self.model, decay)?,
            Some(trainer) => WeightAverage::restore(&self.model, decay, &trainer.join(WEIGHTS_FILE))?,
        });
        Ok(())
    }

    /// The model to evaluate and to save: the one with the averaged weights if they are averaged, else the trained one.
    pub fn averaged(&self) -> &Model {
        self.average.as_ref().map_or(&self.model, |average| &average.model)
    }

    /// A copy of the state.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let average = self.average.as_ref().map(|average| copies(average.state(&self.model)?)).transpose()?;
        let auxiliary = self.auxiliary.as_ref().map(|auxiliary| {
            let [values, optimizer] = auxiliary.state()?;
            Ok::<_, Error>([copies(values)?, copies(optimizer)?])
        });
        let (model, optimizer) = (self.averaged().trainable()?, copies(self.optimizer.state()?)?);
        Ok(Snapshot { model, optimizer, average, auxiliary: auxiliary.transpose()? })
    }

    /// Adds the gradients of `loss` (a scalar) to the accumulated gradients.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        let mut grads = loss.backward()?;
        if let Some(auxiliary) = &mut self.auxiliary {
            auxiliary.add(&mut grads)?;
        }
        let mut recomputed = self.model.take_recomputed_gradients();
        self.gradients.add_from(&self.model.params().vars(), &mut grads, &mut recomputed)
    }

    /// The gradients accumulated since the last step, by parameter name.
    pub fn gradients(&self) -> &BTreeMap<String, Tensor> {
        self.gradients.sums()
    }

    /// Clips the accumulated gradients, takes one step and clears the gradients. Returns the global norm before clipping; if it is
    /// not finite the weights do not change.
    pub fn step(&mut self, learning_rate: f64) -> Result<f64> {
        let variables = self.model.params().vars();
        let norm = self.optimizer.clipped_step(&variables, &mut self.gradients, learning_rate, self.max_grad_norm)?;
        if let Some(average) = self.average.as_mut().filter(|_| norm.is_finite()) {
            average.update(&self.model)?;
        }
        if let Some(auxiliary) = self.auxiliary.as_mut().filter(|_| norm.is_finite()) {
            auxiliary.step(learning_rate, self.max_grad_norm)?;
        }
        Ok(norm)
    }

    /// Describes the first weight, or state of the optimizer, that is not finite, or whose square is not finite.
    pub fn not_finite(&self) -> Result<Option<String>> {
        for (name, var) in &self.model.params().vars() {
            if !squares_are_finite(var)? {
                return Ok(Some(format!("the weight {name} is not finite, or too large")));
            }
        }
        if let Some(name) = self.auxiliary.as_ref().map(Auxiliary::not_finite).transpose()?.flatten() {
            return Ok(Some(format!("{name} is not finite, or too large")));
        }
        let name = self.optimizer.not_finite()?;
        Ok(name.map(|name| format!("the moments of {name} are not finite, or too large")))
    }

    /// Writes the state of the optimizer to a safetensors file.
    pub fn save_optimizer(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(write_safetensors(path, &self.optimizer.state()?)?)
    }

    /// Reads a file of [`Self::save_optimizer`].
    pub fn load_optimizer(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.optimizer.restore(read_safetensors(path)?, path)
    }
}

#[cfg(test)]
mod tests {
    use llm_model::{Batch, Head, ModelConfig};

    use super::*;
    use crate::optim::{AdamW, Moments};

    fn learner(decay: f64) -> Learner {
        let config = ModelConfig {
            vocab_size: 20,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..ModelConfig::default()
        };
        let model = Model::init(config, Head::LanguageModel, 3).unwrap();
        Learner::new(model, &self::config(decay)).unwrap()
    }

    fn config(weight_decay: f64) -> OptimizerConfig {
        OptimizerConfig { weight_decay, ..OptimizerConfig::default() }
    }

    #[test]
    fn weight_decay_applies_to_matrices_only() {
        let mut learner = learner(0.5);
        let zeros: BTreeMap<String, Tensor> =
            learner.model.params().vars().iter().map(|(n, v)| (n.clone(), v.zeros_like().unwrap())).collect();
        let before = learner.model.frozen().unwrap();
        learner.gradients = Gradients(zeros);
        learner.step(0.1).unwrap();
        for (name, after) in &learner.model.params().tensors() {
            let before = &before.params().tensors()[name];
            let expected = if after.rank() > 1 { (before * 0.95).unwrap() } else { before.clone() };
            let gap = (after - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(gap.to_scalar::<f32>().unwrap() < 1e-7, "{name}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_does_not_change_weights() {
        let mut learner = learner(0.);
        let before = learner.model.frozen().unwrap();
        let loss = (learner.model.forward(&Batch::new(&[vec![1, 2]]).unwrap()).unwrap().sum_all().unwrap() * f64::NAN)
            .unwrap();
        learner.backward(&loss).unwrap();
        assert!(!learner.step(0.1).unwrap().is_finite());
        for (name, after) in &learner.model.params().tensors() {
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(after), bits(&before.params().tensors()[name]), "{name}");
        }
    }

    #[test]
    fn activation_checkpointing_gives_equal_weights() {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let train = |checkpointed: bool| {
            let mut learner = learner(0.1);
            if checkpointed {
                learner.model.checkpoint_activations();
            }
            for step in 0..3 {
                for micro in 0..2 {
                    let ids = vec![vec![1, 2, 3 + step], vec![4 + micro, 5, 6]];
                    let hidden = learner.model.hidden(&Batch::new(&ids).unwrap(), None).unwrap();
                    let labels = [2, 3, 4, 5, 6, 7];
                    let loss = learner.model.cross_entropy(&hidden.flatten(0, 1).unwrap(), &labels).unwrap();
                    learner.backward(&loss).unwrap();
                }
                assert_eq!(learner.gradients().len(), learner.model.params().vars().len());
                learner.step(0.01).unwrap();
            }
            learner.model.params().tensors().values().map(bits).collect::<Vec<_>>()
        };
        assert_eq!(train(false), train(true));
    }

    /// Trains to predict each token from the one before, 2 x 60 steps with a restart between them if `dir` is given: the losses
    /// and the weights.
    fn trained(moments: Moments, dir: Option<&Path>) -> (Vec<f32>, Vec<Vec<f32>>) {
        let config = OptimizerConfig { moments, beta2: 0.999, ..config(0.1) };
        let mut learner = Learner::new(learner(0.1).model, &config).unwrap();
        let mut losses = Vec::new();
        for step in 0..120u32 {
            if let Some(path) = dir.filter(|_| step == 60).map(|dir| dir.join("optimizer.safetensors")) {
                learner.save_optimizer(&path).unwrap();
                learner = Learner::new(learner.model.trainable().unwrap(), &config).unwrap();
                learner.load_optimizer(&path).unwrap();
            }
            let ids: Vec<u32> = (0..24).map(|i| (3 + step + i * i) % 7).collect();
            let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id) * 2 % 7).collect();
            let hidden = learner.model.hidden(&Batch::new(&[ids]).unwrap(), None).unwrap();
            let loss = learner.model.cross_entropy(&hidden.flatten(0, 1).unwrap(), &labels).unwrap();
            learner.backward(&loss).unwrap();
            learner.step(0.01).unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
        }
        let weights = learner.model.params().tensors();
        (losses, weights.values().map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect())
    }

    #[test]
    fn bf16_moments_train_as_well_as_f32_and_resume_in_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let (wide, bf16) = (trained(Moments::F32, None), trained(Moments::Bf16, None));
        let last = |losses: &[f32]| losses[110..].iter().sum::<f32>() / 10.;
        assert!(last(&wide.0) < 0.5 * wide.0[0], "the model must learn: {:?}", wide.0);
        assert!((last(&bf16.0) - last(&wide.0)).abs() < 0.02 * wide.0[0], "{:?}\n{:?}", bf16.0, wide.0);
        assert_ne!(bf16.1, wide.1);
        assert_eq!(trained(Moments::Bf16, Some(dir.path())).1, bf16.1);
    }

    /// AdamW of `torch.optim.AdamW` (one step count per parameter) for one number.
    fn reference_adamw(w: f64, gradients: &[f64], learning_rate: f64, config: &OptimizerConfig) -> f64 {
        let (mut w, mut m, mut v) = (w, 0., 0.);
        for (n, g) in gradients.iter().enumerate() {
            let n = n as i32 + 1;
            m = config.beta1 * m + (1. - config.beta1) * g;
            v = config.beta2 * v + (1. - config.beta2) * g * g;
            let (m_hat, v_hat) = (m / (1. - config.beta1.powi(n)), v / (1. - config.beta2.powi(n)));
            w -= learning_rate * config.weight_decay * w;
            w -= learning_rate * m_hat / (v_hat.sqrt() + config.eps);
        }
        w
    }

    #[test]
    fn a_parameter_without_a_gradient_does_not_count_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        let mut learner = learner(0.1);
        learner.max_grad_norm = 0.;
        let (dense, sparse) = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
        let first = |learner: &Learner, name: &str| {
            let weight = learner.model.params().tensors()[name].flatten_all().unwrap();
            f64::from(weight.get(0).unwrap().to_scalar::<f32>().unwrap())
        };
        let before = [first(&learner, dense), first(&learner, sparse)];
        let give = |learner: &mut Learner, name: &str, g: f64| {
            let gradient = (learner.model.params().tensors()[name].ones_like().unwrap() * g).unwrap();
            learner.gradients.0.insert(name.to_owned(), gradient);
        };
        let sparse_gradients = [None, None, Some(0.5), None, Some(-2.)];
        for (step, g) in sparse_gradients.into_iter().enumerate() {
            give(&mut learner, dense, 1. + step as f64);
            if let Some(g) = g {
                give(&mut learner, sparse, g);
            }
            learner.step(0.01).unwrap();
            // Step counts are saved and loaded.
            learner.save_optimizer(&path).unwrap();
            let Optimizer::AdamW(adamw) = &mut learner.optimizer else { unreachable!() };
            adamw.steps.values_mut().for_each(|count| *count = 77);
            learner.load_optimizer(&path).unwrap();
        }
        let Optimizer::AdamW(AdamW { config, .. }) = &learner.optimizer else { unreachable!() };
        let expected = [
            reference_adamw(before[0], &[1., 2., 3., 4., 5.], 0.01, config),
            reference_adamw(before[1], &[0.5, -2.], 0.01, config),
        ];
        for (expected, name) in expected.into_iter().zip([dense, sparse]) {
            let found = first(&learner, name);
            assert!((found - expected).abs() < 2e-6, "{name}: {found}, expected {expected}");
        }
        // The first step of a parameter has the full learning rate, whenever it happens.
        let late = reference_adamw(before[1], &[0.5], 0.01, config);
        assert!((before[1] - late - 0.01 * (1. + 0.1 * before[1])).abs() < 1e-6);
    }

    #[test]
    fn a_loaded_optimizer_continues_with_equal_weights() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, batch) = (learner(0.1), Batch::new(&[vec![1, 2, 3]]).unwrap());
        let train = |learner: &mut Learner| {
            let loss = learner.model.forward(&batch).unwrap().sqr().unwrap().mean_all().unwrap();
            learner.backward(&loss).unwrap();
            learner.step(0.01).unwrap();
        };
        train(&mut one);
        one.save_optimizer(&dir.path().join("optimizer.safetensors")).unwrap();
        one.model.save(dir.path()).unwrap();
        let model = Model::load(dir.path()).unwrap().trainable().unwrap();
        let mut two = Learner::new(model, &config(0.1)).unwrap();
        two.load_optimizer(&dir.path().join("optimizer.safetensors")).unwrap();
        train(&mut one);
        train(&mut two);
        for (name, a) in &one.model.params().tensors() {
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(a), bits(&two.model.params().tensors()[name]), "{name}");
        }
    }
}
