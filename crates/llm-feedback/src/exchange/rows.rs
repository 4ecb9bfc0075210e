//! The judgements of a database with their items, and judgements that are read from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llm_data::read_jsonl;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Exported;
use super::names::{answer_id, check_count, wrong};
use crate::store::digest;
use crate::store::{
    AnnotatorId, Grades, Imported, Judgement, Kind, NewAnswer, NewItem, Ranks, Store, StoredJudgement, now,
};
use crate::{Error, Result};

/// A judgement with its item.
pub(super) struct Row {
    pub item: NewItem,
    pub annotator: String,
    pub submitted: i64,
    pub judgement: Judgement,
}

impl Row {
    /// The rank of each answer, in the order of the item; none, if this is no ranking.
    pub fn ranks(&self) -> Option<Vec<Option<u32>>> {
        match &self.judgement.kind {
            Kind::Rank { ranks } => {
                Some(self.item.answers.iter().map(|answer| ranks.get(&answer.id).copied()).collect())
            }
            Kind::AllBad | Kind::Skip | Kind::Flag => None,
        }
    }

    /// The indices of the answers in the order in which they were shown.
    pub fn shown(&self) -> Vec<usize> {
        let index = |id: &String| self.item.answers.iter().position(|answer| answer.id == *id);
        self.judgement.shown.iter().filter_map(index).collect()
    }
}

/// The current judgements, sorted by item and then in the order in which they arrived.
pub(super) fn rows(store: &Store, done: &mut Exported) -> Result<Vec<Row>> {
    let items: BTreeMap<String, NewItem> =
        store.items()?.into_iter().map(|item| (item.item.id.clone(), item.item)).collect();
    let mut rows = Vec::new();
    for StoredJudgement { judgement, item, annotator_name, submitted, .. } in store.current()? {
        let (Some(judgement), Some(item)) = (judgement, items.get(&item)) else { continue };
        match judgement.kind {
            Kind::Skip => done.leave_out("skipped", 1),
            Kind::Flag => done.leave_out("flagged", 1),
            _ if judgement.repeat_of.is_some() => done.leave_out("repeats", 1),
            Kind::Rank { .. } | Kind::AllBad => {
                rows.push(Row { item: item.clone(), annotator: annotator_name, submitted, judgement });
            }
        }
    }
    Ok(rows)
}

/// Each record as a line of JSON.
pub(super) fn lines<T: Serialize>(records: &[T]) -> Result<String> {
    let mut text = String::new();
    for record in records {
        text += &json(record)?;
        text.push('\n');
    }
    Ok(text)
}

/// A record as JSON in one line.
pub(super) fn json(record: &impl Serialize) -> Result<String> {
    serde_json::to_string(record).map_err(|error| Error::Damaged(error.to_string()))
}

/// A message that is the answer.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Reply {
    role: String,
    pub content: String,
}

impl Reply {
    pub fn new(content: &str) -> Self {
        Self { role: "assistant".to_owned(), content: content.to_owned() }
    }
}

/// What a record of a file says of one item.
pub(super) struct Vote {
    pub annotator: String,
    pub kind: Kind,
    /// Indices of the answers; empty: not known.
    pub shown: Vec<usize>,
    pub grades: Grades,
    pub submitted: Option<i64>,
}

/// Items and judgements of a file.
pub(super) struct Batch<'a> {
    store: &'a Store,
    pub path: PathBuf,
    items: Vec<NewItem>,
    /// How many of them are in the database.
    present: usize,
    places: BTreeMap<String, usize>,
    annotators: BTreeMap<String, AnnotatorId>,
    judgements: Vec<(Judgement, i64)>,
    now: i64,
}

impl<'a> Batch<'a> {
    pub fn new(store: &'a Store, path: &Path) -> Result<Self> {
        let present: Vec<NewItem> = store.items()?.into_iter().map(|item| item.item).collect();
        let places = present.iter().enumerate().map(|(at, item)| (item.id.clone(), at)).collect();
        let (annotators, judgements, known) = (BTreeMap::new(), Vec::new(), present.len());
        Ok(Self {
            store,
            path: path.to_owned(),
            items: present,
            present: known,
            places,
            annotators,
            judgements,
            now: now(),
        })
    }

