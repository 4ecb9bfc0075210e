//! Losses of distillation: a student compared with the distribution of its teacher.

use candle_core::Tensor;
use llm_kernels::{DistillationLoss, DistillationOptions, Divergence, TeacherLogits, distillation_of_logits};
use llm_model::{Model, Teacher};

use crate::Result;

/// `alpha · T² · divergence(teacher/T, student/T) + (1 - alpha) · cross-entropy` of next-token prediction, a mean over tokens (Hinton et
/// al. 2015, arXiv 1503.02531; generalised Jensen-Shannon divergence: Agarwal et al. 2024, arXiv 2306.13649).
///
/// `student` is a model with its hidden states `(n, hidden)`, `teacher` a model with its hidden states for the same tokens, or stored
/// log-probabilities; their next tokens are `labels` `(n,)`. Labels of -100 are ignored. Gradients flow to the student only.
pub fn distillation(
    student: (&Model, &Tensor),
    teacher: Teacher,
    labels: &[i64],
    options: &DistillationOptions,
) -> Result<DistillationLoss> {
    let (model, hidden) = student;
    Ok(model.distillation(hidden, teacher, labels, options)?)
}

/// The mean over rows of `T² · divergence(teacher / T, student / T)` in nats, a scalar. `student` and `teacher` are logits `(n, vocab)`;
/// the teacher gets no gradient. The factor `T²` keeps the scale of the gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use llm_train::loss::{Divergence, divergence};
///
/// let (teacher, student) = (Tensor::new(&[[2f32, 1., 0.]], &Device::Cpu)?, Tensor::new(&[[0f32, 1., 0.]], &Device::Cpu)?);
/// let value = |d| divergence(&student, &teacher, d, 1.)?.to_scalar::<f32>().map_err(llm_train::Error::from);
/// assert!((value(Divergence::Forward)? - 0.474321).abs() < 1e-5);
/// assert!((value(Divergence::Reverse)? - 0.432278).abs() < 1e-5);
/// # Ok::<(), llm_train::Error>(())
/// ```
pub fn divergence(student: &Tensor, teacher: &Tensor, divergence: Divergence, temperature: f64) -> Result<Tensor> {
    let (n, vocab) = student.dims2()?;
    let options = DistillationOptions { alpha: 1., temperature, divergence, vocab };
    Ok(distillation_of_logits(student, TeacherLogits::Logits(teacher), &vec![0; n], &options)?.loss)
}

/// The mean over rows of `T² · KL(softmax(teacher / T) ‖ softmax(student / T))` in nats, a scalar (Hinton et al. 2015,
/// arXiv 1503.02531). `student` and `teacher` are logits `(n, vocab)`. The factor `T²` keeps the scale of the gradient.
pub fn kl_divergence(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let kl = llm_kernels::kl_divergence(student, teacher, temperature)?;
    Ok((kl.mean_all()? * (temperature * temperature))?)
}
