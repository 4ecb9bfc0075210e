//! Starts and stops the server of the ranking page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llm_feedback::store::{AnnotatorId, Store};

use super::options::FeedbackOptions;
use super::routes::router;
use crate::error::{ApiError, Result};
use crate::limits::Limits;
use crate::listen::{Listening, ServeError};
use crate::work::Work;

/// Limits of this server: its requests are small.
pub(super) const LIMITS: Limits = Limits {
    max_body: 256 << 10,
    max_connections: 256,
    header_timeout: Duration::from_secs(30),
    body_timeout: Duration::from_secs(30),
    stall_timeout: Duration::from_secs(30),
};

/// How many requests may wait for the database.
const MAX_PENDING: usize = 128;

/// A running server of the ranking page.
///
/// ```no_run
/// use llm_feedback::store::Store;
/// use llm_serve::feedback::{FeedbackOptions, FeedbackServer};
///
/// let store = Store::open("votes.sqlite")?;
/// let server = FeedbackServer::start(store, "127.0.0.1:8090".parse()?, FeedbackOptions::default())?;
/// println!("http://{}/", server.address());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FeedbackServer {
    listening: Listening,
}

impl FeedbackServer {
    /// Listens on `address` (port 0: any free port) and serves the items of `store`.
    pub fn start(store: Store, address: SocketAddr, options: FeedbackOptions) -> std::result::Result<Self, ServeError> {
        let listening = Listening::start(address, LIMITS, |bound, _| {
            let loopback = bound.ip().is_loopback();
            router(Arc::new(App {
                store,
                tokens: options.tokens || !loopback,
                loopback,
                options,
                work: Work::new(MAX_PENDING),
            }))
        })?;
        Ok(Self { listening })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Stops; requests that run may take until `deadline`. It blocks the calling thread, which must not be one of an async runtime.
    pub fn shutdown(self, deadline: Duration) {
        self.listening.stop();
        self.listening.end(deadline);
    }
}

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
    /// The annotator with this token, or without tokens the one with this name, who is added if new.
    pub(super) fn asker(&self, token: Option<&str>, name: Option<&str>) -> Result<AnnotatorId> {
        let unknown = |message: &str| ApiError::new(axum::http::StatusCode::UNAUTHORIZED, message);
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