    /// The records of the file with their lines.
    pub fn records<T: DeserializeOwned>(&self, form: &str) -> Result<Vec<(usize, T)>> {
        let parse = |(line, value)| match serde_json::from_value(value) {
            Ok(record) => Ok((line, record)),
            Err(error) => Err(wrong(&self.path, line, format!("{error}; a record must be {form}"))),
        };
        read_jsonl(&self.path)?.into_iter().map(parse).collect()
    }

    /// The item with this id. A new one is added; one that exists, in the database or earlier in the file, must have the same prompt and
    /// the same texts.
    pub fn item(&mut self, line: usize, new: NewItem) -> Result<NewItem> {
        check_count(&self.path, line, new.answers.len())?;
        let Some(&at) = self.places.get(&new.id) else {
            self.places.insert(new.id.clone(), self.items.len());
            self.items.push(new.clone());
            return Ok(new);
        };
        let present = &self.items[at];
        let texts = |item: &NewItem| item.answers.iter().map(|answer| answer.text.clone()).collect::<Vec<_>>();
        match present.prompt == new.prompt && texts(present) == texts(&new) {
            true => Ok(present.clone()),
            false => Err(wrong(
                &self.path,
                line,
                format!("item \"{}\" has another prompt or other answers than before", new.id),
            )),
        }
    }

    /// Adds a judgement. `key` and the vote make its id, so that it is the same in a second import.
    pub fn vote(&mut self, line: usize, item: &NewItem, key: &str, vote: Vote) -> Result<()> {
        let ids = vote.shown.iter().map(|&index| item.answers.get(index).map(|answer| answer.id.clone()));
        let Some(shown) = ids.collect::<Option<Vec<String>>>() else {
            return Err(wrong(&self.path, line, "\"shown\" must contain indices of the answers"));
        };
        let annotator = match self.annotators.get(&vote.annotator) {
            Some(id) => *id,
            None => {
                let known =
                    self.store.annotators()?.into_iter().find(|one| one.name == vote.annotator).map(|one| one.id);
                let id = known.map_or_else(|| self.store.annotator(&vote.annotator), Ok)?;
                self.annotators.insert(vote.annotator.clone(), id);
                id
            }
        };
        let content = json(&(&vote.kind, &shown, &vote.grades))?;
        let judgement = Judgement {
            id: format!("import-{}", digest(&[&item.id, &vote.annotator, key, &content])),
            item: item.id.clone(),
            annotator,
            kind: vote.kind,
            shown,
            grades: vote.grades,
            reason: None,
            started: 0,
            ms_visible: 0,
            repeat_of: None,
            guideline_version: None,
        };
        self.judgements.push((judgement, vote.submitted.unwrap_or(self.now)));
        Ok(())
    }

    /// Stores all of it in one transaction.
    pub fn store(self) -> Result<Imported> {
        self.store.import(&self.items[self.present..], &self.judgements)
    }

    /// An item of texts.
    pub fn new_item(&self, id: String, prompt: Vec<llm_data::ChatMessage>, texts: &[String]) -> NewItem {
        let answers = texts.iter().enumerate().map(|(at, text)| NewAnswer::text(answer_id(&id, at), text)).collect();
        NewItem { id, prompt, source: self.path.display().to_string(), gold_order: None, answers }
    }
}

/// The ranking that gives each answer of the item its rank.
pub(super) fn ranking(item: &NewItem, ranks: &[Option<u32>]) -> Kind {
    let ranked = item.answers.iter().zip(ranks).filter_map(|(answer, rank)| Some((answer.id.clone(), (*rank)?)));
    Kind::Rank { ranks: ranked.collect::<Ranks>() }
}
