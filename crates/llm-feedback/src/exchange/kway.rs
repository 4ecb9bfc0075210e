//! Rankings of any number of answers: `{"id", "prompt", "answers", "ranks", "annotator", "shown"}`.

use llm_data::ChatMessage;
use serde::{Deserialize, Serialize};

use super::Exported;
use super::names::wrong;
use super::rows::{Batch, Row, Vote, lines, ranking};
use crate::Result;
use crate::store::Grades;

/// `ranks` has the rank of each answer, 1 for the best, or null; `shown` the indices of the answers in the order on the screen.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    prompt: Vec<ChatMessage>,
    answers: Vec<String>,
    ranks: Vec<Option<u32>>,
    annotator: String,
    shown: Vec<usize>,
}

pub(super) fn write(rows: &[Row], done: &mut Exported) -> Result<String> {
    let mut records = Vec::new();
    for row in rows {
        let Some(ranks) = row.ranks() else {
            done.leave_out("all bad", 1);
            continue;
        };
        records.push(Record {
            id: row.item.id.clone(),
            prompt: row.item.prompt.clone(),
            answers: row.item.answers.iter().map(|answer| answer.text.clone()).collect(),
            ranks,
            annotator: row.annotator.clone(),
            shown: row.shown(),
        });
    }
    done.records = records.len();
    lines(&records)
}

pub(super) fn read(batch: &mut Batch) -> Result<()> {
    let form = r#"{"id", "prompt": [messages], "answers": [texts], "ranks": [numbers or null], "annotator", "shown": [indices]}"#;
    for (line, record) in batch.records::<Record>(form)? {
        if record.ranks.len() != record.answers.len() {
            let (ranks, answers) = (record.ranks.len(), record.answers.len());
            return Err(wrong(&batch.path, line, format!("has {ranks} ranks for {answers} answers")));
        }
        let item = batch.new_item(record.id, record.prompt, &record.answers);
        let item = batch.item(line, item)?;
        let kind = ranking(&item, &record.ranks);
        let (annotator, shown) = (record.annotator, record.shown);
        batch.vote(line, &item, "", Vote { annotator, kind, shown, grades: Grades::new(), submitted: None })?;
    }
    Ok(())
}
