//! `/health`, `/ready`, `/metrics` and `/v1/models`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json as response;
use crate::app::App;
use crate::error::{ApiError, Result};
use crate::wire::models::{ModelCard, ModelList};

/// The server is alive.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "The server is alive")))]
pub(super) async fn health() -> Result<Response> {
    response(&json!({"status": "ok"}))
}

/// The model is loaded and the server does not shut down.
#[utoipa::path(get, path = "/ready", responses((status = 200, description = "The server takes requests")))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response> {
    match *app.ready.borrow() {
        true => response(&json!({"status": "ready"})),
        false => Err(ApiError::shutting_down()),
    }
}

/// The metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Metrics", body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response> {
    let text = app.metrics.text().map_err(ApiError::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// The base model and its adapters.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "The models", body = ModelList)))]
pub(super) async fn models(State(app): State<Arc<App>>) -> Result<Response> {
    response(&ModelList { object: "list", data: cards(&app) })
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{name}", params(("name" = String, Path, description = "The name of a model")),
    responses((status = 200, description = "The model", body = ModelCard)))]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    name: std::result::Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response> {
    let Ok(Path(name)) = name else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "the name of the model is not UTF-8"));
    };
    let name = app.select(Some(&name))?.name;
    match cards(&app).into_iter().find(|card| card.id == name) {
        Some(card) => response(&card),
        None => Err(ApiError::internal("a model is missing in the list")),
    }
}

fn cards(app: &App) -> Vec<ModelCard> {
    let base = &app.options.name;
    let card = |id: &str, parent: Option<String>| ModelCard {
        id: id.to_owned(),
        object: "model",
        created: app.created,
        owned_by: "llm-infer",
        parent,
        max_model_len: app.info.context_length,
    };
    let adapters = app.info.adapters.iter().map(|name| card(name, Some(base.clone())));
    std::iter::once(card(base, None)).chain(adapters).collect()
}
