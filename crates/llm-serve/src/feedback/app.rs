//! What all requests of the pages share: the database, who asks, and the thread that works for them.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use llm_feedback::store::{AnnotatorId, Store};
use serde::de::DeserializeOwned;

use super::options::FeedbackOptions;
use super::wire::Named;
use crate::body::read;
use crate::error::{ApiError, Result};
use crate::guard::bearer;
use crate::limits::Limits;
use crate::wire::json::parse;
use crate::work::Work;

/// Limits of this server: its requests are small.
pub(super) const LIMITS: Limits = Limits {
    max_body: 256 << 10,
    max_connections: 256,
    header_timeout: std::time::Duration::from_secs(30),
    body_timeout: std::time::Duration::from_secs(30),
    stall_timeout: std::time::Duration::from_secs(30),
};

/// How many requests may wait for the database.
const MAX_PENDING: usize = 128;

/// What all requests share.
#[derive(Debug)]
pub(super) struct App {
    pub(super) store: Store,
    pub(super) options: FeedbackOptions,
    /// Whether annotators need tokens.
    pub(super) tokens: bool,
    pub(super) loopback: bool,
    pub(super) work: Work,
}

impl App {
    /// `loopback`: the server listens for this machine only.
    pub(super) fn new(store: Store, options: FeedbackOptions, loopback: bool) -> Self {
        Self { store, tokens: options.tokens || !loopback, loopback, options, work: Work::new(MAX_PENDING) }
    }

    /// The annotator with this token, or without tokens the one with this name, who is added if new.
    pub(super) fn asker(&self, token: Option<&str>, name: Option<&str>) -> Result<AnnotatorId> {
        let unknown = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message);
        if self.tokens {
            let token = token.ok_or_else(|| unknown("the token is missing"))?;
            let found =
                self.store.authenticate(token).map_err(of_store)?.ok_or_else(|| unknown("the token is not valid"))?;
            return Ok(found.id);
        }
        let name = name.map(str::trim).filter(|name| !name.is_empty()).ok_or_else(|| unknown("the name is missing"))?;
        self.store.annotator(name).map_err(of_store)
    }
}

/// The error of a request for an error of the database.
pub(super) fn of_store(error: llm_feedback::Error) -> ApiError {
    match error.is_callers_fault() {
        true => ApiError::invalid("", error.to_string()),
        false => ApiError::internal(error),
    }
}

/// Reads a request, finds out who asks, and answers on a thread that may wait for the database.
pub(super) async fn act<T: DeserializeOwned, A: Send + 'static>(
    app: &Arc<App>,
    headers: HeaderMap,
    body: Body,
    answer: impl FnOnce(&App, AnnotatorId, T) -> Result<A> + Send + 'static,
) -> Result<A> {
    let bytes = read(&headers, body, LIMITS).await?;
    let token = bearer(&headers).map(str::to_owned);
    let shared = Arc::clone(app);
    let work = move || {
        let named: Named = parse(&bytes)?;
        let asker = shared.asker(token.as_deref(), named.annotator.as_deref())?;
        answer(&shared, asker, parse(&bytes)?)
    };
    app.work.run(work).await
}
