//! Gives items to annotators: leases, drafts, gold items, repeats.

use rusqlite::{OptionalExtension, Transaction, named_params, params};
use serde_json::Value;

use super::types::{AnnotatorId, Policy, Progress, Task, hash, pick};
use super::{Store, items, rows};
use crate::{Error, Result};

/// Judgements that must lie between an item and its repeat.
const REPEAT_GAP: i64 = 5;

/// Whether annotator `:me` can get the item `i`: at least two answers, not judged by `:me`, flagged by nobody, and fewer than
/// `:overlap` others have judged it or have a lease. Gold items are not counted: everybody gets them.
const AVAILABLE: &str = "i.gold_order_json IS NULL
    AND (SELECT count(*) FROM answer WHERE item_id = i.id) >= 2
    AND NOT EXISTS (SELECT 1 FROM current WHERE item_id = i.id AND (annotator_id = :me OR kind = 'flag'))
    AND (SELECT count(*) FROM (
          SELECT annotator_id FROM current WHERE item_id = i.id AND kind IN ('rank', 'all_bad') AND repeat_of IS NULL
          UNION SELECT annotator_id FROM lease
            WHERE item_id = i.id AND until > :now AND repeat_of IS NULL AND annotator_id <> :me)) < :overlap";

/// What is given out: an item, and the earlier judgement if it is a repeat.
type Choice = (String, Option<String>);

impl Store {
    /// The next item for an annotator, which is then reserved; none, if nothing is left. Asked again before the judgement, it is the
    /// same item with the same order of answers. The choice and the lease are one transaction: an item is never given to more than
    /// [`Policy::overlap`] annotators.
    ///
    /// The order of the answers depends on the seed, the item and the annotator only. Gold items and repeats come at places that the
    /// annotator cannot foresee.
    pub fn next(&self, annotator: AnnotatorId, policy: &Policy, now: i64) -> Result<Option<Task>> {
        policy.validate()?;
        self.write(|transaction| {
            let choice = match held(transaction, annotator, policy, now)? {
                Some(choice) => Some(choice),
                None => choose(transaction, annotator, policy, now)?,
            };
            let Some((id, repeat_of)) = choice else { return Ok(None) };
            let lease_until = now + policy.lease_ms();
            take_or_renew(transaction, &id, annotator, repeat_of.as_deref(), lease_until)?;
            let item = items::find(transaction, &id)?;
            let item = item.ok_or_else(|| Error::Damaged(format!("item {id} has a lease and no row")))?.item;
            let (seed, me) = (policy.seed.to_string(), annotator.0.to_string());
            let again = repeat_of.as_deref().unwrap_or("");
            let mut answers = item.answers;
            answers.sort_by_cached_key(|answer| hash(&["shown", &seed, &id, &me, again, &answer.id]));
            let draft = transaction
                .query_row(
                    "SELECT value_json FROM draft WHERE item_id = ?1 AND annotator_id = ?2",
                    params![id, annotator.0],
                    |row| rows::json::<Value>(row, "value_json"),
                )
                .optional()?;
            let progress = progress(transaction, annotator, policy, now)?;
            Ok(Some(Task { item: id, prompt: item.prompt, answers, lease_until, draft, repeat_of, progress }))
        })
    }

    /// Keeps an item reserved; returns until when. None: the lease is over, or there was none; ask for the next item.
    pub fn heartbeat(&self, annotator: AnnotatorId, item: &str, policy: &Policy, now: i64) -> Result<Option<i64>> {
        policy.validate()?;
        let until = now + policy.lease_ms();
        self.write(|transaction| {
            let query = "UPDATE lease SET until = ?3 WHERE item_id = ?1 AND annotator_id = ?2 AND until > ?4";
            let renewed = transaction.execute(query, params![item, annotator.0, until, now])?;
            Ok((renewed > 0).then_some(until))
        })
    }

    /// Stores what an annotator has entered and not submitted. [`Self::next`] returns it, and a judgement removes it.
    pub fn save_draft(&self, annotator: AnnotatorId, item: &str, draft: &Value) -> Result<()> {
        self.write(|transaction| {
            let query = "INSERT OR REPLACE INTO draft(item_id, annotator_id, value_json)
                         SELECT id, ?2, ?3 FROM item WHERE id = ?1";
            match transaction.execute(query, params![item, annotator.0, rows::to_json(draft)?])? {
                0 => Err(Error::Unknown { what: "item", id: item.to_owned() }),
                _ => Ok(()),
            }
        })
    }

