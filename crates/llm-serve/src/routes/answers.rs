//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::json;
use crate::answer::chat::ChatAnswer;
use crate::answer::completion::CompletionAnswer;
use crate::answer::running::Running;
use crate::answer::sse::{Answer, stream};
use crate::app::App;
use crate::body::read;
use crate::error::Result;
use crate::prepare;
use crate::wire::chat::{ChatChunk, ChatRequest, ChatResponse};
use crate::wire::completion::{CompletionRequest, CompletionResponse};

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses(
    (status = 200, description = "The answer", content((ChatResponse = "application/json"), (ChatChunk = "text/event-stream"))),
))]
pub(super) async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let (accepted, form, app) = {
        let shared = Arc::clone(&app);
        app.work
            .run(move || prepare::chat::accept(&shared, &body))
            .await
            .map(|(accepted, form)| (accepted, form, app))?
    };
    let streamed = form.stream;
    let mut answer = ChatAnswer::new(Arc::clone(&app), &accepted, form);
    let mut running = Running::new(accepted.generations);
    if streamed {
        return stream(app, Answer::Chat(answer), running).await;
    }
    let mut chunks = Vec::new();
    while let Some((_, event)) = running.next().await {
        chunks.extend(answer.push(event)?);
    }
    json(&answer.response(chunks))
}

/// Continues texts.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, responses(
    (status = 200, description = "The answers", content((CompletionResponse = "application/json"), (CompletionResponse = "text/event-stream"))),
))]
pub(super) async fn completions(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let (accepted, form) = app.work.run(move || prepare::completion::accept(&shared, &body)).await?;
    let streamed = form.stream;
    let mut answer = CompletionAnswer::new(Arc::clone(&app), &accepted, form);
    let mut running = Running::new(accepted.generations);
    if streamed {
        return stream(app, Answer::Completion(answer), running).await;
    }
    let mut parts = answer.open();
    while let Some((prompt, event)) = running.next().await {
        parts.extend(answer.push(prompt, event)?);
    }
    json(&answer.response(parts))
}
