//! Items and their answers.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::types::{Added, Item, MAX_ANSWERS, NewAnswer, NewItem, Ranks};
use super::{Store, now, rows};
use crate::{Error, Result};

impl Store {
    /// Adds items, all or none. An item that is there already with the same content is not added again; one with other content is an
    /// error.
    pub fn add_items(&self, items: &[NewItem]) -> Result<Added> {
        let created = now();
        self.write(|transaction| add(transaction, items, created))
    }

    /// The item with this id.
    pub fn item(&self, id: &str) -> Result<Option<Item>> {
        self.read(|transaction| find(transaction, id))
    }

    /// All items, in the order in which they were added.
    pub fn items(&self) -> Result<Vec<Item>> {
        self.read(|transaction| {
            let mut statement = transaction.prepare("SELECT * FROM item ORDER BY number")?;
            let mut items = statement.query_map([], without_answers)?.collect::<Result<Vec<_>, _>>()?;
            for item in &mut items {
                item.item.answers = answers(transaction, &item.item.id)?;
            }
            Ok(items)
        })
    }

    /// The number of items.
    pub fn item_count(&self) -> Result<usize> {
        self.read(|transaction| {
            let count: i64 = transaction.query_row("SELECT count(*) FROM item", [], |row| row.get(0))?;
            Ok(usize::try_from(count).unwrap_or(0))
        })
    }
}

/// Adds the items that are new.
pub(super) fn add(transaction: &Transaction, items: &[NewItem], created: i64) -> Result<Added> {
    items.iter().try_for_each(validate)?;
    let mut done = Added::default();
    for item in items {
        match find(transaction, &item.id)? {
            None => {
                insert(transaction, item, created)?;
                done.added += 1;
            }
            Some(present) if present.item == *item => done.present += 1,
            Some(_) => {
                let problem = "is in the database with other content; use another id".to_owned();
                return Err(Error::Item { id: item.id.clone(), problem });
            }
        }
    }
    Ok(done)
}

fn validate(item: &NewItem) -> Result<()> {
    let problem = |problem: String| Err(Error::Item { id: item.id.clone(), problem });
    if item.id.is_empty() || item.id.len() > 200 || item.id.chars().any(char::is_control) {
        return problem("the id must have 1 to 200 bytes and no line break".to_owned());
    }
    if item.prompt.is_empty() {
        return problem("the prompt is empty; it must contain at least one message".to_owned());
    }
    if !(1..=MAX_ANSWERS).contains(&item.answers.len()) {
        return problem(format!("has {} answers; it must have 1 to {MAX_ANSWERS}", item.answers.len()));
    }
    let ids: BTreeSet<&str> = item.answers.iter().map(|answer| answer.id.as_str()).collect();
    if ids.len() < item.answers.len() || ids.contains("") {
        return problem("each answer must have its own id".to_owned());
    }
    if let Some(gold) = &item.gold_order {
        if let Some(unknown) = gold.keys().find(|id| !ids.contains(id.as_str())) {
            return problem(format!("\"gold_order\" names the answer \"{unknown}\", which does not exist"));
        }
        if gold.len() < 2 || gold.values().all(|rank| Some(rank) == gold.values().next()) {
            return problem("\"gold_order\" must say of at least two answers which is better".to_owned());
        }
    }
    Ok(())
}

fn insert(transaction: &Transaction, item: &NewItem, created: i64) -> Result<()> {
    let gold = item.gold_order.as_ref().map(rows::to_json).transpose()?;
    let query = "INSERT INTO item(id, prompt_json, source, gold_order_json, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    transaction.execute(query, params![item.id, rows::to_json(&item.prompt)?, item.source, gold, created])?;
    let query =
        "INSERT INTO answer(id, item_id, position, text, token_ids_json, checkpoint, sampling_json, seed, finish)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let mut statement = transaction.prepare(query)?;
    for (position, answer) in item.answers.iter().enumerate() {
        let token_ids = answer.token_ids.as_ref().map(rows::to_json).transpose()?;
        let sampling = answer.sampling.as_ref().map(rows::to_json).transpose()?;
        // SQLite's integers have a sign.
        let seed = answer.seed.map(|seed| seed.to_string());
        let (id, text, checkpoint, finish) = (&answer.id, &answer.text, &answer.checkpoint, &answer.finish);
        statement.execute(params![
            id,
            item.id,
            position as i64,
            text,
            token_ids,
            checkpoint,
            sampling,
            seed,
            finish
        ])?;
    }
    Ok(())
}

pub(super) fn find(transaction: &Transaction, id: &str) -> Result<Option<Item>> {
    let found = transaction.query_row("SELECT * FROM item WHERE id = ?1", [id], without_answers).optional()?;
    found
        .map(|mut item| {
            item.item.answers = answers(transaction, id)?;
            Ok(item)
        })
        .transpose()
}

fn answers(transaction: &Transaction, item: &str) -> Result<Vec<NewAnswer>> {
    let mut statement = transaction.prepare("SELECT * FROM answer WHERE item_id = ?1 ORDER BY position")?;
    let all = statement.query_map([item], rows::answer)?;
    Ok(all.collect::<Result<_, _>>()?)
}

fn without_answers(row: &Row) -> rusqlite::Result<Item> {
    let gold: Option<Ranks> = match row.get::<_, Option<String>>("gold_order_json")? {
        Some(_) => Some(rows::json(row, "gold_order_json")?),
        None => None,
    };
    let item = NewItem {
        id: row.get("id")?,
        prompt: rows::json(row, "prompt_json")?,
        source: row.get("source")?,
        gold_order: gold,
        answers: Vec::new(),
    };
    Ok(Item { item, created: row.get("created")? })
}
