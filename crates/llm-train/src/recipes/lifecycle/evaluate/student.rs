//! The student beside its teacher, and beside the same student that was trained on labels alone: on the same tokens, among
//! them the words of its teacher's answers, but without the teacher's distribution.

use std::path::Path;

use llm_data::world::{SplitKey, Task};
use llm_infer::TextModel;

use super::super::LifecycleRecipe;
use super::super::figure::{Figure, Unit, mean, scores};
use super::Models;
use super::advice::{Asked, totals};
use super::tasks::MAX_NEW_TOKENS;
use crate::Result;
use crate::eval::task_scores;
use crate::plot::metric;

/// How often the speed of teacher and student is measured, one after the other.
const TURNS: usize = 3;

/// The figures of the student; `teacher` is the share of the tasks that the teacher gets right, and its true utility.
pub(super) fn figures(
    recipe: &LifecycleRecipe,
    models: &Models,
    tasks: &[Task],
    asked: &Asked,
    teacher: (f64, f64),
    out: &Path,
) -> Result<Vec<Figure>> {
    let keys: Vec<&SplitKey> = tasks.iter().map(|t| &t.key).collect();
    let right = |model: &TextModel| Ok::<_, crate::Error>(scores(task_scores(model, tasks, MAX_NEW_TOKENS)?.right));
    let advice = |model: &TextModel| Ok::<_, crate::Error>(totals(&asked.utilities(&asked.replies(recipe, model)?)));
    let last = |dir: &str, name: &str| -> Result<f64> {
        Ok(metric(&out.join(dir), name)?.last().map_or(f64::NAN, |point| point.1))
    };
    Ok(vec![
        Figure::mean("student: tasks", Unit::Share, &right(&models.student)?, &keys)
            .beside("teacher", teacher.0)
            .beside("the same student on labels alone", mean(&right(&models.alone)?)),
        Figure::mean("— true utility, themes unseen", Unit::Number, &advice(&models.student)?, &asked.keys())
            .beside("teacher", teacher.1)
            .beside("the same student on labels alone", mean(&advice(&models.alone)?)),
        Figure::plain("— loss on validation lessons, nats per token", Unit::Number, last("student", "eval_loss")?)
            .beside("the same student on labels alone", last("student-alone", "eval_loss")?),
    ])
}

/// How many times as many tokens per second the student generates, measured in turns.
pub(super) fn speed(models: &Models, tasks: &[Task]) -> Result<Figure> {
    let some = &tasks[..tasks.len().min(100)];
    let mut ratios = Vec::new();
    for _ in 0..TURNS {
        let teacher = task_scores(&models.aligned, some, MAX_NEW_TOKENS)?.tokens_per_second;
        let student = task_scores(&models.student, some, MAX_NEW_TOKENS)?.tokens_per_second;
        ratios.push(student / teacher);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(Figure::plain("student: times as fast as its teacher, median of 3 turns", Unit::Number, ratios[TURNS / 2])
        .beside("lowest", ratios[0])
        .beside("highest", ratios[TURNS - 1]))
}
