//! The student beside its teacher and beside itself without one.

use std::path::Path;

use llm_data::world::{Split, SplitKey, Task, World};
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

pub(super) fn figures(recipe: &LifecycleRecipe, models: &Models, tasks: &[Task], out: &Path) -> Result<Vec<Figure>> {
    let world = World::new(recipe.world.clone());
    let keys: Vec<&SplitKey> = tasks.iter().map(|t| &t.key).collect();
    let asked = Asked::new(&world, &models.instruct, Split::HeldOut, recipe.questions.held_out)?;
    let right = |model: &TextModel| Ok::<_, crate::Error>(scores(task_scores(model, tasks, MAX_NEW_TOKENS)?.right));
    let advice = |model: &TextModel| Ok::<_, crate::Error>(totals(&asked.utilities(&asked.replies(recipe, model)?)));
    let last = |dir: &str, name: &str| -> Result<f64> {
        Ok(metric(&out.join(dir), name)?.last().map_or(f64::NAN, |point| point.1))
    };
    Ok(vec![
        Figure::mean("student: tasks", Unit::Share, &right(&models.student)?, &keys)
            .beside("teacher", mean(&right(&models.aligned)?))
            .beside("the same student without a teacher", mean(&right(&models.alone)?)),
        Figure::mean("— true utility, themes unseen", Unit::Number, &advice(&models.student)?, &asked.keys())
            .beside("teacher", mean(&advice(&models.aligned)?))
            .beside("the same student without a teacher", mean(&advice(&models.alone)?)),
        Figure::plain(
            "— loss on the teacher's validation answers, nats per token",
            Unit::Number,
            last("student", "eval_loss")?,
        )
        .beside("the same student without a teacher", last("student-alone", "eval_loss")?),
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
    let mut figure = Figure::plain("student: times as fast as its teacher", Unit::Number, ratios[TURNS / 2]);
    figure.interval = Some((ratios[0], ratios[TURNS - 1]));
    figure.items = (TURNS, TURNS);
    Ok(figure)
}
