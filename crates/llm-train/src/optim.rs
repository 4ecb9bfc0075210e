//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), learning rate schedules, and [`Learner`]: a model with its optimizer.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use llm_kernels::{AdamWStep, Precision, adamw_step, sum_of_squares};
use llm_model::{Model, read_safetensors, write_safetensors};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// Settings of the optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The decay of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Final learning rate of the cosine schedule, as a share of `learning_rate`.
    pub min_learning_rate_ratio: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay. It applies to matrices only, not to norms and biases.
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm; 0: no clipping.
    pub max_grad_norm: f64,
    /// Compute dtype of the matmuls, forward and backward. bf16 is about twice as fast on a CPU with bf16 instructions;
    /// weights, moments and sums stay in f32. In a recipe `auto` means bf16 on such a CPU and f32 on others; the run records
    /// the choice.
    #[serde(deserialize_with = "precision")]
    pub precision: Precision,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 20,
            min_learning_rate_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.,
            precision: Precision::F32,
        }
    }
}

/// Reads a precision, or `auto`.
fn precision<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Precision, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "auto" => Ok(Precision::for_bf16_weights()),
        _ => Precision::deserialize(text.into_deserializer()),
    }
}

/// The decay of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// A half cosine down to `min_learning_rate_ratio`.
    Cosine,
    /// Linear to 0.
    Linear,
    /// No decay.
    Constant,
}

impl OptimizerConfig {
    /// The learning rate of step `step` (counted from 0) of `steps`.
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let past = (step - self.warmup_steps) as f64 / (steps.saturating_sub(self.warmup_steps)).max(1) as f64;
        self.learning_rate
            * match self.schedule {
                Schedule::Cosine => {
                    let low = self.min_learning_rate_ratio;
                    low + (1. - low) * 0.5 * (1. + (std::f64::consts::PI * past.min(1.)).cos())
                }
                Schedule::Linear => 1. - past.min(1.),
                Schedule::Constant => 1.,
            }
    }
}

/// A trainable model with its optimizer state and its accumulated gradients.
#[derive(Debug)]
pub struct Learner {
    /// The model; its weights change with each step.
    pub model: Model,
    config: OptimizerConfig,
    moments: BTreeMap<String, Tensor>, // (2, n) each
    gradients: BTreeMap<String, Tensor>,
    /// Step count of each parameter for the bias correction, as in PyTorch: a parameter without a gradient (an expert without
    /// tokens) does not count the step.
    steps: BTreeMap<String, u64>,
}

impl Learner {
    /// A learner with zero moments; it is an error if `model` is frozen.
    pub fn new(model: Model, config: &OptimizerConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in &model.params().vars() {
            moments.insert(name.clone(), Tensor::zeros((2, var.elem_count()), DType::F32, var.device())?);
        }
        if moments.is_empty() {
            return Err(Error::Input("this model is frozen; train a copy: `model.trainable()`".to_owned()));
        }
        let model = model.in_precision(config.precision)?;
        let steps = moments.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { model, config: config.clone(), moments, gradients: BTreeMap::new(), steps })
    }

    /// Adds the gradients of `loss` (a scalar) to the accumulated gradients.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        let mut grads = loss.backward()?;
        let mut recomputed = self.model.take_recomputed_gradients();
        for (name, var) in &self.model.params().vars() {
            let Some(grad) = grads.remove(var).or_else(|| recomputed.remove(&var.id())) else { continue };
            let sum = match self.gradients.remove(name) {
                Some(before) => (before + grad)?,
                None => grad,
            };
            self.gradients.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// The gradients accumulated since the last step, by parameter name.
    pub fn gradients(&self) -> &BTreeMap<String, Tensor> {
        &self.gradients
    }

    /// Clips the accumulated gradients, takes one AdamW step and clears the gradients. Returns the global norm before clipping;
    /// if it is not finite the weights do not change.
    pub fn step(&mut self, learning_rate: f64) -> Result<f64> {
        let mut square = 0.;
        for grad in self.gradients.values() {
            square += sum_of_squares(grad)?;
        }
        let norm = square.sqrt();
        let gradients = std::mem::take(&mut self.gradients);
        if !norm.is_finite() {
            return Ok(norm);
        }
        let config = &self.config;
        let clip = config.max_grad_norm > 0. && norm > config.max_grad_norm;
        let vars = self.model.params().vars();
        for (name, grad) in &gradients {
            let (var, moments) = (&vars[name], &self.moments[name]);
            let matrix = var.rank() > 1;
            let steps = self.steps.entry(name.clone()).or_default();
            *steps += 1;
            let step = AdamWStep {
                learning_rate,
                beta1: config.beta1,
                beta2: config.beta2,
                eps: config.eps,
                weight_decay: if matrix { config.weight_decay } else { 0. },
                step: *steps,
                gradient_scale: if clip { config.max_grad_norm / norm } else { 1. },
            };
            adamw_step(var, grad, moments, &step)?;
        }
        Ok(norm)
    }

    /// Describes the first weight or moment that is not finite, or whose square is not finite.
    pub fn not_finite(&self) -> Result<Option<String>> {
        let vars = self.model.params().vars();
        let weights = vars.iter().map(|(name, var)| (name, "weight", var.as_tensor()));
        let moments = self.moments.iter().map(|(name, moments)| (name, "moments of", moments));
        for (name, what, tensor) in weights.chain(moments) {
            if !sum_of_squares(tensor)?.is_finite() {
                return Ok(Some(format!("the {what} {name} is not finite, or too large")));
            }
        }
        Ok(None)
    }

    /// Writes moments and step counts to a safetensors file.
    pub fn save_optimizer(&self, path: &Path) -> Result<()> {
        let mut tensors = self.moments.clone();
        let steps: Vec<i64> = self.steps.values().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
        tensors.insert(STEPS.to_owned(), Tensor::new(steps, &candle_core::Device::Cpu)?);
        Ok(write_safetensors(path, &tensors)?)
    }

    /// Reads a file of [`Self::save_optimizer`].
    pub fn load_optimizer(&mut self, path: &Path) -> Result<()> {
        let mut tensors = read_safetensors(path)?;
        let broken = |what: &str| Error::Input(format!("{}: {what}; remove this checkpoint", path.display()));
        let steps = tensors.remove(STEPS).ok_or_else(|| broken("the step count is missing"))?;
        let steps = steps.to_vec1::<i64>()?;
        if steps.len() != self.steps.len() {
            return Err(broken(&format!("\"{STEPS}\" has {} counts for {} parameters", steps.len(), self.steps.len())));
        }
        for (count, read) in self.steps.values_mut().zip(steps) {
            *count = u64::try_from(read).map_err(|_| broken("a step count is negative"))?;
        }
        for (name, moments) in &mut self.moments {
            let read = tensors.remove(name).filter(|t| t.dims() == moments.dims());
            *moments = read.ok_or_else(|| broken(&format!("the moments of \"{name}\" are missing")))?;
        }
        Ok(())
    }
}

