//! Tasks with a known answer.

use std::time::Instant;

use llm_data::world::{PromptKind, Task};
use llm_infer::{GenerateOptions, Sampling, TextModel};
use serde::Serialize;

use super::replies::write_replies;
use crate::Result;
use crate::examples::chat_messages;

/// How a model does on tasks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScores {
    /// Share of right answers.
    pub total: f64,
    /// The same for each kind of prompt.
    pub by_kind: Vec<(PromptKind, f64)>,
    /// Whether each answer is right, in the order of the tasks.
    pub right: Vec<bool>,
    /// Share of the answers that the token limit cut off.
    pub cut_off: f64,
    /// Tokens generated in a second.
    pub tokens_per_second: f64,
    /// What it answered, in the order of the tasks.
    pub replies: Vec<String>,
}

/// Asks the model every task, at temperature 0, for answers of at most `max_new_tokens` tokens. A model without a chat
/// template gets the prompt as a text to continue.
pub fn task_scores(model: &TextModel, tasks: &[Task], max_new_tokens: usize) -> Result<TaskScores> {
    let mut prompts = Vec::with_capacity(tasks.len());
    for task in tasks {
        prompts.push(if model.tokenizer.has_chat_template() {
            model.chat_ids(&chat_messages(&task.messages))?
        } else {
            let text: Vec<&str> = task.messages.iter().map(|m| m.content.as_str()).collect();
            model.document_ids(&text.join("\n"))?
        });
    }
    let options = GenerateOptions {
        max_new_tokens,
        stop_ids: model.stop_ids(),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let start = Instant::now();
    let replies = write_replies(model, &prompts, &options, 100)?;
    let seconds = start.elapsed().as_secs_f64();
    let right: Vec<bool> = tasks.iter().zip(&replies).map(|(task, reply)| task.is_right(&reply.text)).collect();
    let share = |kind: Option<PromptKind>| {
        let of_kind = |&(task, _): &(&Task, &bool)| kind.is_none_or(|kind| task.kind == kind);
        let (all, good) =
            tasks.iter().zip(&right).filter(of_kind).fold((0, 0), |(n, g), (_, &r)| (n + 1, g + u32::from(r)));
        f64::from(good) / f64::from(all.max(1))
    };
    Ok(TaskScores {
        total: share(None),
        by_kind: PromptKind::ALL.map(|kind| (kind, share(Some(kind)))).to_vec(),
        cut_off: replies.iter().filter(|reply| !reply.ended).count() as f64 / replies.len().max(1) as f64,
        tokens_per_second: replies.iter().map(|reply| reply.ids.len()).sum::<usize>() as f64 / seconds,
        replies: replies.into_iter().map(|reply| reply.text).collect(),
        right,
    })
}
