//! The routes of the ranking page, and those that all pages share.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use llm_feedback::report::ReportOptions;
use llm_feedback::store::{self, AnnotatorId};
use serde_json::{Value, json};

use super::app::{App, act, of_store};
use super::assets::{COMMON_SCRIPT, DRAG_SCRIPT, RANK_PAGE, RANK_SCRIPT, REPORT_PAGE, REPORT_SCRIPT, STYLE_SHEET};
use super::blind;
use super::wire::{Draft, Judged, OfItem, Undo};
use crate::error::{ApiError, Result};
use crate::guard::check_host;

/// The routes of the ranking page.
pub(super) fn ranking() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(async || RANK_PAGE))
        .route("/rank.js", get(async || RANK_SCRIPT))
        .route("/drag.js", get(async || DRAG_SCRIPT))
        .route("/api/next", post(next))
        .route("/api/draft", post(draft))
        .route("/api/heartbeat", post(heartbeat))
        .route("/api/judge", post(judge))
        .route("/api/undo", post(undo))
}

/// The routes of a page with those that all pages share. Requests of a page are `POST` with JSON, so that no other site can send them
/// (`guard` checks the origin).
pub(super) fn with_shared(page: Router<Arc<App>>, app: Arc<App>) -> Router {
    let missing = async || ApiError::new(StatusCode::NOT_FOUND, "there is no such page");
    let method = async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method");
    page.route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/feedback.css", get(async || STYLE_SHEET))
        .route("/common.js", get(async || COMMON_SCRIPT))
        .route("/report", get(async || REPORT_PAGE))
        .route("/report.js", get(async || REPORT_SCRIPT))
        .route("/api/report", post(report))
        .route("/api/config", post(config))
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

/// What the page must know before there is an annotator.
async fn config(State(app): State<Arc<App>>) -> Json<Value> {
    let policy = &app.options.policy;
    Json(json!({
        "tokens": app.tokens,
        "grades": app.options.grades,
        "guideline": policy.guideline,
        "guideline_version": policy.guideline_version(),
    }))
}

/// The report, for everybody where names are enough, else for admins.
async fn report(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, _: Value| {
        if app.tokens {
            let annotators = app.store.annotators().map_err(of_store)?;
            let is_admin = |name: &String| app.options.admins.contains(name);
            if !annotators.iter().any(|annotator| annotator.id == asker && is_admin(&annotator.name)) {
                let message = "the report names the models; it is for the annotators of --admin";
                return Err(ApiError::new(StatusCode::FORBIDDEN, message));
            }
        }
        let report = llm_feedback::report::report(&app.store, &ReportOptions::default()).map_err(of_store)?;
        Ok(json!({"report": report.to_string()}))
    })
    .await
    .map(Json)
}

/// The next item, and how far the annotator is.
async fn next(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, _: Value| task(app, asker)).await.map(Json)
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

async fn draft(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, sent: Draft| {
        app.store.save_draft(asker, &sent.item, &sent.draft).map_err(of_store)?;
        for event in &sent.events {
            app.store.log_event(Some(asker), Some(&sent.item), event).map_err(of_store)?;
        }
        Ok(json!({"status": "saved"}))
    })
    .await
    .map(Json)
}

async fn heartbeat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, sent: OfItem| {
        let until = app.store.heartbeat(asker, &sent.item, &app.options.policy, store::now()).map_err(of_store)?;
        Ok(json!({"lease_until": until}))
    })
    .await
    .map(Json)
}

async fn judge(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, sent: Judged| {
        let item = app.store.item(&sent.item).map_err(of_store)?;
        let item = item.ok_or_else(|| ApiError::invalid("item", format!("there is no item {:?}", sent.item)))?;
        let judgement = blind::judgement(sent, asker, &item.item.answers)?;
        match app.store.judge(&judgement, store::now()).map_err(of_store)? {
            store::Judged::Accepted => Ok(json!({"status": "accepted"})),
            store::Judged::Repeated => Ok(json!({"status": "repeated"})),
        }
    })
    .await
    .map(Json)
}

/// Takes the last judgement back; answers with its item as the next task. An item of null: there was none to take back.
async fn undo(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>> {
    act(&app, headers, body, |app, asker, sent: Undo| {
        let undone = app.store.undo(asker, &sent.id, &app.options.policy, store::now()).map_err(of_store)?;
        let mut answer = task(app, asker)?;
        answer["undone"] = undone.into();
        Ok(answer)
    })
    .await
    .map(Json)
}
