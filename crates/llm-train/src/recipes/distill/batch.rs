//! Batches of distillation and their loss.

use candle_core::Tensor;
use llm_data::TokenBatch;
use llm_model::{Batch, Model, Routing};

use super::hidden::HiddenStates;
use crate::examples::{Example, answer_positions, gather_rows};
use crate::loss::{DistillationLoss, DistillationOptions, Teacher, TopKLogprobs};
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

    /// The loss of the trained tokens; without a teacher it is the cross-entropy.
    pub(super) fn loss(
        &self,
        student: &Model,
        teacher: Option<BatchTeacher>,
        options: &DistillationOptions,
        states: Option<&HiddenStates>,
    ) -> Result<DistillLoss> {
        let layers = states.map_or(Vec::new(), HiddenStates::student_layers);
        let output = student.hidden_layers(&self.batch, &layers)?; // (b, t, hidden)
        let student_states = self.gather(&output.hidden)?; // (n, hidden)
        let routing = output.routing;
        let (teacher_states, teacher) = match teacher {
            None => {
                let loss = loss::next_token(student, &student_states, &self.labels)?;
                let cross_entropy = loss::scalar(&loss)?;
                return Ok(DistillLoss { divergence: None, cross_entropy, hidden: None, loss, routing });
            }
            Some(BatchTeacher::Stored(top)) => {
                let losses =
                    loss::distillation((student, &student_states), Teacher::TopK(&top), &self.labels, options)?;
                return Ok(DistillLoss::of(losses, None, routing));
            }
            Some(BatchTeacher::Model(teacher)) => {
                let layers = states.map_or(Vec::new(), HiddenStates::teacher_layers);
                (teacher.hidden_layers(&self.batch, &layers)?, teacher)
            }
        };
        let hidden = match states {
            None => None,
            Some(states) => {
                let gathered = |layers: &[Tensor]| layers.iter().map(|x| self.gather(x)).collect::<Result<Vec<_>>>();
                Some(states.loss(&gathered(&output.layers)?, &gathered(&teacher_states.layers)?)?)
            }
        };
        let teacher_states = self.gather(&teacher_states.hidden)?.detach(); // (n, hidden)
        let teacher = Teacher::Model(teacher, &teacher_states);
        let losses = loss::distillation((student, &student_states), teacher, &self.labels, options)?;
        Ok(DistillLoss::of(losses, hidden, routing))
    }
}

/// The teacher of a batch.
pub(super) enum BatchTeacher<'a> {
    Model(&'a Model),
    /// Its stored log-probabilities at the trained tokens.
    Stored(TopKLogprobs),
}

/// The loss of a batch: means over its trained tokens.
pub(super) struct DistillLoss {
    /// The loss to minimise without that of the hidden states, a scalar.
    pub(super) loss: Tensor,
    /// The divergence at temperature T, if there is a teacher.
    pub(super) divergence: Option<f64>,
    /// The cross-entropy with the labels.
    pub(super) cross_entropy: f64,
    /// The loss of the hidden states, a scalar.
    pub(super) hidden: Option<Tensor>,
    /// The routing of a student with experts.
    pub(super) routing: Option<Routing>,
}

impl DistillLoss {
    fn of(losses: DistillationLoss, hidden: Option<Tensor>, routing: Option<Routing>) -> Self {
        let DistillationLoss { loss, divergence, cross_entropy } = losses;
        Self { loss, divergence: Some(divergence), cross_entropy, hidden, routing }
    }
}
