//! The routes of the ranking page.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use llm_feedback::store::{self, AnnotatorId};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::assets::{PARTS, RANK_PAGE};
use super::blind;
use super::server::{App, LIMITS, of_store};
use super::wire::{Draft, Judged, Named, OfItem, Undo};
use crate::body::read;
use crate::error::{ApiError, Result};
use crate::guard::{bearer, check_host};
use crate::wire::json::parse;

/// All routes. Requests of the page are `POST` with JSON, so that no other site can send them (`guard` checks the origin).
pub(super) fn router(app: Arc<App>) -> Router {
    let mut routes = Router::new()
        .route("/", get(async || RANK_PAGE))
        .route("/health", get(async || axum::Json(json!({"status": "ok"}))))
        .route("/api/config", post(config))
        .route("/api/next", post(next))
        .route("/api/draft", post(draft))
        .route("/api/heartbeat", post(heartbeat))
        .route("/api/judge", post(judge))
        .route("/api/undo", post(undo));
    for (path, asset) in PARTS {
        routes = routes.route(path, get(async move || asset));
    }
    let missing = async || ApiError::new(StatusCode::NOT_FOUND, "there is no such page");
    let method = async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method");
    routes
        .fallback(missing)
        .method_not_allowed_fallback(method)
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// Checks the name of the host and the origin of every request.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check_host(app.loopback, &app.options.hosts, request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Reads a request, finds out who asks, and answers on a thread that may wait for the database.
async fn act<T: DeserializeOwned + 'static>(
    app: Arc<App>,
    headers: HeaderMap,
    body: Body,
    answer: impl FnOnce(&App, AnnotatorId, T) -> Result<Value> + Send + 'static,
) -> Result<axum::Json<Value>> {
    let bytes = read(&headers, body, LIMITS).await?;
    let token = bearer(&headers).map(str::to_owned);
    let shared = Arc::clone(&app);
    let work = move || {
        let named: Named = parse(&bytes)?;
        let asker = shared.asker(token.as_deref(), named.annotator.as_deref())?;
        answer(&shared, asker, parse(&bytes)?)
    };
    app.work.run(work).await.map(axum::Json)
}

/// What the page must know before there is an annotator.
async fn config(State(app): State<Arc<App>>) -> axum::Json<Value> {
    let policy = &app.options.policy;
    axum::Json(json!({
        "tokens": app.tokens,
        "grades": app.options.grades,
        "guideline": policy.guideline,
        "guideline_version": policy.guideline_version(),
    }))
}

/// The next item, and how far the annotator is.
async fn next(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<axum::Json<Value>> {
    act(app, headers, body, |app, asker, _: Value| task(app, asker)).await
}

fn task(app: &App, asker: AnnotatorId) -> Result<Value> {
    let (policy, now) = (&app.options.policy, store::now());
    match app.store.next(asker, policy, now).map_err(of_store)? {
        Some(task) => Ok(json!({"task": blind::task(&task), "progress": task.progress})),
        None => {
            let progress = app.store.progress(asker, policy, now).map_err(of_store)?;
            Ok(json!({"task": null, "progress": progress}))
        }
    }
}

async fn draft(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<axum::Json<Value>> {
    act(app, headers, body, |app, asker, sent: Draft| {
        app.store.save_draft(asker, &sent.item, &sent.draft).map_err(of_store)?;
        for event in &sent.events {
            app.store.log_event(Some(asker), Some(&sent.item), event).map_err(of_store)?;
        }
        Ok(json!({"status": "saved"}))
    })
    .await
}

async fn heartbeat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<axum::Json<Value>> {
    act(app, headers, body, |app, asker, sent: OfItem| {
        let until = app.store.heartbeat(asker, &sent.item, &app.options.policy, store::now()).map_err(of_store)?;
        Ok(json!({"lease_until": until}))
    })
    .await
}

async fn judge(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<axum::Json<Value>> {
    act(app, headers, body, |app, asker, sent: Judged| {
        let item = app.store.item(&sent.item).map_err(of_store)?;
        let item = item.ok_or_else(|| ApiError::invalid("item", format!("there is no item {:?}", sent.item)))?;
        let judgement = blind::judgement(sent, asker, &item.item.answers)?;
        match app.store.judge(&judgement, store::now()).map_err(of_store)? {
            store::Judged::Accepted => Ok(json!({"status": "accepted"})),
            store::Judged::Repeated => Ok(json!({"status": "repeated"})),
        }
    })
    .await
}

/// Takes the last judgement back; answers with its item as the next task. An item of null: there was none to take back.
async fn undo(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<axum::Json<Value>> {
    act(app, headers, body, |app, asker, sent: Undo| {
        let undone = app.store.undo(asker, &sent.id, &app.options.policy, store::now()).map_err(of_store)?;
        let mut answer = task(app, asker)?;
        answer["undone"] = undone.into();
        Ok(answer)
    })
    .await
}
