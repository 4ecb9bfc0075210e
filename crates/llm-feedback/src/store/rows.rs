//! Rows of the tables as values of Rust.

use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{AnnotatorId, AnnotatorInfo, Judgement, Kind, NewAnswer, Role, StoredJudgement};
use crate::{Error, Result};

/// A value as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Damaged(error.to_string()))
}

/// A column of JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    parse(&text, column)
}

fn optional_json<T: DeserializeOwned>(row: &Row, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| parse(&text, column)).transpose()
}

fn parse<T: DeserializeOwned>(text: &str, column: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| damaged(format!("{column}: {error}")))
}

fn damaged(what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, what.into())
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Person => "person",
        Role::Simulated => "simulated",
    }
}

/// `id, name, role`, and whether there is a token.
pub(super) fn annotator(row: &Row) -> rusqlite::Result<AnnotatorInfo> {
    let role = match row.get::<_, String>(2)?.as_str() {
        "person" => Role::Person,
        "simulated" => Role::Simulated,
        other => return Err(damaged(format!("role: {other}"))),
    };
    Ok(AnnotatorInfo { id: AnnotatorId(row.get(0)?), name: row.get(1)?, role, has_token: row.get(3)? })
}

/// A row of `answer`.
pub(super) fn answer(row: &Row) -> rusqlite::Result<NewAnswer> {
    let seed: Option<String> = row.get("seed")?;
    Ok(NewAnswer {
        id: row.get("id")?,
        text: row.get("text")?,
        token_ids: optional_json(row, "token_ids_json")?,
        checkpoint: row.get("checkpoint")?,
        sampling: optional_json(row, "sampling_json")?,
        seed: seed.map(|seed| seed.parse().map_err(|_| damaged(format!("seed: {seed}")))).transpose()?,
        finish: row.get("finish")?,
    })
}

/// A row of `judgement` with the column `name` of `annotator`.
pub(super) fn judgement(row: &Row) -> rusqlite::Result<StoredJudgement> {
    let (id, item): (String, String) = (row.get("id")?, row.get("item_id")?);
    let annotator = AnnotatorId(row.get("annotator_id")?);
    let kind = match row.get::<_, String>("kind")?.as_str() {
        "rank" => Some(Kind::Rank { ranks: json(row, "ranks_json")? }),
        "all_bad" => Some(Kind::AllBad),
        "skip" => Some(Kind::Skip),
        "flag" => Some(Kind::Flag),
        _ => None,
    };
    let judgement = match kind {
        None => None,
        Some(kind) => Some(Judgement {
            id: id.clone(),
            item: item.clone(),
            annotator,
            kind,
            shown: json(row, "shown_json")?,
            grades: optional_json(row, "grades_json")?.unwrap_or_default(),
            reason: row.get("reason")?,
            started: row.get("started")?,
            ms_visible: row.get("ms_visible")?,
            repeat_of: row.get("repeat_of")?,
            guideline_version: row.get("guideline_version")?,
        }),
    };
    Ok(StoredJudgement {
        judgement,
        id,
        item,
        annotator,
        annotator_name: row.get("name")?,
        submitted: row.get("submitted")?,
        supersedes: row.get("supersedes")?,
    })
}
