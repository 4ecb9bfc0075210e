//! The routes of the arena.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::fight::Battle;
use super::{ArenaModel, votes};
use crate::error::{ApiError, Result};
use crate::feedback::app::{App, act};
use crate::feedback::assets::{ARENA_PAGE, ARENA_SCRIPT};

/// How many lines of a battle may wait for the client.
const LINES: usize = 64;
/// The longest prompt in characters.
const MAX_PROMPT: usize = 20_000;

#[derive(Debug, Deserialize)]
struct Asked {
    prompt: String,
}

/// A request about a battle.
#[derive(Debug, Deserialize)]
struct OfBattle {
    id: String,
    battle: String,
}

#[derive(Debug, Deserialize)]
struct StateOf {
    battle: Option<String>,
}

/// One vote, undo or reveal at a time: each looks first at what was done before.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The routes of the arena of these models.
pub(in crate::feedback) fn routes(models: [ArenaModel; 2]) -> Router<Arc<App>> {
    let models = Arc::new(models);
    Router::new()
        .route("/", get(async || ARENA_PAGE))
        .route("/arena.js", get(async || ARENA_SCRIPT))
        .route("/api/battle", post(move |app, headers, body| battle(Arc::clone(&models), app, headers, body)))
        .route("/api/state", post(state))
        .route("/api/vote", post(vote))
        .route("/api/unvote", post(unvote))
        .route("/api/reveal", post(reveal))
}

/// Both models answer: lines of JSON, the last one with the name of the battle.
async fn battle(
    models: Arc<[ArenaModel; 2]>,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let begun = act(&app, headers, body, move |_, _, asked: Asked| {
        let prompt = asked.prompt.trim();
        if prompt.is_empty() || prompt.chars().count() > MAX_PROMPT {
            let message = format!("\"prompt\" must have 1 to {MAX_PROMPT} characters");
            return Err(ApiError::invalid("prompt", message));
        }
        Battle::begin(&models, prompt.to_owned())
    });
    let begun = begun.await?;
    let (lines, receiver) = mpsc::channel(LINES);
    tokio::spawn(begun.fight(app, lines));
    let lines = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn vote(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    let work = |app: &App, annotator, vote| {
        let _turn = turn();
        votes::vote(app, annotator, vote)
    };
    act(&app, headers, body, work).await.map(Json)
}

async fn unvote(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    let work = |app: &App, annotator, undone: OfBattle| {
        let _turn = turn();
        votes::undo(app, annotator, &undone.id, &undone.battle)
    };
    act(&app, headers, body, work).await.map(Json)
}

async fn reveal(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    let work = |app: &App, annotator, shown: OfBattle| {
        let _turn = turn();
        votes::reveal(app, annotator, &shown.battle)
    };
    act(&app, headers, body, work).await.map(Json)
}

async fn state(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, annotator, asked: StateOf| votes::state(app, annotator, asked.battle.as_deref()))
        .await
        .map(Json)
}
