//! Tasks with a known answer, asked at temperature 0.

use std::time::Instant;

use llm_engine::{GenerateOptions, Sampling, TextModel};
use llm_synthetic::{PromptKind, Task};
use serde::Serialize;

use crate::{Result, generate_replies};

/// The results of a model on tasks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScores {
    /// Share of correct answers.
    pub total: f64,
    /// Share of correct answers for each kind of prompt.
    pub by_kind: Vec<(PromptKind, f64)>,
    /// Whether each answer is correct, in the order of the tasks.
    pub right: Vec<bool>,
    /// Share of answers cut off at the token limit.
    pub cut_off: f64,
    /// Generated tokens per second.
    pub tokens_per_second: f64,
    /// The answers, in the order of the tasks.
    pub replies: Vec<String>,
}

/// Generates an answer of at most `max_new_tokens` tokens to each task, at temperature 0. A model without a chat template
/// continues the prompt as plain text.
pub fn task_scores(model: &TextModel, tasks: &[Task], max_new_tokens: usize) -> Result<TaskScores> {
    let mut prompts = Vec::with_capacity(tasks.len());
    for task in tasks {
        prompts.push(if model.tokenizer.has_chat_template() {
            model.chat_ids(&task.messages)?
        } else {
            let text: Vec<_> = task.messages.iter().map(|m| m.text()).collect();
            model.document_ids(&text.join("\n"))?
        });
    }
    let options = GenerateOptions {
        max_new_tokens,
        stop_ids: Some(model.stop_ids()),
        sampling: Sampling { temperature: 0., ..Sampling::default() },
    };
    let start = Instant::now();
    let replies = generate_replies(model, &prompts, &options, 100)?;
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

#[cfg(test)]
mod tests {
    use llm_synthetic::{Split, World, WorldConfig};

    use super::*;
    use crate::testing::{bigram_model, tokenizer};

    /// A model that gives the same answer to all tasks.
    #[test]
    fn answers_are_scored_by_task_and_by_kind() {
        let world = World::new(WorldConfig { corpus_bytes: 1000, ..WorldConfig::default() });
        let tasks = world.tasks(Split::HeldOut, 60);
        let text: Vec<&str> = tasks.iter().map(|task| task.answers[0].as_str()).collect();
        let tokenizer = tokenizer(&text.join(" "));
        let ids = |task: &Task| tokenizer.encode(&task.answers[0]).unwrap();
        // An answer without repeated tokens, which a bigram model can produce.
        let simple = |task: &&Task| {
            let ids = ids(task);
            task.kind == PromptKind::ZeroShot && ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id))
        };
        let known = tasks.iter().find(simple).unwrap();
        let end = tokenizer.chat_format().unwrap().end_of_turn;
        let chain = [ids(known), vec![end]].concat();
        let prompt_end = |task: &Task| *tokenizer.encode_chat(&task.messages, true).unwrap().last().unwrap();
        let first = prompt_end(known);
        let follows = |from: u32, to: u32| {
            let at = chain.iter().position(|&id| id == from).map_or(0, |at| at + 1);
            chain.get(at) == Some(&to) && (from == first || chain.contains(&from))
        };
        let model = bigram_model(&tokenizer, |from, to| f32::from(u8::from(follows(from, to))));
        let model = TextModel { model, tokenizer: tokenizer.clone() };

        let scores = task_scores(&model, &tasks, chain.len()).unwrap();
        assert!(scores.replies.iter().all(|reply| *reply == known.answers[0]), "{:?}", scores.replies);
        let right: Vec<bool> = tasks.iter().map(|task| task.is_right(&known.answers[0])).collect();
        let count = right.iter().filter(|&&right| right).count();
        assert!(count > 0 && count < 30, "{count} of 60");
        assert_eq!(scores.right, right);
        assert_eq!(scores.total, count as f64 / 60.);
        for (kind, share) in &scores.by_kind {
            let of_kind = || tasks.iter().zip(&right).filter(|(task, _)| task.kind == *kind);
            let expected = of_kind().filter(|(_, right)| **right).count() as f64 / of_kind().count() as f64;
            assert_eq!(*share, expected, "{kind:?}");
        }
        assert_eq!(scores.cut_off, 0., "the end token is within the limit");
        let cut = task_scores(&model, &tasks, chain.len() - 1).unwrap();
        assert_eq!((cut.cut_off, cut.total), (1., scores.total), "the end token is not within the limit");
        assert_eq!(task_scores(&model, &[], 4).unwrap().total, 0.);
    }
}
