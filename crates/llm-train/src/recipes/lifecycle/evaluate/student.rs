//! The student compared with its teacher, and with a baseline: the same student trained on the same tokens (the teacher's
//! answers among them) with labels only, without the teacher's distribution.

use std::path::Path;

use llm_engine::TextModel;
use llm_eval::task_scores;
use llm_synthetic::{SplitKey, Task};

use super::super::LifecycleRecipe;
use super::super::metric::{Metric, Unit, mean, scores};
use super::Models;
use super::advice::{PromptSet, totals};
use super::tasks::MAX_NEW_TOKENS;
use crate::Result;
use crate::plot::metric;

/// Number of alternating speed measurements of teacher and student.
const ROUNDS: usize = 3;

/// The metrics of the student; `teacher` holds the teacher's task accuracy and true utility.
pub(super) fn metrics(
    recipe: &LifecycleRecipe,
    models: &Models,
    tasks: &[Task],
    prompts: &PromptSet,
    teacher: (f64, f64),
    out: &Path,
) -> Result<Vec<Metric>> {
    let keys: Vec<&SplitKey> = tasks.iter().map(|t| &t.key).collect();
    let right = |model: &TextModel| Ok::<_, crate::Error>(scores(task_scores(model, tasks, MAX_NEW_TOKENS)?.right));
    let advice =
        |model: &TextModel| Ok::<_, crate::Error>(totals(&prompts.utilities(&prompts.replies(recipe, model)?)));
    let last = |dir: &str, name: &str| -> Result<f64> {
        Ok(metric(&out.join(dir), name)?.last().map_or(f64::NAN, |point| point.1))
    };
    Ok(vec![
        Metric::mean("student: task accuracy", Unit::Share, &right(&models.student)?, &keys)
            .reference("teacher", teacher.0)
            .reference("student without the teacher's distribution", mean(&right(&models.labels_only)?)),
        Metric::mean("— true utility, held-out themes", Unit::Number, &advice(&models.student)?, &prompts.keys())
            .reference("teacher", teacher.1)
            .reference("student without the teacher's distribution", mean(&advice(&models.labels_only)?)),
        Metric::plain("— validation loss of the answers, nats per token", Unit::Number, last("student", "eval_loss")?)
            .reference("student without the teacher's distribution", last("student-alone", "eval_loss")?),
    ])
}

/// Tokens per second of the student divided by the teacher's: the median of alternating measurements.
pub(super) fn speed(models: &Models, tasks: &[Task]) -> Result<Metric> {
    let some = &tasks[..tasks.len().min(100)];
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let teacher = task_scores(&models.aligned, some, MAX_NEW_TOKENS)?.tokens_per_second;
        let student = task_scores(&models.student, some, MAX_NEW_TOKENS)?.tokens_per_second;
        ratios.push(student / teacher);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(Metric::plain(
        "student: generation speed relative to the teacher, median of 3",
        Unit::Number,
        ratios[ROUNDS / 2],
    )
    .reference("lowest", ratios[0])
    .reference("highest", ratios[ROUNDS - 1]))
}