const STEPS: &str = "steps";

#[cfg(test)]
mod tests {
    use llm_model::{Batch, Head, ModelConfig};

    use super::*;

    #[test]
    fn the_learning_rate_warms_up_and_decays() {
        let config = OptimizerConfig { learning_rate: 1., warmup_steps: 10, ..OptimizerConfig::default() };
        assert!((config.learning_rate_at(0, 110) - 0.1).abs() < 1e-12);
        assert!((config.learning_rate_at(9, 110) - 1.).abs() < 1e-12);
        assert!((config.learning_rate_at(60, 110) - 0.55).abs() < 1e-12);
        assert!((config.learning_rate_at(110, 110) - 0.1).abs() < 1e-12);
        let linear = OptimizerConfig { schedule: Schedule::Linear, ..config.clone() };
        assert!((linear.learning_rate_at(60, 110) - 0.5).abs() < 1e-12);
        assert_eq!(linear.learning_rate_at(110, 110), 0.);
        let constant = OptimizerConfig { schedule: Schedule::Constant, warmup_steps: 0, ..config };
        assert_eq!(constant.learning_rate_at(0, 10), 1.);
    }

    #[test]
    fn automatic_precision_depends_on_the_cpu() {
        let read = |text: &str| toml::from_str::<OptimizerConfig>(text).map(|config| config.precision);
        assert_eq!(read("precision = \"auto\"").unwrap(), Precision::for_bf16_weights());
        assert_eq!(read("precision = \"bf16\"").unwrap(), Precision::Bf16);
        assert_eq!(read("").unwrap(), Precision::F32);
        assert!(read("precision = \"fp8\"").unwrap_err().to_string().contains("fp8"));
    }

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
        Learner::new(model, &OptimizerConfig { weight_decay: decay, ..OptimizerConfig::default() }).unwrap()
    }

    #[test]
    fn weight_decay_applies_to_matrices_only() {
        let mut learner = learner(0.5);
        let zeros: BTreeMap<String, Tensor> =
            learner.model.params().vars().iter().map(|(n, v)| (n.clone(), v.zeros_like().unwrap())).collect();
        let before = learner.model.frozen().unwrap();
        learner.gradients = zeros;
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
        learner.config.max_grad_norm = 0.;
        let (dense, sparse) = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
        let first = |learner: &Learner, name: &str| {
            let weight = learner.model.params().tensors()[name].flatten_all().unwrap();
            f64::from(weight.get(0).unwrap().to_scalar::<f32>().unwrap())
        };
        let before = [first(&learner, dense), first(&learner, sparse)];
        let give = |learner: &mut Learner, name: &str, g: f64| {
            let gradient = (learner.model.params().tensors()[name].ones_like().unwrap() * g).unwrap();
            learner.gradients.insert(name.to_owned(), gradient);
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
            learner.steps.values_mut().for_each(|count| *count = 77);
            learner.load_optimizer(&path).unwrap();
        }
        let expected = [
            reference_adamw(before[0], &[1., 2., 3., 4., 5.], 0.01, &learner.config),
            reference_adamw(before[1], &[0.5, -2.], 0.01, &learner.config),
        ];
        for (expected, name) in expected.into_iter().zip([dense, sparse]) {
            let found = first(&learner, name);
            assert!((found - expected).abs() < 2e-6, "{name}: {found}, expected {expected}");
        }
        // The first step of a parameter has the full learning rate, whenever it happens.
        let late = reference_adamw(before[1], &[0.5], 0.01, &learner.config);
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
        let mut two = Learner::new(model, &one.config).unwrap();
        two.load_optimizer(&dir.path().join("optimizer.safetensors")).unwrap();
        train(&mut one);
        train(&mut two);
        for (name, a) in &one.model.params().tensors() {
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(a), bits(&two.model.params().tensors()[name]), "{name}");
        }
    }
}
