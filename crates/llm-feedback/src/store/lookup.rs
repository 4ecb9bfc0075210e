//! Finds single judgements and events.

use rusqlite::{OptionalExtension, params};

use super::types::{AnnotatorId, StoredJudgement};
use super::{Store, rows};
use crate::Result;

/// The judgements that nothing supersedes, with the names of their annotators.
const CURRENT: &str = "SELECT j.*, a.name FROM current AS j JOIN annotator AS a ON a.id = j.annotator_id";

impl Store {
    /// The judgements of an item that nothing supersedes, in the order in which they arrived.
    pub fn current_of(&self, item: &str) -> Result<Vec<StoredJudgement>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(&format!("{CURRENT} WHERE j.item_id = ?1 ORDER BY j.number"))?;
            let all = statement.query_map([item], rows::judgement)?;
            Ok(all.collect::<Result<_, _>>()?)
        })
    }

    /// The last judgement of an annotator that nothing supersedes: the one that [`Self::undo`] would undo.
    pub fn last_of(&self, annotator: AnnotatorId) -> Result<Option<StoredJudgement>> {
        self.read(|transaction| {
            let query = format!("{CURRENT} WHERE j.annotator_id = ?1 ORDER BY j.number DESC LIMIT 1");
            Ok(transaction.query_row(&query, [annotator.0], rows::judgement).optional()?)
        })
    }

    /// Whether there is a judgement or an undo with this id.
    pub fn has_row(&self, id: &str) -> Result<bool> {
        self.read(|transaction| {
            Ok(transaction.query_row("SELECT EXISTS(SELECT 1 FROM judgement WHERE id = ?1)", [id], |row| row.get(0))?)
        })
    }

    /// Whether this event of an item was recorded ([`Self::log_event`]).
    pub fn has_event(&self, item: &str, what: &str) -> Result<bool> {
        self.read(|transaction| {
            let query = "SELECT EXISTS(SELECT 1 FROM event WHERE item_id = ?1 AND what = ?2)";
            Ok(transaction.query_row(query, params![item, what], |row| row.get(0))?)
        })
    }
}
