//! Votes, undo and reveal. The database says what was done before.

use std::collections::BTreeMap;

use llm_feedback::store::{self, AnnotatorId, Item, Judgement, Kind, Store, StoredJudgement};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{REVEALED, SIDES, SOURCE};
use crate::error::{ApiError, Result};
use crate::feedback::app::{App, of_store};

/// A vote on a battle.
#[derive(Debug, Deserialize)]
pub(super) struct Vote {
    pub(super) id: String,
    pub(super) battle: String,
    vote: Side,
    started: i64,
    ms_visible: i64,
    guideline_version: Option<String>,
}

/// What a person votes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Left,
    Right,
    Tie,
    BothBad,
}

impl Side {
    fn kind(self) -> Kind {
        let ranks = |left, right| Kind::Rank {
            ranks: SIDES.iter().zip([left, right]).map(|(side, rank)| ((*side).to_owned(), rank)).collect(),
        };
        match self {
            Self::Left => ranks(1, 2),
            Self::Right => ranks(2, 1),
            Self::Tie => ranks(1, 1),
            Self::BothBad => Kind::AllBad,
        }
    }
}

/// The name of a stored vote.
fn name(kind: &Kind) -> Option<&'static str> {
    match kind {
        Kind::Rank { ranks } => Some(match ranks.get("left").cmp(&ranks.get("right")) {
            std::cmp::Ordering::Less => "left",
            std::cmp::Ordering::Equal => "tie",
            std::cmp::Ordering::Greater => "right",
        }),
        Kind::AllBad => Some("both_bad"),
        Kind::Skip | Kind::Flag => None,
    }
}

fn conflict(message: &str) -> ApiError {
    ApiError::new(axum::http::StatusCode::CONFLICT, message)
}

/// The battle, if the arena has it.
fn find(store: &Store, battle: &str) -> Result<Item> {
    let found = store.item(battle).map_err(of_store)?.filter(|item| item.item.source == SOURCE);
    found.ok_or_else(|| ApiError::invalid("battle", format!("there is no battle {battle:?}; ask both models again")))
}

fn revealed(store: &Store, battle: &str) -> Result<bool> {
    store.has_event(battle, REVEALED).map_err(of_store)
}

/// The vote of a person on a battle.
fn vote_of(store: &Store, battle: &str, annotator: AnnotatorId) -> Result<Option<StoredJudgement>> {
    let votes = store.current_of(battle).map_err(of_store)?;
    Ok(votes.into_iter().find(|row| row.annotator == annotator))
}

fn names(item: &Item) -> Vec<String> {
    item.item.answers.iter().map(|answer| answer.checkpoint.clone().unwrap_or_default()).collect()
}

fn count(app: &App, annotator: AnnotatorId) -> Result<usize> {
    Ok(app.store.progress(annotator, &app.options.policy, store::now()).map_err(of_store)?.done)
}

/// Stores a vote. A battle whose models are known takes no vote but one that is sent again.
pub(super) fn vote(app: &App, annotator: AnnotatorId, vote: Vote) -> Result<Value> {
    find(&app.store, &vote.battle)?;
    let sent_again = vote_of(&app.store, &vote.battle, annotator)?.is_some_and(|stored| stored.id == vote.id);
    if !sent_again && revealed(&app.store, &vote.battle)? {
        return Err(conflict("the models of this battle are known; a vote would not be blind"));
    }
    let judgement = Judgement {
        kind: vote.vote.kind(),
        id: vote.id,
        item: vote.battle,
        annotator,
        shown: SIDES.map(str::to_owned).to_vec(),
        grades: BTreeMap::new(),
        reason: None,
        started: vote.started,
        ms_visible: vote.ms_visible,
        repeat_of: None,
        guideline_version: vote.guideline_version,
    };
    app.store.judge(&judgement, store::now()).map_err(of_store)?;
    Ok(json!({"votes": count(app, annotator)?}))
}

/// Takes the last vote back, if it is on this battle and the models are not known.
pub(super) fn undo(app: &App, annotator: AnnotatorId, id: &str, battle: &str) -> Result<Value> {
    find(&app.store, battle)?;
    let sent_again = app.store.has_row(id).map_err(of_store)?;
    if !sent_again {
        if revealed(&app.store, battle)? {
            return Err(conflict("the models of this battle are known; its vote stays"));
        }
        let last = app.store.last_of(annotator).map_err(of_store)?;
        if last.is_none_or(|last| last.item != battle) {
            return Err(conflict("your last vote is on another battle; undo it there"));
        }
    }
    app.store.undo(annotator, id, &app.options.policy, store::now()).map_err(of_store)?;
    Ok(json!({"votes": count(app, annotator)?}))
}

/// The names of the models, after the vote. From then on the vote stays.
pub(super) fn reveal(app: &App, annotator: AnnotatorId, battle: &str) -> Result<Value> {
    let item = find(&app.store, battle)?;
    if vote_of(&app.store, battle, annotator)?.is_none() {
        return Err(conflict("vote first; the models are shown after it"));
    }
    if !revealed(&app.store, battle)? {
        app.store.log_event(Some(annotator), Some(battle), REVEALED).map_err(of_store)?;
    }
    Ok(json!({"names": names(&item)}))
}

/// What was done with a battle, for a page that is loaded again.
pub(super) fn state(app: &App, annotator: AnnotatorId, battle: Option<&str>) -> Result<Value> {
    let votes = count(app, annotator)?;
    let Some(battle) = battle else { return Ok(json!({"votes": votes})) };
    let item = find(&app.store, battle)?;
    let vote = vote_of(&app.store, battle, annotator)?;
    let vote = vote.and_then(|row| name(&row.judgement?.kind));
    let names = (vote.is_some() && revealed(&app.store, battle)?).then(|| names(&item));
    Ok(json!({"votes": votes, "vote": vote, "names": names}))
}
