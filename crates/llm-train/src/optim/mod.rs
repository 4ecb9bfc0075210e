//! Optimizers, learning rate schedules, gradient accumulation, and [`Learner`]: a model with its optimizer.

mod adamw;
mod auxiliary;
mod average;
mod gradients;
mod learner;
mod muon;
mod var_optimizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor, Var};
use llm_kernels::{Precision, sum_of_squares};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Result;

pub use adamw::AdamW;
pub use gradients::Gradients;
pub use learner::Learner;
pub use muon::Muon;
pub use var_optimizer::VarOptimizer;

/// Whether the sum of the squares of a tensor is finite in f32. If not, norms overflow although every element may be finite.
pub(crate) fn squares_are_finite(x: &Tensor) -> Result<bool> {
    Ok((sum_of_squares(x)? as f32).is_finite())
}

/// Settings of the optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The update rule.
    pub kind: OptimizerKind,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The decay of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Final learning rate of the schedules "cosine" and "wsd", as a share of `learning_rate`.
    pub min_learning_rate_ratio: f64,
    /// Share of the steps in the decay of the schedule "wsd".
    pub decay_share: f64,
    /// Decay of the first moment of `AdamW`.
    pub beta1: f64,
    /// Decay of the second moment of `AdamW`.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment of `AdamW`.
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
    /// Dtype of the moments between steps.
    pub moments: Moments,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 20,
            min_learning_rate_ratio: 0.1,
            decay_share: 0.2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.,
            precision: Precision::F32,
            moments: Moments::F32,
        }
    }
}

/// The update rule of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// `AdamW` for all variables.
    AdamW,
    /// Muon for the matrices of the blocks, `AdamW` with the same learning rate for the other variables: embeddings, heads, routers,
    /// norms and biases.
    Muon,
}

/// The dtype of the moments between steps. A step computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// f32: 8 bytes per weight, 4 of a matrix that Muon trains.
    F32,
    /// bf16: half the memory, with stochastic rounding of the two moments of `AdamW`.
    Bf16,
}

impl Moments {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
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
    /// Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): constant, and linear down to `min_learning_rate_ratio` in the last
    /// `decay_share` of the steps.
    Wsd,
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
                Schedule::Wsd => {
                    let (low, decay) = (self.min_learning_rate_ratio, self.decay_share * steps as f64);
                    let left = (steps.saturating_sub(step) as f64 / decay.max(f64::MIN_POSITIVE)).min(1.);
                    low + (1. - low) * left
                }
                Schedule::Linear => 1. - past.min(1.),
                Schedule::Constant => 1.,
            }
    }
}

/// An update rule with its state.
#[derive(Debug)]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).
    AdamW(AdamW),
    /// Muon, with AdamW for a part of the variables.
    Muon(Muon),
}

impl Optimizer {
    /// The optimizer of these variables, before its first step. `hidden` are the names of the matrices that Muon trains.
    pub fn new(variables: &BTreeMap<String, Var>, hidden: &BTreeSet<String>, config: &OptimizerConfig) -> Result<Self> {
        Ok(match config.kind {
            OptimizerKind::AdamW => Self::AdamW(AdamW::new(variables, config)?),
            OptimizerKind::Muon => Self::Muon(Muon::new(variables, hidden, config)?),
        })
    }

    /// Updates the variables that have a gradient. Gradients are multiplied by `gradient_scale`.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.step(variables, gradients, learning_rate, gradient_scale),
            Self::Muon(muon) => muon.step(variables, gradients, learning_rate, gradient_scale),
        }
    }

    /// Takes a step with the accumulated gradients, clipped to the global norm `max_grad_norm` (0: no clipping). Returns the norm
    /// before clipping; if it is not finite, nothing changes.
    pub(crate) fn clipped_step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &mut Gradients,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<f64> {
        let (gradients, norm) = gradients.take()?;
        if norm.is_finite() {
            let clip = max_grad_norm > 0. && norm > max_grad_norm;
            let scale = if clip { max_grad_norm / norm } else { 1. };
            self.step(variables, &gradients, learning_rate, scale)?;
        }
        Ok(norm)
    }

    /// The state as tensors, to be saved.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::AdamW(adamw) => adamw.state(),
            Self::Muon(muon) => muon.state(),
        }
    }

    /// Replaces the state by one of [`Self::state`] that was read from `origin`, for error messages.
    pub fn restore(&mut self, state: BTreeMap<String, Tensor>, origin: &Path) -> Result<()> {
        match self {
            Self::AdamW(adamw) => adamw.restore(state, origin),
            Self::Muon(muon) => muon.restore(state, origin),
        }
    }

    /// The name of a variable whose state is not finite, or whose square is not finite.
    pub fn not_finite(&self) -> Result<Option<&str>> {
        match self {
            Self::AdamW(adamw) => adamw.not_finite(),
            Self::Muon(muon) => muon.not_finite(),
        }
    }
}

#[cfg(test)]
mod tests {
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
        // Constant until step 80, then linear from 1 to 0.1.
        let wsd = OptimizerConfig { schedule: Schedule::Wsd, decay_share: 0.2, warmup_steps: 10, ..config.clone() };
        for (step, expected) in [(4, 0.5), (10, 1.), (80, 1.), (90, 0.55), (99, 0.145), (100, 0.1)] {
            let found = wsd.learning_rate_at(step, 100);
            assert!((found - expected).abs() < 1e-12, "step {step}: {found}");
        }
        let never = OptimizerConfig { decay_share: 0., ..wsd };
        assert_eq!(never.learning_rate_at(99, 100), 1.);
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
}
