//! Single answers with a label, for KTO in TRL: `{"prompt", "completion", "label"}`.

use std::collections::BTreeMap;

use llm_data::ChatMessage;
use serde::{Deserialize, Serialize};

use super::Exported;
use super::names::item_id;
use super::rows::{Batch, Reply, Row, Vote, lines, ranking};
use crate::Result;
use crate::store::{Grade, Kind};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    prompt: Vec<ChatMessage>,
    completion: [Reply; 1],
    label: bool,
}

/// The aspect of a grade that is only a label.
const OVERALL: &str = "overall";

/// An answer is good if all its grades are good, and bad if one is bad or if the judgement was "all bad".
pub(super) fn write(rows: &[Row], done: &mut Exported) -> Result<String> {
    let mut records = Vec::new();
    for row in rows {
        for answer in &row.item.answers {
            let grades = row.judgement.grades.get(&answer.id).filter(|grades| !grades.is_empty());
            let label = match grades {
                Some(grades) if grades.values().any(|&grade| grade == Grade::Bad) => false,
                Some(grades) if grades.values().all(|&grade| grade == Grade::Good) => true,
                Some(_) => {
                    done.leave_out("acceptable answers", 1);
                    continue;
                }
                None if row.judgement.kind == Kind::AllBad => false,
                None => {
                    done.leave_out("answers without a grade", 1);
                    continue;
                }
            };
            records.push(Record { prompt: row.item.prompt.clone(), completion: [Reply::new(&answer.text)], label });
        }
    }
    done.records = records.len();
    lines(&records)
}

/// Each record becomes an item with one answer, which is not given to annotators.
pub(super) fn read(batch: &mut Batch, annotator: &str) -> Result<()> {
    let form =
        r#"{"prompt": [messages], "completion": [{"role": "assistant", "content": text}], "label": true or false}"#;
    for (at, (line, record)) in batch.records::<Record>(form)?.into_iter().enumerate() {
        let [completion] = record.completion;
        let item = batch.new_item(item_id(&batch.path, at + 1), record.prompt, &[completion.content]);
        let item = batch.item(line, item)?;
        let grade = if record.label { Grade::Good } else { Grade::Bad };
        let grades = [(item.answers[0].id.clone(), BTreeMap::from([(OVERALL.to_owned(), grade)]))].into();
        let kind = ranking(&item, &[Some(1)]);
        batch.vote(
            line,
            &item,
            "",
            Vote { annotator: annotator.to_owned(), kind, shown: vec![], grades, submitted: None },
        )?;
    }
    Ok(())
}