    /// How far an annotator is.
    pub fn progress(&self, annotator: AnnotatorId, policy: &Policy, now: i64) -> Result<Progress> {
        policy.validate()?;
        self.read(|transaction| progress(transaction, annotator, policy, now))
    }
}

/// Whether the annotator can get the item.
pub(super) fn has_place(
    transaction: &Transaction,
    item: &str,
    annotator: AnnotatorId,
    policy: &Policy,
    now: i64,
) -> Result<bool> {
    let query =
        format!("SELECT count(*) FROM item AS i WHERE i.id = :item AND (i.gold_order_json IS NOT NULL OR {AVAILABLE})");
    let found: i64 = transaction.query_row(
        &query,
        named_params! {":item": item, ":me": annotator.0, ":now": now, ":overlap": policy.overlap},
        |row| row.get(0),
    )?;
    Ok(found > 0)
}

/// Reserves an item as the last one that the annotator has taken.
pub(super) fn take(
    transaction: &Transaction,
    item: &str,
    annotator: AnnotatorId,
    repeat_of: Option<&str>,
    until: i64,
) -> Result<()> {
    let query = "INSERT OR REPLACE INTO lease(item_id, annotator_id, until, taken, repeat_of)
                 VALUES (?1, ?2, ?3, (SELECT coalesce(max(taken), 0) + 1 FROM lease), ?4)";
    transaction.execute(query, params![item, annotator.0, until, repeat_of])?;
    Ok(())
}

fn take_or_renew(
    transaction: &Transaction,
    item: &str,
    annotator: AnnotatorId,
    repeat_of: Option<&str>,
    until: i64,
) -> Result<()> {
    let query = "UPDATE lease SET until = ?3 WHERE item_id = ?1 AND annotator_id = ?2 AND repeat_of IS ?4";
    match transaction.execute(query, params![item, annotator.0, until, repeat_of])? {
        0 => take(transaction, item, annotator, repeat_of, until),
        _ => Ok(()),
    }
}

/// Ends a lease and removes the draft.
pub(super) fn release(transaction: &Transaction, item: &str, annotator: AnnotatorId) -> Result<()> {
    for table in ["lease", "draft"] {
        let query = format!("DELETE FROM {table} WHERE item_id = ?1 AND annotator_id = ?2");
        transaction.execute(&query, params![item, annotator.0])?;
    }
    Ok(())
}

/// The judgement that the lease repeats.
pub(super) fn repeat_of_lease(transaction: &Transaction, item: &str, annotator: AnnotatorId) -> Result<Option<String>> {
    let query = "SELECT repeat_of FROM lease WHERE item_id = ?1 AND annotator_id = ?2";
    Ok(transaction.query_row(query, params![item, annotator.0], |row| row.get(0)).optional()?.flatten())
}

/// The item that the annotator took last and has not judged. An item whose lease is over is taken again if it still has a place.
fn held(transaction: &Transaction, annotator: AnnotatorId, policy: &Policy, now: i64) -> Result<Option<Choice>> {
    let query = "SELECT item_id, repeat_of, until FROM lease WHERE annotator_id = ?1 ORDER BY taken DESC";
    let mut statement = transaction.prepare(query)?;
    let leases = statement.query_map([annotator.0], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, i64>(2)?)))?;
    for lease in leases.collect::<Result<Vec<(Choice, i64)>, _>>()? {
        let ((item, repeat_of), until) = lease;
        if until > now || repeat_of.is_some() || has_place(transaction, &item, annotator, policy, now)? {
            return Ok(Some((item, repeat_of)));
        }
    }
    Ok(None)
}

