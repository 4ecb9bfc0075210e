//! Records of Argilla with a ranking question: a record for each item, with the responses of all annotators.

use llm_data::ChatMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Exported;
use super::names::wrong;
use super::rows::{Batch, Row, Vote, lines, ranking};
use crate::store::{Grades, MAX_ANSWERS};
use crate::{Error, Result};

/// A record: `response-1` and so on are the answers. Ranks start with 1; equal ranks are ties.
#[derive(Serialize, Deserialize)]
struct Record {
    external_id: String,
    prompt: Vec<ChatMessage>,
    #[serde(flatten)]
    responses: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Response {
    user_id: String,
    status: String,
    value: Option<Ranking>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ranking {
    rank: Vec<u32>,
    value: Vec<String>,
}

const RANKING: &str = "ranking";
const SUBMITTED: &str = "submitted";

fn name(answer: usize) -> String {
    format!("response-{}", answer + 1)
}

pub(super) fn write(rows: &[Row], done: &mut Exported) -> Result<String> {
    let mut records = Vec::new();
    for rows in rows.chunk_by(|a, b| a.item.id == b.item.id) {
        let mut given = Vec::new();
        for row in rows {
            let Some(ranks) = row.ranks() else {
                done.leave_out("all bad", 1);
                continue;
            };
            let mut ranked: Vec<(u32, usize)> =
                ranks.iter().enumerate().filter_map(|(at, rank)| Some(((*rank)?, at))).collect();
            ranked.sort_unstable();
            let (rank, value) = ranked.into_iter().map(|(rank, answer)| (rank, name(answer))).unzip();
            let value = Some(Ranking { rank, value });
            given.push(Response { user_id: row.annotator.clone(), status: SUBMITTED.to_owned(), value });
        }
        if given.is_empty() {
            continue;
        }
        let item = &rows[0].item;
        let mut responses = Map::new();
        for (at, answer) in item.answers.iter().enumerate() {
            responses.insert(name(at), Value::String(answer.text.clone()));
        }
        let given = serde_json::to_value(&given).map_err(|error| Error::Damaged(error.to_string()))?;
        responses.insert(RANKING.to_owned(), given);
        records.push(Record { external_id: item.id.clone(), prompt: item.prompt.clone(), responses });
    }
    done.records = records.len();
    lines(&records)
}

pub(super) fn read(batch: &mut Batch) -> Result<()> {
    let form =
        r#"{"external_id", "prompt": [messages], "response-1": text, "response-2": text, "ranking": [responses]}"#;
    for (line, mut record) in batch.records::<Record>(form)? {
        let path = batch.path.clone();
        let given = record.responses.remove(RANKING).unwrap_or_default();
        let given: Vec<Response> = serde_json::from_value(given).map_err(|error| {
            wrong(&path, line, format!("{error}; \"ranking\" must contain user_id, status and value {{rank, value}}"))
        })?;
        let texts: Vec<String> =
            (0..MAX_ANSWERS).map_while(|at| Some(record.responses.get(&name(at))?.as_str()?.to_owned())).collect();
        let item = batch.new_item(record.external_id, record.prompt, &texts);
        let item = batch.item(line, item)?;
        for response in given.into_iter().filter(|response| response.status == SUBMITTED) {
            let mut ranks = vec![None; texts.len()];
            let value = response.value.ok_or_else(|| wrong(&path, line, "a submitted response has no value"))?;
            for (rank, answer) in value.rank.iter().zip(&value.value) {
                let place = (0..texts.len()).find(|&at| name(at) == *answer);
                let place =
                    place.ok_or_else(|| wrong(&path, line, format!("ranks \"{answer}\", which is no field")))?;
                ranks[place] = Some(*rank);
            }
            let (annotator, kind) = (response.user_id, ranking(&item, &ranks));
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
