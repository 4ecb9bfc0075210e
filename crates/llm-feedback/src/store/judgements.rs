//! Judgements: append, repeat, undo.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, Transaction, params};

use super::types::{AnnotatorId, Judged, Judgement, Kind, Policy, StoredJudgement};
use super::{Store, assign, items, rows};
use crate::{Error, Result};

/// The columns of a judgement with the name of its annotator.
const ROWS: &str = "SELECT j.*, a.name FROM judgement AS j JOIN annotator AS a ON a.id = j.annotator_id";

impl Store {
    /// Stores a judgement. When this returns, it is on the disk.
    ///
    /// The same judgement again, with the same id, changes nothing. A second judgement of an annotator on an item replaces the first
    /// one. A judgement whose lease is over is stored too: no work is lost.
    pub fn judge(&self, judgement: &Judgement, now: i64) -> Result<Judged> {
        self.write(|transaction| store(transaction, judgement, now, true))
    }

    /// Undoes the last judgement of an annotator that is not undone, and reserves its item for the annotator again, unless others have
    /// taken it. Returns the item; none, if nothing is left. `id` is a name of this undo that the client
    /// makes: the same undo again changes nothing.
    ///
    /// Nothing is deleted: the undo is a row that supersedes the judgement.
    pub fn undo(&self, annotator: AnnotatorId, id: &str, policy: &Policy, now: i64) -> Result<Option<String>> {
        policy.validate()?;
        self.write(|transaction| {
            if let Some(stored) = by_id(transaction, id)? {
                if stored.judgement.is_none() && stored.annotator == annotator {
                    return Ok(Some(stored.item));
                }
                let problem = "the id was used for another judgement; use a new one".to_owned();
                return Err(Error::Judgement { id: id.to_owned(), item: stored.item, problem });
            }
            let query = "SELECT id, item_id, repeat_of FROM current WHERE annotator_id = ?1
                         ORDER BY number DESC LIMIT 1";
            let read = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let last: Option<(String, String, Option<String>)> =
                transaction.query_row(query, [annotator.0], read).optional()?;
            let Some((undone, item, repeat_of)) = last else { return Ok(None) };
            let query =
                "INSERT INTO judgement(id, item_id, annotator_id, kind, shown_json, started, submitted, ms_visible,
                         supersedes) VALUES (?1, ?2, ?3, 'undo', '[]', ?4, ?4, 0, ?5)";
            transaction.execute(query, params![id, item, annotator.0, now, undone])?;
            // An item that was skipped, or judged after its lease was over, may have gone to others.
            if repeat_of.is_some() || assign::has_place(transaction, &item, annotator, policy, now)? {
                assign::take(transaction, &item, annotator, repeat_of.as_deref(), now + policy.lease_ms())?;
            }
            Ok(Some(item))
        })
    }

    /// The judgements that nothing supersedes, sorted by item, then in the order in which they arrived.
    pub fn current(&self) -> Result<Vec<StoredJudgement>> {
        let current = "WHERE j.kind <> 'undo'
                       AND NOT EXISTS (SELECT 1 FROM judgement AS later WHERE later.supersedes = j.id)";
        self.rows(&format!("{ROWS} {current} ORDER BY j.item_id, j.submitted, j.number"))
    }

    /// All rows, also those that are undone or replaced, in the order in which they were stored.
    pub fn history(&self) -> Result<Vec<StoredJudgement>> {
        self.rows(&format!("{ROWS} ORDER BY j.number"))
    }

    fn rows(&self, query: &str) -> Result<Vec<StoredJudgement>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(query)?;
            let all = statement.query_map([], rows::judgement)?;
            Ok(all.collect::<Result<_, _>>()?)
        })
    }
}

/// Stores a judgement. `order_known`: what was ranked must have been shown.
pub(super) fn store(transaction: &Transaction, judgement: &Judgement, now: i64, order_known: bool) -> Result<Judged> {
    check_id(judgement)?;
    if let Some(stored) = by_id(transaction, &judgement.id)? {
        return match stored.judgement {
            Some(stored) if same(&stored, judgement) => Ok(Judged::Repeated),
            _ => Err(problem(judgement, "the id was used for another judgement; use a new one")),
        };
    }
    validate(transaction, judgement, order_known)?;
    let leased = assign::repeat_of_lease(transaction, &judgement.item, judgement.annotator)?;
    let repeat_of = judgement.repeat_of.clone().or(leased);
    insert(transaction, judgement, repeat_of.as_deref(), now)?;
    assign::release(transaction, &judgement.item, judgement.annotator)?;
    Ok(Judged::Accepted)
}

fn by_id(transaction: &Transaction, id: &str) -> Result<Option<StoredJudgement>> {
    Ok(transaction.query_row(&format!("{ROWS} WHERE j.id = ?1"), [id], rows::judgement).optional()?)
}