/// A new item: a repeat or a gold item at their places, else the first item in the order in which they were added.
fn choose(transaction: &Transaction, annotator: AnnotatorId, policy: &Policy, now: i64) -> Result<Option<Choice>> {
    let query = "SELECT count(*), coalesce(sum(repeat_of IS NOT NULL), 0), coalesce(max(number), 0) FROM current
                 WHERE annotator_id = ?1";
    let (all, repeats, last): (i64, i64, i64) =
        transaction.query_row(query, [annotator.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let done = all - repeats;
    let last_is_repeat: bool = transaction
        .query_row("SELECT repeat_of IS NOT NULL FROM judgement WHERE number = ?1", [last], |row| row.get(0))
        .optional()?
        .unwrap_or(false);
    let (seed, me) = (policy.seed.to_string(), annotator.0.to_string());
    // The place in each block of `every` judgements, from `first` on.
    let is_place = |what: &str, every: i64, first: i64| {
        let block = done.checked_div(every).unwrap_or(0).to_string();
        every > 0 && done % every == first + pick(&[what, &seed, &me, &block], (every - first).unsigned_abs()) as i64
    };
    let repeat_every = i64::from(policy.repeat_every);
    if !last_is_repeat && is_place("repeat", repeat_every, repeat_every / 3) {
        let query = "SELECT item_id, id FROM current AS c WHERE annotator_id = ?1 AND kind = 'rank' AND repeat_of IS NULL
                     AND number NOT IN (SELECT number FROM current WHERE annotator_id = ?1 ORDER BY number DESC LIMIT ?2)
                     AND NOT EXISTS (SELECT 1 FROM current AS r WHERE r.repeat_of = c.id)
                     ORDER BY number";
        let mut statement = transaction.prepare(query)?;
        let own = statement.query_map(params![annotator.0, REPEAT_GAP], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut own: Vec<(String, String)> = own.collect::<Result<_, _>>()?;
        if !own.is_empty() {
            let at = pick(&["which", &seed, &me, &done.to_string()], own.len() as u64) as usize;
            let (item, id) = own.swap_remove(at);
            return Ok(Some((item, Some(id))));
        }
    }
    if is_place("gold", i64::from(policy.gold_every), 0) {
        let query = "SELECT id FROM item AS i WHERE gold_order_json IS NOT NULL
                     AND NOT EXISTS (SELECT 1 FROM current WHERE item_id = i.id AND annotator_id = ?1)
                     ORDER BY number LIMIT 1";
        let gold: Option<String> = transaction.query_row(query, [annotator.0], |row| row.get(0)).optional()?;
        if let Some(item) = gold {
            return Ok(Some((item, None)));
        }
    }
    let query = format!("SELECT id FROM item AS i WHERE {AVAILABLE} ORDER BY number LIMIT 1");
    let parameters = named_params! {":me": annotator.0, ":now": now, ":overlap": policy.overlap};
    let item: Option<String> = transaction.query_row(&query, parameters, |row| row.get(0)).optional()?;
    Ok(item.map(|item| (item, None)))
}

fn progress(transaction: &Transaction, annotator: AnnotatorId, policy: &Policy, now: i64) -> Result<Progress> {
    let done = "SELECT count(*) FROM current WHERE annotator_id = ?1";
    let done: i64 = transaction.query_row(done, [annotator.0], |row| row.get(0))?;
    let parameters = named_params! {":me": annotator.0, ":now": now, ":overlap": policy.overlap};
    let left: i64 =
        transaction
            .query_row(&format!("SELECT count(*) FROM item AS i WHERE {AVAILABLE}"), parameters, |row| row.get(0))?;
    let query = "SELECT ms_visible FROM current WHERE annotator_id = ?1 ORDER BY number DESC LIMIT 50";
    let mut statement = transaction.prepare(query)?;
    let mut times: Vec<i64> = statement.query_map([annotator.0], |row| row.get(0))?.collect::<Result<_, _>>()?;
    times.sort_unstable();
    let total: i64 = times.iter().sum();
    let middle = times.len() / 2;
    let median = match times.len() {
        0 => None,
        n if n % 2 == 0 => Some((times[middle - 1] + times[middle]) as f64 / 2000.),
        _ => Some(times[middle] as f64 / 1000.),
    };
    let per_hour = (total > 0).then(|| times.len() as f64 * 3_600_000. / total as f64);
    let count = |number: i64| usize::try_from(number).unwrap_or(0);
    Ok(Progress { done: count(done), left: count(left), per_hour, median_seconds: median })
}
