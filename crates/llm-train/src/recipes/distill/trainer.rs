//! A step of distillation: plain text first, then conversations, with plain text as rehearsal.

use llm_data::Batches;
use llm_model::Model;

use super::batch::{BatchTeacher, DistillBatch};
use super::hidden::HiddenStates;
use super::replies::Replies;
use super::teachers::Source;
use super::{DistillRecipe, Validation};
use crate::adapters::dropout_seed;
use crate::batches::{BatchSize, LengthBatches};
use crate::examples::Example;
use crate::loss::{DistillationOptions, Divergence};
use crate::optim::Learner;
use crate::routing::RouterMetrics;
use crate::{Result, loss};

/// What a step needs besides the student.
pub(super) struct Trainer<'a> {
    pub recipe: &'a DistillRecipe,
    pub loss: DistillationOptions,
    pub teacher: &'a Source,
    pub text_teacher: Option<&'a Model>,
    pub hidden: Option<&'a HiddenStates>,
    pub train: &'a [Example],
    pub conversations: LengthBatches,
    pub text: Option<Batches<'a>>,
    pub text_steps: u64,
    pub size: BatchSize,
    pub pad: u32,
    pub replies: Replies<'a>,
}

/// Metrics by name.
type Metrics = Vec<(&'static str, f64)>;

impl Trainer<'_> {
    /// Accumulates the gradients of step `index`; returns its metrics and its number of tokens.
    pub fn accumulate(
        &mut self,
        learner: &mut Learner,
        index: u64,
        routers: &mut RouterMetrics,
    ) -> Result<(Metrics, usize)> {
        let dropout = dropout_seed(self.recipe.seed, index);
        let on_answers = index.checked_sub(self.text_steps);
        let (mut metrics, mut tokens) = match on_answers {
            Some(number) => self.answers(learner, number, dropout, routers)?,
            None => (Vec::new(), 0),
        };
        let Some(text) = self.text.as_mut().filter(|_| on_answers.is_none() || self.recipe.text_weight > 0.) else {
            return Ok((metrics, tokens));
        };
        tokens += self.recipe.text_batch_size * self.recipe.seq_len;
        let batch = DistillBatch::of_text(text.batch(index)?, self.recipe.seq_len, !dropout)?;
        let weight = if on_answers.is_none() { 1. } else { self.recipe.text_weight };
        let teacher = (self.text_teacher.map(BatchTeacher::Model), None);
        let losses = self.backward(learner, &batch, teacher, &self.loss, weight, routers)?;
        match on_answers {
            None => metrics.extend(losses),
            Some(_) => metrics.push(("text_loss", losses[0].1)),
        }
        Ok((metrics, tokens))
    }

    /// Batch `number` of conversations, with the answers of the data or of the student.
    fn answers(
        &mut self,
        learner: &mut Learner,
        number: u64,
        dropout: u64,
        routers: &mut RouterMetrics,
    ) -> Result<(Metrics, usize)> {
        let chosen = self.conversations.batch(number);
        let examples: Vec<&Example> = chosen.iter().map(|&i| &self.train[i]).collect();
        let tokens = |examples: &[&Example]| examples.iter().map(|example| example.ids.len()).sum::<usize>();
        let padding = self.size.padding(self.pad);
        if !self.replies.is_on_policy(number) {
            let batch = DistillBatch::of_answers(&examples, padding, Some(dropout))?;
            let teacher = (self.teacher.of(&chosen)?, self.hidden);
            let mut metrics = self.backward(learner, &batch, teacher, &self.loss, 1., routers)?;
            metrics.extend((self.recipe.on_policy > 0.).then_some(("on_policy", 0.)));
            return Ok((metrics, tokens(&examples)));
        }
        let generated = self.replies.of_student(&learner.model, &examples, number)?;
        let examples: Vec<&Example> = generated.iter().collect();
        let batch = DistillBatch::of_answers(&examples, padding, Some(dropout))?;
        // The student's own tokens are no labels: only the divergence counts, with its weight.
        let (options, alpha) = (DistillationOptions { alpha: 1., ..self.loss }, self.recipe.alpha);
        let teacher = (self.teacher.of(&chosen)?, self.hidden);
        let losses = self.backward(learner, &batch, teacher, &options, alpha, routers)?;
        let mut metrics: Metrics = losses.into_iter().filter(|(name, _)| *name != "cross_entropy_loss").collect();
        metrics[0].1 *= alpha;
        metrics.extend([("on_policy", 1.), ("generated_tokens", batch.labels.len() as f64)]);
        Ok((metrics, tokens(&examples)))
    }

    /// Accumulates the gradients of `weight` times the loss of a batch, and of its hidden states. Returns the unweighted loss and its parts.
    fn backward(
        &self,
        learner: &mut Learner,
        batch: &DistillBatch,
        (teacher, states): (Option<BatchTeacher>, Option<&HiddenStates>),
        options: &DistillationOptions,
        weight: f64,
        routers: &mut RouterMetrics,
    ) -> Result<Metrics> {
        let found = batch.loss(&learner.model, teacher, options, states)?;
        let mut total = (&found.loss * weight)?;
        let mut metrics = vec![("loss", loss::scalar(&found.loss)?), ("cross_entropy_loss", found.cross_entropy)];
        let name = if matches!(options.divergence, Divergence::Jsd(_)) { "jsd_loss" } else { "kl_loss" };
        let scale = options.temperature * options.temperature;
        metrics.extend(found.divergence.map(|divergence| (name, scale * divergence)));
        if let Some(hidden) = &found.hidden {
            total = (total + (hidden * (weight * self.recipe.hidden_weight))?)?;
            metrics.push(("hidden_loss", loss::scalar(hidden)?));
        }
        learner.backward(&routers.add(&total, found.routing.as_ref(), weight)?)?;
        Ok(metrics)
    }
}

/// `eval_loss`, the cross-entropy, and with a teacher `eval_kl`, the KL divergence at T = 1, or with stored log-probabilities
/// `eval_kl_stored`, that of their outcomes at their temperature: means over the tokens of all answers.
pub(super) fn evaluate(
    (student, teacher): (&Model, &Source),
    validation: &Validation,
    loss: &DistillationOptions,
) -> Result<Metrics> {
    let (name, temperature) = match teacher {
        Source::Stored { .. } => ("eval_kl_stored", loss.temperature),
        _ => ("eval_kl", 1.),
    };
    let options = DistillationOptions { alpha: 1., temperature, divergence: Divergence::Forward, vocab: loss.vocab };
    let (mut kl_sum, mut loss_sum, mut count, mut has_teacher) = (0., 0., 0., false);
    for chunk in validation.examples.chunks(validation.batch_size) {
        let examples: Vec<&Example> = chunk.iter().map(|(_, example)| example).collect();
        let batch = DistillBatch::of_answers(&examples, Some(validation.pad), None)?;
        let numbers: Vec<usize> = chunk.iter().map(|(number, _)| *number).collect();
        let losses = batch.loss(student, teacher.of_validation(&numbers)?, &options, None)?;
        let n = batch.labels.len() as f64;
        has_teacher |= losses.divergence.is_some();
        kl_sum += n * losses.divergence.unwrap_or(0.);
        loss_sum += n * losses.cross_entropy;
        count += n;
    }
    let count = f64::max(count, 1.);
    let kl = has_teacher.then_some((name, kl_sum / count));
    Ok(kl.into_iter().chain([("eval_loss", loss_sum / count)]).collect())
}