/// Whether a judgement is sent again. The times are not compared, and `repeat_of` may come from the lease.
fn same(stored: &Judgement, sent: &Judgement) -> bool {
    let of = |judgement: &Judgement| Judgement {
        started: 0,
        ms_visible: 0,
        repeat_of: None,
        guideline_version: None,
        ..judgement.clone()
    };
    of(stored) == of(sent)
}

fn problem(judgement: &Judgement, problem: impl Into<String>) -> Error {
    Error::Judgement { id: judgement.id.clone(), item: judgement.item.clone(), problem: problem.into() }
}

fn check_id(judgement: &Judgement) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match (1..=64).contains(&judgement.id.len()) && judgement.id.chars().all(allowed) {
        true => Ok(()),
        false => Err(problem(judgement, "the id must have 1 to 64 letters, digits, - and _")),
    }
}

fn validate(transaction: &Transaction, judgement: &Judgement, order_known: bool) -> Result<()> {
    let unknown = |what, id: &str| Error::Unknown { what, id: id.to_owned() };
    let item = items::find(transaction, &judgement.item)?.ok_or_else(|| unknown("item", &judgement.item))?.item;
    let annotator: i64 =
        transaction
            .query_row("SELECT count(*) FROM annotator WHERE id = ?1", [judgement.annotator.0], |row| row.get(0))?;
    if annotator == 0 {
        return Err(unknown("annotator", &judgement.annotator.0.to_string()));
    }
    let ids: BTreeSet<&str> = item.answers.iter().map(|answer| answer.id.as_str()).collect();
    let shown: BTreeSet<&str> = judgement.shown.iter().map(String::as_str).collect();
    if shown.len() < judgement.shown.len() {
        return Err(problem(judgement, "\"shown\" names an answer twice"));
    }
    let mut named = shown.iter().copied().chain(judgement.grades.keys().map(String::as_str));
    if let Some(other) = named.find(|id| !ids.contains(id)) {
        return Err(problem(judgement, format!("the item has no answer \"{other}\"")));
    }
    if let Kind::Rank { ranks } = &judgement.kind {
        let order_known = order_known || !shown.is_empty();
        let may_rank = if order_known { &shown } else { &ids };
        if let Some(other) = ranks.keys().find(|id| !may_rank.contains(id.as_str())) {
            return Err(problem(judgement, format!("\"{other}\" has a rank but was not shown")));
        }
        if ranks.values().any(|&rank| rank == 0) {
            return Err(problem(judgement, "a rank is 0; ranks start with 1"));
        }
        if ranks.len() < ids.len().min(2) {
            return Err(problem(judgement, "ranks fewer than two answers"));
        }
    }
    if judgement.kind == Kind::Flag && judgement.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
        return Err(problem(judgement, "a flag must have a reason"));
    }
    if judgement.ms_visible < 0 || judgement.started < 0 {
        return Err(problem(judgement, "a time is negative"));
    }
    match &judgement.repeat_of {
        None => Ok(()),
        Some(earlier) => match by_id(transaction, earlier)? {
            Some(found) if found.item == judgement.item && found.annotator == judgement.annotator => Ok(()),
            _ => Err(problem(judgement, format!("repeats \"{earlier}\", which is not an own judgement of this item"))),
        },
    }
}

fn insert(transaction: &Transaction, judgement: &Judgement, repeat_of: Option<&str>, now: i64) -> Result<()> {
    let (kind, ranks) = match &judgement.kind {
        Kind::Rank { ranks } => ("rank", Some(rows::to_json(ranks)?)),
        Kind::AllBad => ("all_bad", None),
        Kind::Skip => ("skip", None),
        Kind::Flag => ("flag", None),
    };
    let grades = (!judgement.grades.is_empty()).then(|| rows::to_json(&judgement.grades)).transpose()?;
    let (item, annotator) = (&judgement.item, judgement.annotator.0);
    let query = "SELECT id FROM current WHERE item_id = ?1 AND annotator_id = ?2 AND repeat_of IS ?3";
    let replaced: Option<String> =
        transaction.query_row(query, params![item, annotator, repeat_of], |row| row.get(0)).optional()?;
    let query =
        "INSERT INTO judgement(id, item_id, annotator_id, kind, shown_json, ranks_json, grades_json, reason, started,
                 submitted, ms_visible, repeat_of, supersedes, guideline_version)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    transaction.execute(
        query,
        params![
            judgement.id,
            item,
            annotator,
            kind,
            rows::to_json(&judgement.shown)?,
            ranks,
            grades,
            judgement.reason,
            judgement.started,
            now,
            judgement.ms_visible,
            repeat_of,
            replaced,
            judgement.guideline_version,
        ],
    )?;
    Ok(())
}
