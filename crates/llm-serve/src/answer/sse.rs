//! Streams: server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use llm_engine::Event;
use serde::Serialize;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use super::chat::ChatAnswer;
use super::completion::CompletionAnswer;
use super::running::Running;
use crate::app::App;
use crate::error::{ApiError, Result};

/// An answer that is streamed.
pub(crate) enum Answer {
    Chat(ChatAnswer),
    Completion(CompletionAnswer),
}

impl Answer {
    fn open(&mut self) -> Result<Vec<String>> {
        match self {
            Self::Chat(answer) => frames(answer.open()),
            Self::Completion(answer) => frames(answer.open()),
        }
    }

    fn push(&mut self, prompt: usize, event: Event) -> Result<Vec<String>> {
        match self {
            Self::Chat(answer) => frames(answer.push(event)?),
            Self::Completion(answer) => {
                let mut parts = answer.push(prompt, event)?;
                parts.retain(|part| {
                    part.choices.iter().any(|choice| {
                        !choice.text.is_empty() || choice.logprobs.is_some() || choice.finish_reason.is_some()
                    })
                });
                frames(parts)
            }
        }
    }

    fn close(&self) -> Result<Vec<String>> {
        match self {
            Self::Chat(answer) => frames(answer.close()),
            Self::Completion(answer) => frames(answer.close()),
        }
    }
}

/// The text of events.
fn frames(values: impl IntoIterator<Item = impl Serialize>) -> Result<Vec<String>> {
    values.into_iter().map(|value| Ok(frame(&serde_json::to_string(&value).map_err(ApiError::internal)?))).collect()
}

fn frame(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// The body of a stream. It is dropped when the client goes away, and with it the generations, which ends them.
struct Events {
    app: Arc<App>,
    answer: Answer,
    running: Running,
    ready: VecDeque<String>,
    ended: bool,
    /// When the next comment is due.
    comment: Pin<Box<Sleep>>,
    interval: Duration,
}

impl Events {
    fn take(&mut self, frames: Result<Vec<String>>) {
        match frames {
            Ok(frames) => self.ready.extend(frames),
            Err(error) => {
                self.app.metrics.reject(error.status);
                self.ready.push_back(frame(&error.body().to_string()));
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.ready.push_back(frame("[DONE]"));
    }
}

impl Stream for Events {
    type Item = std::result::Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.ready.pop_front() {
                this.comment.as_mut().reset(Instant::now() + this.interval);
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match this.running.poll_next(context) {
                Poll::Ready(Some((prompt, event))) => {
                    let frames = this.answer.push(prompt, event);
                    this.take(frames);
                }
                Poll::Ready(None) => {
                    let frames = this.answer.close();
                    let failed = frames.is_err();
                    this.take(frames);
                    if !failed {
                        this.end();
                    }
                }
                Poll::Pending => {
                    if this.comment.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    this.ready.push_back(": ping\n\n".to_owned());
                }
            }
        }
    }
}

/// The response of a stream. It waits a moment for the first event, so that an early error is an HTTP status.
pub(crate) async fn stream(app: Arc<App>, mut answer: Answer, mut running: Running) -> Result<Response> {
    let mut ready: VecDeque<String> = answer.open()?.into();
    let interval = app.options.keep_alive;
    if let Ok(Some((prompt, event))) = tokio::time::timeout(interval, running.next()).await {
        ready.extend(answer.push(prompt, event)?);
    }
    let comment = Box::pin(tokio::time::sleep(interval));
    let events = Events { app, answer, running, ready, ended: false, comment, interval };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}
