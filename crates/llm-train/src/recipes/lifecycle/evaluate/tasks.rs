//! Tasks about facts that are in the pre-training text but in no conversation, with chance and simple baselines.

use std::path::Path;

use llm_data::read_jsonl;
use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_eval::baselines::{Majority, NearestNeighbour};
use llm_eval::{TaskScores, generate_replies, task_scores};
use llm_synthetic::{PromptKind, Split, SplitKey, Task, World};

use super::super::LifecycleRecipe;
use super::super::metric::{Metric, Unit, mean, scores};
use super::Models;
use crate::{Error, Result};

/// More than the longest correct answer.
pub(super) const MAX_NEW_TOKENS: usize = 64;

/// The held-out tasks that the first stage wrote.
pub(super) fn read(out: &Path) -> Result<Vec<Task>> {
    let path = out.join("data/tasks-held_out.jsonl");
    let task = |(line, value)| {
        serde_json::from_value(value).map_err(|e| Error::BadFile(format!("{}:{line}: {e}", path.display())))
    };
    read_jsonl(&path)?.into_iter().map(task).collect()
}

/// The accuracy for each kind of prompt, and the total accuracy of the aligned model.
pub(super) fn metrics(
    recipe: &LifecycleRecipe,
    world: &World,
    models: &Models,
    tasks: &[Task],
) -> Result<(Vec<Metric>, f64)> {
    let ask = |model: &TextModel| task_scores(model, tasks, MAX_NEW_TOKENS);
    let (base, instruct, aligned) = (ask(&models.base)?, ask(&models.instruct)?, ask(&models.aligned)?);
    let cloze = completed(&models.base, tasks)?;
    let training = world.tasks(Split::Train, recipe.questions.tasks);
    let nearest = NearestNeighbour::new(training.iter().map(|t| (prompt(t), t.answers[0].clone())));
    let majority = Majority::new(training.iter().map(|t| (t.kind.name(), t.answers[0].clone())));
    let by_rule = |answer: &dyn Fn(&Task) -> Option<String>| {
        scores(tasks.iter().map(|task| answer(task).is_some_and(|reply| task.is_right(&reply))))
    };
    let nearest = by_rule(&|task| nearest.answer(&prompt(task)).map(str::to_owned));
    let majority = by_rule(&|task| majority.answer(task.kind.name()).map(str::to_owned));
    let chance: Vec<f64> = tasks.iter().map(|t| t.chance).collect();
    let right = |scored: &TaskScores| scores(scored.right.iter().copied());

    let row = |name: &str, kind: Option<PromptKind>| {
        let chosen: Vec<usize> = (0..tasks.len()).filter(|&i| kind.is_none_or(|k| tasks[i].kind == k)).collect();
        let of = |all: &[f64]| chosen.iter().map(|&i| all[i]).collect::<Vec<f64>>();
        let keys: Vec<&SplitKey> = chosen.iter().map(|&i| &tasks[i].key).collect();
        Metric::mean(name, Unit::Share, &of(&right(&instruct)), &keys)
            .reference("base model, as text completion", mean(&of(&cloze)))
            .reference("base model, as chat", mean(&of(&right(&base))))
            .reference("chance", mean(&of(&chance)))
            .reference("nearest training prompt", mean(&of(&nearest)))
            .reference("most frequent answer", mean(&of(&majority)))
            .reference("aligned", mean(&of(&right(&aligned))))
    };
    let mut metrics = vec![
        row("task accuracy after fine-tuning, held-out facts", None)
            .reference("answers cut off at the token limit", instruct.cut_off)
            .reference("base model: answers cut off", base.cut_off),
    ];
    metrics.extend(PromptKind::ALL.map(|kind| row(&format!("— {}", kind.name()), Some(kind))));
    Ok((metrics, aligned.total))
}

/// All messages of the prompt as one text.
fn prompt(task: &Task) -> String {
    task.messages.iter().map(llm_data::ChatMessage::text).collect::<Vec<_>>().join("\n")
}

/// Whether the model completes the cloze of each task, at temperature 0: 1 or 0.
fn completed(model: &TextModel, tasks: &[Task]) -> Result<Vec<f64>> {
    let prompts = tasks.iter().map(|t| model.document_ids(&t.cloze.0)).collect::<Result<Vec<_>, _>>()?;
    let options = GenerateOptions {
        max_new_tokens: MAX_NEW_TOKENS / 2,
        stop_ids: Some(model.stop_ids()),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let replies = generate_replies(model, &prompts, &options, 100)?;
    Ok(scores(tasks.iter().zip(&replies).map(|(task, reply)| task.completes_cloze(&reply.text))))
}
