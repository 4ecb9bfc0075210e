//! Batches of distillation and their loss.

use candle_core::Tensor;
use llm_data::TokenBatch;
use llm_model::{Batch, Model, Routing};

use super::DistillRecipe;
use crate::examples::{Example, answer_positions, gather_rows};
use crate::optim::Learner;
use crate::routing::RouterMetrics;
use crate::{Result, loss};

/// A batch with the flat positions that predict a trained token (None: all), and the ids of those tokens.
pub(super) struct DistillBatch {
    batch: Batch,
    positions: Option<Vec<u32>>,
    /// The ids of the trained tokens.
    pub(super) labels: Vec<i64>,
}

impl DistillBatch {
    /// A batch of plain text: all tokens are trained.
    pub(super) fn of_text(tokens: TokenBatch, seq_len: usize, dropout: u64) -> Result<Self> {
        let TokenBatch { inputs, targets, .. } = tokens;
        let labels = targets.into_iter().map(i64::from).collect();
        let batch = Batch { dropout: Some(dropout), ..Batch::from_flat(&inputs, seq_len)? };
        Ok(Self { batch, positions: None, labels })
    }

    /// A batch of conversations: the assistant's tokens are trained.
    pub(super) fn of_answers(examples: &[&Example], pad: Option<u32>, dropout: Option<u64>) -> Result<Self> {
        let (batch, positions, labels) = answer_positions(examples, pad)?;
        let batch = Batch { dropout, ..batch };
        Ok(Self { batch, positions: Some(positions), labels })
    }

    /// The rows of `hidden` `(b, t, hidden)` that predict a trained token: `(n, hidden)`.
    fn gather(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(match &self.positions {
            Some(positions) => gather_rows(hidden, positions.clone())?,
            None => hidden.flatten(0, 1)?,
        })
    }

    /// Accumulates the gradients of `weight · (α · T² · KL(teacher/T ‖ student/T) + (1 - α) · cross-entropy)`; without a teacher α
    /// is 0. Returns the unweighted loss and its parts.
    pub(super) fn accumulate_gradients(
        &self,
        learner: &mut Learner,
        teacher: Option<&Model>,
        recipe: &DistillRecipe,
        weight: f64,
        routers: &mut RouterMetrics,
    ) -> Result<Vec<(&'static str, f64)>> {
        let loss = self.loss(&learner.model, teacher, recipe.alpha, recipe.temperature)?;
        learner.backward(&routers.add(&(&loss.loss * weight)?, loss.routing.as_ref(), weight)?)?;
        let mut metrics = vec![("loss", loss::scalar(&loss.loss)?), ("cross_entropy_loss", loss.cross_entropy)];
        metrics.extend(loss.kl.map(|kl| ("kl_loss", recipe.temperature * recipe.temperature * kl)));
        Ok(metrics)
    }

    /// The loss of the trained tokens.
    pub(super) fn loss(
        &self,
        student: &Model,
        teacher: Option<&Model>,
        alpha: f64,
        temperature: f64,
    ) -> Result<DistillLoss> {
        let (hidden, routing) = student.hidden_and_routing(&self.batch)?; // (b, t, hidden)
        let student_states = self.gather(&hidden)?; // (n, hidden)
        let Some(teacher) = teacher else {
            let loss = loss::next_token(student, &student_states, &self.labels)?;
            return Ok(DistillLoss { kl: None, cross_entropy: loss::scalar(&loss)?, loss, routing });
        };
        let teacher_states = self.gather(&teacher.hidden(&self.batch, None)?)?.detach(); // (n, hidden)
        let (student, teacher) = ((student, &student_states), (teacher, &teacher_states));
        let losses = loss::distillation(student, teacher, &self.labels, alpha, temperature)?;
        Ok(DistillLoss { loss: losses.loss, kl: Some(losses.kl), cross_entropy: losses.cross_entropy, routing })
    }
}

/// The loss of a batch: means over its trained tokens.
pub(super) struct DistillLoss {
    /// The loss to minimise, a scalar.
    loss: Tensor,
    /// `KL(teacher/T ‖ student/T)`, if there is a teacher.
    pub(super) kl: Option<f64>,
    /// The cross-entropy with the labels.
    pub(super) cross_entropy: f64,
    /// The routing of a student with experts.
    routing: Option<Routing>,
}
