//! What the page sees of an item: texts, and keys in place of the ids of answers, which may name a model.

use std::collections::BTreeMap;

use llm_feedback::store::{Grade, Grades, Judgement, Kind, NewAnswer, Ranks, Task};
use serde_json::{Value, json};

use super::wire::{Judged, JudgedKind};
use crate::error::{ApiError, Result};

/// The key of an answer: FNV-1a, 64 bits, of the ids of item and answer. It is the same after a restart, so that a judgement that the
/// page has kept can be sent again.
fn key(item: &str, answer: &str) -> String {
    let bytes = item.bytes().chain([0]).chain(answer.bytes());
    format!(
        "{:016x}",
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    )
}

/// A task without anything that tells which model wrote an answer, and without saying that it is a gold item or a repeat.
pub(super) fn task(task: &Task) -> Value {
    let prompt: Vec<Value> =
        task.prompt.iter().map(|message| json!({"role": message.role(), "text": message.text()})).collect();
    let answer = |answer: &NewAnswer| json!({"key": key(&task.item, &answer.id), "text": answer.text});
    let answers: Vec<Value> = task.answers.iter().map(answer).collect();
    json!({"item": task.item, "prompt": prompt, "answers": answers, "draft": task.draft})
}

/// A judgement with the ids of the answers. `answers` are those of the item.
pub(super) fn judgement(
    judged: Judged,
    annotator: llm_feedback::store::AnnotatorId,
    answers: &[NewAnswer],
) -> Result<Judgement> {
    let ids: BTreeMap<String, &str> =
        answers.iter().map(|answer| (key(&judged.item, &answer.id), answer.id.as_str())).collect();
    let id = |field: &str, key: &str| match ids.get(key) {
        Some(id) => Ok((*id).to_owned()),
        None => Err(ApiError::invalid(field, format!("\"{field}\": the item has no answer with the key {key:?}"))),
    };
    let shown: Vec<String> = judged.shown.iter().map(|key| id("shown", key)).collect::<Result<_>>()?;
    if shown.len() != ids.len() {
        let message = format!("\"shown\" has {} answers; the item has {}", shown.len(), ids.len());
        return Err(ApiError::invalid("shown", message));
    }
    let kind = match judged.kind {
        JudgedKind::Rank => {
            let ranks: Ranks =
                judged.ranks.iter().map(|(key, rank)| Ok((id("ranks", key)?, *rank))).collect::<Result<_>>()?;
            if ranks.len() != ids.len() {
                return Err(ApiError::invalid("ranks", "\"ranks\" must have a rank for each answer"));
            }
            Kind::Rank { ranks }
        }
        JudgedKind::AllBad => Kind::AllBad,
        JudgedKind::Skip => Kind::Skip,
        JudgedKind::Flag => Kind::Flag,
    };
    let mut grades = Grades::new();
    for (key, marks) in &judged.grades {
        let marks: BTreeMap<String, Grade> = marks.clone();
        if let Some(other) = marks.keys().find(|name| !ASPECTS.contains(&name.as_str())) {
            let message = format!("\"grades\": {other:?} is not graded; use {}", ASPECTS.join(", "));
            return Err(ApiError::invalid("grades", message));
        }
        grades.insert(id("grades", key)?, marks);
    }
    Ok(Judgement {
        id: judged.id,
        item: judged.item,
        annotator,
        kind,
        shown,
        grades,
        reason: Some(judged.reason.trim().to_owned()).filter(|reason| !reason.is_empty()),
        started: judged.started,
        ms_visible: judged.ms_visible,
        // As the task that was given out says.
        repeat_of: None,
        guideline_version: judged.guideline_version,
    })
}

/// What the page asks grades for.
pub(super) const ASPECTS: [&str; 3] = ["accuracy", "helpfulness", "safety"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_change_between_versions_and_differ() {
        // FNV-1a of "i\0a" by another implementation.
        assert_eq!(key("i", "a"), "2b1ef0192b6733d7");
        assert_ne!(key("i", "a"), key("ia", ""));
    }
}
