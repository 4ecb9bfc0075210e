//! Tasks of Label Studio with a ranker: one task for each item, in a JSON array.

use llm_data::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Exported;
use super::names::wrong;
use super::rows::{self, Batch, Row, Vote, ranking};
use crate::Result;
use crate::store::{Grades, NewItem};

#[derive(Serialize, Deserialize)]
struct Task {
    id: usize,
    data: Data,
    annotations: Vec<Annotation>,
}

#[derive(Serialize, Deserialize)]
struct Data {
    id: String,
    prompt: Vec<ChatMessage>,
    answers: Vec<ListItem>,
}

/// An entry of a list of Label Studio.
#[derive(Serialize, Deserialize)]
struct ListItem {
    id: String,
    body: String,
}

#[derive(Serialize, Deserialize)]
struct Annotation {
    completed_by: User,
    was_cancelled: bool,
    result: Vec<Outcome>,
}

#[derive(Serialize, Deserialize)]
struct User {
    email: String,
}

#[derive(Serialize, Deserialize)]
struct Outcome {
    from_name: String,
    to_name: String,
    #[serde(rename = "type")]
    kind: String,
    value: Value,
}

const RANKER: &str = "ranker";
/// The bucket of the answers without a rank.
const UNRANKED: &str = "_";

/// The buckets are the ranks `1`, `2` and so on, with the tied answers of each, and `_` for answers without a rank.
fn outcome(item: &NewItem, ranks: &[Option<u32>]) -> Outcome {
    let mut groups: Vec<u32> = ranks.iter().flatten().copied().collect();
    groups.sort_unstable();
    groups.dedup();
    let of = |wanted: Option<u32>| -> Vec<&str> {
        let answers = item.answers.iter().zip(ranks).filter(|(_, rank)| **rank == wanted);
        answers.map(|(answer, _)| answer.id.as_str()).collect()
    };
    let mut buckets: Map<String, Value> =
        groups.iter().map(|&rank| (rank.to_string(), json!(of(Some(rank))))).collect();
    if ranks.contains(&None) {
        buckets.insert(UNRANKED.to_owned(), json!(of(None)));
    }
    let text = |text: &str| text.to_owned();
    Outcome { from_name: text("rank"), to_name: text("prompt"), kind: text(RANKER), value: json!({ RANKER: buckets }) }
}

pub(super) fn write(all: &[Row], done: &mut Exported) -> Result<String> {
    let mut tasks = Vec::new();
    for rows in all.chunk_by(|a, b| a.item.id == b.item.id) {
        let mut annotations = Vec::new();
        for row in rows {
            let Some(ranks) = row.ranks() else {
                done.leave_out("all bad", 1);
                continue;
            };
            let (completed_by, result) = (User { email: row.annotator.clone() }, vec![outcome(&row.item, &ranks)]);
            annotations.push(Annotation { completed_by, was_cancelled: false, result });
        }
        if annotations.is_empty() {
            continue;
        }
        let item = &rows[0].item;
        let answers = item.answers.iter().map(|answer| ListItem { id: answer.id.clone(), body: answer.text.clone() });
        let data = Data { id: item.id.clone(), prompt: item.prompt.clone(), answers: answers.collect() };
        tasks.push(rows::json(&Task { id: tasks.len() + 1, data, annotations })?);
    }
    done.records = tasks.len();
    Ok(match tasks.is_empty() {
        true => "[]\n".to_owned(),
        false => format!("[\n{}\n]\n", tasks.join(",\n")),
    })
}

pub(super) fn read(batch: &mut Batch) -> Result<()> {
    let form =
        r#"a task {"id", "data": {"id", "prompt", "answers": [{"id", "body"}]}, "annotations": [with a ranker]}"#;
    for (line, task) in batch.records::<Task>(form)? {
        let path = batch.path.clone();
        let (ids, texts): (Vec<String>, Vec<String>) =
            task.data.answers.into_iter().map(|one| (one.id, one.body)).unzip();
        let mut item = batch.new_item(task.data.id, task.data.prompt, &texts);
        for (answer, id) in item.answers.iter_mut().zip(&ids) {
            answer.id.clone_from(id);
        }
        let item = batch.item(line, item)?;
        for annotation in task.annotations.into_iter().filter(|annotation| !annotation.was_cancelled) {
            let value = annotation
                .result
                .iter()
                .find(|outcome| outcome.kind == RANKER)
                .and_then(|outcome| outcome.value.get(RANKER));
            let ranks = value.and_then(|value| ranks(value, &ids));
            let ranks = ranks.ok_or_else(|| {
                let problem =
                    "an annotation must have a ranker: a list of ids, or ids in buckets named 1, 2 and so on, or _";
                wrong(&path, line, problem)
            })?;
            let (annotator, kind) = (annotation.completed_by.email, ranking(&item, &ranks));
            batch.vote(
                line,
                &item,
                "",
                Vote { annotator, kind, shown: vec![], grades: Grades::new(), submitted: None },
            )?;
        }
    }
    Ok(())
}

/// The rank of each answer.
fn ranks(value: &Value, ids: &[String]) -> Option<Vec<Option<u32>>> {
    let mut ranks = vec![None; ids.len()];
    let mut set = |answer: &Value, rank: u32| {
        let at = ids.iter().position(|id| Some(id.as_str()) == answer.as_str())?;
        ranks[at] = Some(rank);
        Some(())
    };
    match value {
        Value::Array(list) => (1..).zip(list).try_for_each(|(rank, answer)| set(answer, rank))?,
        Value::Object(buckets) => {
            for (bucket, answers) in buckets.iter().filter(|(bucket, _)| *bucket != UNRANKED) {
                let rank = bucket.parse().ok()?;
                answers.as_array()?.iter().try_for_each(|answer| set(answer, rank))?;
            }
        }
        _ => return None,
    }
    Some(ranks)
}
