//! The routes.

mod answers;
mod embeddings;
mod openapi;
mod page;
mod state;
mod texts;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use crate::app::App;
use crate::error::{ApiError, Result};
use crate::guard::guard;

/// All routes of the server.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(state::health))
        .route("/ready", get(state::ready))
        .route("/metrics", get(state::metrics))
        .route("/openapi.json", get(openapi::description))
        .route("/v1/models", get(state::models))
        .route("/v1/models/{*name}", get(state::model))
        .route("/v1/chat/completions", post(answers::chat))
        .route("/v1/completions", post(answers::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/score", post(embeddings::score))
        .route("/v1/rerank", post(embeddings::rerank))
        .route("/rerank", post(embeddings::rerank))
        .route("/tokenize", post(texts::tokenize))
        .route("/detokenize", post(texts::detokenize))
        .route("/tokenizer_info", get(texts::tokenizer_info))
        .route("/apply-template", post(texts::apply_template))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

async fn unknown_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such path; GET /openapi.json lists all").with_code("unknown_url")
}

async fn unknown_method() -> ApiError {
    let message = "this path has another method; GET /openapi.json lists all";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}

/// A response in JSON.
fn json(value: &impl Serialize) -> Result<Response> {
    let text = serde_json::to_string(value).map_err(ApiError::internal)?;
    Ok(([(axum::http::header::CONTENT_TYPE, "application/json")], text).into_response())
}
